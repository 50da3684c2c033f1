"""Cross entropy at several scales."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.base import SegmentationLoss, Term
from beyondpixel.losses.functional.arguments import check_softmax_classes, is_finite
from beyondpixel.losses.functional.cross_entropy import cross_entropy_sum
from beyondpixel.losses.functional.target import num_valid, resize_target, without_void_gradient


class PyramidLoss(SegmentationLoss):
    r"""Mean of the softmax cross entropies at several scales, a baseline of the RMI paper.

    .. math:: L = \frac{1}{|S|} \sum_{s \in S} L_\text{CE}(\mathrm{preds}_s, \mathrm{target}_s)

    Logits are resized bilinearly and labels to the nearest pixel, to ⌊sH⌋ × ⌊sW⌋. Void pixels get no gradient, but
    interpolation mixes their logits into those of their neighbors, which changes the value.

    Args:
        num_classes: C.
        scales: S, each in (0, 1].
        ignore_index: label of void pixels.

    Raises:
        ValueError: for a scale out of range, or when called if shapes do not fit, a label is out of range or a scale
            leaves no pixel.

    >>> import torch
    >>> loss = PyramidLoss(2)
    >>> loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long))  # log 2
    tensor(0.6931)
    """

    def __init__(
        self, num_classes: int, *, scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0), ignore_index: int = 255
    ) -> None:
        check_softmax_classes(num_classes)
        scales = tuple(scales) if isinstance(scales, Iterable) else (scales,)
        if not scales or not all(is_finite(scale) and 0 < scale <= 1 for scale in scales):
            raise ValueError(f"scales: expected numbers above 0 and up to 1, got {scales}")
        parts = {"pixel": len(scales)}
        super().__init__(num_classes, ignore_index=ignore_index, term_names=tuple(parts), parts=parts)
        self.scales = scales

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
        sources = without_void_gradient(preds, target)
        sums, counts = [], []
        for scale in self.scales:
            small, small_target = preds, target
            if scale != 1:
                size = self._size(scale, preds)
                small = F.interpolate(sources, size, mode="bilinear", align_corners=False)
                small_target = resize_target(target, size)
            sums.append(cross_entropy_sum(small, small_target))
            counts.append(num_valid(small_target))
        return {"pixel": (torch.stack(sums), torch.stack(counts))}

    @staticmethod
    def _size(scale: float, preds: Tensor) -> tuple[int, int]:
        height, width = preds.shape[2:]
        size = (int(scale * height), int(scale * width))
        if min(size) < 1:
            raise ValueError(
                f"scales: preds of {height} × {width} have no pixel at scale {scale:g}; use larger crops or scales"
            )
        return size

    def _divide(self, name: str, total: Tensor, count: Tensor) -> Tensor:
        return super()._divide(name, total, count) / len(self.scales)
