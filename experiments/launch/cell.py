"""One cell in a process of its own: train (or resume), then test the last checkpoint, as the papers do.

A cell that evaluates tests another run's checkpoint instead.

Called by the launcher as `python -m beyondpixel.experiments.launch.cell RUN_FOLDER`.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

from beyondpixel.experiments.errors import Stopped, UserError, as_user_error
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.run_folder import RunFolder

# how a cell's process ends, besides 0 and 1
HELD = 75  # another process has the run
STOPPED = 130


def run_cell(path: str | Path, *, patience: float = 2.0) -> None:
    """Train and test, or only evaluate, the run whose config lies in a folder, and write down how it ended.

    It is safe to call again after an interruption, and by two processes at once: only one will do the work.

    Args:
        path: the run folder, prepared by the launcher.
        patience: seconds to wait for the run's lock.

    Raises:
        HeldError: if another process has the run.
        Stopped: if it was asked to stop; a checkpoint has been saved.
    """
    folder = RunFolder(path)
    first = process_rank() == 0  # the others of the same run, on several devices, belong to its lock
    with RunLock(folder.lock_file, patience=patience) if first else nullcontext():
        if folder.state["status"] == "done":
            return
        try:
            if "evaluate" in folder.record:
                _evaluate(folder)
            else:
                _train_and_test(folder)
        except (Stopped, KeyboardInterrupt, SystemExit) as error:
            if first and not folder.finished:
                folder.update_state(status="interrupted", error=None)
            # outside a training Lightning answers Ctrl-C by ending the process, as if something had failed
            if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            raise
        except Exception as error:
            if first:
                text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                folder.update_state(status="failed", error=text)
            raise
        if first:
            folder.update_state(status="done")


def process_rank() -> int:
    """This process's number among those of its run, as Lightning (where it started it) or SLURM says."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")))


def _train_and_test(folder: RunFolder) -> None:
    from beyondpixel.datamodules.datasets.errors import DataError
    from beyondpixel.experiments.starting import checkpoint_to_resume
    from beyondpixel.experiments.tracking import finish_wandb
    from beyondpixel.experiments.training_cli import SegmentationCLI
    from beyondpixel.lightning_modules.networks import without_pretrained_weights

    config = folder.config
    trained = folder.state["status"] == "trained"  # only its test is missing
    resume = folder.last_checkpoint if trained else checkpoint_to_resume(folder, config)
    with without_pretrained_weights() if resume else nullcontext():
        cli = SegmentationCLI(args=config, run=False)
    try:
        with as_user_error(DataError):
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(resume) if resume else None)
            cli.trainer.test(cli.model, cli.datamodule)
    finally:
        finish_wandb(1 if sys.exc_info()[0] else 0)


def _evaluate(folder: RunFolder) -> None:
    from beyondpixel.experiments.inference.evaluate_run import evaluate_run

    record = folder.record
    how = {word: value for word, value in record["evaluate"].items() if word != "run"}
    evaluate_run(RunFolder(record["source"]), folder, **how, config=folder.config)


def main() -> None:
    """The process's entry."""
    (path,) = sys.argv[1:]
    try:
        run_cell(path)
    except HeldError as error:
        print(f"beyondpixel: {error}", file=sys.stderr)
        sys.exit(HELD)
    except UserError as error:
        sys.exit(f"beyondpixel: {error}")
    except (Stopped, KeyboardInterrupt):
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
