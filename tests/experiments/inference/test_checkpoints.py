"""Checkpoints that are damaged or of something else: which it is, in one sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.checkpoints import check_fits, config_beside, load_module, read_checkpoint
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.lightning_modules import DeepLabModule


def test_cut_short(run: RunFolder) -> None:
    whole = run.last_checkpoint.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 200):
        run.last_checkpoint.write_bytes(whole[:length])
        message = rf"last.ckpt is damaged or no checkpoint \({length:,} bytes; was it cut short"
        with pytest.raises(UserError, match=message):
            read_checkpoint(run.last_checkpoint)
        with pytest.raises(UserError, match=message):
            load_module(run.last_checkpoint, run.config)


def test_cut_short_on_the_command_line(run: RunFolder) -> None:
    run.last_checkpoint.write_bytes(run.last_checkpoint.read_bytes()[:5000])
    with pytest.raises(SystemExit, match="beyondpixel: .*last.ckpt is damaged or no checkpoint"):
        main(["test", f"--ckpt_path={run.last_checkpoint}"])


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
        lambda: load_module(run.last_checkpoint, run.config),
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
    with pytest.raises(UserError, match="is of the class mine.Net, which cannot be imported: No module named 'mine'"):
        load_module(run.last_checkpoint, config)


def test_a_checkpoint_without_its_config(run: RunFolder, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "last.ckpt"
    moved.parent.mkdir()
    moved.write_bytes(run.last_checkpoint.read_bytes())
    with pytest.raises(UserError, match=re.escape("give the run's config with --config FILE")):
        config_beside(moved)
    assert config_beside(moved, run.config_file) == run.config
    (tmp_path / "other.yaml").write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match=r"other.yaml has no model.class_path: expected the config.yaml of a run"):
        config_beside(moved, tmp_path / "other.yaml")
