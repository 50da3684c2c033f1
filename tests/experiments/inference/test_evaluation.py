"""A trained module's test under other protocols, against a plain loop over the same images."""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor

from beyondpixel.experiments.cli import main
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.inference.crf import DenseCRF
from beyondpixel.experiments.inference.evaluate_run import evaluate_run
from beyondpixel.experiments.inference.evaluation import EvaluationProtocol
from beyondpixel.experiments.inference.pool import Refined
from beyondpixel.experiments.inference.protocol import Protocol
from beyondpixel.experiments.rebuilding import build_data, load_model
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.lightning_modules.callbacks import InferenceTime
from beyondpixel.lightning_modules.metrics import SegmentationScores

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def figures_of(run: RunFolder, protocol: Protocol) -> tuple[dict[str, float], Any, Any]:
    module, data = load_model(run), build_data(run.config)
    trainer = Trainer(**QUIET, callbacks=[EvaluationProtocol(protocol, workers=2)])
    (figures,) = trainer.test(module, data, verbose=False)
    return dict(figures), module, data


def plain_loop(run: RunFolder, crf: DenseCRF | None, *, flip: bool = False) -> tuple[float, float]:
    """mIoU and negative log likelihood of the right class, one image at a time, from the data set's own arrays."""
    module, data = load_model(run), build_data(run.config)
    scores, losses = SegmentationScores(module.num_classes), []
    for sample in data.dataset("test"):
        assert sample.mask is not None
        image = (
            torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255 - torch.tensor(data.mean).view(3, 1, 1)
        ) / (torch.tensor(data.std).view(3, 1, 1))
        with torch.no_grad():
            probs = module(image).softmax(1)
            if flip:
                probs = (probs + module(image.flip(3)).softmax(1).flip(3)) / 2
        if crf is not None:
            probs = torch.from_numpy(crf(sample.image, probs[0].numpy()))[None]
        truth = torch.from_numpy(sample.mask).long()[None]
        scores.update(probs.argmax(1), truth)
        valid = truth != 255
        chosen = probs.gather(1, truth.where(valid, torch.zeros_like(truth))[:, None])[:, 0]
        losses.append(-chosen[valid].clamp_min(1e-38).log())
    return float(scores.summary()["mIoU"]), float(torch.cat(losses).mean())


@pytest.mark.parametrize("words", [{"tta": "flip"}, {"postprocess": "crf:2"}, {"tta": "flip", "postprocess": "crf:2"}])
def test_scores_are_those_of_a_plain_loop(run: RunFolder, words: dict[str, str]) -> None:
    protocol = Protocol.parse(**words)  # type: ignore[arg-type]
    figures, module, data = figures_of(run, protocol)
    expected, loss = plain_loop(run, protocol.crf, flip=protocol.flip)
    assert figures["test/mIoU"] == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(plain_loop(run, None)[0], abs=1e-4)  # it does make a difference
    # Lightning averages over batches of 2, 2 and 1 images weighted by their number of images
    assert figures["test/loss"] == pytest.approx(loss, rel=0.01)
    assert "forward" not in vars(module)
    assert "test_dataloader" not in vars(data)
    assert type(module.loss).__name__ == "BinaryCrossEntropyLoss"


def test_the_crf_logs_the_median_of_its_own_time(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([5.0, 1.0, 2.0, 9.0, 3.0])

    class Pool:
        workers = 1

        def __init__(self, crf: DenseCRF, workers: int) -> None:
            self.close = lambda: None

        def submit(self, image: Any, probs: Any) -> Future[Refined]:
            job: Future[Refined] = Future()
            job.set_result(Refined(probs, next(seconds)))
            return job

    monkeypatch.setattr("beyondpixel.experiments.inference.evaluation.RefinementPool", Pool)
    assert figures_of(run, Protocol.parse(postprocess="crf:2"))[0]["test/crf_seconds"] == 3.0
    assert "test/crf_seconds" not in figures_of(run, Protocol.parse(tta="flip"))[0]


def test_the_time_of_an_image_holds_the_crf(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the CRF of this process moves on: images of the test are refined in other ones."""
    now = 0.0

    def slow(self: DenseCRF, image: Any, probs: Any) -> Any:
        nonlocal now
        now += 7.0
        return probs

    monkeypatch.setattr(DenseCRF, "__call__", slow)
    monkeypatch.setattr("beyondpixel.lightning_modules.callbacks.inference_time.time.perf_counter", lambda: now)
    callbacks = [InferenceTime(num_images=2), EvaluationProtocol(Protocol.parse(postprocess="crf:1"), workers=1)]
    module, data = load_model(run), build_data(run.config)
    (figures,) = Trainer(**QUIET, callbacks=callbacks).test(module, data, verbose=False)
    assert figures["test/seconds_per_image"] == 7.0


def test_fewer_batches_than_there_are(run: RunFolder) -> None:
    module, data = load_model(run), build_data(run.config)
    protocol = EvaluationProtocol(Protocol.parse(postprocess="crf:1"), workers=1)
    (figures,) = Trainer(**QUIET, limit_test_batches=1, callbacks=[protocol]).test(module, data, verbose=False)
    assert 0 <= figures["test/mIoU"] <= 1


def test_a_module_that_goes_its_own_way_is_noticed(run: RunFolder) -> None:
    module, data = load_model(run), build_data(run.config)

    def step(batch: dict[str, Any], batch_idx: int) -> None:
        module.evaluation_scores("test").update(module.network(batch["image"]).argmax(1), batch["mask"])

    module.test_step = step  # type: ignore[method-assign]
    protocol = EvaluationProtocol(Protocol.parse(postprocess="crf:1"), workers=1)
    with pytest.raises(RuntimeError, match=r"DeepLabModule does not predict by module\(images\)"):
        Trainer(**QUIET, callbacks=[protocol]).test(module, data, verbose=False)
    assert "forward" not in vars(module)
    assert "test_dataloader" not in vars(data)


def test_padding_would_be_seen_by_the_crf(run: RunFolder) -> None:
    module, data = load_model(run), build_data(run.config)
    data.image_size = None
    data.__class__ = type("Folders", (type(data),), {"fixed_size": False})
    trainer = Trainer(**QUIET)
    trainer.datamodule = data  # type: ignore[attr-defined]
    protocol = EvaluationProtocol(Protocol.parse(postprocess="crf:1"))
    with pytest.raises(UserError, match="batches of 2 images of different sizes: set --data.eval_batch_size 1"):
        protocol.setup(trainer, module, "test")


def test_the_command_prints_and_leaves_the_run_alone(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(str(file) for file in run.path.rglob("*"))
    main(["test", f"--ckpt_path={run.last_checkpoint}", "--postprocess", "crf:2", "--tta", "flip", "--window", "33"])
    shown = capsys.readouterr().out
    assert "test/crf_seconds" in shown
    assert "test/seconds_per_image" in shown
    assert "test/mIoU" in shown
    assert sorted(str(file) for file in run.path.rglob("*")) == before


def test_the_command_names_a_wrong_word(run: RunFolder) -> None:
    with pytest.raises(SystemExit, match="beyondpixel: --postprocess: expected crf:STEPS with 1 step or more"):
        main(["test", f"--ckpt_path={run.last_checkpoint}", "--postprocess", "crf:many"])


def test_a_run_evaluated_once_more_is_a_run_of_its_own(run: RunFolder, tmp_path: Path) -> None:
    weights = run.last_checkpoint.read_bytes()
    target = RunFolder(tmp_path / "outputs" / "tiny" / "crf" / "seed3")
    target.record = {"name": "tiny/crf", "table": "tiny", "row": "crf", "reference": {"value": 78.4}}
    evaluate_run(run, target, postprocess="crf:2", tta="flip")
    expected, _ = plain_loop(run, DenseCRF(steps=2), flip=True)
    summary = json.loads((target.path / "summary.json").read_text())
    assert summary["test/mIoU"] == pytest.approx(expected, abs=1e-4)
    assert (summary["test/crf_steps"], summary["test/views"]) == (2, 2)
    assert summary["test/seconds_per_image"] > 0
    assert summary["test/crf_seconds"] > 0
    assert target.state["status"] == "done"
    assert target.record["name"] == "tiny/crf"
    assert target.record["reference"] == {"value": 78.4}
    axes = target.record["axes"]
    assert (axes["tta"], axes["window"], axes["postprocess"]) == ("flip", None, "crf:2")
    assert axes["loss"] == "bce"
    assert run.record["axes"]["postprocess"] is None
    assert target.record["evaluation"]["folder"] == str(run.path)
    matrix = np.load(target.confusion_file)["matrix"]
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert np.nanmean(iou) == pytest.approx(summary["test/mIoU"])
    assert [line["test/mIoU"] for line in target.metrics() if "test/mIoU" in line] == [summary["test/mIoU"]]
    assert not target.last_checkpoint.exists()
    assert run.last_checkpoint.read_bytes() == weights
    evaluate_run(run, target, postprocess="crf:1")  # again, and otherwise
    assert len([line for line in target.metrics() if "test/mIoU" in line]) == 1
    assert target.record["axes"]["postprocess"] == "crf:1"
    assert target.record["axes"]["tta"] is None


def test_an_untrained_source_and_itself(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the run to evaluate; its evaluation needs a folder of its own"):
        evaluate_run(run, run, postprocess="crf:1")
    run.update_state(status="running")
    with pytest.raises(UserError, match=r"is not trained \(its state is running\): launch it first"):
        evaluate_run(run, RunFolder(tmp_path / "target"), postprocess="crf:1")
    assert not (tmp_path / "target").exists()


def test_a_failure_is_in_the_state(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, images: Tensor) -> Tensor:
        raise RuntimeError("no memory left")

    monkeypatch.setattr("beyondpixel.lightning_modules.DeepLabModule.forward", broken)
    target = RunFolder(tmp_path / "target")
    with pytest.raises(RuntimeError, match="no memory left"):
        evaluate_run(run, target, postprocess="crf:1")
    assert target.state["status"] == "failed"
    assert target.state["error"] == "RuntimeError: no memory left"
