"""Rows that train nothing: they come after the row whose checkpoint they test, and never stand for another one's."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Trainer

from beyondpixel.experiments.checkpoint_files import checksum
from beyondpixel.experiments.compare.rows import collect_rows
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.image_areas import ImageAreas
from beyondpixel.experiments.inference import protocol
from beyondpixel.experiments.launch import checks, local
from beyondpixel.experiments.launch.cell import run_cell
from beyondpixel.experiments.launch.cells import Cell, expand
from beyondpixel.experiments.launch.launching import launch
from beyondpixel.experiments.launch.lock import RunLock
from beyondpixel.experiments.launch.plan import Plan, make_plan
from beyondpixel.experiments.launch.resources import Resources
from beyondpixel.experiments.launch.sweep import write_sweep
from beyondpixel.experiments.recorder import identify
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.lightning_modules import DeepLabModule

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def table(place: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rows crf, which sorts before its source, and zce; in the working directory."""
    for file in (place / "tiny").iterdir():
        file.unlink()
    tiny["model"]["init_args"]["loss"] = "ce"
    tiny["data"]["init_args"]["num_workers"] = 0
    (place / "tiny" / "zce.yaml").write_text(yaml.safe_dump({"config": tiny}))
    write_crf(place, "crf:2")
    monkeypatch.chdir(place)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "argv", ["beyondpixel"])
    return place / "tiny"


def write_crf(place: Path, postprocess: str) -> None:
    evaluate = {"run": "tiny/zce", "postprocess": postprocess}
    (place / "tiny" / "crf.yaml").write_text(yaml.safe_dump({"evaluate": evaluate, "reference": {"value": 50.0}}))


def plan(*rows: str, **options: Any) -> Plan:
    places = [f"tiny/{row}" for row in rows] or ["tiny"]
    return make_plan(places, seeds=[1], output=Path("outputs"), **{"overrides": {}, **options})


def situations(*rows: str, **options: Any) -> dict[str, str]:
    return {cell.spec.row: str(situation) for cell, situation in plan(*rows, **options)}


def cells() -> tuple[Cell, Cell]:
    crf, zce = expand(["tiny"], seeds=[1], output=Path("outputs"), overrides={}, mistakes=[])
    return crf, zce


def train(seed: int = 0) -> RunFolder:
    """A finished source without the training."""
    _, cell = cells()
    cell.prepare()
    cell.folder.record = identify(cell.folder, cell.config)
    torch.manual_seed(seed)
    module = DeepLabModule(11, encoder="resnet18", loss="ce")
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(cell.folder.last_checkpoint)
    cell.folder.update_state(status="done", step=8)
    return cell.folder


def evaluated() -> Cell:
    """A finished evaluation, done in this process."""
    crf, _ = cells()
    crf.prepare()
    run_cell(crf.folder.path)
    return crf


@pytest.mark.slow
def test_source_and_evaluation_in_one_launch(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"seeds": [1], "output": Path("outputs"), "overrides": {}, "jobs": 2}
    crf, zce = launch(["tiny"], **options)
    said = capsys.readouterr().out
    assert said.index("tiny/zce seed1 is done") < said.index("tiny/crf seed1 runs")
    assert crf.folder.state["status"] == zce.folder.state["status"] == "done"
    assert "test/crf_seconds" in crf.folder.log_file.read_text()
    areas = [ImageAreas.load(cell.folder.images_file("test")) for cell in (crf, zce)]
    assert not (areas[0].predicted == areas[1].predicted).all()
    assert (areas[0].truth == areas[1].truth).all()

    base, row = collect_rows(["outputs"], metric="test/mIoU")
    assert (base.name, row.name, base.is_baseline) == ("zce", "crf", True)
    assert (row.axes["postprocess"], base.axes["postprocess"], row.reference) == ("crf:2", None, 50.0)
    assert row.difference == pytest.approx(areas[0].mean_iou() - areas[1].mean_iou())
    assert row.interval is not None
    assert row.interval[0] <= row.difference <= row.interval[1]
    assert not [remark for remark in row.remarks if "uncommitted" not in remark]  # the same but for the CRF

    launch(["tiny"], **options)
    assert "0 of 2 runs to do" in capsys.readouterr().out


def test_a_cell_tests_the_sources_checkpoint_and_says_which(table: Path) -> None:
    source = train()
    crf = evaluated()
    folder = crf.folder
    assert folder.state == {"status": "done", "step": 8, "error": None}
    assert folder.record["name"] == "tiny/crf"
    evaluation = folder.record["evaluation"]
    assert evaluation["run"] == "tiny/zce"
    assert evaluation["postprocess"] == folder.record["axes"]["postprocess"] == "crf:2"
    assert evaluation["checkpoint"] == checksum(source.last_checkpoint)
    assert evaluation["wandb_id"] == source.record["wandb_id"]
    assert not folder.last_checkpoint.exists()
    assert situations() == {"crf": "done and kept", "zce": "done and kept"}
    before = folder.summary
    run_cell(folder.path)  # what is done is not done again
    assert folder.summary == before


@pytest.mark.slow
def test_a_finished_evaluation_stands_for_no_other_training_and_no_other_settings(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = train()
    crf = evaluated()
    source.last_checkpoint.rename("kept.ckpt")  # to save space
    assert situations()["crf"] == "done and kept"
    train(seed=1)
    assert situations()["crf"] == "replaces an evaluation of an earlier training"
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", "import sys; print(sys.argv)"))
    launch(["tiny"], seeds=[1], output=Path("outputs"), overrides={})
    assert crf.folder.summary == {}  # the old result is gone before the new one is there
    assert "evaluation" not in crf.folder.record

    Path("kept.ckpt").replace(source.last_checkpoint)
    evaluated()
    write_crf(table.parent, "crf:3")
    with pytest.raises(
        UserError, match=r"finished evaluation with other settings \(evaluate.postprocess was crf:2 and"
    ):
        plan()
    with pytest.raises(UserError, match="to replace it alone: beyondpixel launch tiny/crf --seeds 1 --overwrite"):
        plan()
    assert situations("crf", overwrite=True) == {"crf": "replaces an evaluation that was done"}


def test_where_an_evaluation_is_follows_from_its_source(table: Path) -> None:
    crf, zce = cells()
    zce.prepare()
    assert situations() == {"crf": "starts after tiny/zce seed1", "zce": "starts"}
    with RunLock(zce.folder.lock_file):
        assert situations()["crf"].startswith("waits for tiny/zce seed1, which is running (process ")
        assert situations("crf")["crf"].startswith("waits for tiny/zce seed1, which is running (process ")
    zce.folder.update_state(status="failed", error="it rained")
    assert situations() == {
        "crf": "left out: tiny/zce seed1, which it tests, failed in an earlier launch",
        "zce": "failed: it rained",
    }
    assert situations(retry_failed=True) == {"crf": "starts after tiny/zce seed1", "zce": "starts"}
    train()
    assert situations() == {"crf": "starts", "zce": "done and kept"}
    assert situations("crf") == {"crf": "starts"}
    crf.folder.update_state(status="done")
    assert situations(overwrite=True) == {
        "crf": "replaces an evaluation that was done, after tiny/zce seed1",
        "zce": "replaces a run that was done",
    }
    crf.folder.update_state(status="failed", error="it snowed")
    assert situations()["crf"] == "failed: it snowed"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("new", r"tiny/zce seed1 has not been trained in outputs/tiny/zce/seed1, and this row tests its checkpoint; "),
        ("failed", r"seed1 failed in .*: beyondpixel launch tiny/zce tiny/crf --seeds 1 --retry-failed, with"),
        ("interrupted", r"seed1 is not finished \(it is interrupted\) .*: beyondpixel launch tiny/zce tiny/crf "),
    ],
)
def test_a_source_that_is_not_there_is_told_with_the_command(table: Path, status: str, message: str) -> None:
    _, zce = cells()
    if status != "new":
        zce.folder.update_state(status=status)
    with pytest.raises(UserError, match=rf"nothing was started:\ntiny/crf\.yaml:3: evaluate\.run: .*{message}"):
        plan("crf")


def test_a_source_that_does_not_fit(table: Path) -> None:
    source = train()
    assert situations("crf", overrides={"trainer.accelerator": "auto"}) == {"crf": "starts"}  # where it runs
    config = source.config
    del config["model"]["init_args"]["structure_scores"]  # which the code that trained it had not yet
    config, source.config = source.config, config
    assert situations("crf") == {"crf": "starts"}
    source.config = config
    with pytest.raises(
        UserError, match=r"zce/seed1 was trained with another config \(trainer.max_steps was 8 and is 9"
    ):
        plan("crf", overrides={"trainer.max_steps": 9})
    source.last_checkpoint.unlink()
    for rows in (["crf"], []):
        with pytest.raises(
            UserError, match=r"last\.ckpt is gone, .* beyondpixel launch tiny/zce --seeds 1 --overwrite"
        ):
            plan(*rows)


def test_what_is_checked_before_the_source_is_trained(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    real = checks._build
    monkeypatch.setattr(checks, "_build", lambda config: built.append(config) or real(config))
    sizes = checks.check_parts(plan().work, [])
    assert sizes["tiny/crf"] == 0 < sizes["tiny/zce"]
    assert len(built) == 2  # once by each of both calls above
    write_crf(table.parent, "crf:many")
    with pytest.raises(UserError, match=r"crf\.yaml:1: evaluate\.postprocess: expected crf:STEPS .*got 'crf:many'"):
        plan()
    write_crf(table.parent, "crf:2")

    def missing() -> None:
        raise ModuleNotFoundError("pip install 'beyondpixel[crf]'")

    monkeypatch.setattr(protocol, "import_package", missing)
    with pytest.raises(UserError, match=r"crf\.yaml:1: evaluate\.postprocess crf:2: pip install 'beyondpixel\[crf\]'"):
        plan()


FAKE = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
row = folder.parent.name
time.sleep(0.3 if row == "zce" else 0)
with open("order", "a") as file:
    file.write(row + " ")
if row in FAIL:
    (folder / "state.json").write_text(json.dumps({"status": "failed", "error": "it rained"}))
    sys.exit(1)
(folder / "state.json").write_text(json.dumps({"status": "done"}))
"""


@pytest.fixture
def fake(table: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Launch the table with processes that train nothing; what was said, and the error."""

    def launched(*fail: str, **options: Any) -> str:
        Path("fake.py").write_text(f"FAIL = {fail!r}\n{FAKE}")
        launch(["tiny"], seeds=[1], output=Path("outputs"), overrides={}, jobs=3, **options)
        return Path("order").read_text()

    monkeypatch.setattr(local, "COMMAND", (sys.executable, "fake.py"))
    monkeypatch.setattr(local, "SECONDS_BETWEEN_LOOKS", 0.02)
    return launched


def test_an_evaluation_starts_when_its_source_is_done(fake: Callable[..., str]) -> None:
    assert fake() == "zce crf "


def test_an_evaluation_of_a_failed_source_is_left_out(
    fake: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match=r"1 of 2 runs failed: tiny/zce seed1 \(left out for that: tiny/crf seed1\); see"
    ):
        fake("zce")
    assert "tiny/crf seed1 is left out: tiny/zce seed1, which it tests, failed" in capsys.readouterr().out
    assert Path("order").read_text() == "zce "
    with pytest.raises(UserError, match="1 runs failed in an earlier launch and were left alone: tiny/zce seed1"):
        fake()
    assert fake(retry_failed=True) == "zce zce crf "


def test_ctrl_c_during_an_evaluation(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning itself would end the process as if the run had failed."""
    train()
    crf, _ = cells()
    crf.prepare()

    def pressed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("beyondpixel.lightning_modules.DeepLabModule.test_step", pressed)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_cell(crf.folder.path)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert crf.folder.state["status"] == "interrupted"
    assert crf.folder.state["error"] is None


def test_one_device_with_all_of_a_nodes_cpus(table: Path) -> None:
    crf, zce = expand(["tiny"], seeds=[1], output=Path("o"), overrides={"trainer.devices": 4}, mistakes=[])
    assert (crf.config["trainer"]["devices"], zce.config["trainer"]["devices"]) == (1, 4)
    given = Resources(gpus=4, nodes=2, cpus=3).of_evaluation()
    assert (given.gpus, given.nodes, given.cpus) == (1, 1, 12)
    assert Resources(gpus=0).of_evaluation() == Resources(gpus=0)


def test_a_sweep_leaves_them_out(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"seeds": [1], "output": Path("outputs"), "overrides": {}}
    written = write_sweep(Path("sweep.yaml"), ["tiny"], **options)
    assert [Path(spec).name for spec in written["parameters"]["spec"]["values"]] == ["zce.yaml"]
    assert "Not in it, because they test rows that it trains: " in capsys.readouterr().out
    train()
    with pytest.raises(UserError, match=r"tiny/crf\.yaml: train nothing"):
        write_sweep(Path("sweep.yaml"), ["tiny/crf"], **options)


def test_a_checkpoints_checksum_is_of_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "last.ckpt", tmp_path / "b.ckpt"
    first.parent.mkdir()
    torch.save({"weight": torch.ones(3)}, first)
    torch.save({"weight": torch.ones(3)}, second)
    assert checksum(first) == checksum(second) is not None
    torch.save({"weight": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}, second)
    assert checksum(first) != checksum(second)
    second.write_text(json.dumps("cut short"))
    assert checksum(second) is None
