"""`make faults`: real faults against the promises of the launcher, and the table of what held.

    python tests/faults.py              everything, with full counts, two rows at a time; writes docs/faults.md
    python tests/faults.py --quick      the counts of the test suite
    python tests/faults.py --only disk  rows whose fault has this word; of the others what is known stays in the page

The figures are those of the run: pytest writes what was tried and what held to a file, which is read here. What is
known of each row is kept in build/faults.json, so that a row can be tried again without the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from beyondpixel.experiments.run.provenance import describe_environment, device_name, git_commit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
RECORD = ROOT / "build" / "faults.json"
ROWS_AT_A_TIME = 2
EXPERIMENTS, LAUNCH, DATA = "tests/experiments", "tests/experiments/launch", "tests/datamodules"


class Promise(NamedTuple):
    """A row of the table.

    Attributes:
        promise: what holds whatever happens.
        fault: what happens.
        injected: how it is made to happen.
        tests: words for pytest that select what tries it.
    """

    promise: str
    fault: str
    injected: str
    tests: tuple[str, ...]


# those that take longest come first, so that two at a time end together
PROMISES = (
    Promise(
        "a checkpoint of the last step, state `stopped`, exit code 130, within ten seconds where it waits",
        "INT, TERM, USR1, HUP; a time limit of SLURM",
        "the signal to a training between two steps, or while it waits for training, validation or test data that do "
        "not come; to a launcher with running processes; steps of seconds shortly before the limit",
        (
            f"{LAUNCH}/test_stops.py",
            f"{LAUNCH}/test_stops_of_two.py",
            f"{LAUNCH}/test_resume.py",
            f"{LAUNCH}/test_local.py",
            "-k",
            "signal or interrupted or there_is_time",
        ),
    ),
    Promise(
        "weights, metrics and state end bit for bit as without kills",
        "kill -9 of a training with its children",
        "SIGKILL to the process group at random bytes of metrics.jsonl, W&B logging to files",
        (f"{LAUNCH}/test_kills.py", "-k", "killed_runs"),
    ),
    Promise(
        "a result, or one error that names what is wrong",
        "inputs of any kind",
        "hypothesis: spec files and names, data folders, losses, inferers, images, checkpoints",
        ("tests/test_fuzz.py",),
    ),
    Promise(
        "memory stays within 5 %",
        "2,000 training steps",
        "the resident memory of the process, from step 500 to the last",
        (f"{LAUNCH}/test_kills.py", "-k", "memory"),
    ),
    Promise(
        "all runs finish, each with the limit on runs at a time kept",
        "kills of jobs of a grid on SLURM",
        "SIGKILL to random jobs of 40 runs in arrays of at most 16, on a SLURM of one node",
        (f"{LAUNCH}/test_slurm.py", "-k", "forty"),
    ),
    Promise(
        "the uploaded history is metrics.jsonl, each step once",
        "kills of a run with W&B's process",
        "SIGKILL to both, also while W&B makes its files; `wandb sync` to a server that stores the history",
        (f"{EXPERIMENTS}/test_wandb_faults.py", f"{EXPERIMENTS}/test_wandb_log.py", "-k", "kills or log"),
    ),
    Promise(
        "one sentence with file and bytes, no part left, the same command finishes",
        "a full disk",
        "a tmpfs of half, one and a half and two and a half checkpoints; three of a few kilobytes for images and for "
        "W&B's files; a full one below one of two runs",
        (f"{LAUNCH}/test_full_disk.py", f"{LAUNCH}/test_local.py", "-k", "full_disk or disk_that"),
    ),
    Promise(
        "the damaged run is named and left out, everything else goes on",
        "damaged files of a run folder",
        "each file missing, cut, zeroed, binary, doubled, of another type, nested 100,000 deep",
        (f"{LAUNCH}/test_damaged_runs.py", f"{EXPERIMENTS}/compare/test_damaged.py", f"{EXPERIMENTS}/run"),
    ),
    Promise(
        "the training goes on offline with one sentence, `sync` delivers later",
        "an unusable W&B server",
        "a server that answers 500, 401, HTML or nothing, from the beginning or in the middle of a run",
        (f"{EXPERIMENTS}/test_wandb_faults.py", "-k", "server"),
    ),
    Promise(
        "one message with the sample's name, and a checkpoint of the state before",
        "stuck, killed and failing data workers; files that are not images",
        "a FIFO in place of an image, SIGKILL to a worker, a worker that sleeps, damaged images, on two processes too",
        (
            f"{DATA}/test_failures.py",
            f"{LAUNCH}/test_kills.py",
            f"{LAUNCH}/test_stops_of_two.py",
            "-k",
            "test_failures or killed_worker or damaged_sample",
        ),
    ),
    Promise(
        "each run is trained once; the same command finishes what is left",
        "64 launchers over 6 runs at once; launchers that are killed",
        "64 forks that launch the same runs at the same second; SIGKILL at random moments",
        (f"{LAUNCH}/test_many_launchers.py", f"{LAUNCH}/test_lock.py"),
    ),
    Promise(
        "nothing outside the folder, nothing executed, one sentence",
        "hostile archives and checkpoints",
        "links, devices, absolute and over-long names, encryption; pickles that run code, flipped bits",
        (f"{DATA}/test_download.py", f"{EXPERIMENTS}/inference/test_checkpoints.py", "-k", "not shared and not real"),
    ),
    Promise(
        "no module is imported that the user has not allowed",
        "a spec that names a class of another module",
        "a module on the path that leaves a file when it is imported",
        (f"{EXPERIMENTS}/test_allowed_imports.py",),
    ),
    Promise(
        "planned in less than 60 CPU seconds and 1.5 GB",
        "5,000 runs of one grid",
        "`beyondpixel launch --dry-run` as a process, whose CPU time and peak memory are measured",
        (f"{LAUNCH}/test_many_runs.py",),
    ),
)


class Outcome(NamedTuple):
    """What pytest says of a row."""

    tried: str
    held: str
    seconds: float
    cpu_seconds: float
    ok: bool
    commit: str
    date: str


def run(promise: Promise, *, full: bool) -> Outcome:
    """Try a promise."""
    environment = {**os.environ, "BEYONDPIXEL_FAULTS": "full" if full else "quick", "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", "-o", "junit_family=legacy", f"--junitxml={report}"]
        with tempfile.TemporaryFile() as said:
            command = [sys.executable, "-m", "pytest", *options, *promise.tests]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)  # with the CPU time of its children
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            text = said.read().decode(errors="replace")
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    tried = [case for case in cases if case.find("skipped") is None]
    ok = bool(tried) and not failed
    if not ok:
        print(text[-20_000:], flush=True)
    return Outcome(
        _tried(cases, tried),
        f"{len(tried) - len(failed)} of {len(tried)}" if tried else "not tried",
        time.monotonic() - begin,
        usage.ru_utime + usage.ru_stime,
        ok,
        git_commit() or "unknown",
        time.strftime("%Y-%m-%d", time.gmtime()),
    )


def _tried(cases: Sequence[ET.Element], tried: Sequence[ET.Element]) -> str:
    said = [one.attrib["value"] for case in tried for one in case.iter("property") if one.get("name") == "tried"]
    counts = [int(text) for text in said if text.isdigit()]
    words = [*(text for text in said if not text.isdigit()), *([f"{sum(counts):,} in all"] if counts else [])]
    more = f", {len(cases) - len(tried)} not possible here" if len(cases) > len(tried) else ""
    return f"{len(tried)} test{'s' * (len(tried) != 1)}" + (f" ({'; '.join(words)})" if words else "") + more


def page_of(outcomes: Mapping[str, Outcome], *, minutes: float | None) -> str:
    """The page with the table.

    Args:
        outcomes: what is known, by the promise's fault.
        minutes: of all rows, if they were tried together.
    """
    lines = []
    for promise in PROMISES:
        known = outcomes.get(promise.fault)
        tried, held, cpu = (known.tried, known.held, f"{known.cpu_seconds:.0f}") if known else ("not tried", "", "")
        lines.append(f"| {promise.promise} | {promise.fault} | {promise.injected} | {tried} | {held} | {cpu} |")
    machine = describe_environment()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    total = sum(outcome.cpu_seconds for outcome in outcomes.values())
    together = f"Everything together took {minutes:.0f} minutes. " if minutes is not None else ""
    commits = ", ".join(dict.fromkeys(f"{outcome.commit} ({outcome.date})" for outcome in outcomes.values()))
    return "\n".join(
        (
            "# What holds when things break",
            "",
            "Each row is a real fault: a process that is killed, a disk that is full, a server that hangs. "
            "`make faults` tries them all, two rows at a time, and writes this page; the fast part is in `make test`.",
            "",
            "| promise | fault | how it is injected | tried | held | CPU s |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            f"{together}The CPU time is {total / 60:.0f} minutes in all.",
            "",
            f"- machine: {device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {memory:.0f} GiB, "
            f"{platform.system()} {platform.release()}",
            f"- versions: Python {machine['python']}, torch {machine['packages']['torch']}, "
            f"W&B {machine['packages']['wandb']}",
            f"- commit: {commits}",
            "",
        )
    )


def main() -> None:
    """Try all promises, or those that have a word."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="the counts of the test suite; writes no page")
    parser.add_argument("--only", default="", help="rows whose fault has this word")
    given = parser.parse_args()
    chosen = [promise for promise in PROMISES if given.only in promise.fault]
    begin = time.monotonic()
    with ThreadPoolExecutor(ROWS_AT_A_TIME) as pool:
        outcomes: dict[str, Outcome] = {}
        for promise, outcome in zip(chosen, pool.map(lambda one: run(one, full=not given.quick), chosen), strict=True):
            outcomes[promise.fault] = outcome
            times = f"{outcome.seconds:.0f} s, {outcome.cpu_seconds:.0f} CPU s"
            print(f"{outcome.held:>12}  {promise.fault}: {outcome.tried}, {times}", flush=True)
            if not given.quick:
                _remember({promise.fault: outcome})
    if not given.quick:
        minutes = None if given.only else (time.monotonic() - begin) / 60
        PAGE.write_text(page_of(_known(), minutes=minutes))
        print(f"Wrote {PAGE.relative_to(ROOT)}")
    sys.exit(not all(outcome.ok for outcome in outcomes.values()))


def _known() -> dict[str, Outcome]:
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return {fault: Outcome(**values) for fault, values in record.items()}


def _remember(outcomes: Mapping[str, Outcome]) -> None:
    RECORD.parent.mkdir(exist_ok=True)
    record = {fault: outcome._asdict() for fault, outcome in (_known() | dict(outcomes)).items()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
