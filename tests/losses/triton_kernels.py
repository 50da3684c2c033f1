"""Compiles every Triton kernel for a GPU that need not be there, and says what a thread and a block of each takes."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

# bytes of shared memory that a block may have without asking for more
SHARED_LIMIT = 48 * 1024
TYPES = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}


class Kernel(NamedTuple):
    name: str
    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int


def report(capability: int) -> list[Kernel]:
    """One entry for each kernel and its variants, for a compute capability such as 90."""
    return [compile_kernel(*variant, capability) for variant in variants()]


def variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    from beyondpixel.losses.ops.triton import moment_kernels, pool_kernels

    result: list[tuple[str, Any, dict[str, str], dict[str, Any]]] = []
    windows = [("none", 1), ("identity", 1), ("avg", 3), ("avg", 4), ("max", 2), ("max", 4), ("max", 6)]
    for dtype, pooling, kernel in (
        *(("float32", *window) for window in windows),
        ("float16", "avg", 4),
        ("bfloat16", "max", 4),
    ):
        power = 1 << (kernel - 1).bit_length()
        options = {"POOLING": pooling, "KERNEL": kernel, "MULTI_HOT": False, "WITH_BCE": True}
        forward = {**options, "KERNEL_POWER": power, "BLOCK": 256 // power}
        pointers = {"logits": TYPES[dtype], "target": "*i16", "bce": "*fp64", "grad_bce": "*fp64", "grad": TYPES[dtype]}
        pointers |= {"indices": "*i32", "pooled": "*fp32", "pooled_target": "*fp32", "grad_pooled": "*fp32"}
        name = f"{pooling} {kernel} {dtype}"
        result.append((f"pool_forward {name}", pool_kernels.pool_forward, pointers, forward))
        result.append((f"pool_backward {name}", pool_kernels.pool_backward, pointers, {**options, "BLOCK": 1024}))
    # an argument that is 1 is compiled in
    sizes = {"height": 1, "width": 1}
    result.append(("pool_forward of 1 x 1", pool_kernels.pool_forward, pointers, {**forward, **sizes}))
    result.append(("pool_backward of 1 x 1", pool_kernels.pool_backward, pointers, {**options, **sizes, "BLOCK": 1024}))
    for region in (1, 3, 5):
        pointers = {"labels": "*fp32", "probs": "*fp32", "grad": "*fp32"}
        pointers |= dict.fromkeys(("means", "moments", "sums", "weights", "constants"), "*fp64")
        tiles = -(-2 * region**2 // 32)
        forward = {"REGION": region, "TILES": tiles, "TILE": 32, "BLOCK": 32}
        result.append((f"moments_forward R {region}", moment_kernels.moments_forward, pointers, forward))
        backward = {"REGION": region, "BLOCK": 256}
        result.append((f"moments_backward R {region}", moment_kernels.moments_backward, pointers, backward))
    return result


def compile_kernel(
    name: str, kernel: Any, pointers: dict[str, str], options: dict[str, Any], capability: int
) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        argument: "constexpr" if argument in options else pointers.get(argument, "i32") for argument in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=options)
    stages = {"num_stages": 1} if "moments_forward" in name else {}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=stages)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "--dump-resource-usage", str(cubin)], check=True, capture_output=True, text=True)
    figures = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    spilled = figures["STACK"] + figures["LOCAL"]
    return Kernel(name, capability, figures["REG"], spilled, compiled.metadata.shared)
