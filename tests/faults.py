"""`make faults`: real faults against the promises of the launcher, and the table of what held.

    python tests/faults.py          everything, with full counts; writes docs/faults.md
    python tests/faults.py --quick  the counts of the test suite

The figures are those of the run: pytest writes what was tried and what held to a file, which is read here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from beyondpixel.experiments.run.provenance import describe_environment, git_commit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
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


PROMISES = (
    Promise(
        "weights, metrics and state end bit for bit as without kills",
        "kill -9 of a training with its children",
        "SIGKILL to the process group at random bytes of metrics.jsonl, W&B logging to files",
        (f"{LAUNCH}/test_kills.py", "-k", "killed_runs"),
    ),
    Promise(
        "a checkpoint, state `stopped`, exit code 130",
        "INT, TERM, USR1, HUP, KILL",
        "the signal to a training between two steps; to a launcher with running processes",
        (
            f"{LAUNCH}/test_kills.py",
            f"{LAUNCH}/test_resume.py",
            f"{LAUNCH}/test_local.py",
            "-k",
            "signal or interrupted",
        ),
    ),
    Promise(
        "one sentence with file and bytes, no part left, the same command finishes",
        "a full disk",
        "a tmpfs of half, one and a half and two and a half checkpoints; a full one below one of two runs",
        (f"{LAUNCH}/test_full_disk.py", f"{LAUNCH}/test_local.py", "-k", "full_disk"),
    ),
    Promise(
        "the damaged run is named and left out, everything else goes on",
        "damaged files of a run folder",
        "each file missing, cut, zeroed, binary, doubled, of another type, nested 100,000 deep",
        (f"{LAUNCH}/test_damaged_runs.py", f"{EXPERIMENTS}/compare/test_damaged.py", f"{EXPERIMENTS}/run"),
    ),
    Promise(
        "the uploaded history is metrics.jsonl, each step once",
        "kills of a run with W&B's process",
        "SIGKILL to both, also while W&B makes its files; `wandb sync` to a server that stores the history",
        (f"{EXPERIMENTS}/test_wandb_faults.py", f"{EXPERIMENTS}/test_wandb_log.py", "-k", "kills or log"),
    ),
    Promise(
        "the training goes on offline with one sentence, `sync` delivers later",
        "an unusable W&B server",
        "a server that answers 500, 401, HTML or nothing, from the begin or in the midst of a run",
        (f"{EXPERIMENTS}/test_wandb_faults.py", "-k", "server"),
    ),
    Promise(
        "one message with the sample's name",
        "stuck, killed and failing data workers; files that are none",
        "a FIFO in place of an image, SIGKILL to a worker, a worker that sleeps, damaged images",
        (f"{DATA}/test_failures.py",),
    ),
    Promise(
        "each run is trained once",
        "64 launchers over 6 runs at once",
        "64 forks that launch the same runs at the same second",
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
        "a spec that names a strange class",
        "a module on the path that leaves a file when it is imported",
        (f"{EXPERIMENTS}/test_allowed_imports.py",),
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
)


class Outcome(NamedTuple):
    """What pytest says of a row."""

    tried: str
    held: str
    seconds: float
    ok: bool


def run(promise: Promise, *, full: bool) -> Outcome:
    """Try a promise."""
    environment = {**os.environ, "BEYONDPIXEL_FAULTS": "full" if full else "quick", "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run([*command, *promise.tests], cwd=ROOT, env=environment, check=False)
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    skipped = [case for case in cases if case.find("skipped") is not None]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    tried = [case for case in cases if case not in skipped]
    said = [one.attrib["value"] for case in tried for one in case.iter("property") if one.get("name") == "tried"]
    counts = [int(text) for text in said if text.isdigit()]
    words = [*(text for text in said if not text.isdigit()), *([f"{sum(counts):,} in all"] if counts else [])]
    more = f", {len(skipped)} not possible here" if skipped else ""
    return Outcome(
        f"{len(tried)} tests" + (f" ({'; '.join(words)})" if words else "") + more,
        f"{len(tried) - len(failed)} of {len(tried)}" if tried else "not tried",
        time.monotonic() - begin,
        bool(tried) and not failed,
    )


def page_of(outcomes: dict[Promise, Outcome], *, full: bool) -> str:
    """The page with the table."""
    lines = [f"| {one.promise} | {one.fault} | {one.injected} | {o.tried} | {o.held} |" for one, o in outcomes.items()]
    minutes = sum(outcome.seconds for outcome in outcomes.values()) / 60
    machine = describe_environment()
    return "\n".join(
        (
            "# What holds when things break",
            "",
            "Each row is a real fault: a process that is killed, a disk that is full, a server that hangs. "
            "`make faults` tries them all and writes this page; the fast part is in `make test`.",
            "",
            "| promise | fault | how it is injected | tried | held |",
            "|---|---|---|---|---|",
            *lines,
            "",
            f"{'Full counts' if full else 'The counts of the test suite'}, {minutes:.0f} minutes on "
            f"{os.cpu_count()} cores, commit {git_commit()}, Python {machine['python']}, "
            f"torch {machine['packages']['torch']}, W&B {machine['packages']['wandb']}.",
            "",
        )
    )


def main() -> None:
    """Try all promises, or those that have a word."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="the counts of the test suite")
    parser.add_argument("--only", default="", help="rows whose fault has this word; writes no page")
    given = parser.parse_args()
    chosen = [promise for promise in PROMISES if given.only in promise.fault]
    outcomes = {promise: run(promise, full=not given.quick) for promise in chosen}
    for promise, outcome in outcomes.items():
        print(f"{outcome.held:>12}  {promise.fault}: {outcome.tried}, {outcome.seconds:.0f} s")
    if not given.only:
        PAGE.write_text(page_of(outcomes, full=not given.quick))
        print(f"Wrote {PAGE.relative_to(ROOT)}")
    sys.exit(not all(outcome.ok for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
