"""Triton kernels of `region_moments`, in float64.

A region has 2d = 2R² entries: entry (j, dy, dx) is the pixel of plane j (0 labels, 1 probabilities) that is (dy, dx)
from the region's corner. R = REGION. `means` (M, 2) has the planes' means, subtracted first to keep precision.
"""

# mypy: ignore-errors
import triton
import triton.language as tl


@triton.jit
def _entries(labels, probs, means, plane, entry, position, positions, columns, step, height, width, REGION):
    """Load entries of regions, float64: `entry` is (I, 1) and `position` (1, B); 0 beyond the last of either."""
    area = REGION * REGION
    offset = entry % area
    y = position // columns * step + offset // REGION
    x = position % columns * step + offset % REGION
    pixel = plane.to(tl.int64) * height * width + y * width + x
    inside = position < positions
    is_label = inside & (entry < area)
    is_prob = inside & (entry >= area) & (entry < 2 * area)
    label = tl.load(labels + pixel, mask=is_label, other=0.0).to(tl.float64)
    prob = tl.load(probs + pixel, mask=is_prob, other=0.0).to(tl.float64)
    label_mean, prob_mean = tl.load(means + 2 * plane), tl.load(means + 2 * plane + 1)
    return tl.where(is_label, label - label_mean, 0.0) + tl.where(is_prob, prob - prob_mean, 0.0)


@triton.jit
def moments_forward(
    labels,  # (M, h, w)
    probs,  # (M, h, w)
    means,  # (M, 2) float64
    moments,  # (PARTS, M, 2d, 2d) float64, to be summed over the parts
    sums,  # (PARTS, M, 2d) float64, likewise
    planes,
    height,
    width,
    columns,  # regions in a row
    positions,  # number of regions
    step,
    REGION: tl.constexpr,
    TILES: tl.constexpr,  # tiles of TILE entries that cover all 2d
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum a TILE × TILE block of one plane's moments per program, over every PARTS-th block of positions."""
    plane, part = tl.program_id(0), tl.program_id(2)
    tile, other_tile = tl.program_id(1) // TILES, tl.program_id(1) % TILES
    entry = tile * TILE + tl.arange(0, TILE)
    other_entry = other_tile * TILE + tl.arange(0, TILE)
    block = tl.arange(0, BLOCK)[None, :]
    products = tl.zeros((TILE, TILE), tl.float64)
    total = tl.zeros((TILE,), tl.float64)
    for start in range(part * BLOCK, positions, tl.num_programs(2) * BLOCK):
        position = start + block
        left = _entries(
            labels, probs, means, plane, entry[:, None], position, positions, columns, step, height, width, REGION
        )
        right = _entries(
            labels, probs, means, plane, other_entry[:, None], position, positions, columns, step, height, width, REGION
        )
        products += tl.dot(left, tl.trans(right), out_dtype=tl.float64)
        total += tl.sum(left, 1)
    size = 2 * REGION * REGION
    row = (part * planes + plane).to(tl.int64) * size + entry
    kept = entry < size
    tl.store(
        moments + row[:, None] * size + other_entry[None, :],
        products,
        mask=kept[:, None] & (other_entry < size)[None, :],
    )
    if other_tile == 0:
        tl.store(sums + row, total, mask=kept)


@triton.jit
def moments_backward(
    weights,  # (M, d, 2d) float64
    constants,  # (M, d) float64, weights times the means of the entries
    labels,
    probs,
    means,
    grad,  # (M, h, w)
    height,
    width,
    rows,  # regions in a column
    columns,
    step,
    REGION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the gradient of BLOCK pixels of one plane per program.

    A pixel is entry (dy, dx) of up to R² regions. In the region, entry (dy + ly, dx + lx) is the pixel (ly, lx) away
    for every (dy, dx), so each neighboring pixel is read once.
    """
    plane = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = pixel // width, pixel % width
    inside = pixel < height * width
    start = plane.to(tl.int64) * height * width
    area = REGION * REGION
    label_mean, prob_mean = tl.load(means + 2 * plane), tl.load(means + 2 * plane + 1)
    result = tl.zeros((BLOCK,), tl.float64)
    for lag in range((2 * REGION - 1) * (2 * REGION - 1)):
        ly, lx = lag // (2 * REGION - 1) - (REGION - 1), lag % (2 * REGION - 1) - (REGION - 1)
        there = inside & (y + ly >= 0) & (y + ly < height) & (x + lx >= 0) & (x + lx < width)
        neighbor = start + pixel + ly * width + lx
        label = tl.load(labels + neighbor, mask=there, other=0.0).to(tl.float64) - label_mean
        prob = tl.load(probs + neighbor, mask=there, other=0.0).to(tl.float64) - prob_mean
        for dy in range(tl.maximum(0, -ly), tl.minimum(REGION, REGION - ly)):
            for dx in range(tl.maximum(0, -lx), tl.minimum(REGION, REGION - lx)):
                offset = plane * area + dy * REGION + dx
                row = weights + offset * 2 * area + (dy + ly) * REGION + dx + lx
                term = tl.load(row) * label + tl.load(row + area) * prob
                if (ly == 0) & (lx == 0):  # the pixel itself, once for each offset
                    term -= tl.load(constants + offset)
                region_y, region_x = (y - dy) // step, (x - dx) // step
                corner = (y >= dy) & (x >= dx) & (region_y * step == y - dy) & (region_x * step == x - dx)
                result += tl.where(corner & (region_y < rows) & (region_x < columns), term, 0.0)
    tl.store(grad + start + pixel, result.to(tl.float32), mask=inside)
