"""Speed and memory of the RMI loss, as ratios to the direct way of computing it, within one run.

    python benchmarks/loss_speed.py            everything, about ten minutes on two quiet cores
    python benchmarks/loss_speed.py --quick    fewer repetitions and no grid

The direct way is the plain PyTorch of tests/losses/plain_rmi.py: sigmoid, one-hot labels, pooling, a stack of R² shifts
in float64, `inverse`, autograd. Every repetition goes to a JSON file; the tables show the fastest, and ratios of the
fastest and of the medians.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring.peak_memory import can_measure, peak_bytes
from measuring.plain_ways import load_from_tests
from measuring.record import environment, race, summary, write
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, RMILoss

CONSOLE = Console(width=120)
OUTPUT = Path(__file__).parent / "results" / "loss_speed.json"
# ratios to the direct way that are aimed at: side and pooling of the RMI term, or the whole loss
GOALS = {
    ("c", 256, "avg"): 16,
    ("c", 256, "max"): 13,
    ("c", 128, "avg"): 6,
    ("c", 128, "max"): 6,
    ("c", 32, "avg"): 1.2,
    ("c", 32, "max"): 1.2,
    ("c", 513, "avg"): 25,
    ("plain", 256, "avg"): 4,
    ("plain", 256, "max"): 4,
    ("plain", 513, "avg"): 4,
}
MEMORY_GOALS = {"plain": 3.0, "c": 1.4, "triton": 1.4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no grid")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = 3 if arguments.quick else 9
    record = environment()
    record["speed"] = [region_term(side, pooling, rounds) for side in (256, 128, 32) for pooling in ("avg", "max")]
    record["speed"].append(whole_loss("cpu", 4, rounds))
    if torch.cuda.is_available():
        record["speed"].append(whole_loss("cuda", 16, rounds))
    record["memory"] = memory("cpu", 4) + (memory("cuda", 16) if torch.cuda.is_available() else [])
    record["grid"] = [] if arguments.quick else grid(3)
    record["triton"] = triton_report()
    write(arguments.out, record)
    show(record)
    CONSOLE.print(f"All repetitions are in {arguments.out}")


def make_batch(size: int, side: int, device: str = "cpu", *, void: bool = True) -> tuple[Tensor, Tensor]:
    """Random logits of 21 classes, and labels in blocks of 8 × 8, one row in nine void."""
    blocks = torch.randint(21, (size, side // 8 + 1, side // 8 + 1))
    labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :side, :side].contiguous()
    if void:
        labels[:, ::9] = 255
    return torch.randn(size, 21, side, side).to(device).requires_grad_(), labels.to(device)


def forward_and_backward(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor
) -> Callable[[], None]:
    def step() -> None:
        logits.grad = None
        loss(logits, labels).backward()

    return step


def backends(device: str) -> tuple[str, str]:
    return ("plain", "triton" if device == "cuda" else "c")


def region_term(side: int, pooling: str, rounds: int) -> dict[str, Any]:
    plain = load_from_tests("losses/plain_rmi.py")
    logits, labels = make_batch(8, side, void=False)

    def direct(logits: Tensor, labels: Tensor) -> Tensor:
        one_hot = F.one_hot(labels, 21).movedim(-1, 1).float().contiguous()
        loss: Tensor = plain.plain_rmi(logits.sigmoid(), one_hot, region_size=3, factor=3, pooling=pooling, ridge=5e-4)
        return loss

    versions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"direct": direct}
    for backend in backends("cpu"):
        versions[backend] = RMILoss(21, downsampling_factor=3, pooling=pooling, pixel_loss=None, backend=backend)
    steps = {name: forward_and_backward(version, logits, labels) for name, version in versions.items()}
    CONSOLE.print(f"RMI term, {side} × {side}, {pooling} …")
    times = summary(race(steps, rounds if side > 128 else 3 * rounds))
    return {"what": "RMI term", "shape": list(logits.shape), "device": "cpu", "pooling": pooling, "times": times}


def whole_loss(device: str, size: int, rounds: int) -> dict[str, Any]:
    """BCE + RMI, beside BCE and CE alone and the floor: the logits read twice and the gradient written once."""
    logits, labels = make_batch(size, 513, device)
    versions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "direct": load_from_tests("losses/plain_rmi.py").plain_bce_rmi,
        **{backend: RMILoss(21, backend=backend).to(device) for backend in backends(device)},
        "BCE": BinaryCrossEntropyLoss(21).to(device),
        "CE": CrossEntropyLoss(21).to(device),
    }
    steps: dict[str, Callable[[], object]] = {
        name: forward_and_backward(version, logits, labels) for name, version in versions.items()
    }
    source, target = logits.detach(), torch.empty_like(logits)
    CONSOLE.print(f"BCE + RMI on {device} …")
    steps["copy"] = lambda: target.detach().copy_(source)
    times = summary(race(steps, rounds))
    return {"what": "BCE + RMI", "shape": list(logits.shape), "device": device, "pooling": "avg", "times": times}


def one_step(name: str, size: int, side: int, arguments: dict[str, Any]) -> Callable[[], object]:
    """Forward and backward of a version on a new batch."""
    logits, labels = make_batch(size, side)
    makers: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
        "direct": lambda: load_from_tests("losses/plain_rmi.py").plain_bce_rmi,
        "BCE": lambda: BinaryCrossEntropyLoss(21),
        "CE": lambda: CrossEntropyLoss(21),
    }
    version = makers[name]() if name in makers else RMILoss(21, backend=name, **arguments)
    return forward_and_backward(version, logits, labels)


def peak_on_cpu(name: str, size: int, side: int, **arguments: Any) -> int:
    tiny, real = ((name, *shape, arguments) for shape in ((1, 65), (size, side)))
    return peak_bytes(one_step, tiny, real, torch.get_num_threads())


def peak_on_gpu(name: str, size: int) -> int:
    logits, labels = make_batch(size, 513, "cuda")
    version = load_from_tests("losses/plain_rmi.py").plain_bce_rmi if name == "direct" else RMILoss(21, backend=name)
    step = forward_and_backward(version.cuda() if isinstance(version, torch.nn.Module) else version, logits, labels)
    step()
    logits.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def memory(device: str, size: int) -> list[dict[str, Any]]:
    """Peak above the inputs; on a CPU in a process of its own."""
    if device == "cpu" and not can_measure():
        return []
    logits_bytes = size * 21 * 513 * 513 * 4
    result = []
    for name in ("direct", *backends(device)):
        CONSOLE.print(f"peak memory of {name} on {device} …")
        peak = peak_on_cpu(name, size, 513) if device == "cpu" else peak_on_gpu(name, size)
        result.append({"version": name, "device": device, "bytes": peak, "of_logits": round(peak / logits_bytes, 3)})
    return result


def grid(rounds: int) -> list[dict[str, Any]]:
    logits, labels = make_batch(2, 257)
    result = []
    for region_size in range(1, 7):
        for factor in range(1, 7):
            loss = RMILoss(21, region_size=region_size, downsampling_factor=factor)
            times = summary(race({"auto": forward_and_backward(loss, logits, labels)}, rounds))
            result.append({"region_size": region_size, "downsampling_factor": factor, "times": times})
    return result


def triton_report() -> list[dict[str, Any]]:
    """Registers, spills and shared memory of every kernel for sm_80 and sm_90, which needs no GPU."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return []
    module = load_from_tests("losses/triton_report.py")
    return [kernel._asdict() for capability in (80, 90) for kernel in module.report(capability)]


def show(record: dict[str, Any]) -> None:
    columns = ("what", "shape", "pooling", "version", "ms", "× fastest", "× median", "goal")
    table = Table(*columns, title=f"{record['threads']} threads, load {record['load_before'][0]:.1f}")
    for case in record["speed"]:
        direct = case["times"]["direct"]
        for name, times in case["times"].items():
            ratios = [direct["fastest"] / times["fastest"], direct["quartiles"][1] / times["quartiles"][1]]
            goal = GOALS.get((name, case["shape"][3], case["pooling"]), "") if case["device"] == "cpu" else ""
            shape = "×".join(map(str, case["shape"]))
            cells = (
                case["what"],
                shape,
                case["pooling"],
                name,
                f"{times['fastest']:.1f}",
                *(f"{r:.1f}" for r in ratios),
            )
            table.add_row(*cells, str(goal))
    CONSOLE.print(table)
    for case in record["speed"]:
        if "copy" in case["times"]:
            # a copy reads and writes once; the floor is two readings and one writing
            floor, name = 1.5 * case["times"]["copy"]["fastest"], backends(case["device"])[1]
            ratio = case["times"][name]["fastest"] / floor
            goal = 3 if case["device"] == "cuda" else 4
            CONSOLE.print(
                f"{case['device']}: floor {floor:.1f} ms, {name} {ratio:.1f} times that (goal: at most {goal})"
            )
    for entry in record["memory"]:
        goal = MEMORY_GOALS.get(entry["version"], "")
        CONSOLE.print(
            f"peak memory, {entry['device']}, {entry['version']}: {entry['of_logits']} × logits (goal {goal})"
        )
    if record["triton"]:
        worst = max(record["triton"], key=lambda kernel: kernel["registers"])
        spilled = sum(kernel["spilled_bytes"] > 0 for kernel in record["triton"])
        shared = max(kernel["shared_bytes"] for kernel in record["triton"])
        CONSOLE.print(
            f"Triton: {len(record['triton'])} kernels for sm_80 and sm_90, {spilled} spill, at most "
            f"{worst['registers']} registers ({worst['name']}) and {shared} bytes of shared memory"
        )
    if not torch.cuda.is_available():
        CONSOLE.print("CUDA: not measured, as this machine has no GPU that PyTorch can use")


if __name__ == "__main__":
    main()
