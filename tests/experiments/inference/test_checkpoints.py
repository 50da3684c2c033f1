"""Checkpoints that are damaged or of something else: which it is, in one sentence; damage is done to real files."""

import io
import json
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import (
    check_fits,
    config_of,
    find_checkpoint,
    load_trained,
    newest_whole_checkpoint,
    read_checkpoint,
)
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules import DeepLabModule


def test_cut_short(run: RunFolder) -> None:
    whole = run.last_checkpoint.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        run.last_checkpoint.write_bytes(whole[:length])
        message = rf"last.ckpt is damaged or no checkpoint \({length:,} bytes; was it cut short"
        with pytest.raises(UserError, match=message):
            read_checkpoint(run.last_checkpoint)
        with pytest.raises(UserError, match=message):
            load_trained(run.last_checkpoint, run.config)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkpoint small enough to be damaged a thousand times."""
    content = {
        "state_dict": {"weight": torch.arange(60.0), "bias": torch.arange(9)},
        "hyper_parameters": {"num_classes": 3, "lr": 0.1},
    }
    torch.save(content, tmp_path / "small.ckpt")
    return tmp_path / "small.ckpt"


def as_text(content: dict[str, Any]) -> str:
    return repr({name: value.tolist() for name, value in content["state_dict"].items()}) + repr(
        content["hyper_parameters"]
    )


def tried(file: Path) -> tuple[str | None, dict[str, Any] | None]:
    """One line that says what is wrong with a file, or its content."""
    try:
        return None, read_checkpoint(file)
    except UserError as error:
        message = str(error)
    assert file.name in message
    assert "\n" not in message
    return message, None


def test_one_flipped_bit_is_named_or_changes_nothing(small: Path) -> None:
    """Torch's own reader loads other numbers."""
    whole, expected = small.read_bytes(), as_text(read_checkpoint(small))
    generator = random.Random(0)
    refused = loaded_otherwise = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        small.write_bytes(damaged)
        refusal, content = tried(small)
        refused += refusal is not None
        assert content is None or as_text(content) == expected  # in padding, say
        try:
            unchecked = torch.load(io.BytesIO(damaged), weights_only=True)
            loaded_otherwise += as_text(unchecked) != expected
        except Exception:
            continue
    assert refused > 100
    assert loaded_otherwise > 10  # what the check is for


def test_archives_of_anything_with_right_checksums(small: Path) -> None:
    """Who writes checksums anew can write any pickle: that is refused as well, and nothing of it is run."""
    with zipfile.ZipFile(small) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickle_name = next(name for name in parts if name.endswith("data.pkl"))
    generator = random.Random(1)
    for _ in range(300):
        stream = bytearray(parts[pickle_name])
        for _ in range(generator.randint(1, 4)):
            stream[generator.randrange(len(stream))] = generator.randrange(256)
        with zipfile.ZipFile(small, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, bytes(stream) if name == pickle_name else part)
        tried(small)


def test_a_flipped_bit_in_a_weight_on_the_command_line(run: RunFolder, tmp_path: Path) -> None:
    whole = bytearray(run.last_checkpoint.read_bytes())
    whole[len(whole) // 2] ^= 1
    run.last_checkpoint.write_bytes(whole)
    message = r"beyondpixel: .*last.ckpt is damaged or no checkpoint \(.* bytes; its part .* has changed since"
    for words in (["test"], ["validate"], ["predict", f"--output={tmp_path}"]):
        with pytest.raises(SystemExit, match=message):
            main([*words, f"--ckpt_path={run.last_checkpoint}"])
    with pytest.raises(SystemExit, match=message):
        main(["fit", f"--config={run.config_file}", f"--ckpt_path={run.last_checkpoint}", "--overwrite"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": [1], "hyper_parameters": {}}, "is no checkpoint of a SegmentationModule"),
        ({"state_dict": {}, "hyper_parameters": None}, "is no checkpoint of a SegmentationModule"),
        ([1, 2], "is no checkpoint of a SegmentationModule"),
    ],
)
def test_whole_files_with_other_content(run: RunFolder, content: Any, message: str) -> None:
    torch.save(content, run.last_checkpoint)
    with pytest.raises(SystemExit, match=message):
        main(["test", f"--ckpt_path={run.last_checkpoint}"])


def test_weights_that_are_none(run: RunFolder) -> None:
    content = torch.load(run.last_checkpoint, weights_only=True)
    content["state_dict"]["network.classifier.bias"] = "text"
    torch.save(content, run.last_checkpoint)
    with pytest.raises(UserError, match=r"network.classifier.bias is a number in the checkpoint and 11 in the module"):
        load_trained(run.last_checkpoint, run.config)


def test_last_best_and_what_is_missing(run: RunFolder, tmp_path: Path) -> None:
    assert find_checkpoint("last", run.config_file) == run.last_checkpoint.resolve()
    assert find_checkpoint(str(run.last_checkpoint)) == run.last_checkpoint
    for path, message in (
        ("best", r"no checkpoint .*/seed3/checkpoints/best.ckpt: expected a file"),
        ("hpc", "no checkpoint hpc: expected a file, last or best"),
        (tmp_path / "x.ckpt", r"no checkpoint .*x.ckpt: expected a file"),
    ):
        with pytest.raises(UserError, match=message):
            find_checkpoint(path, run.config_file)
    with pytest.raises(UserError, match=r"--ckpt_path last: of which run\? Add --config RUN/config.yaml"):
        find_checkpoint("last")


def test_a_resume_falls_back_to_the_checkpoint_before(run: RunFolder) -> None:
    assert newest_whole_checkpoint(run) == run.last_checkpoint
    run.previous_checkpoint.write_bytes(run.last_checkpoint.read_bytes())
    run.last_checkpoint.write_bytes(run.last_checkpoint.read_bytes()[:5000])
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged .*from the previous checkpoint, .*previous.ckpt"):
        assert newest_whole_checkpoint(run) == run.previous_checkpoint
    # the damaged one is never taken for the one before
    assert sorted(file.name for file in run.last_checkpoint.parent.iterdir()) == ["last.damaged.ckpt", "previous.ckpt"]
    assert newest_whole_checkpoint(run) == run.previous_checkpoint
    run.previous_checkpoint.write_bytes(b"short")
    with pytest.raises(UserError, match="no complete checkpoint is left: add --overwrite to train from scratch"):
        newest_whole_checkpoint(run)
    run.previous_checkpoint.unlink()
    assert newest_whole_checkpoint(run) is None


def test_a_bare_state_dict_and_foreign_objects(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"bare.pth is no checkpoint of a SegmentationModule: expected state_dict and"):
        read_checkpoint(tmp_path / "bare.pth")
    torch.save({"state_dict": {}, "hyper_parameters": {}, "path": Path("x")}, tmp_path / "objects.ckpt")
    with pytest.raises(UserError, match="holds objects that are not loaded, because loading them could run any code"):
        read_checkpoint(tmp_path / "objects.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 12}, "num_classes is 11 in the checkpoint and 12 in the config"),
        (
            {"num_classes": 11, "encoder": "resnet34"},
            "encoder is resnet18 in the checkpoint and resnet34 in the config",
        ),
        ({"num_classes": 11, "variant": "v3"}, "variant is v3plus in the checkpoint and v3 in the config"),
    ],
)
def test_another_network(run: RunFolder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"does not fit this model: {message}. Use the config of its run"):
        check_fits(run.last_checkpoint, DeepLabModule(**{"encoder": "resnet18", **arguments}))


def test_what_plays_no_part_may_differ(run: RunFolder) -> None:
    check_fits(run.last_checkpoint, DeepLabModule(11, encoder="resnet18", loss="rmi", lr=3.0, output_stride=8))


def test_another_network_on_the_command_line(run: RunFolder) -> None:
    with pytest.raises(SystemExit, match="encoder is resnet18 in the checkpoint and resnet34 in the config"):
        main(["test", f"--ckpt_path={run.last_checkpoint}", "--model.encoder=resnet34"])


def other_code(run: RunFolder) -> None:
    """As if the module had been written otherwise when the run was trained."""
    run.record = {**run.record, "git_commit": "0123abc", "environment": {"packages": {"beyondpixel": "0.0.7"}}}
    content = torch.load(run.last_checkpoint, weights_only=True)
    weight = content["state_dict"].pop("network.classifier.bias")
    content["state_dict"]["network.last.bias"] = weight
    torch.save(content, run.last_checkpoint)


def test_other_code_is_named(run: RunFolder) -> None:
    other_code(run)
    for refused in (
        lambda: load_trained(run.last_checkpoint, run.config),
        lambda: check_fits(run.last_checkpoint, DeepLabModule(11, encoder="resnet18")),
    ):
        with pytest.raises(UserError) as caught:
            refused()
        message = str(caught.value)
        assert "last.ckpt does not fit" in message
        assert "made by commit 0123abc, this is " in message
        assert "beyondpixel was 0.0.7 and is " in message
        assert "network.last.bias" in message
        assert message.endswith("Check out the code that made it, or train again")
        assert message.count("\n") == 0


def test_a_class_that_is_gone(run: RunFolder) -> None:
    config = {**run.config, "model": {"class_path": "mine.Net"}}
    with pytest.raises(
        UserError,
        match="is of mine.Net and .*ShapesDataModule, which cannot be built: .*'mine' may not be imp",
    ):
        load_trained(run.last_checkpoint, config)


def test_the_checkpoints_own_hyper_parameters_count(run: RunFolder) -> None:
    """An output stride changes no shape, and other predictions would be the only sign."""
    config = run.config
    config["model"]["init_args"]["output_stride"] = 8
    module, data = load_trained(run.last_checkpoint, config)
    assert module.hparams["output_stride"] == 16
    assert module.num_classes == data.num_classes
    assert not module.training


def test_a_checkpoint_without_its_config(run: RunFolder, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "last.ckpt"
    moved.parent.mkdir()
    moved.write_bytes(run.last_checkpoint.read_bytes())
    with pytest.raises(UserError, match=re.escape("give the run's config with --config FILE")):
        config_of(moved)
    assert config_of(moved, run.config_file) == run.config
    changed = config_of(moved, run.config_file, {"data.num_test": 2})
    assert changed["data"]["init_args"] == {**run.config["data"]["init_args"], "num_test": 2}
    (tmp_path / "other.yaml").write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match=r"other.yaml has no model.class_path: expected the config.yaml of a run"):
        config_of(moved, tmp_path / "other.yaml")
