"""Affinity field losses, baselines of the RMI paper."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from beyondpixel.losses.base import SegmentationLoss, Term
from beyondpixel.losses.functional.affinity import AffinityPairs
from beyondpixel.losses.functional.arguments import check_positive_int, check_range, check_softmax_classes


class _DecayingAffinityLoss(SegmentationLoss):
    """Cross entropy and an affinity term whose weight decays from 1 to 1 / decay during training."""

    def __init__(
        self,
        num_classes: int,
        pairs: AffinityPairs,
        *,
        decay: float,
        ignore_index: int,
    ) -> None:
        check_softmax_classes(num_classes)
        check_range("decay", decay, 1, float("inf"))
        super().__init__(
            num_classes,
            term_names=("affinity",),
            parts={"affinity": 2 * len(pairs.distances)},
            pixel_loss="ce",
            ignore_index=ignore_index,
        )
        self.pairs = pairs
        self.decay = decay

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        total, count = self.pairs.sums(preds, target, self._class_weights())
        return {"pixel": self._pixel_term(preds, target), "affinity": (total.flatten(), count.flatten())}

    def _class_weights(self) -> tuple[Tensor, Tensor] | None:
        return None

    def _combine(self, terms: dict[str, Tensor]) -> Tensor:
        return terms["pixel"] + self.decay**-self._progress * terms["affinity"]


class AffinityFieldLoss(_DecayingAffinityLoss):
    r"""Softmax cross entropy and the affinity field term, as the RMI authors ported it from Ke et al., ECCV 2018.

    .. math:: L = L_\text{CE} + \mathrm{decay}^{-t} L_\text{affinity}, \quad t = \mathrm{progress} \in [0, 1]

    with the term of `functional.affinity_field` and its arguments. `compute()` weights it by the progress at the time
    of the call.

    Args:
        num_classes: C.
        distance: distance from a pixel to its neighbors, in steps of the stride.
        stride: distance between compared pixels, in pixels of the full size.
        margin: divergence from which neighbors of different classes add no loss.
        decay: as above; 20 in the RMI authors' port, 10 in the original.
        exclude_void: whether pairs with a void pixel or one outside the image are excluded, as in the original.
        ignore_index: label of void pixels.

    Raises:
        ValueError: for an argument out of range, or when called if shapes do not fit or a label is out of range.

    >>> import torch
    >>> loss = AffinityFieldLoss(2)
    >>> target = torch.zeros(1, 32, 32, dtype=torch.long)
    >>> target[:, 16:] = 1
    >>> value = loss(torch.randn(1, 2, 32, 32), target)
    >>> sorted(loss.terms)
    ['affinity', 'pixel']
    """

    def __init__(
        self,
        num_classes: int,
        *,
        distance: int = 1,
        stride: int = 8,
        margin: float = 3.0,
        decay: float = 20.0,
        exclude_void: bool = False,
        ignore_index: int = 255,
    ) -> None:
        check_positive_int("distance", distance)
        pairs = AffinityPairs((distance,), stride, margin, exclude_void)
        super().__init__(num_classes, pairs, decay=decay, ignore_index=ignore_index)


class AdaptiveAffinityFieldLoss(_DecayingAffinityLoss):
    r"""Softmax cross entropy and affinity fields of several sizes with learned weights (Ke et al., ECCV 2018).

    .. math:: L = L_\text{CE} + \delta^{-t} \sum_s \left[ \operatorname{mean}_\text{edge} w_{ys} \max(0, m - D_s)
        + \operatorname{mean}_\text{same} v_{ys} D_s \right]

    with D as in `functional.affinity_field` at the distance (s - 1) / 2. w and v are, for each class y (of the center
    pixel), a softmax over the sizes of learned logits, initially zero. The prediction minimizes the loss, the weights
    maximize it: their gradient is negated here, so an ordinary optimizer over `loss.parameters()` ascends. Exclude them
    from weight decay. Pairs with a void pixel or one outside the image are excluded. Void pixels get no gradient, but
    interpolation mixes their logits into those of their neighbors, which changes the value.

    Args:
        num_classes: C.
        sizes: odd side lengths of the squares whose border contains the neighbors.
        stride: distance between compared pixels, in pixels of the full size.
        margin: divergence from which neighbors of different classes add no loss.
        decay: δ, 10 in the original; t is the training progress, 0 to 1.
        ignore_index: label of void pixels.

    Attributes:
        edge_logits: (C, sizes) parameter, the logits of w.
        same_logits: (C, sizes) parameter, the logits of v.

    Raises:
        ValueError: for an argument out of range, or when called if shapes do not fit or a label is out of range, or
            the target is multi-hot.

    >>> loss = AdaptiveAffinityFieldLoss(2)
    >>> [tuple(parameter.shape) for parameter in loss.parameters()]
    [(2, 3), (2, 3)]
    """

    def __init__(
        self,
        num_classes: int,
        *,
        sizes: tuple[int, ...] = (3, 5, 7),
        stride: int = 8,
        margin: float = 3.0,
        decay: float = 10.0,
        ignore_index: int = 255,
    ) -> None:
        sizes = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
        for size in sizes:
            check_positive_int("sizes", size)
        if not sizes or len(set(sizes)) < len(sizes) or any(size % 2 == 0 or size == 1 for size in sizes):
            raise ValueError(f"sizes: expected different odd numbers, 3 or more, got {sizes}")
        pairs = AffinityPairs(tuple(size // 2 for size in sizes), stride, margin, exclude_void=True)
        super().__init__(num_classes, pairs, decay=decay, ignore_index=ignore_index)
        self.edge_logits = nn.Parameter(torch.zeros(num_classes, len(sizes)))
        self.same_logits = nn.Parameter(torch.zeros(num_classes, len(sizes)))

    def _batch_terms(self, preds: Tensor, target: Tensor) -> dict[str, Term]:
        if target.ndim != 3:
            raise ValueError(
                "target: AdaptiveAffinityFieldLoss weights pixels by class, so it expects integer labels "
                f"(N, H, W), got a multi-hot target {tuple(target.shape)}"
            )
        return super()._batch_terms(preds, target)

    def _class_weights(self) -> tuple[Tensor, Tensor]:
        return self._softmax(self.edge_logits), self._softmax(self.same_logits)

    @staticmethod
    def _softmax(logits: Tensor) -> Tensor:
        # in half precision, the weights of a class would not add up to 1
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (2 * logits.detach() - logits).softmax(1)  # same values, negated gradient
