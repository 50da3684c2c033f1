"""Runs the Triton kernels on a CPU, in Triton's interpreter, and compares them with the plain operators.

    TRITON_INTERPRET=1 python triton_interpreter.py > errors.json

A script of its own: Triton reads the variable when it is imported.
"""

import json
from typing import Any

_SHAPES = (
    (13, 11, {}),
    (8, 9, {"void": 0.5}),
    (7, 7, {"dtype": "float16", "multi_hot": True}),
    (9, 6, {"dtype": "bfloat16", "with_bce": False}),
)
# larger windows with every other shape, as neither depends on the other
POOLINGS = [
    {"pooling": pooling, "kernel_size": kernel_size, "height": height, "width": width, **more}
    for pooling, sizes in (("none", (1,)), ("identity", (1,)), ("avg", range(2, 7)), ("max", range(2, 7)))
    for kernel_size in sizes
    for height, width, more in (_SHAPES if kernel_size == 1 else _SHAPES[kernel_size % 2 :: 2])
]
REGIONS = [
    {"region_size": region_size, "step": step, "height": height, "width": width}
    for region_size, step, height, width in (
        *((1, 1, 5, 4), (1, 3, 7, 8), (2, 1, 2, 2), (2, 1, 7, 6), (2, 2, 7, 8), (3, 1, 3, 4), (3, 1, 9, 8)),
        *((3, 2, 8, 7), (4, 1, 5, 6), (4, 3, 8, 7), (5, 1, 6, 7)),
    )
]
EDGES = [{"nan": True, "pooling": "max"}, {"nan": True, "pooling": "avg"}, {"constant": True, "pooling": "max"}]


def main() -> None:
    results = {}
    for case in [*POOLINGS, *REGIONS, *EDGES]:
        try:
            (compare_moments if "region_size" in case else compare_pooling)(**case)
            results[json.dumps(case)] = ""
        except Exception as error:
            results[json.dumps(case)] = f"{type(error).__name__}: {error}"
    print(json.dumps(results))


def compare_pooling(
    *,
    pooling: str,
    kernel_size: int = 2,
    height: int = 6,
    width: int = 6,
    void: float = 0.1,
    dtype: str = "float32",
    multi_hot: bool = False,
    with_bce: bool = True,
    nan: bool = False,
    constant: bool = False,
) -> None:
    import torch

    from beyondpixel.losses.functional.target import read_target
    from beyondpixel.losses.ops.operators import bce_pool

    torch.manual_seed(0)
    logits = torch.zeros(2, 3, height, width) if constant else 3 * torch.randn(2, 3, height, width)
    labels = torch.randint(3, (2, height, width))
    labels[torch.rand(labels.shape) < void] = 255
    if nan:
        logits[0, 1, 3, 3] = torch.nan
        labels[0, 3, 3] = 1
    logits = logits.to(getattr(torch, dtype))
    target = read_target(logits, torch.randint(2, logits.shape) if multi_hot else labels, ignore_index=255)
    results: list[Any] = []
    for backend in ("plain", "triton"):
        leaf = logits.clone().requires_grad_()
        bce, pooled, pooled_target = bce_pool(
            leaf, target, pooling=pooling, kernel_size=kernel_size, with_bce=with_bce, backend=backend
        )
        weights = torch.linspace(-1, 1, pooled.numel()).view(pooled.shape)
        (0.7 * bce + (pooled * weights).sum()).backward()
        results.append((bce, pooled, pooled_target, leaf.grad))
    for plain, triton in zip(*results, strict=True):
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if plain.dtype in (torch.float32, torch.float64) else {}
        torch.testing.assert_close(triton, plain, equal_nan=True, **tolerance)
    if not multi_hot:
        assert not results[1][3][(labels == 255)[:, None].expand(logits.shape)].any(), "gradient at void pixels"


def compare_moments(*, region_size: int, step: int, height: int, width: int) -> None:
    import torch

    from beyondpixel.losses.ops.operators import region_moments

    torch.manual_seed(0)
    labels, values = torch.rand(2, 1, 1, height, width)
    results: list[Any] = []
    for backend in ("plain", "triton"):
        probs = values.clone().requires_grad_()
        moments = region_moments(labels, probs, region_size=region_size, step=step, backend=backend)
        weights = torch.linspace(-1, 1, moments.numel(), dtype=torch.float64).sin().view(moments.shape)
        (moments * weights).sum().backward()
        results.append((moments, probs.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    main()
