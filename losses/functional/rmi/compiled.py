"""backend="compiled": the C kernels beside this file, compiled once for the machine and kept in a cache folder."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from beyondpixel.losses.functional._validation import LabelTruth
from beyondpixel.losses.functional.large_pages import empty_gradient
from beyondpixel.losses.functional.rmi.pooling import MaxWindows, Windows

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = [
    "-O3",
    "-march=native",
    "-std=c11",
    "-D_GNU_SOURCE",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
]
# tried in this order. The library is linked without an OpenMP of its own, so that it shares PyTorch's, whose threads
# are there already; where PyTorch brings none that fits the compiler, the kernels run in one thread
_PARALLEL_FLAGS: tuple[list[str], ...] = (["-fopenmp"], [])
# the place in a window is kept in 16 bits
_LARGEST_FACTOR = 181


@functools.cache
def load_kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None, after a warning, where they cannot be compiled."""
    compiler = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        warnings.warn(
            'backend="compiled" needs a C compiler (cc, gcc or clang, or CC set to one) and found none; '
            'the loss goes on with backend="eager", which gives equal results',
            stacklevel=2,
        )
        return None
    output = ""
    for parallel in _PARALLEL_FLAGS:
        try:
            return ctypes.CDLL(str(_compile(compiler, [*_FLAGS, *parallel])))
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stderr", None) or str(error)
    warnings.warn(
        f'backend="compiled": {compiler} could not compile the kernels, so the loss goes on with '
        f'backend="eager", which gives equal results: {output.strip()[-500:]}',
        stacklevel=2,
    )
    return None


def _compile(compiler: str, flags: list[str]) -> Path:
    library = _cache_folder() / f"kernels-{_fingerprint(compiler, flags)}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            compiled, fresh = Path(folder) / "kernels.o", Path(folder) / library.name
            for command in (
                [*compiler.split(), *flags, "-c", str(_SOURCE), "-o", str(compiled)],
                [*compiler.split(), "-shared", str(compiled), "-o", str(fresh), "-lm"],
            ):
                subprocess.run(command, check=True, capture_output=True, text=True)
            # other processes may do the same at the same time; a rename is atomic
            fresh.replace(library)
    return library


def _fingerprint(compiler: str, compiler_flags: list[str]) -> str:
    """Of all that the library depends on; home folders are shared between machines with different processors."""
    cpu = Path("/proc/cpuinfo")
    flags = (
        next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "") if cpu.exists() else ""
    )
    parts = (_SOURCE.read_text(), " ".join(compiler_flags), compiler, platform.platform(), platform.machine(), flags)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "beyondpixel"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    return folder if writable else Path(tempfile.mkdtemp(prefix="beyondpixel-"))


def fits_kernels(scores: Tensor, windows: Windows) -> bool:
    """Whether the kernels have the pass over these logits, for integer labels: at most float32, on a CPU."""
    return (
        scores.device.type == "cpu"
        and scores.dtype != torch.float64
        and scores.numel() > 0
        and windows.factor <= _LARGEST_FACTOR
    )


class CompiledMapPass(torch.autograd.Function):
    """As `map_pass.MapPass`, for what `fits_kernels`."""

    @staticmethod
    @override
    def forward(
        ctx: Any, scores: Tensor, truth: LabelTruth, pixel: bool, windows: Windows, kernels: ctypes.CDLL
    ) -> tuple[Tensor, Tensor]:
        logits, labels = scores.float().contiguous(), truth.labels
        batch, num_classes = scores.shape[:2]
        size = windows.size(*scores.shape[2:])
        pooled = torch.empty(batch, num_classes, *size, dtype=torch.float32)
        chosen = torch.empty(pooled.shape, dtype=torch.int16) if isinstance(windows, MaxWindows) else None
        totals = torch.zeros(batch, num_classes, dtype=torch.float64)
        kernels.maps_forward(
            _address(logits),
            _address(labels),
            _address(pooled),
            _address(chosen),
            _address(totals if pixel else None),
            *_sizes(batch, num_classes, *scores.shape[2:], *size, windows.factor, torch.get_num_threads()),
        )
        ctx.save_for_backward(logits, labels, chosen)
        ctx.pixel, ctx.windows, ctx.kernels, ctx.dtype = pixel, windows, kernels, scores.dtype
        return totals.sum(), pooled

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, chosen = ctx.saved_tensors
        grad = empty_gradient(logits)
        grad_pooled = grad_pooled.contiguous()
        ctx.kernels.maps_backward(
            _address(logits),
            _address(labels),
            _address(chosen),
            _address(grad_pooled),
            _address(grad),
            ctypes.c_float(float(grad_total) if ctx.pixel else 0.0),
            *_sizes(*logits.shape, *grad_pooled.shape[2:], ctx.windows.factor, torch.get_num_threads()),
        )
        return grad.to(ctx.dtype), None, None, None, None


def compiled_pool_truth(kernels: ctypes.CDLL, truth: LabelTruth, num_classes: int, windows: Windows) -> Tensor:
    """As `pooling.pool_truth`, for integer labels on a CPU, in float32."""
    batch, height, width = truth.shape
    size = windows.size(height, width)
    pooled = torch.empty(batch, num_classes, *size, dtype=torch.float32)
    kernels.pool_labels(
        _address(truth.labels),
        _address(pooled),
        *_sizes(int(isinstance(windows, MaxWindows)), batch, num_classes, height, width, *size, windows.factor),
        *_sizes(torch.get_num_threads()),
    )
    return pooled


def compiled_second_moments(kernels: ctypes.CDLL, labels: Tensor, probs: Tensor, *, region_size: int) -> Tensor:
    """As `moments.second_moments`, for float32 maps on a CPU."""
    labels, probs = labels.contiguous(), probs.contiguous()
    moments = torch.empty(len(labels), 2 * region_size**2, 2 * region_size**2, dtype=torch.float64)
    kernels.regions_moments(
        _address(labels),
        _address(probs),
        _address(moments),
        *_sizes(*labels.shape, region_size, torch.get_num_threads()),
    )
    return moments


def compiled_bound(
    kernels: ctypes.CDLL, moments: Tensor, *, scale: float, ridge: float, with_weights: bool
) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """As `bound.bound_from_moments`; None where a matrix is not positive definite with the ridge."""
    count, side = len(moments), moments.shape[1] // 2
    bound = torch.empty(count, dtype=torch.float64)
    weights = torch.empty(count, side, 2 * side, dtype=torch.float64) if with_weights else None
    failed = torch.empty(count, dtype=torch.bool)
    kernels.regions_bound(
        _address(moments),
        _address(bound),
        _address(weights),
        _address(failed),
        ctypes.c_double(scale),
        ctypes.c_double(ridge),
        *_sizes(count, side, torch.get_num_threads()),
    )
    return None if bool(failed.any()) else (bound, weights, torch.zeros((), dtype=torch.int64))


def compiled_moments_backward(
    kernels: ctypes.CDLL, weights: Tensor, labels: Tensor, probs: Tensor, *, region_size: int
) -> Tensor:
    """As `moments.moments_backward`, for float32 maps on a CPU."""
    labels, probs = labels.contiguous(), probs.contiguous()
    weights, grad = weights.contiguous(), torch.empty_like(probs)
    kernels.regions_backward(
        _address(weights),
        _address(labels),
        _address(probs),
        _address(grad),
        *_sizes(*labels.shape, region_size, torch.get_num_threads()),
    )
    return grad


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]
