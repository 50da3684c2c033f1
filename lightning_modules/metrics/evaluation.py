"""All metrics of an evaluation."""

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn
from torchmetrics import MetricCollection

from beyondpixel.lightning_modules.metrics.boundary_f import BoundaryF
from beyondpixel.lightning_modules.metrics.boundary_iou import BoundaryIoU
from beyondpixel.lightning_modules.metrics.confusion import MeanIoU
from beyondpixel.lightning_modules.metrics.counts import CountMetric
from beyondpixel.lightning_modules.metrics.image_counts import ImageCounts, PixelCountsPerImage
from beyondpixel.lightning_modules.metrics.object_size import ObjectSizeIoU
from beyondpixel.lightning_modules.metrics.trimap import TrimapIoU


class EvaluationMetrics(nn.Module):
    """A collection of metrics over a whole set, and the pixel counts of each image, from one pass.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        class_names: C distinct names; the class numbers if None.
        boundaries: whether to evaluate boundaries, bands around them and objects by size as well.

    Example:
        >>> import torch
        >>> metrics = EvaluationMetrics(2, class_names=["road", "car"], boundaries=True)
        >>> masks = torch.tensor([[[0, 0, 1, 1]]])
        >>> metrics.update(masks, masks, ids=["a"])
        >>> list(metrics.compute())[:6]
        ['mIoU', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_IoU', 'IoU/road', 'IoU/car']
        >>> metrics.class_iou()["car"].item(), metrics.image_counts().target.tolist()
        (1.0, [[2, 2]])
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        *,
        boundaries: bool = False,
    ) -> None:
        super().__init__()
        metrics: list[Callable[..., CountMetric]] = [MeanIoU]
        if boundaries:
            metrics += [BoundaryIoU, BoundaryF, TrimapIoU, ObjectSizeIoU]
        self.collection = MetricCollection(
            [metric(num_classes, ignore_index, class_names) for metric in metrics], compute_groups=False
        )
        self.per_image = PixelCountsPerImage(num_classes, ignore_index, boundaries=boundaries)

    @property
    def _mean_iou(self) -> MeanIoU:
        return cast(MeanIoU, self.collection["MeanIoU"])

    @property
    def class_names(self) -> list[str]:
        """Names of the C classes."""
        return self._mean_iou.class_names

    def update(self, preds: Tensor, target: Tensor, ids: Sequence[str] | None = None) -> None:
        """Add a batch.

        Args:
            preds: (N, H, W) integer classes.
            target: (N, H, W) integer labels: 0..C-1 or `ignore_index`.
            ids: N names of the images; without them there are no counts per image.

        Raises:
            ValueError: if shapes differ or a label is out of range.
        """
        self.collection.update(preds, target)
        if ids is not None:
            self.per_image.update(preds, target, ids)

    def compute(self) -> dict[str, Tensor]:
        """Return every metric by name, each a float64 scalar in 0..1 or NaN.

        Collective in a distributed run, as are the following methods: every process must call it.
        """
        values: dict[str, Tensor] = self.collection.compute()
        return values

    def class_iou(self) -> dict[str, Tensor]:
        """Return the IoU of each class by its name."""
        values = self._mean_iou.compute()
        return {name: values[f"IoU/{name}"] for name in self.class_names}

    def confusion_matrix(self) -> Tensor:
        """Return (C, C) int64 counts; rows are the target, columns the prediction."""
        return self._mean_iou.confusion_matrix()

    def image_counts(self) -> ImageCounts | None:
        """Return the pixel counts of each image; None if images have no distinct ids."""
        return self.per_image.compute()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.collection.reset()
        self.per_image.reset()
