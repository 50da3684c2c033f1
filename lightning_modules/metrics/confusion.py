"""Scores of a whole evaluation set, from one confusion matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from beyondpixel.lightning_modules.metrics.labels import check_labels


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union of every class.

    Args:
        confusion: (C, C) counts, rows the truth, columns the prediction.

    Returns:
        (C,) float64 in 0..1; NaN for a class that is in neither truth nor prediction.

    Example:
        >>> import torch
        >>> iou_per_class(torch.tensor([[3, 1], [2, 4]]))
        tensor([0.5000, 0.5714], dtype=torch.float64)
    """
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean of :func:`iou_per_class` over the classes that truth or prediction hold; NaN if there is none.

    A class that is in neither is left out rather than counted as 0 or 1 (PASCAL VOC's definition, also the RMI
    authors').

    Example:
        >>> import torch
        >>> mean_iou(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
        tensor(0.5357, dtype=torch.float64)
    """
    return iou_per_class(confusion).nanmean()


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Share of pixels with the right class; NaN if there are no pixels.

    Example:
        >>> import torch
        >>> pixel_accuracy(torch.tensor([[3, 1], [2, 4]]))
        tensor(0.7000, dtype=torch.float64)
    """
    counts = confusion.double()
    return counts.diagonal().sum() / counts.sum()


def mean_accuracy(confusion: Tensor) -> Tensor:
    """Mean over the classes in the truth of the share of their pixels that is found; NaN if there are none.

    Example:
        >>> import torch
        >>> mean_accuracy(torch.tensor([[3, 1], [2, 4]]))
        tensor(0.7083, dtype=torch.float64)
    """
    counts = confusion.double()
    return (counts.diagonal() / counts.sum(1)).nanmean()


def frequency_weighted_iou(confusion: Tensor) -> Tensor:
    """Mean of :func:`iou_per_class` weighted by the classes' share of the truth; NaN if there are no pixels.

    Example:
        >>> import torch
        >>> frequency_weighted_iou(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))  # 0.4 · 3/6 + 0.6 · 4/7
        tensor(0.5429, dtype=torch.float64)
    """
    share = confusion.double().sum(1) / confusion.sum()
    return (share * iou_per_class(confusion).nan_to_num(0.0)).sum()


class SegmentationScores(MulticlassConfusionMatrix):
    """One confusion matrix over all images and all processes, and the scores read off it.

    Never a mean of per-image or per-batch scores: ``update`` adds counts, ``compute`` sums them over processes.

    Args:
        num_classes: C, at least 2.
        ignore_index: truth label of pixels that do not count.
        class_names: C distinct names for :meth:`summary`; the class numbers if None.
        kwargs: further arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> scores = SegmentationScores(2, class_names=["road", "car"])
        >>> scores.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]]))  # (N, H, W) each
        >>> {name: score.item() for name, score in scores.summary().items()}  # doctest: +NORMALIZE_WHITESPACE
        {'mIoU': 1.0, 'pixel_accuracy': 1.0, 'mean_accuracy': 1.0, 'frequency_weighted_IoU': 1.0,
         'IoU/road': 1.0, 'IoU/car': 1.0}
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)
        if len(names) != num_classes:
            raise ValueError(f"class_names must hold num_classes={num_classes} names, got {len(names)}: {names}")
        if len(set(names)) != num_classes:
            raise ValueError(f"class_names must be distinct, got {names}")
        # torchmetrics' own check counts distinct labels: slow, and most wrong labels pass it
        super().__init__(num_classes=num_classes, ignore_index=ignore_index, validate_args=False, **kwargs)
        self.class_names = names
        self._void = ignore_index

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count pixels.

        Args:
            preds: (N, H, W) integer classes.
            target: (N, H, W) integer labels: 0..C-1 or ``ignore_index``.

        Raises:
            ValueError: if shapes differ or a label is out of range.
        """
        check_labels(preds, target, num_classes=self.num_classes, ignore_index=self._void)
        super().update(preds, target)

    def reset(self) -> None:
        """Forget all counts."""
        # reset within Lightning's inference mode, the counts could never again be added to outside of it
        with torch.inference_mode(False):
            super().reset()

    def summary(self) -> dict[str, Tensor]:
        """``mIoU``, accuracies, ``frequency_weighted_IoU`` and ``IoU/<class>``, each a float64 scalar in 0..1 or NaN.

        Collective in a distributed run: every process must call it.
        """
        confusion = self.compute()
        scores = {
            "mIoU": mean_iou(confusion),
            "pixel_accuracy": pixel_accuracy(confusion),
            "mean_accuracy": mean_accuracy(confusion),
            "frequency_weighted_IoU": frequency_weighted_iou(confusion),
        }
        scores.update(
            {f"IoU/{name}": iou for name, iou in zip(self.class_names, iou_per_class(confusion), strict=True)}
        )
        return scores
