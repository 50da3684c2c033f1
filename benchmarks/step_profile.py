"""Time of the parts of a training step: data, network, loss.

    python benchmarks/step_profile.py demo/ce demo/rmi
    python benchmarks/step_profile.py rmi_table4_camvid/v3plus_rmi --data.root DIR --model.encoder_weights null \
        --trainer.precision bf16-mixed

Rows and overrides are as for `beyondpixel specs`. Steps are training steps, on a GPU if there is one, with the data
module's loader and workers, and a synchronization with the device after each part. The loss is detached from the
network at the logits, so its forward and backward are timed separately. All repetitions are in
results/step_profile.json, the table in results/step_profile.md.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from measuring.markdown import shape, table
from measuring.record import environment, progress, summary, synchronize
from pytorch_lightning import seed_everything
from tables import make_parser, save

from beyondpixel.experiments.build import build_all
from beyondpixel.experiments.resolve import resolve
from beyondpixel.experiments.spec import RunSpec, load_specs, parse_overrides

WARM_UP = 3
PARTS = ("data", "to the device", "network, forward", "loss", "network, backward", "optimizer")
HALF = {"bf16-mixed": torch.bfloat16}


def main() -> None:
    parser = make_parser(__doc__, "step_profile")
    parser.add_argument("rows", nargs="*", default=["demo/ce", "demo/rmi"], help="TABLE or TABLE/ROW")
    parser.add_argument("--steps", type=int, default=30, help="timed steps, at least 2")
    parser.add_argument("--threads", type=int, default=2)
    overrides, arguments = parse_overrides(sys.argv[1:])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    record = environment()
    specs = load_specs(options.rows, overrides)
    record["rows"] = [profile(spec, options.steps) for spec in progress(specs, "rows")]
    save("step_profile", record, options.out)


def profile(spec: RunSpec, steps: int) -> dict[str, Any]:
    """Measure the milliseconds of each part of each step."""
    config = resolve(spec)
    seed_everything(1, verbose=False)
    module, datamodule, _ = build_all({**config, "seed_everything": 1})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = str(config["trainer"].get("precision") or "32-true")
    if precision not in ("32-true", "32", *HALF):
        raise SystemExit(f"--trainer.precision: expected 32-true or bf16-mixed, got {precision}")
    module.to(device).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    batches = endless(loader)
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(WARM_UP + steps):
        ends = [now()]
        batch = next(batches)
        ends.append(now())
        batch = datamodule.on_after_batch_transfer(datamodule.transfer_batch_to_device(batch, device, 0), 0)
        ends.append(now())
        with torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF):
            logits = module(batch["image"])
            ends.append(now())
            cut = logits.detach().requires_grad_()
            loss = module.loss(cut, batch["mask"])
        loss.backward()
        ends.append(now())
        logits.backward(cut.grad)
        ends.append(now())
        optimizer.step()
        optimizer.zero_grad()
        ends.append(now())
        if number >= WARM_UP:
            for part, start, end in zip(PARTS, ends, ends[1:], strict=False):
                times[part].append(1e3 * (end - start))
    return {
        "row": spec.name,
        "batch": list(batch["image"].shape),
        "precision": precision,
        "device": device.type,
        "workers": loader.num_workers,
        "times": {part: summary(values) for part, values in times.items()},
    }


def now() -> float:
    """Return the seconds of the clock after synchronizing with the device."""
    synchronize()
    return time.perf_counter()


def endless(loader: Any) -> Iterator[Any]:
    """Yield the batches of a loader, epoch after epoch."""
    while True:
        yield from loader


def sections(record: dict[str, Any]) -> dict[str, str]:
    """Format the table of the record."""
    rows = []
    for case in record["rows"]:
        steps = [sum(parts) for parts in zip(*(case["times"][part]["milliseconds"] for part in PARTS), strict=True)]
        whole = statistics.median(steps)
        shares = [sum(case["times"][part]["milliseconds"]) / sum(steps) for part in PARTS]
        setting = f"{shape(case['batch'])}, {case['precision']}, {case['device']}, {case['workers']} workers"
        speed = f"{1e3 * case['batch'][0] / whole:.1f}"
        rows.append((case["row"], setting, speed, f"{whole:.0f}", *(f"{share:.1%}" for share in shares)))
    return {"parts": table(("row", "batch", "images/s", "ms per step, median", *PARTS), rows)}


if __name__ == "__main__":
    main()
