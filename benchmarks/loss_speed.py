"""Speed and memory of the RMI loss, as ratios to the authors' way of computing it, within one run.

    python benchmarks/loss_speed.py            everything, about ten minutes on two quiet cores
    python benchmarks/loss_speed.py --quick    fewer repetitions and a smaller grid

The versions take turns, and the fastest round of each counts, so that other work on the machine does least harm. The
authors' way is the plain PyTorch of tests/losses/plain_rmi.py: sigmoid, one-hot labels, pooling, a stack of R² shifts
in float64, `inverse`, autograd.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from measuring.peak_memory import can_measure, peak_bytes
from measuring.plain_ways import load_from_tests
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, RMILoss

CONSOLE = Console(width=110 if not sys.stdout.isatty() else None)
Step = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller grid")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = 3 if arguments.quick else 7
    CONSOLE.print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds, forward + backward\n")
    plain = load_from_tests("losses/plain_rmi.py")
    region_term(plain, rounds)
    whole_loss(plain, rounds)
    grid(2 if arguments.quick else 3, (1, 3, 6) if arguments.quick else (1, 2, 3, 4, 5, 6))
    training_step(2 if arguments.quick else 5)
    cuda(rounds)


def make_batch(size: int, num_classes: int, side: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Random logits, and labels in blocks of 8 × 8 with one row in nine void."""
    blocks = torch.randint(num_classes, (size, side // 8 + 1, side // 8 + 1))
    labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :side, :side].contiguous()
    labels[:, ::9] = 255
    return torch.randn(size, num_classes, side, side).to(device).requires_grad_(), labels.to(device)


def race(steps: dict[str, Step], logits: Tensor, rounds: int) -> dict[str, float]:
    """Fastest round of each, in milliseconds."""
    best = dict.fromkeys(steps, float("inf"))
    for number in range(rounds + 1):
        for name, step in steps.items():
            logits.grad = None
            start = time.perf_counter()
            step().backward()
            if number > 0:  # the first round warms up
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def region_term(plain: ModuleType, rounds: int) -> None:
    table = Table("S", "pooling", "authors", "eager", "compiled", "eager ×", "compiled ×", "goal", title="RMI term")
    goal = {256: "6 and 12", 128: "3 and 6", 64: "", 32: "1"}
    cases = [(side, pooling) for side in goal for pooling in ("avg", "max")]
    for side, pooling in track(cases, "RMI term, 8×21×S×S, R 3, DF 3", console=CONSOLE, transient=True):
        logits, labels = make_batch(8, 21, side)
        labels = labels.clamp(max=20)  # the published table has no void pixels

        def authors(logits: Tensor = logits, labels: Tensor = labels, pooling: str = pooling) -> Tensor:
            one_hot = F.one_hot(labels, 21).movedim(-1, 1).float().contiguous()
            loss: Tensor = plain.plain_rmi(
                logits.sigmoid(), one_hot, region_size=3, factor=3, pooling=pooling, ridge=5e-4
            )
            return loss

        steps: dict[str, Step] = {"authors": authors}
        for backend in ("eager", "compiled"):
            loss = RMILoss(21, downsampling_factor=3, pooling=pooling, pixel_loss=None, backend=backend)
            steps[backend] = bind(loss, logits, labels)
        add_ratios(table, [str(side), pooling], race(steps, logits, rounds), goal[side])
    CONSOLE.print(table)


def whole_loss(plain: ModuleType, rounds: int) -> None:
    logits, labels = make_batch(4, 21, 513)
    steps: dict[str, Step] = {"authors": lambda: plain.plain_bce_rmi(logits, labels)}
    for backend in ("eager", "compiled"):
        steps[backend] = bind(RMILoss(21, backend=backend), logits, labels)
    table = Table(
        *("loss", "pooling", "authors", "eager", "compiled", "eager ×", "compiled ×", "goal"),
        title="4×21×513×513, DF 4, R 3",
    )
    add_ratios(table, ["BCE + RMI", "avg"], race(steps, logits, rounds), "6 and 15")
    CONSOLE.print(table)
    if not can_measure():
        CONSOLE.print("Peak memory: not measured, as this system has no /proc.")
        return
    memory = Table("version", "MB", "× the logits' bytes", title="Peak memory above the inputs (goal: at most 1.5)")
    for name, arguments in (("authors", {}), ("eager", {"backend": "eager"}), ("compiled", {"backend": "compiled"})):
        peak = peak_megabytes("authors" if name == "authors" else "RMI", 4, 513, **arguments)
        memory.add_row(name, f"{peak:.0f}", f"{peak * 2**20 / (logits.numel() * 4):.2f}")
    CONSOLE.print(memory)


def bind(loss: torch.nn.Module, logits: Tensor, labels: Tensor) -> Step:
    def step() -> Tensor:
        value: Tensor = loss(logits, labels)
        return value

    return step


def add_ratios(table: Table, names: list[str], times: dict[str, float], goal: str) -> None:
    ratios = [f"{times['authors'] / times[name]:.1f}" for name in ("eager", "compiled")]
    table.add_row(*names, *(f"{value:.1f}" for value in times.values()), *ratios, goal)


def one_step(name: str, size: int, side: int, arguments: dict[str, Any]) -> Callable[[], object]:
    """Forward and backward of a version on a new batch."""
    logits, labels = make_batch(size, 21, side)
    makers: dict[str, Callable[[], Step]] = {
        "authors": lambda: lambda: load_from_tests("losses/plain_rmi.py").plain_bce_rmi(logits, labels),
        "CE": lambda: bind(CrossEntropyLoss(21), logits, labels),
        "BCE": lambda: bind(BinaryCrossEntropyLoss(21), logits, labels),
        "RMI": lambda: bind(RMILoss(21, **arguments), logits, labels),
    }
    step = makers[name]()
    return lambda: step().backward()


def peak_megabytes(name: str, size: int, side: int, **arguments: Any) -> float:
    tiny, real = ((name, *shape, arguments) for shape in ((1, 65), (size, side)))
    return peak_bytes(one_step, tiny, real, torch.get_num_threads()) / 2**20


def grid(rounds: int, values: tuple[int, ...]) -> None:
    size, side = 2, 257
    logits, labels = make_batch(size, 21, side)
    columns = Table("R \\ DF", *map(str, values), title=f"BCE + RMI, {size}×21×{side}×{side}, eager: ms (peak MB)")
    cases = [(region_size, factor) for region_size in values for factor in values]
    cells = {}
    for region_size, factor in track(cases, "grid of R and DF", console=CONSOLE, transient=True):
        arguments = {"region_size": region_size, "downsampling_factor": factor}
        step = bind(RMILoss(21, **arguments), logits, labels)
        cells[region_size, factor] = in_cell(race({"": step}, logits, rounds)[""], "RMI", size, side, **arguments)
    for region_size in values:
        columns.add_row(str(region_size), *(cells[region_size, factor] for factor in values))
    for name, loss in (("CE", CrossEntropyLoss(21)), ("BCE", BinaryCrossEntropyLoss(21))):
        milliseconds = race({"": bind(loss, logits, labels)}, logits, rounds)[""]
        columns.add_row(name, in_cell(milliseconds, name, size, side))
    CONSOLE.print(columns)


def in_cell(milliseconds: float, name: str, size: int, side: int, **arguments: Any) -> str:
    peak = f" ({peak_megabytes(name, size, side, **arguments):.0f})" if can_measure() else ""
    return f"{milliseconds:.0f}{peak}"


def training_step(rounds: int) -> None:
    """DeepLabv3+, 16 images of 128 × 128: the whole step with RMI against that with BCE."""
    import segmentation_models_pytorch as smp

    network = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=21)
    images = torch.randn(16, 3, 128, 128)
    _, labels = make_batch(16, 21, 128)
    steps: dict[str, Step] = {}
    for name, loss in (
        ("BCE", BinaryCrossEntropyLoss(21)),
        ("RMI eager", RMILoss(21)),
        ("RMI compiled", RMILoss(21, backend="compiled")),
    ):
        steps[name] = lambda loss=loss: loss(network(images), labels)  # type: ignore[misc]
    times = race(steps, torch.zeros(1, requires_grad=True), rounds)
    table = Table(
        "loss", "ms", "× BCE", title="Training step of DeepLabv3+ (ResNet-50), 16×3×128×128 (goal: at most 1.03)"
    )
    for name, value in times.items():
        table.add_row(name, f"{value:.0f}", f"{value / times['BCE']:.3f}")
    CONSOLE.print(table)


def cuda(rounds: int) -> None:
    if not torch.cuda.is_available():
        CONSOLE.print("CUDA: not measured, as this machine has no GPU that PyTorch can use.")
        return
    logits, labels = make_batch(16, 21, 513, "cuda")
    with synchronised():
        copy = race_cuda(lambda: logits.detach().clone(), rounds)
    # a clone reads and writes once; the floor reads twice and writes once
    floor = 1.5 * copy
    table = Table("version", "ms", "× floor", title="CUDA, 16×21×513×513, BCE + RMI (goal: at most 3)")
    for backend in ("eager", "compiled"):
        loss = RMILoss(21, backend=backend).cuda()

        def step(loss: RMILoss = loss) -> None:
            logits.grad = None
            loss(logits, labels).backward()

        with synchronised():
            value = race_cuda(step, rounds)
        table.add_row(backend, f"{value:.2f}", f"{value / floor:.1f}")
    CONSOLE.print(f"copy bandwidth {2 * logits.numel() * 4 / copy / 1e6:.0f} GB/s, floor {floor:.2f} ms")
    CONSOLE.print(table)


@contextlib.contextmanager
def synchronised() -> Iterator[None]:
    torch.cuda.synchronize()
    yield
    torch.cuda.synchronize()


def race_cuda(step: Callable[[], object], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds + 3):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        stop.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(stop))
    return best


if __name__ == "__main__":
    main()
