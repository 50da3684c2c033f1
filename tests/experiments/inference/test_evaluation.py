"""A trained module's test with inferers, against a plain loop over the same images."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from beyondpixel.experiments.checksums import checksum
from beyondpixel.experiments.cli import main
from beyondpixel.experiments.evaluation_recorder import EvaluationRecorder
from beyondpixel.experiments.image_counts import ImageCounts
from beyondpixel.experiments.inference.checkpoints import load_trained
from beyondpixel.experiments.inference.crf import DenseCRF
from beyondpixel.experiments.inference.evaluate_run import evaluate_checkpoint, missing_evaluations
from beyondpixel.experiments.inference.inferers import parse_inferer
from beyondpixel.experiments.inference.mean_field import mean_field
from beyondpixel.experiments.run.folder import RunFolder, Status
from beyondpixel.lightning_modules.callbacks import InferenceTime
from beyondpixel.lightning_modules.metrics import MeanIoU

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def plain_loop(run: RunFolder, *, crf_steps: int = 0, flip: bool = False) -> float:
    """mIoU, one image at a time, from the data set's own arrays."""
    module, data = load_trained(run.last_checkpoint)
    scores = MeanIoU(module.num_classes)
    for sample in data.dataset("test"):
        assert sample.mask is not None
        image = (
            torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255 - torch.tensor(data.mean).view(3, 1, 1)
        ) / (torch.tensor(data.std).view(3, 1, 1))
        with torch.no_grad():
            probs = module(image).softmax(1)
            if flip:
                probs = (probs + module(image.flip(3)).softmax(1).flip(3)) / 2
        if crf_steps:
            probs = torch.from_numpy(mean_field(sample.image, probs[0].numpy(), steps=crf_steps))[None]
        scores.update(probs.argmax(1), torch.from_numpy(sample.mask).long()[None])
    return float(scores.compute()["mIoU"])


def figures_with(run: RunFolder, words: str, *callbacks: Any, **arguments: Any) -> dict[str, float]:
    module, data = load_trained(run.last_checkpoint)
    module.inferer = parse_inferer(words).build(data)
    trainer = Trainer(**QUIET, **arguments, callbacks=[*callbacks, EvaluationRecorder(None)])
    (figures,) = trainer.test(module, data, verbose=False)
    return dict(figures)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tta:flip", {"flip": True}),
        ("crf:2", {"crf_steps": 2}),
        ("tta:flip+crf:2", {"flip": True, "crf_steps": 2}),
    ],
)
def test_scores_are_those_of_a_plain_loop(run: RunFolder, words: str, expected: dict[str, Any]) -> None:
    figures = figures_with(run, words)
    assert figures["test/mIoU"] == pytest.approx(plain_loop(run, **expected), abs=1e-4)
    assert figures["test/mIoU"] != pytest.approx(plain_loop(run), abs=1e-4)  # it does make a difference
    assert "test/loss" not in figures
    assert ("test/crf_seconds" in figures) == ("crf" in words)


def test_the_crf_logs_the_median_of_its_own_time(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([5.0, 1.0, 2.0, 9.0, 3.0])
    monkeypatch.setattr(
        "beyondpixel.experiments.inference.crf.timed_mean_field", lambda image, probs, steps: (probs, next(seconds))
    )
    monkeypatch.setattr(DenseCRF, "_processes", type("InThisProcess", (), {"map": map}))
    assert figures_with(run, "crf:2")["test/crf_seconds"] == 3.0


def test_the_time_of_an_image_includes_the_crf(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the CRF of this process moves on: batches of the test are refined in other ones."""
    now = 0.0

    def slow(image: Any, probs: Any, steps: int) -> Any:
        nonlocal now
        now += 7.0
        return probs, 7.0

    monkeypatch.setattr("beyondpixel.experiments.inference.crf.timed_mean_field", slow)
    monkeypatch.setattr(DenseCRF, "_processes", type("InThisProcess", (), {"map": map}))
    monkeypatch.setattr("beyondpixel.lightning_modules.callbacks.inference_time.time.perf_counter", lambda: now)
    assert figures_with(run, "crf:1", InferenceTime(num_images=2))["test/seconds_per_image"] == 7.0


def test_fewer_batches_than_there_are(run: RunFolder) -> None:
    assert 0 <= figures_with(run, "crf:1", limit_test_batches=1)["test/mIoU"] <= 1


def evaluate_run(run: RunFolder, inferer: str) -> RunFolder:
    folder = evaluate_checkpoint("test", run.last_checkpoint, run.config, inferer=inferer)
    assert folder is not None
    return folder


def test_an_evaluation_is_complete_and_the_runs_own_results_stay(run: RunFolder) -> None:
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    run.record = {**run.record, "reference": {"value": 78.4}}
    assert missing_evaluations(run, ["crf:2+tta:flip", "crf:1"]) == ["crf:2+tta:flip", "crf:1"]
    folder = evaluate_run(run, "crf:2+tta:flip")
    assert folder.path == run.path / "evaluations" / "tta-flip-crf-2"
    assert [one.path for one in run.evaluations()] == [folder.path]
    assert sorted(file.name for file in folder.path.iterdir()) == [
        "confusion.npz", "run.json", "summary.json", "test_images.npz",
    ]  # fmt: skip
    expected = plain_loop(run, crf_steps=2, flip=True)
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["test/mIoU"] == pytest.approx(expected, abs=1e-4)
    assert summary["test/mIoU_low"] <= summary["test/mIoU"] <= summary["test/mIoU_high"]
    assert summary["test/seconds_per_image"] > summary["test/crf_seconds"] > 0
    assert folder.record["evaluation"] == {
        "words": "crf:2+tta:flip",
        "memory_rows": None,
        "tta": "flip",
        "window": None,
        "postprocess": "crf:2",
        "checkpoint": checksum(run.last_checkpoint),
    }
    axes = folder.record["axes"]
    assert (axes["tta"], axes["window"], axes["postprocess"], axes["loss"]) == ("flip", None, "crf:2", "bce")
    assert folder.record["row"] == run.record["row"]
    matrix = np.load(folder.confusion_file)["matrix"]
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert np.nanmean(iou) == pytest.approx(summary["test/mIoU"])
    assert ImageCounts.load(folder.images_file("test")).mean_iou() == pytest.approx(summary["test/mIoU"])
    unchanged = {file: file.read_bytes() for file in before if file.name != "run.json"}
    assert unchanged == {file: content for file, content in before.items() if file.name != "run.json"}
    assert missing_evaluations(run, ["crf:2+tta:flip", "tta:flip+crf:2", "crf:1"]) == ["crf:1"]


def test_an_evaluation_of_another_training_or_half_of_one_is_missing(run: RunFolder) -> None:
    folder = evaluate_run(run, "tta:flip")
    assert missing_evaluations(run, ["tta:flip"]) == []
    summary = (folder.path / "summary.json").read_text()
    for damage in ("", "[]", summary[: len(summary) // 2]):
        (folder.path / "summary.json").write_text(damage)
        assert missing_evaluations(run, ["tta:flip"]) == ["tta:flip"]
    (folder.path / "summary.json").write_text(summary)
    folder.images_file("test").unlink()
    assert missing_evaluations(run, ["tta:flip"]) == ["tta:flip"]
    evaluate_run(run, "tta:flip")
    content = torch.load(run.last_checkpoint, weights_only=True)
    content["state_dict"]["network.classifier.bias"][3] += 1
    torch.save(content, run.last_checkpoint)
    assert missing_evaluations(run, ["tta:flip"]) == ["tta:flip"]


def test_a_failure(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, images: Tensor) -> Tensor:
        raise RuntimeError("no memory left")

    evaluate_run(run, "tta:flip")
    monkeypatch.setattr("beyondpixel.lightning_modules.DeepLabModule.forward", broken)
    with pytest.raises(RuntimeError, match="no memory left"):
        evaluate_run(run, "tta:flip")
    assert run.evaluations() == []  # nothing of the earlier one is mixed with it


def test_by_hand_a_test_of_last_is_the_runs_result(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", f"--config={run.config_file}", "--ckpt_path", "last"])
    assert f"Scored {run.last_checkpoint.resolve()} on the test images; see {run.path.resolve()}" in _joined(capsys)
    assert run.summary["test/mIoU"] == pytest.approx(plain_loop(run), abs=1e-4)
    assert np.load(run.confusion_file)["matrix"].sum() > 0
    assert len(ImageCounts.load(run.images_file("test"))) == 5
    assert run.status is Status.DONE
    main(["validate", f"--ckpt_path={run.last_checkpoint}"])
    assert 0 <= run.summary["val/mIoU"] <= 1
    assert run.summary["test/mIoU"] == pytest.approx(plain_loop(run), abs=1e-4)
    assert run.images_file("val").exists()


def test_by_hand_other_tests_have_folders_of_their_own(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    best = run.last_checkpoint.with_name("best.ckpt")
    content = torch.load(run.last_checkpoint, weights_only=True)
    content["state_dict"]["network.classifier.bias"][3] += 1
    torch.save(content, best)
    main(["test", f"--ckpt_path={best}"])
    main(["test", f"--ckpt_path={best}", "--inferer", "tta:flip"])
    main(["test", f"--ckpt_path={run.last_checkpoint}", "--inferer", "tta:flip"])
    evaluations = {one.path.name: one.record["evaluation"]["words"] for one in run.evaluations()}
    assert evaluations == {"best": "best.ckpt", "tta-flip": "tta:flip", "tta-flip-best": "tta:flip of best.ckpt"}
    assert run.summary == {}
    tested = {one.path.name: one.record["evaluation"]["checkpoint"] for one in run.evaluations()}
    ours, last = checksum(best), checksum(run.last_checkpoint)
    assert tested == {"best": ours, "tta-flip": last, "tta-flip-best": ours}
    before = sorted(run.path.rglob("*"))
    main(["validate", f"--ckpt_path={run.last_checkpoint}", "--inferer", "tta:flip"])
    assert sorted(run.path.rglob("*")) == before
    assert run.summary == {}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--data.num_test=3"], r"the config is not that of .*seed3 \(data.init_args.num_test was 5 and is 3\)"),
        (["--trainer.limit_test_batches=1"], "trainer.limit_test_batches was None and is 1"),
        (["--trainer.precision=bf16-mixed"], "trainer.precision was .* and is bf16-mixed"),
    ],
)
def test_scores_of_another_config_are_not_the_runs(
    run: RunFolder, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    before = sorted(run.path.rglob("*"))
    main(["test", f"--ckpt_path={run.last_checkpoint}", *words])
    shown = _joined(capsys)
    assert "The scores are not saved in a run folder: " in shown
    assert re.search(reason, shown)
    assert sorted(run.path.rglob("*")) == before


def test_scores_of_an_unfinished_run_are_not_its_result(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.update_state(status=Status.RUNNING)
    main(["test", f"--ckpt_path={run.last_checkpoint}"])
    assert "is not fully trained, its state is running" in _joined(capsys)
    assert run.summary == {}


def test_the_command_names_a_wrong_word(run: RunFolder) -> None:
    with pytest.raises(SystemExit, match="beyondpixel: inferer 'crf:many': expected crf:STEPS"):
        main(["test", f"--ckpt_path={run.last_checkpoint}", "--inferer", "crf:many"])


def _joined(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())
