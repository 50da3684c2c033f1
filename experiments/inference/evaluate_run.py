"""A finished run's model evaluated once more under another protocol, as a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.callbacks import Callback

from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.experiments.checkpoint_files import checksum
from beyondpixel.experiments.errors import Stopped, UserError, as_user_error
from beyondpixel.experiments.inference.checkpoints import check_fits
from beyondpixel.experiments.inference.evaluation import EvaluationProtocol
from beyondpixel.experiments.inference.protocol import Protocol
from beyondpixel.experiments.recorder import identify
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.tracking import finish_wandb
from beyondpixel.experiments.training_cli import SegmentationCLI
from beyondpixel.lightning_modules.networks import without_pretrained_weights


def evaluate_run(
    source: RunFolder,
    target: RunFolder,
    *,
    postprocess: str | None = None,
    tta: str | None = None,
    window: int | None = None,
    overlap: float | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Test the last checkpoint of a trained run under a protocol, without training.

    The target becomes a run folder like any other, without checkpoints: config (the source's), record, state, figures,
    confusion matrix. Its axes are the source's with `tta`, `window` and `postprocess`, its record names the source and
    its checkpoint (`evaluation`), and its summary has, beside the scores, `test/crf_seconds`, `test/crf_steps` and
    `test/views`. Calling it again tests again.

    Args:
        source: a run that has been trained.
        target: the run folder to write; what a launcher recorded there (`name`, `table`, `row`, ...) is kept.
        postprocess, tta, window, overlap: as for :meth:`Protocol.parse`.
        config: another resolved config than the source's, for data that lie elsewhere now or another device.

    Raises:
        UserError: if the source is not trained, its checkpoint does not fit, or the words mean nothing.
    """
    protocol = Protocol.parse(postprocess=postprocess, tta=tta, window=window, overlap=overlap)
    if not source.finished or not source.last_checkpoint.exists():
        raise UserError(
            f"{source.path} is not trained (its state is {source.state['status']}"
            f"{'' if source.last_checkpoint.exists() else ', it has no last.ckpt'}): launch it first"
        )
    if source.path.resolve() == target.path.resolve():
        raise UserError(f"{target.path} is the run to evaluate; its evaluation needs a folder of its own")
    given = source.config if config is None else config
    config = {**given, "trainer": {**given["trainer"], "default_root_dir": str(target.path)}}
    target.config = config
    known = source.record
    origin = {
        "run": known.get("name"),
        "seed": config["seed_everything"],
        "folder": str(source.path),
        # which training it was: a run that is trained anew keeps its folder, but not these
        "checkpoint": checksum(source.last_checkpoint),
        "wandb_id": known.get("wandb_id"),
        "git_commit": known.get("git_commit"),
    }
    target.record = {**target.record, "evaluation": {**origin, **protocol.words}}
    target.record = identify(target, config)
    target.update_state(status="running", step=source.state.get("step", 0), error=None)
    target.metrics_file.unlink(missing_ok=True)
    try:
        with as_user_error(DataError), without_pretrained_weights():
            cli = SegmentationCLI(args=config, run=False)
            check_fits(source.last_checkpoint, cli.model)
            callbacks: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]  # which Trainer does have
            callbacks.append(EvaluationProtocol(protocol))
            cli.trainer.test(cli.model, cli.datamodule, ckpt_path=str(source.last_checkpoint), weights_only=True)
    except BaseException as error:
        # Lightning ends the process at Ctrl-C, and submitit when it has requeued a job
        stopped = isinstance(error, KeyboardInterrupt | Stopped | SystemExit)
        message = None if stopped else f"{type(error).__name__}: {error}"
        target.update_state(status="interrupted" if stopped else "failed", error=message)
        finish_wandb(1)
        raise
    finish_wandb()
    target.summary = {
        **target.summary,
        "test/views": protocol.views,
        "test/crf_steps": 0 if protocol.crf is None else protocol.crf.steps,
    }
    target.update_state(status="done")
