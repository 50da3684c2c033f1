"""`beyondpixel launch`: check everything, show what will be done, pass the runs to an executor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from beyondpixel.experiments.allowed_imports import VARIABLE
from beyondpixel.experiments.errors import UserError, as_user_error

if TYPE_CHECKING:
    from rich.console import Console

    from beyondpixel.experiments.launch.actions import Action
    from beyondpixel.experiments.plan import Run

    Plan = list[tuple[Run, Action]]


def launch(
    specs: list[str],
    *,
    seeds: Sequence[int] = (1,),
    output: Path = Path("outputs"),
    dry_run: bool = False,
    retry_failed: bool = False,
    overwrite: bool = False,
    keep: Literal["resume", "weights", "none"] = "resume",
    executor: Literal["local", "slurm"] | None = None,
    gpus: int | None = None,
    jobs: int | None = None,
    nodes: int | None = None,
    partition: str | None = None,
    time: str | None = None,
    time_warning: int | None = None,
    max_parallel: int | None = None,
    cpus: int | None = None,
    mem: str | None = None,
    sbatch: Sequence[str] = (),
    srun: Sequence[str] = (),
    setup: Sequence[str] = (),
    cluster: Path | None = None,
    as_wandb_sweep: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Train and test every row of the given run specs with every seed, on this machine or on a SLURM cluster.

    The state of a run's folder, OUTPUT/TABLE/ROW/seedK, decides what a launch does: finished runs are kept, running and
    queued ones left alone, stopped ones resumed at their last checkpoint, failed ones shown and skipped without
    --retry-failed. So the same command can be repeated at any time, even concurrently.

    Config keys can be overridden for all rows: --data.root DIR, --trainer.max_steps 100, --model.lr 0.01.

    Args:
        specs: YAML files, folders of them, or names of tables and rows such as camvid_small/rmi.
        seeds: seeds of each row.
        output: the folder for run folders.
        dry_run: check everything, show what would be done and how many bytes it takes, and start nothing.
        retry_failed: repeat failed runs.
        overwrite: replace existing runs, including finished ones.
        keep: what to keep of a checkpoint once its run is done: all that a resume needs, the weights, or nothing.
        executor: this machine (local, the default), or SLURM's sbatch.
        gpus: GPUs of one run, on each of its nodes; 0 for CPUs only (default: 1).
        jobs: concurrent runs on this machine (default: one per GPU; one on a machine without GPUs).
        nodes: SLURM: nodes of one run (default: 1).
        partition: SLURM: the partition (default: the cluster's).
        time: SLURM: time limit as minutes or HH:MM:SS, after which a run is requeued and resumed (default: 4:00:00).
        time_warning: SLURM: seconds before the limit at which a run saves and stops (default: a tenth of the limit, 120
            at most); a run that measures longer steps and checkpoints stops earlier.
        max_parallel: SLURM: concurrent runs (default: all).
        cpus: SLURM: CPUs per GPU (default: the cluster's).
        mem: SLURM: memory per node, such as 32G (default: the cluster's).
        sbatch: SLURM: additional options of sbatch, such as account=vision mail-user=me@here exclusive.
        srun: SLURM: additional arguments of srun, such as container-image=IMAGE.
        setup: SLURM: lines of shell before Python starts, such as "module load cuda".
        cluster: a YAML file with these options for a cluster; options of the command line win.
        as_wandb_sweep: write a sweep for W&B's agents to this file, and start nothing.
        overrides: dotted config keys that win over every spec.

    Raises:
        UserError: if options conflict, a spec is wrong, a folder holds a run of another config, or, after all others
            have run, if a run failed.
    """
    from beyondpixel.experiments.launch.options import CLUSTER_KEYS, read_options

    given = {name: value for name, value in locals().items() if name in (*CLUSTER_KEYS, "jobs")}
    options = read_options(given, cluster)
    changes = overrides or {}
    if as_wandb_sweep is not None:
        _write_sweep(as_wandb_sweep, specs, options, seeds=seeds, output=output, keep=keep, overrides=changes)
        return
    from beyondpixel.experiments.console import make_console

    console = make_console()
    with console.status("Checking the specs ..."):
        # what follows imports torch, which takes seconds
        from beyondpixel.experiments.launch.actions import record_failures

        runner: _ThisMachine | _Slurm = _Slurm(options) if options["executor"] == "slurm" else _ThisMachine(options)
        changes = {**_devices(options["gpus"] or 1, runner.nodes), **changes}
        plan, errors = _plan(specs, seeds, output, changes, overwrite=overwrite, retry_failed=retry_failed)
        work = [(run, action) for run, action in plan if action.is_work]
        space = _check(work, output, runner.gpus_per_run, [*errors, *runner.errors])
    _show(plan, f"{len(work)} of {len(plan)} runs to do, which take up to {space}", console)
    if dry_run:
        return
    problems = runner.execute(work, output, keep, console) if work else []
    problems += record_failures(plan)
    if problems:
        raise UserError("\n".join(problems))


class _ThisMachine:
    """Executor of runs as processes on this machine."""

    nodes = 1
    errors: Sequence[str] = ()

    def __init__(self, options: Mapping[str, Any]) -> None:
        from beyondpixel.experiments.launch.local import make_slots

        self.slots = make_slots(options["jobs"], options["gpus"])
        devices = self.slots[0].get("CUDA_VISIBLE_DEVICES")
        self.gpus_per_run = len(devices.split(",")) if devices else None  # None on a machine without GPUs

    def execute(self, work: Plan, output: Path, keep: str, console: Console) -> list[str]:
        """Execute runs; return a sentence for each kind of failure."""
        from beyondpixel.experiments.launch.local import run_locally
        from beyondpixel.experiments.launch.progress import Progress
        from beyondpixel.experiments.run.folder import Status

        progress = Progress([run for run, _ in work], console)
        try:
            with progress:
                run_locally(work, self.slots, progress, keep=keep)
        except KeyboardInterrupt:
            progress.say("Stopped. The same command resumes the runs from their checkpoints.")
            raise
        failed, stopped = progress.names(Status.FAILED, Status.DAMAGED), progress.names(Status.STOPPED)
        remedies = {
            "failed": (failed, "see their log.txt, fix the cause, and launch again with --retry-failed"),
            "were stopped": (stopped, "the same command resumes them"),
        }
        return [
            f"{len(names)} of {len(work)} runs {what}: {', '.join(names)}; {remedy}"
            for what, (names, remedy) in remedies.items()
            if names
        ]


class _Slurm:
    """Executor of runs as jobs of a SLURM cluster."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        from beyondpixel.experiments.launch.options import submission_parameters

        self.parameters = submission_parameters(options)

        # this import takes seconds, so a wrong option is reported before it
        from beyondpixel.experiments.launch.slurm import check_slurm

        self.nodes: int = self.parameters["nodes"]
        self.gpus_per_run: int = self.parameters["ntasks_per_node"]
        self.max_parallel = options["max_parallel"]
        self.errors = check_slurm(self.parameters.get("partition"))

    def execute(self, work: Plan, output: Path, keep: str, console: Console) -> list[str]:
        """Submit runs, whose failures are not known yet."""
        from beyondpixel.experiments.launch.slurm import submit

        with as_user_error(OSError):  # such as a full disk
            submit(work, self.parameters, max_parallel=self.max_parallel, output=output, keep=keep, say=console.out)
        return []


def _devices(gpus: int, nodes: int) -> dict[str, int]:
    """Trainer keys for several devices; none for one, so that a run is the same on every machine."""
    return {"trainer.devices": gpus, "trainer.num_nodes": nodes} if gpus * nodes > 1 else {}


def _write_sweep(file: Path, specs: list[str], options: Mapping[str, Any], *, keep: str, **settings: Any) -> None:
    from beyondpixel.experiments.launch.sweep import write_sweep

    if options["executor"] == "slurm":
        raise UserError("--as-wandb-sweep: agents execute the runs where they are started; omit --executor slurm")
    kept = None if keep == "resume" else keep
    agent_options = {"gpus": options["gpus"], "keep": kept, "allow-import": os.environ.get(VARIABLE) or None}
    write_sweep(file, specs, options=agent_options, **settings)


def _plan(
    specs: list[str], seeds: Sequence[int], output: Path, overrides: Mapping[str, Any], **choices: bool
) -> tuple[Plan, list[str]]:
    """Choose the action of each run whose spec is valid; also return the errors of the other specs."""
    from beyondpixel.experiments.launch.actions import choose_actions
    from beyondpixel.experiments.plan import plan_runs
    from beyondpixel.experiments.spec import SpecError

    errors: list[str] = []
    try:
        try:
            runs = plan_runs(specs, seeds=seeds, output=output, overrides=overrides)
        except SpecError as error:
            errors, runs = list(error.errors), list(error.valid)
        return list(zip(runs, choose_actions(runs, **choices), strict=True)), errors
    except UserError as error:
        return [], [str(error), *errors]


def _check(work: Plan, output: Path, gpus_per_run: int | None, errors: Sequence[str]) -> str:
    """Check what the runs need; raise its errors and the given ones, or return the text of the bytes that they take."""
    from beyondpixel.experiments.launch import checks

    runs = [run for run, _ in work]
    of_parts, sizes = checks.check_parts(runs, fresh=[run for run, action in work if action.kind != "resume"])
    no_space, space = checks.check_space(runs, sizes, output)
    of_machine = [*checks.check_devices(runs, gpus_per_run), *no_space, *checks.check_output(output)]
    found = [*of_parts, *errors, *of_machine]
    if found:
        raise UserError("\n".join(["nothing was started:", *found]))
    return space


def _show(plan: Plan, title: str, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    # in a narrow terminal a cell has several lines, and nothing is cut off
    columns = [Column(name, overflow="fold") for name in ("run", "seed", "action", "folder")]
    table = Table(*columns, title=title)
    for run, action in plan:
        table.add_row(run.spec.name, str(run.seed), escape(str(action)), str(run.folder.path))
    console.print(table)
