"""What a finished run keeps of its checkpoint, and what its evaluations are known by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from beyondpixel.experiments.checkpoint_files import checksum
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
    tested = RunFolder(run.path / "evaluations" / "tta-flip")
    tested.record = {"evaluation": {"words": "tta:flip", "checkpoint": checksum(run.last_checkpoint)}}
    tested.summary = {"test/mIoU": 0.5}
    np.savez(tested.confusion_file, matrix=np.eye(2))
    np.savez(tested.images_file("test"), counts=np.eye(2))
    assert missing_evaluations(run, ["tta:flip", "tta:scales=0.5,1"]) == ["tta:scales=0.5,1"]
    _prune_checkpoints(run)
    assert run.last_checkpoint.exists() == (keep != "none")
    assert missing_evaluations(run, ["tta:flip", "tta:scales=0.5,1"]) == ["tta:scales=0.5,1"]
    _prune_checkpoints(run)  # of a later launch, which has added an evaluation
    assert missing_evaluations(run, ["tta:flip"]) == []
