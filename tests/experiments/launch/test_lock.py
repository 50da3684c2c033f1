"""Locks between real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beyondpixel.experiments.launch import lock
from beyondpixel.experiments.launch.lock import HeldError, Holder, RunLock, holder_of, this_process

HOLD = """
import os, sys, time
from pathlib import Path
from beyondpixel.experiments.launch.lock import RunLock
with RunLock(Path(sys.argv[1])):
    child = os.fork()  # a data worker; it must not keep the lock when its parent is killed
    if child == 0:
        print(os.getpid(), flush=True)  # once it has begun, and so has let go of what it inherited
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "lock"


def test_a_killed_process_leaves_no_lock_even_if_its_worker_lives_on(file: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        assert holder_of(file) == Holder(socket.gethostname(), process.pid)
        with pytest.raises(HeldError, match=rf"run is being worked on by process {process.pid} on .*; wait for it"):
            RunLock(file, patience=0).__enter__()
        process.kill()
        process.wait()
        os.kill(worker, 0)  # still there
        assert holder_of(file) is None
        with RunLock(file, patience=0):
            assert holder_of(file) == this_process()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_one_of_many_gets_it(file: Path) -> None:
    """Eight processes at once, each of which adds a line if it gets the lock; the first keeps it."""
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from beyondpixel.experiments.launch.lock import HeldError, RunLock\n"
        "try:\n"
        "    with RunLock(Path(sys.argv[1]), patience=0.5):\n"
        "        print('got it', flush=True)\n"
        "        sys.stdin.read()\n"
        "except HeldError:\n"
        "    print('held', flush=True)\n"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", code, str(file)], stdin=-1, stdout=-1, text=True) for _ in range(8)
    ]
    said = [process.stdout.readline().strip() for process in several if process.stdout is not None]
    for process in several:
        process.communicate()
    assert sorted(said) == ["got it", *["held"] * 7]


def test_a_lock_is_free_after_an_exception_and_can_be_taken_again(file: Path) -> None:
    with pytest.raises(RuntimeError, match="oh"), RunLock(file):
        raise RuntimeError("oh")
    assert holder_of(file) is None
    with RunLock(file, patience=0):
        pass


def sign(file: Path, holder: Holder, *, seconds_ago: float) -> None:
    """What a process on a node with locks of its own leaves in a shared folder."""
    file.parent.mkdir()
    file.write_text(json.dumps({"host": holder.host, "pid": holder.pid, "job": holder.job}))
    os.utime(file, (time.time() - seconds_ago,) * 2)


def test_a_holder_on_another_node_counts_while_its_heart_beats(file: Path) -> None:
    sign(file, Holder("node7", 4711, "12_3"), seconds_ago=30)
    assert holder_of(file) == Holder("node7", 4711, "12_3")
    with pytest.raises(HeldError, match="process 4711 on node7, SLURM job 12_3"):
        RunLock(file, patience=0).__enter__()
    os.utime(file, (time.time() - 200,) * 2)
    assert holder_of(file) is None
    with RunLock(file, patience=0):
        pass


def test_a_requeued_job_takes_its_lock_over_from_the_node_it_was_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(file, Holder("node7", 4711, "12_3"), seconds_ago=1)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    with pytest.raises(HeldError):
        RunLock(file, patience=0).__enter__()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with RunLock(file, patience=0):
        assert holder_of(file) == Holder(socket.gethostname(), os.getpid(), "12_3")


def test_the_heart_beats(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.05)
    with RunLock(file):
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 20
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert file.stat().st_mtime > 0
