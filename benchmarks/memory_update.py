"""Speed and memory of MCIBI's memory update relative to the authors' algorithm, within one run.

    python benchmarks/memory_update.py            about five minutes on two quiet cores
    python benchmarks/memory_update.py --quick    fewer repetitions, one size

The authors' algorithm is tests/lightning_modules/networks/direct_memory.py in plain PyTorch: upsample the features to
the labels' size, gather each class's pixels, weight them and sum them; it needs 4 GB at the first size. All repetitions
are in results/memory_update.json, the tables in results/memory_update.md.
"""

from collections.abc import Callable
from typing import Any

import torch
from measuring.markdown import shape, table, times_table
from measuring.peak_memory import can_measure, peak_bytes
from measuring.record import environment, load_from_tests, progress, race
from tables import make_parser, save
from torch import Tensor

from beyondpixel.lightning_modules.networks import FeatureMemory, StatisticsMemory

CLASSES, CHANNELS = 21, 512
# images, stride, side of the images; the goals are for the first
SIZES = ((4, 8, 512), (2, 8, 513), (4, 16, 512))
STRATEGIES = ("cosine", "mean")
SPEED_GOALS = {"cosine": 15, "mean": 40}
MEMORY_GOAL = 20
Update = Callable[[], object]


def main() -> None:
    parser = make_parser(__doc__, "memory_update")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, one size")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    sizes = SIZES[:1] if arguments.quick else SIZES
    cases = [(size, strategy, device) for size in sizes for strategy in STRATEGIES for device in devices]
    record = environment()
    record["memory"] = [peak_memory(*case) for case in progress(cases, "peak memory")]
    record["speed"] = [speed(*case, rounds=2 if arguments.quick else 5) for case in progress(cases, "speed")]
    save("memory_update", record, arguments.out)


def make_batch(images: int, stride: int, side: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Make features after a ReLU, and labels in blocks of 32 × 32 with every ninth row void."""
    small = -(-side // stride)
    blocks = torch.randint(CLASSES, (images, side // 32 + 1, side // 32 + 1))
    target = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :side, :side].contiguous()
    target[:, ::9] = 255
    return torch.randn(images, CHANNELS, small, small).relu_().to(device), target.to(device)


def make_updates(features: Tensor, target: Tensor, strategy: str) -> dict[str, Update]:
    """Return updates of a memory with all classes seen: the authors', this package's, and MCIBI++'s statistics."""
    memory = FeatureMemory(CLASSES, CHANNELS).to(features.device)
    memory.memory.uniform_()
    memory.seen.fill_(True)
    statistics = StatisticsMemory(CLASSES, CHANNELS).to(features.device)
    direct, start = load_from_tests("lightning_modules/networks/direct_memory.py"), memory.memory.clone()

    updates: dict[str, Update] = {
        "authors": lambda: direct.direct_update(start, memory.seen, features, target, momentum=0.5, strategy=strategy),
        "here": lambda: memory.update(features, target, momentum=0.5, strategy=strategy),  # type: ignore[arg-type]
    }
    return updates | {"statistics": lambda: statistics.update(features, target)} if strategy == "mean" else updates


def speed(size: tuple[int, int, int], strategy: str, device: str, *, rounds: int) -> dict[str, Any]:
    features, target = make_batch(*size, device)
    times = race(make_updates(features, target, strategy), rounds)
    return {**case(features, target, strategy), "times": times}


def peak_memory(size: tuple[int, int, int], strategy: str, device: str) -> dict[str, Any]:
    """Measure the peak above the inputs."""
    peaks = {
        name: peak_bytes(
            one_update, ((1, 16, 64), strategy, name, device), (size, strategy, name, device), device=device
        )
        for name in ("authors", "here")
        if can_measure(device)
    }
    return {**case(*make_batch(*size, device), strategy), "bytes": peaks}


def case(features: Tensor, target: Tensor, strategy: str) -> dict[str, Any]:
    shapes = {"features": list(features.shape), "target": list(target.shape)}
    return {**shapes, "device": features.device.type, "strategy": strategy}


def one_update(size: tuple[int, int, int], strategy: str, name: str, device: str) -> Update:
    return make_updates(*make_batch(*size, device), strategy)[name]


def sections(record: dict[str, Any]) -> dict[str, str]:
    """Format the tables of the record."""
    columns = ("features", "target", "device", "strategy")
    memory = []
    for case in record["memory"]:
        if case["bytes"]:
            authors, here = case["bytes"]["authors"], case["bytes"]["here"]
            memory.append((*cells(case), f"{authors / 2**20:.0f}", f"{here / 2**20:.1f}", f"{authors / here:.0f}"))
    speed = times_table([(cells(case), case["times"]) for case in record["speed"]], columns, "authors")
    ratio = f"(goal: authors ÷ here at least {MEMORY_GOAL})"
    goals = ", ".join(f"{goal} with {strategy!r}" for strategy, goal in SPEED_GOALS.items())
    return {
        "speed": f"Time of an update (goal: at least {goals}, at the first size on a CPU). `statistics` is MCIBI++'s "
        f"`StatisticsMemory`.\n\n{speed}",
        "memory": f"Peak memory of an update above the inputs, MB {ratio}.\n\n"
        + table((*columns, "authors", "here", "authors ÷ here"), memory),
    }


def cells(case: dict[str, Any]) -> tuple[str, ...]:
    return shape(case["features"]), shape(case["target"]), case["device"], case["strategy"]


if __name__ == "__main__":
    main()
