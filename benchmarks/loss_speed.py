"""Speed and memory of the RMI loss relative to a reference implementation (`direct`), within one run.

    python benchmarks/loss_speed.py            everything, about ten minutes on two quiet cores
    python benchmarks/loss_speed.py --quick    fewer repetitions and no grid

The reference implementation is tests/losses/plain_rmi.py in plain PyTorch: sigmoid, one-hot labels, pooling, a stack of
R² shifts in float64, `inverse`, autograd. All repetitions are in results/loss_speed.json, the tables in loss_speed.md.
"""

from collections.abc import Callable
from typing import Any

import torch
from measuring.markdown import shape, table, times_table
from measuring.peak_memory import can_measure, peak_bytes
from measuring.record import environment, load_from_tests, progress, race
from tables import make_parser, save
from torch import Tensor
from torch.nn import functional as F

from beyondpixel.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, RMILoss

# minimum speedups over the reference implementation: version, side and pooling of the RMI term, or the whole loss
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
FLOOR_GOALS = {"cpu": 4, "cuda": 3}


def main() -> None:
    parser = make_parser(__doc__, "loss_speed")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no grid")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rounds = 3 if arguments.quick else 9
    devices = {"cpu": 4, "cuda": 16} if torch.cuda.is_available() else {"cpu": 4}
    record = environment()
    terms = [(side, pooling) for side in (256, 128, 32) for pooling in ("avg", "max")]
    record["term"] = [region_term(*term, rounds) for term in progress(terms, "RMI term")]
    record["whole"] = [whole_loss(device, devices[device], rounds) for device in progress(devices, "BCE + RMI")]
    record["memory"] = memory(devices)
    record["grid"] = [] if arguments.quick else grid(3)
    save("loss_speed", record, arguments.out)


def make_batch(size: int, side: int, device: str = "cpu", *, void: bool = True) -> tuple[Tensor, Tensor]:
    """Make random logits of 21 classes, and labels in blocks of 8 × 8, every ninth row void."""
    blocks = torch.randint(21, (size, side // 8 + 1, side // 8 + 1))
    labels = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :side, :side].contiguous()
    if void:
        labels[:, ::9] = 255
    return torch.randn(size, 21, side, side).to(device).requires_grad_(), labels.to(device)


def forward_and_backward(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor
) -> Callable[[], None]:
    def step() -> None:
        loss(logits, labels).backward()
        logits.grad = None  # here, since releasing its memory takes time, and the next step is another loss's

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
    times = race(steps, rounds if side > 128 else 3 * rounds)
    return {"shape": list(logits.shape), "pooling": pooling, "times": times}


def whole_loss(device: str, size: int, rounds: int) -> dict[str, Any]:
    """Time BCE + RMI, BCE and CE alone, and a copy for the floor: logits read twice and gradient written once."""
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
    steps["copy"] = lambda: target.copy_(source)
    return {"shape": list(logits.shape), "device": device, "times": race(steps, rounds)}


def one_step(name: str, size: int, side: int, device: str) -> Callable[[], object]:
    """Return forward and backward of a version on a new batch."""
    direct = load_from_tests("losses/plain_rmi.py").plain_bce_rmi
    version = direct if name == "direct" else RMILoss(21, backend=name).to(device)
    return forward_and_backward(version, *make_batch(size, side, device))


def memory(devices: dict[str, int]) -> list[dict[str, Any]]:
    """Measure the peak above the inputs."""
    cases = [(device, name) for device in devices for name in ("direct", *backends(device)) if can_measure(device)]
    result = []
    for device, name in progress(cases, "peak memory"):
        tiny, real = (name, 1, 65, device), (name, devices[device], 513, device)
        peak = peak_bytes(one_step, tiny, real, device=device)
        of_logits = round(peak / (devices[device] * 21 * 513 * 513 * 4), 3)
        result.append({"version": name, "device": device, "bytes": peak, "of_logits": of_logits})
    return result


def grid(rounds: int) -> list[dict[str, Any]]:
    logits, labels = make_batch(2, 257)
    result = []
    cases = [(region_size, factor) for region_size in range(1, 7) for factor in range(1, 7)]
    for region_size, factor in progress(cases, "R and DF"):
        loss = RMILoss(21, region_size=region_size, downsampling_factor=factor)
        times = race({"auto": forward_and_backward(loss, logits, labels)}, rounds)
        result.append({"region_size": region_size, "downsampling_factor": factor, "times": times})
    return result


def sections(record: dict[str, Any]) -> dict[str, str]:
    """Format the tables of the record."""
    parts = {
        "term": "Forward and backward of the RMI term alone, R 3, DF 3, on the CPU:\n\n"
        + times_table(
            [((shape(case["shape"]), case["pooling"]), case["times"]) for case in record["term"]],
            ("logits", "pooling"),
            "direct",
        ),
        "whole": "Forward and backward of BCE + RMI, R 3, DF 4, average pooling:\n\n"
        + times_table(
            [((shape(case["shape"]), case["device"]), case["times"]) for case in record["whole"]],
            ("logits", "device"),
            "direct",
        ),
        "goals": "The fastest repetitions and their goals:\n\n"
        + table(("what", "version", "measured", "goal"), goals(record)),
    }
    if record["grid"]:
        fastest = {
            (case["region_size"], case["downsampling_factor"]): f"{case['times']['auto']['fastest']:.0f}"
            for case in record["grid"]
        }
        factors = sorted({factor for _, factor in fastest})
        rows = [[region, *(fastest[region, f] for f in factors)] for region in sorted({r for r, _ in fastest})]
        parts["grid"] = "BCE + RMI, 2×21×257×257, fastest, ms:\n\n" + table(("R \\ DF", *map(str, factors)), rows)
    return parts


def goals(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of each goal and the measured value."""
    rows = []
    cases = [("RMI term", case["pooling"], case) for case in record["term"]]
    cases += [("BCE + RMI", "avg", case) for case in record["whole"] if case["device"] == "cpu"]
    for what, pooling, case in cases:
        direct = case["times"]["direct"]["fastest"]
        for version, times in case["times"].items():
            goal = GOALS.get((version, case["shape"][3], pooling))
            if goal is not None:
                name = f"{what} {shape(case['shape'])}, {pooling}"
                rows.append((name, version, f"{direct / times['fastest']:.1f} × direct", f"at least {goal}"))
    for case in record["whole"]:
        # a copy reads and writes once; the floor is two reads and one write
        version, floor = backends(case["device"])[1], 1.5 * case["times"]["copy"]["fastest"]
        measured, goal = case["times"][version]["fastest"] / floor, FLOOR_GOALS[case["device"]]
        name = f"BCE + RMI, {case['device']}, logits read twice and gradient written once: {floor:.1f} ms"
        rows.append((name, version, f"{measured:.1f} × this", f"at most {goal}"))
    for case in record["memory"]:
        goal = MEMORY_GOALS.get(case["version"])
        name = f"peak memory of BCE + RMI above the inputs, {case['device']}"
        rows.append((name, case["version"], f"{case['of_logits']:.2f} × logits", f"at most {goal}" if goal else "–"))
    return rows


if __name__ == "__main__":
    main()
