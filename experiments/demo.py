"""`beyondpixel demo`: train, test and compare on generated scenes, in minutes, without data, GPU or account."""

from __future__ import annotations

from pathlib import Path

from beyondpixel.experiments.compare.command import compare
from beyondpixel.experiments.launch.command import launch


def demo(*, output: Path = Path("outputs"), overwrite: bool = False) -> None:
    """Train the three rows of `runs/demo`, print their scores and draw where CE and RMI differ.

    Args:
        output: the folder that holds the tables' folders; the demo writes below `demo`.
        overwrite: train again even if the runs are finished.
    """
    launch(["demo"], output=output, overwrite=overwrite, retry_failed=True)
    folder = output / "demo"
    compare([folder], grid=folder / "comparison.png")
