"""Mean IoU and the other metrics that follow from one confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from beyondpixel.lightning_modules.metrics.counts import CountMetric, count_codes, ratio


class MeanIoU(CountMetric):
    r"""Mean IoU, accuracies and IoU of each class from one confusion matrix over all images and processes.

    With :math:`n_{ij}` pixels of class i predicted as j, :math:`t_i = \sum_j n_{ij}` and :math:`p_i = \sum_j n_{ji}`:

    .. math:: IoU_i = n_{ii} / (t_i + p_i - n_{ii})

    `mIoU` is its mean over the classes in target or prediction; a class in neither is excluded (NaN) rather than
    counted as 0 or 1 (PASCAL VOC's definition, also the RMI authors'). `pixel_accuracy` is :math:`\sum_i n_{ii} /
    \sum_i t_i`, `mean_accuracy` the mean of :math:`n_{ii} / t_i` over the target's classes, `frequency_weighted_IoU`
    the mean of :math:`IoU_i` weighted by :math:`t_i`.

    Args:
        num_classes: C, at least 2.
        ignore_index: target label of pixels that are excluded.
        class_names: C distinct names; the class numbers if None.
        kwargs: further arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = MeanIoU(2, class_names=["road", "car"])
        >>> metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]]))  # (N, H, W) each
        >>> {name: value.item() for name, value in metric.compute().items()}  # doctest: +NORMALIZE_WHITESPACE
        {'mIoU': 1.0, 'pixel_accuracy': 1.0, 'mean_accuracy': 1.0, 'frequency_weighted_IoU': 1.0,
         'IoU/road': 1.0, 'IoU/car': 1.0}
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, class_names: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, ignore_index, class_names, shape=(num_classes, num_classes), **kwargs)

    def count(self, preds: Tensor, target: Tensor) -> Tensor:
        """Compute the confusion matrix of a batch."""
        codes = target * self.num_classes + preds
        return count_codes(codes, target != self.ignore_index, self.counts.shape)

    def compute(self) -> dict[str, Tensor]:
        """Return `mIoU`, accuracies, `frequency_weighted_IoU` and `IoU/<class>`."""
        hits, true, predicted = self.counts.diagonal(), self.counts.sum(dim=1), self.counts.sum(dim=0)
        iou = ratio(hits, true + predicted - hits)
        return {
            "mIoU": iou.nanmean(),
            "pixel_accuracy": ratio(hits.sum(), true.sum()),
            "mean_accuracy": ratio(hits, true).nanmean(),
            "frequency_weighted_IoU": (ratio(true, true.sum()) * iou.nan_to_num(0.0)).sum(),
            **self.named("IoU", iou),
        }

    def confusion_matrix(self) -> Tensor:
        """Return (C, C) int64 counts of the whole set; rows are the target, columns the prediction.

        Collective in a distributed run: every process must call it.

        Example:
            >>> metric = MeanIoU(2)
            >>> metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 0]]]))
            >>> metric.confusion_matrix().tolist()
            [[1, 1], [0, 1]]
        """
        with self.sync_context():
            return self.counts.clone()


def mean_over_classes(values: Mapping[str, Tensor], class_names: Sequence[str]) -> dict[str, Tensor]:
    """Return `mIoU_<k>`, the mean of `IoU/<class>` over k named classes only.

    For data sets whose publications exclude classes from the mean that are trained and evaluated.

    Args:
        values: with `IoU/<class>` of each class, as `MeanIoU` computes them.
        class_names: the classes of the mean.

    Example:
        >>> values = {"IoU/sky": torch.tensor(0.5), "IoU/car": torch.tensor(0.7), "IoU/void": torch.tensor(0.0)}
        >>> {name: round(value.item(), 3) for name, value in mean_over_classes(values, ["sky", "car"]).items()}
        {'mIoU_2': 0.6}
    """
    return {f"mIoU_{len(class_names)}": torch.stack([values[f"IoU/{name}"] for name in class_names]).nanmean()}
