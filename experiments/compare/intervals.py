"""Bootstrap intervals of differences between runs, read from their folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from beyondpixel.experiments.bootstrap import Interval, Scores, difference_interval, resampled_scores
from beyondpixel.experiments.image_areas import ImageAreas
from beyondpixel.experiments.run_folder import RunFolder

# a score is logged in float64 from the same counts; a larger difference means that the file is of another evaluation
SAME_SCORE = 1e-4


class Intervals:
    """The intervals of one metric; what was worked out for a run is kept for the next comparison.

    Args:
        metric: `test/mIoU`, `val/mIoU`, or `test/IoU/<class>`; other figures cannot be worked out from areas and have
            no intervals.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.stage, _, self.figure = metric.partition("/")
        self._known: dict[Path, tuple[frozenset[str], Scores] | None] = {}

    def of_difference(self, baseline: Sequence[RunFolder], runs: Sequence[RunFolder]) -> Interval | None:
        """The interval of (mean over `runs`) − (mean over `baseline`).

        Returns:
            None where a run lacks its areas, the runs have not been tested on the same images, or these hold nothing
            of the class.

        Raises:
            UserError: if a run's areas are there but cannot be read.
        """
        first, second = ([self._resampled(run) for run in group] for group in (baseline, runs))
        images = {resampled[0] if resampled else None for resampled in (*first, *second)}
        if len(images) != 1 or None in images:
            return None
        ends = difference_interval([x[1] for x in first if x], [x[1] for x in second if x])
        return None if math.isnan(ends[0]) else ends

    def _resampled(self, run: RunFolder) -> tuple[frozenset[str], Scores] | None:
        if run.path not in self._known:
            self._known[run.path] = self._resample(run)
        return self._known[run.path]

    def _resample(self, run: RunFolder) -> tuple[frozenset[str], Scores] | None:
        if self.figure != "mIoU" and not self.figure.startswith("IoU/"):
            return None
        file = run.images_file(self.stage)
        if not file.exists():
            return None
        areas = ImageAreas.load(file)
        index = None if self.figure == "mIoU" else _class_index(run, self.figure.removeprefix("IoU/"))
        if index is None and self.figure != "mIoU":
            return None
        logged = run.summary.get(self.metric)
        score = areas.mean_iou() if index is None else float(areas.iou_per_class()[index])
        if logged is None or not abs(score - logged) <= SAME_SCORE:  # NaN is no score either
            return None
        return frozenset(areas.id.tolist()), resampled_scores(areas, class_index=index)


def _class_index(run: RunFolder, name: str) -> int | None:
    if not run.confusion_file.exists():
        return None
    with np.load(run.confusion_file) as arrays:
        names = [str(known) for known in arrays["class_names"]]
    return names.index(name) if name in names else None
