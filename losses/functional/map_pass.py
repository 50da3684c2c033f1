"""The full-size work of BCE and RMI, fused: each score map is read once forward, and once backward.

A chunk of maps at a time, so that nothing as large as the scores is ever made except their gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from typing_extensions import override

from beyondpixel.losses.functional._validation import Truth
from beyondpixel.losses.functional.chunks import chunks
from beyondpixel.losses.functional.rmi.pooling import Pooling


class MapPass(torch.autograd.Function):
    """From scores (N, C, H, W) to the summed BCE (float64 scalar) and the pooled probabilities (N, C, h, w).

    Without `pixel` the first is 0, without `pooling` the second is None.
    """

    @staticmethod
    @override
    def forward(
        ctx: Any, scores: Tensor, truth: Truth, with_logits: bool, pixel: bool, pooling: Pooling | None
    ) -> tuple[Tensor, Tensor | None]:
        batch, num_classes, height, width = scores.shape
        dtype = torch.promote_types(scores.dtype, torch.float32)
        device = scores.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        pooled, all_chosen = None, []
        if pooling is not None:
            pooled = torch.empty(batch, num_classes, *pooling.size(height, width), dtype=dtype, device=device)
        for image in range(batch):
            void = None if truth.valid is None else ~truth.valid[image]
            for part in chunks(num_classes, 4 * height * width, device):
                maps = scores[image, part].to(dtype)
                if pixel:
                    total += _cross_entropy_sum(maps, truth.one_hot(image, part), void, with_logits)
                if pooling is not None and pooled is not None:
                    probs = maps.sigmoid() if with_logits else maps
                    if void is not None:
                        probs = probs.masked_fill(void, 0)
                    pooled[image, part], chosen = pooling.pool(probs)
                    all_chosen.append(chosen)
        ctx.save_for_backward(scores, *all_chosen)
        ctx.truth, ctx.with_logits, ctx.pixel, ctx.pooling = truth, with_logits, pixel, pooling
        return total, pooled

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, grad_pooled: Tensor | None) -> tuple[Tensor | None, ...]:
        scores, *all_chosen = ctx.saved_tensors
        with torch.autocast(scores.device.type, enabled=False):
            grad = _scores_gradient(scores, list(all_chosen), ctx, grad_total, grad_pooled)
        return grad, None, None, None, None


def _cross_entropy_sum(maps: Tensor, one_hot: Tensor, void: Tensor | None, with_logits: bool) -> Tensor:
    if with_logits:
        # softplus(-x) where the label is 1, softplus(x) where it is 0
        losses = F.softplus(torch.where(one_hot, -maps, maps))
    else:
        # as in torch, the logarithm ends at -100, so a wrong probability of exactly 0 costs 100 and not infinity
        losses = -torch.where(one_hot, maps.log(), torch.log1p(-maps)).clamp_min(-100)
    if void is not None:
        losses.masked_fill_(void, 0)
    return losses.sum(dtype=torch.float64)


def _scores_gradient(
    scores: Tensor, all_chosen: list[Tensor | None], ctx: Any, grad_total: Tensor, grad_pooled: Tensor | None
) -> Tensor:
    truth: Truth = ctx.truth
    batch, num_classes, height, width = scores.shape
    dtype = torch.promote_types(scores.dtype, torch.float32)
    grad = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    chosen = iter(all_chosen)
    for image in range(batch):
        void = None if truth.valid is None else ~truth.valid[image]
        for part in chunks(num_classes, 4 * height * width, scores.device):
            maps = scores[image, part].to(dtype)
            probs = maps.sigmoid() if ctx.with_logits else maps
            slope = probs * (1 - probs)
            total = torch.zeros_like(probs)
            if ctx.pixel:
                difference = (probs - truth.one_hot(image, part).to(dtype)) * grad_total.to(dtype)
                total += difference if ctx.with_logits else difference / slope.clamp_min(1e-12)
            if ctx.pooling is not None and grad_pooled is not None:
                small = grad_pooled[image, part]
                spread = ctx.pooling.spread(small, height, width, next(chosen, None))
                total += spread * slope if ctx.with_logits else spread
            if void is not None:
                total.masked_fill_(void, 0)
            grad[image, part] = total
    return grad
