"""Time of a training step with W&B offline, with a W&B server, and with one that is lost in the middle of the run.

    python benchmarks/lost_server.py    about twenty-five minutes; --repeats 3 took fifteen

Each repetition is a training in a separate process, DeepLabv3+ with ResNet-18 on generated scenes, that logs every
step; the server runs on this machine. It is lost after a third of the steps, by answering with error 500 or not at all,
and the steps of the last third are timed. All repetitions are in results/lost_server.json, the table in
results/lost_server.md.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from measuring.markdown import table
from measuring.record import environment, load_from_tests, progress, summary
from pytorch_lightning import Callback, Trainer, seed_everything
from tables import make_parser, save

from beyondpixel.datamodules import ShapesDataModule
from beyondpixel.experiments import tracking
from beyondpixel.experiments.run.folder import RunFolder
from beyondpixel.lightning_modules import DeepLabModule

OFFLINE = "offline"
CASES = {OFFLINE: None, "server": None, "lost: error 500": "500", "lost: no answer": "hang"}
GOAL = 1.05
SECONDS_TO_END = 5.0  # timeout for the server after the training, which is not timed


class StepTimes(Callback):
    """Record when each step ends, and set an event after a third of the steps."""

    def __init__(self, third: int, reached: Any) -> None:
        self.third, self.reached, self.ends = third, reached, [time.perf_counter()]

    def on_train_batch_end(self, *_: Any) -> None:
        """Record the time."""
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.third:
            self.reached.set()


def train(folder: str, steps: int, variables: dict[str, str], reached: Any, times: Any) -> None:
    """Train, and put the milliseconds of each step of the last third into a queue."""
    os.environ.update(variables)
    tracking.SECONDS_TO_END = SECONDS_TO_END
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    data = ShapesDataModule(num_train=64, image_size=(96, 128), batch_size=8, num_workers=0)
    module = DeepLabModule(num_classes=data.num_classes, encoder="resnet18", encoder_weights=None)
    run = RunFolder(Path(folder) / "run")
    record = {"name": "t/r", "table": "t", "row": "r", "seed": 1, "axes": {}, "wandb_id": "abcd1234"}
    record |= {"git_commit": None, "environment": {}}
    clock = StepTimes(steps // 3, reached)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=[tracking.RunFolderLogger(run), tracking.wandb_logger(run, {}, record)],
        callbacks=[clock],
        log_every_n_steps=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    tracking.finish_wandb()
    times.put([1e3 * (end - start) for start, end in zip(clock.ends, clock.ends[1:], strict=False)][-(steps // 3) :])


def median_step(case: str, steps: int) -> float:
    """Train, and return the milliseconds of the median step."""
    context = multiprocessing.get_context("spawn")
    reached, times = context.Event(), context.Queue()
    server = load_from_tests("experiments/wandb_server.py").WandbServer()
    variables = {"WANDB_MODE": "offline"} if case == OFFLINE else {"WANDB_MODE": "online", **server.environment}
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=train, args=(folder, steps, variables, reached, times))
        process.start()
        while process.is_alive() and not reached.wait(1):
            pass
        server.fault = CASES[case]
        found: list[float] = times.get(timeout=600)
        process.join()
    if case != OFFLINE and not server.runs:
        raise RuntimeError(f"{case}: the run never reached the server")
    server.close()
    return statistics.median(found)


def main() -> None:
    parser = make_parser(__doc__, "lost_server")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=5, help="trainings per case, at least 2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = environment()
    found: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in progress(range(options.repeats), "rounds"):
        for case, values in found.items():  # alternate, so that other load on the machine affects all equally
            values.append(median_step(case, options.steps))
    record["times"] = {case: summary(values) for case, values in found.items()}
    save("lost_server", record, options.out)


def sections(record: dict[str, Any]) -> dict[str, str]:
    """Format the table of the record."""
    base = record["times"][OFFLINE]["quartiles"][1]
    rows = []
    for case, times in record["times"].items():
        low, median, high = times["quartiles"]
        goal = f"at most {GOAL}" if CASES[case] else "–"
        rows.append((case, f"{median:.1f} ({low:.1f} – {high:.1f})", f"{median / base:.3f}", goal))
    columns = ("W&B", "ms per step: median (quartiles) of the trainings", "× offline", "goal")
    return {"steps": table(columns, rows)}


if __name__ == "__main__":
    main()
