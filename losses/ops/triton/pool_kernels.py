"""Triton kernels of `bce_pool`: the logits are read once in the forward and once in the backward pass.

N, C, H, W and the pooled size are those of the operator; a plane is the H × W pixels of one class of one image.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def log_one_plus(e):
    """Compute log(1 + e) of e in [0, 1] to float32 rounding: 2 artanh(s) with s = e / (2 + e)."""
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 11.0 + q * (1.0 / 13.0)
    series = 1.0 / 7.0 + q * (1.0 / 9.0 + q * series)
    series = 1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * series))
    return 2.0 * s * series


@triton.jit
def pool_forward(
    logits,  # (N, C, H, W)
    target,  # (N, H, W) or (N, C, H, W)
    bce,  # one float64 per program
    pooled,  # (N, C, h, w)
    pooled_target,  # (N, C, h, w)
    indices,  # (N, C, h, w)
    classes,
    height,
    width,
    pooled_height,
    pooled_width,
    POOLING: tl.constexpr,
    KERNEL: tl.constexpr,
    KERNEL_POWER: tl.constexpr,  # the next power of 2
    MULTI_HOT: tl.constexpr,
    WITH_BCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pool BLOCK adjacent windows of one plane per program. Pixels at the end that are in none count in `bce`, too."""
    plane, window_y = tl.program_id(0), tl.program_id(1)
    window_x = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    dx = tl.arange(0, KERNEL_POWER)[None, :]
    x = window_x[:, None] * KERNEL - KERNEL // 2 + dx
    inside_x = (dx < KERNEL) & (x >= 0) & (x < width)
    if MULTI_HOT:
        own = 1
        label_plane = plane
    else:
        own = plane % classes
        label_plane = plane // classes
    start = plane.to(tl.int64) * height * width
    label_start = label_plane.to(tl.int64) * height * width
    total = tl.zeros((BLOCK, KERNEL_POWER), tl.float32)
    # sums of the pooling window's columns, or their maxima and the indices of these
    column = tl.zeros((BLOCK, KERNEL_POWER), tl.float32) - (1.0 if POOLING == "max" else 0.0)
    index = tl.zeros((BLOCK, KERNEL_POWER), tl.int32)
    hits = tl.zeros((BLOCK, KERNEL_POWER), tl.int32)
    for dy in range(KERNEL):
        y = tl.zeros_like(x) + (window_y * KERNEL - KERNEL // 2 + dy)
        inside = inside_x & (y >= 0) & (y < height)
        pixel = y * width + x
        logit = tl.load(logits + start + pixel, mask=inside, other=0.0).to(tl.float32)
        label = tl.load(target + label_start + pixel, mask=inside, other=-1).to(tl.int32)
        valid, is_class = label >= 0, label == own
        e = tl.exp(-tl.abs(logit))
        probs = tl.where(valid, tl.where(logit < 0, e, 1.0) / (1.0 + e), 0.0)
        if WITH_BCE:
            signed = tl.where(is_class, -logit, logit)
            total += tl.where(valid, tl.where(signed < 0, 0.0, signed) + log_one_plus(e), 0.0)
        if POOLING == "max":
            better = inside & ((probs > column) | (probs != probs))
            column = tl.where(better, probs, column)
            index = tl.where(better, pixel, index)
        else:
            column += probs
        hits += is_class.to(tl.int32)
    if WITH_BCE:
        program = (plane * tl.num_programs(1) + window_y) * tl.num_programs(2) + tl.program_id(2)
        tl.store(bce + program, tl.sum(tl.sum(total, 1), 0).to(tl.float64))
    if POOLING != "none":
        out = plane.to(tl.int64) * pooled_height * pooled_width + window_y * pooled_width + window_x
        stored = (window_x < pooled_width) & (tl.zeros_like(window_x) + window_y < pooled_height)
        if POOLING == "max":
            nan = column != column
            any_nan = tl.max(nan.to(tl.int32), 1) > 0
            largest = tl.max(tl.where(nan, -1.0, column), 1)
            candidate = tl.where(any_nan[:, None], nan, column == largest[:, None])
            first = tl.min(tl.where(candidate, index, 2147483647), 1)
            tl.store(pooled + out, tl.where(any_nan, float("nan"), largest), mask=stored)
            tl.store(indices + out, first, mask=stored)
            tl.store(pooled_target + out, (tl.max(hits, 1) > 0).to(tl.float32), mask=stored)
        else:
            tl.store(pooled + out, tl.sum(column, 1) / (KERNEL * KERNEL), mask=stored)
            if POOLING == "avg":
                tl.store(pooled_target + out, tl.sum(hits, 1).to(tl.float32) / (KERNEL * KERNEL), mask=stored)


@triton.jit
def pool_backward(
    grad_bce,  # float64 scalar
    grad_pooled,  # (N, C, h, w)
    logits,
    target,
    indices,
    grad,  # (N, C, H, W), in the dtype of logits
    classes,
    height,
    width,
    pooled_height,
    pooled_width,
    POOLING: tl.constexpr,
    KERNEL: tl.constexpr,
    MULTI_HOT: tl.constexpr,
    WITH_BCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the gradient of BLOCK pixels of one plane per program."""
    plane = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    if MULTI_HOT:
        own = 1
        label_plane = plane
    else:
        own = plane % classes
        label_plane = plane // classes
    start = plane.to(tl.int64) * height * width
    label_start = label_plane.to(tl.int64) * height * width
    logit = tl.load(logits + start + pixel, mask=inside, other=0.0).to(tl.float32)
    label = tl.load(target + label_start + pixel, mask=inside, other=-1).to(tl.int32)
    e = tl.exp(-tl.abs(logit))
    inverse = 1.0 / (1.0 + e)
    smaller = e * inverse  # the smaller of p and 1 - p
    result = tl.zeros((BLOCK,), tl.float32)
    if POOLING != "none":
        window_y = (pixel // width + KERNEL // 2) // KERNEL
        window_x = (pixel % width + KERNEL // 2) // KERNEL
        pooled_here = inside & (window_y < pooled_height) & (window_x < pooled_width)
        window = plane.to(tl.int64) * pooled_height * pooled_width + window_y * pooled_width + window_x
        spread = tl.load(grad_pooled + window, mask=pooled_here, other=0.0)
        if POOLING == "max":
            chosen = tl.load(indices + window, mask=pooled_here, other=-1)
            spread = tl.where(chosen == pixel, spread, 0.0)
        else:
            spread = spread / (KERNEL * KERNEL)
        result += spread * (smaller * inverse)
    if WITH_BCE:
        negative = logit < 0
        difference = tl.where(label == own, -tl.where(negative, inverse, smaller), tl.where(negative, smaller, inverse))
        result += tl.load(grad_bce).to(tl.float32) * difference
    result = tl.where(label >= 0, result, 0.0)
    tl.store(grad + start + pixel, result.to(grad.dtype.element_ty), mask=inside)
