"""One cell in a process of its own: train (or resume), then test the last checkpoint, as the papers do.

Called by the launcher as `python -m beyondpixel.experiments.launch.cell RUN_FOLDER`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from beyondpixel.datamodules.datasets.errors import DataError
from beyondpixel.experiments.errors import UserError, as_user_error
from beyondpixel.experiments.run_folder import RunFolder
from beyondpixel.experiments.starting import checkpoint_to_resume
from beyondpixel.lightning_modules.networks import without_pretrained_weights


def run_cell(path: str | Path) -> None:
    """Train and test the run whose config lies in a folder.

    Args:
        path: the run folder, prepared by the launcher; it is safe to call again after an interruption.
    """
    import wandb

    from beyondpixel.experiments.training_cli import SegmentationCLI

    folder = RunFolder(path)
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
        wandb.finish(exit_code=1 if sys.exc_info()[0] else 0)
    folder.update_state(status="done")


def main() -> None:
    """The process's entry."""
    (path,) = sys.argv[1:]
    sys.argv = sys.argv[:1]  # the config comes from the folder; Lightning reads sys.argv otherwise
    try:
        run_cell(path)
    except UserError as error:
        RunFolder(path).update_state(status="failed", error=str(error))
        sys.exit(f"beyondpixel: {error}")


if __name__ == "__main__":
    main()
