"""A run's own process: what it keeps of its checkpoint, what its evaluations are known by, how it ends."""

from pathlib import Path

import numpy as np
import pytest
import torch

from beyondpixel.experiments import job, training
from beyondpixel.experiments.checksums import checksum
from beyondpixel.experiments.errors import STOPPED, Stopped
from beyondpixel.experiments.inference.evaluate_run import missing_evaluations
from beyondpixel.experiments.job import _prune_checkpoints
from beyondpixel.experiments.run.folder import RunFolder


@pytest.mark.parametrize("keep", ["resume", "weights", "none"])
def test_evaluations_of_a_checkpoint_that_was_thinned_out_are_not_missing(tmp_path: Path, keep: str) -> None:
    run = RunFolder(tmp_path / "t" / "r" / "seed1")
    run.config, run.record = {}, {"keep": keep}
    run.update_state(status="trained")
    run.last_checkpoint.parent.mkdir()
    content = {"state_dict": {"w": torch.ones(9)}, "hyper_parameters": {}, "optimizer_states": [torch.ones(9)]}
    torch.save(content, run.last_checkpoint)
    damaged = run.last_checkpoint.with_name("last.damaged.ckpt")  # which a resume has left
    damaged.write_bytes(b"half of it")
    tested = RunFolder(run.path / "evaluations" / "tta-flip")
    tested.record = {"evaluation": {"words": "tta:flip", "checkpoint": checksum(run.last_checkpoint)}}
    tested.summary = {"test/mIoU": 0.5}
    np.savez(tested.confusion_file, matrix=np.eye(2))
    np.savez(tested.images_file("test"), counts=np.eye(2))
    assert missing_evaluations(run, ["tta:flip", "tta:scales=0.5,1"]) == ["tta:scales=0.5,1"]
    _prune_checkpoints(run)
    assert run.last_checkpoint.exists() == (keep != "none")
    assert not damaged.exists()
    assert missing_evaluations(run, ["tta:flip", "tta:scales=0.5,1"]) == ["tta:scales=0.5,1"]
    _prune_checkpoints(run)  # of a later launch, which has added an evaluation
    assert missing_evaluations(run, ["tta:flip"]) == []


@pytest.mark.parametrize(("rank", "code"), [("0", STOPPED), ("1", 0)])
def test_the_first_process_alone_tells_that_a_run_was_stopped(
    monkeypatch: pytest.MonkeyPatch, rank: str, code: int
) -> None:
    """Lightning kills the first at the code of another, which may be in the middle of a checkpoint."""

    def stop(path: Path) -> None:
        raise Stopped("SIGTERM")

    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(job, "run_job", stop)
    monkeypatch.setattr("sys.argv", ["job", "run"])
    with pytest.raises(SystemExit) as ended:
        job.main()
    assert ended.value.code == code


@pytest.mark.parametrize(("rank", "cleared"), [("0", True), ("1", False)])
def test_the_first_process_alone_clears_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, cleared: bool
) -> None:
    """When the second one of a run on two devices begins, the first has written the new config."""

    def arrive(*args: object, **kwargs: object) -> None:
        raise Stopped("enough")

    run = RunFolder(tmp_path)
    run.config = {"seed_everything": 1}
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(training, "build_all", lambda config: None)
    monkeypatch.setattr(training, "_make_trainer", lambda built, **arguments: None)
    monkeypatch.setattr(training, "identify", arrive)
    with pytest.raises(Stopped):
        training.train(run, {"seed_everything": 1}, resume=None, overwrite=True)
    assert run.config_file.exists() == (not cleared)
