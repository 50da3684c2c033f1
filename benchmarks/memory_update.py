"""Speed and memory of MCIBI's memory update, as ratios to the authors' way of computing it, within one run.

    python benchmarks/memory_update.py            about two minutes on two quiet cores
    python benchmarks/memory_update.py --quick    fewer repetitions

The versions take turns, and the fastest round of each counts, so that other work on the machine does least harm. The
authors' way is the plain PyTorch of tests/lightning_modules/networks/direct_memory.py: upsample the features to the
labels' size, gather each class's pixels, weight them and add them up; it needs 4 GB at the first size. Peak memory is
what a new process, which does nothing else, grows by during one update, as its operating system counts it.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable

import torch
from measuring.peak_memory import can_measure, peak_bytes
from measuring.plain_ways import load_from_tests
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from beyondpixel.lightning_modules.networks import FeatureMemory, StatisticsMemory

CONSOLE = Console(width=110 if not sys.stdout.isatty() else None)
CLASSES, CHANNELS = 21, 512
# images, stride, side of the images; the first row is the one with goals
SIZES = ((4, 8, 512), (2, 8, 513), (4, 16, 512))
SPEED_GOAL = {"cosine": "15", "mean": "40"}
MEMORY_GOAL = 20
Update = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, one size")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    CONSOLE.print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads\n")
    sizes = SIZES[:1] if arguments.quick else SIZES
    peak_memory(sizes, arguments.threads)
    speed(sizes, rounds=2 if arguments.quick else 4)
    cuda()


def make_batch(images: int, stride: int, side: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Features after a ReLU, and labels in blocks of 32 × 32 with one row in nine void."""
    small = -(-side // stride)
    blocks = torch.randint(CLASSES, (images, side // 32 + 1, side // 32 + 1))
    target = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :side, :side].contiguous()
    target[:, ::9] = 255
    return torch.randn(images, CHANNELS, small, small).relu_().to(device), target.to(device)


def make_updates(features: Tensor, target: Tensor, strategy: str) -> dict[str, Update]:
    """Updates of a memory in which every class has been seen: the authors' way, this one, and MCIBI++'s statistics."""
    memory = FeatureMemory(CLASSES, CHANNELS).to(features.device)
    memory.memory.uniform_()
    memory.seen.fill_(True)
    statistics = StatisticsMemory(CLASSES, CHANNELS).to(features.device)
    direct, start = load_from_tests("lightning_modules/networks/direct_memory.py"), memory.memory.clone()

    def authors() -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = direct.direct_update(
            start, memory.seen, features, target, momentum=0.5, strategy=strategy
        )
        return result

    def here() -> None:
        memory.update(features, target, momentum=0.5, strategy=strategy)  # type: ignore[arg-type]

    def of_statistics() -> None:
        statistics.update(features, target)

    updates: dict[str, Update] = {"authors": authors, "here": here}
    return updates | {"statistics": of_statistics} if strategy == "mean" else updates


def speed(sizes: tuple[tuple[int, int, int], ...], rounds: int) -> None:
    table = Table("features", "labels", "strategy", "authors", "here", "×", "goal", title="Update, milliseconds")
    cases = [(size, strategy) for size in sizes for strategy in SPEED_GOAL]
    for size, strategy in track(cases, "speed", console=CONSOLE, transient=True):
        features, target = make_batch(*size)
        best = race(make_updates(features, target, strategy), rounds)
        goal = SPEED_GOAL[strategy] if size == SIZES[0] else ""
        for name in [name for name in best if name != "authors"]:
            label = strategy if name == "here" else "mean, MCIBI++"
            row = [f"{best['authors']:.0f}", f"{best[name]:.1f}", f"{best['authors'] / best[name]:.1f}"]
            table.add_row(shape(features), shape(target), label, *row, goal)
    CONSOLE.print(table)


def race(updates: dict[str, Update], rounds: int) -> dict[str, float]:
    """Fastest round of each, in milliseconds."""
    best = dict.fromkeys(updates, float("inf"))
    for number in range(rounds + 1):
        for name, update in updates.items():
            # the authors' way takes seconds, so the others get more tries in the same time
            for _ in range(1 if name == "authors" else 5):
                start = time.perf_counter()
                update()
                if number > 0:  # the first round warms up
                    best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
            gc.collect()
    return best


def peak_memory(sizes: tuple[tuple[int, int, int], ...], threads: int) -> None:
    if not can_measure():
        CONSOLE.print("Peak memory: not measured, as this system has no /proc.")
        return
    table = Table(
        *("features", "labels", "strategy", "authors", "here", "authors ÷ here"),
        title=f"Peak memory above the inputs, MB (goal: authors ÷ here at least {MEMORY_GOAL})",
    )
    cases = [(size, strategy) for size in sizes for strategy in SPEED_GOAL]
    for size, strategy in track(cases, "peak memory", console=CONSOLE, transient=True):
        peaks = {
            name: peak_bytes(one_update, ((1, 16, 64), strategy, name), (size, strategy, name), threads) / 2**20
            for name in ("authors", "here")
        }
        images, stride, side = size
        small = -(-side // stride)
        row = [f"{peaks['authors']:.0f}", f"{peaks['here']:.1f}", f"{peaks['authors'] / peaks['here']:.0f}"]
        table.add_row(f"{images}×{CHANNELS}×{small}×{small}", f"{images}×{side}×{side}", strategy, *row)
    CONSOLE.print(table)


def one_update(size: tuple[int, int, int], strategy: str, name: str) -> Update:
    return make_updates(*make_batch(*size), strategy)[name]


def shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def cuda() -> None:
    if not torch.cuda.is_available():
        CONSOLE.print("CUDA: not measured, as this machine has no GPU that PyTorch can use.")
        return
    images, stride, side = SIZES[0]
    features, target = make_batch(4 * images, stride, side, "cuda")
    table = Table("strategy", "version", "ms", "peak MB", title=f"CUDA, {shape(features)} → {shape(target)}")
    for strategy in SPEED_GOAL:
        for name, update in make_updates(features, target, strategy).items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            best = float("inf")
            for _ in range(5):
                start = time.perf_counter()
                update()
                torch.cuda.synchronize()
                best = min(best, 1e3 * (time.perf_counter() - start))
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
            table.add_row(strategy, name, f"{best:.1f}", f"{peak:.0f}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
