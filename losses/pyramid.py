"""Cross entropy at several scales."""

import torch
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses.base import SegmentationLoss, Term
from beyondpixel.losses.functional._validation import LabelTruth, MultiHotTruth, Truth, read_target
from beyondpixel.losses.functional.affinity import without_void_gradient
from beyondpixel.losses.functional.cross_entropy import cross_entropy_sum


class PyramidLoss(SegmentationLoss):
    r"""Mean of the softmax cross entropies at several scales, a baseline of the RMI paper.

    .. math:: L = \frac{1}{|S|} \sum_{s \in S} L_\text{CE}(\mathrm{preds}_s, \mathrm{target}_s)

    Logits are made smaller bilinearly and labels by their nearest pixel, to ⌊sH⌋ × ⌊sW⌋. The gradient that
    interpolation would carry to void pixels is left out.

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
        scales = tuple(scales)
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(f"scales: expected numbers above 0 and up to 1, got {scales}")
        names = tuple(f"scale_{number}" for number in range(len(scales)))
        super().__init__(num_classes, ignore_index=ignore_index, term_names=names)
        self.scales = scales

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        truth = read_target(preds, target, self.num_classes, self.ignore_index)
        preds = preds.to(torch.promote_types(preds.dtype, torch.float32))
        sources = without_void_gradient(preds, truth)
        terms = {}
        for name, scale in zip(self._term_names, self.scales, strict=True):
            if scale == 1:
                small, small_truth = preds, truth
            else:
                size = self._size(scale, truth)
                small = F.interpolate(sources, size, mode="bilinear", align_corners=False)
                small_truth = self._shrink(truth, size)
            terms[name] = Term(cross_entropy_sum(small, small_truth, with_logits=True), small_truth.num_valid())
        truth.check_values()
        return terms

    @staticmethod
    def _size(scale: float, truth: Truth) -> tuple[int, int]:
        height, width = truth.shape[1:]
        size = (int(scale * height), int(scale * width))
        if min(size) < 1:
            raise ValueError(
                f"scales: maps of {height} × {width} have no pixel at scale {scale:g}; use larger crops or scales"
            )
        return size

    def _shrink(self, truth: Truth, size: tuple[int, int]) -> Truth:
        if isinstance(truth, MultiHotTruth):
            return MultiHotTruth(F.interpolate(truth.multi_hot.float(), size, mode="nearest"))
        assert isinstance(truth, LabelTruth)
        labels = F.interpolate(truth.labels[:, None].float(), size, mode="nearest")[:, 0]
        return LabelTruth(labels.to(torch.int16), self.num_classes, -1)

    def _named_terms(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pixel": torch.stack(list(values.values())).mean()}

    def _combine(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["pixel"]
