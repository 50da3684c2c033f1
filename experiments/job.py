"""One run in a process of its own: train or resume, test the last checkpoint, run the missing evaluations.

Any scheduler can start it: `beyondpixel run-job RUN_FOLDER`, or `python -m beyondpixel.experiments.job RUN_FOLDER`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from beyondpixel.experiments.disk_space import full_disk_as_user_error
from beyondpixel.experiments.errors import STOPPED, Stopped, UserError
from beyondpixel.experiments.launch.lock import HeldError, RunLock
from beyondpixel.experiments.run.folder import RunFolder, Status, replacing
from beyondpixel.experiments.run.processes import exit_code, process_rank

HELD = 75  # the exit code if another process holds the run's lock


def run_job(path: Path, *, patience: float = 2.0) -> None:
    """Train and test the run whose config is in a folder, run its evaluations, and record how it ended.

    It is safe to call again after an interruption, and by two processes at once: only one does the work.

    Args:
        path: the run folder, prepared by the launcher.
        patience: seconds to wait for the run's lock.

    Raises:
        UserError: if there is no prepared run in the folder.
        HeldError: if another process holds the run's lock.
        Stopped: if a signal stopped it; a checkpoint has been saved.
    """
    folder = RunFolder(path)
    if not folder.config_file.is_file():
        raise UserError(f"{path} holds no run: expected a folder with a config.yaml, which `beyondpixel launch` makes")
    first = process_rank() == 0  # the run's other processes, one per device, share the lock of the first
    with RunLock(folder.lock_file, patience=patience) if first else nullcontext():
        if folder.status is Status.DONE:
            return
        if first:  # it may already be writing when the others get here
            folder.remove_temporary_files()
        with _record_failure(folder), full_disk_as_user_error(folder.path):
            _train_and_evaluate(folder)
        if first:
            _prune_checkpoints(folder)
            folder.update_state(status=Status.DONE)


@contextmanager
def _record_failure(folder: RunFolder) -> Iterator[None]:
    """Record that a run was stopped, or why it failed."""
    first = process_rank() == 0
    try:
        yield
    except (Stopped, KeyboardInterrupt, SystemExit) as error:
        if first and not folder.status.is_finished:
            folder.update_state(status=Status.STOPPED, error=None)
        # outside training Lightning exits on Ctrl-C with an error code, as if something had failed
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    except Exception as error:
        if first:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            with suppress(OSError):  # the disk may still be full; the launcher reports that, too
                folder.remove_temporary_files()
                # a trained run stays trained: a failed evaluation is no reason to train again
                kept = folder.status is Status.TRAINED
                folder.update_state(status=Status.TRAINED if kept else Status.FAILED, error=text)
        raise


def _train_and_evaluate(folder: RunFolder) -> None:
    from beyondpixel.experiments.inference.checkpoints import newest_whole_checkpoint
    from beyondpixel.experiments.inference.evaluate_run import evaluate_checkpoint, missing_evaluations
    from beyondpixel.experiments.training import train

    config = folder.config
    trained = folder.status is Status.TRAINED
    tested = any(name.startswith("test/") for name in folder.summary)  # a test writes these last
    if not (trained and tested):
        train(folder, config, resume=folder.last_checkpoint if trained else newest_whole_checkpoint(folder))
    for evaluation in missing_evaluations(folder, folder.record.get("evaluations", [])):
        evaluate_checkpoint("test", folder.last_checkpoint, config, inferer=evaluation)


def _prune_checkpoints(folder: RunFolder) -> None:
    """Remove from the checkpoints of a finished run what its launch did not ask to keep."""
    import torch

    from beyondpixel.experiments.checksums import trained_checksum

    keep, checkpoints = folder.record.get("keep", "resume"), folder.last_checkpoint.parent
    for damaged in checkpoints.glob("*.damaged.ckpt"):
        damaged.unlink()
    if keep == "resume":
        return
    # evaluations are identified by the checkpoint that they were made from
    folder.record = {**folder.record, "checkpoint": trained_checksum(folder)}
    for file in checkpoints.glob("*.ckpt"):
        if keep == "none":
            file.unlink()
            continue
        content = torch.load(file, map_location="cpu", weights_only=True)
        for key in ("optimizer_states", "lr_schedulers", "callbacks", "loops"):  # which only a resumed training needs
            content.pop(key, None)
        with replacing(file) as smaller:
            torch.save(content, smaller)


def main() -> None:
    """Entry point of the process."""
    if len(sys.argv) != 2:
        sys.exit("beyondpixel: expected one argument, the run folder")
    try:
        run_job(Path(sys.argv[1]))
    except HeldError as error:
        print(f"beyondpixel: {error}", file=sys.stderr)
        sys.exit(HELD)
    except UserError as error:
        sys.exit(f"beyondpixel: {error}")
    except (Stopped, KeyboardInterrupt):
        sys.exit(exit_code(STOPPED))


if __name__ == "__main__":
    main()
