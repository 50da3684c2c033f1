"""Locks between real processes."""

import errno
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from beyondpixel.experiments.launch.lock import HeldError, RunLock, holder_of, this_process

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
        assert holder_of(file) == f"process {process.pid} on {socket.gethostname()}"
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


# Lets the kernel refuse flock with the error number in argv[1], as file systems without locks do.
REFUSE = """
import ctypes, errno, platform, struct, sys
from pathlib import Path
number = int(sys.argv[1])
flock = {"x86_64": 73, "aarch64": 32}[platform.machine()]
LOAD, EQUAL, RETURN, ERRNO, ALLOW = 0x20, 0x15, 0x06, 0x00050000, 0x7FFF0000
rules = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, flock), (RETURN, 0, 0, ERRNO | number), (RETURN, 0, 0, ALLOW)]
code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit("no seccomp here")
from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.launch.lock import RunLock, holder_of
for use in (lambda: RunLock(Path(sys.argv[2])).__enter__(), lambda: holder_of(Path(sys.argv[2]))):
    try:
        use()
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named(file: Path, number: int) -> None:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the numbers of system calls are known for x86_64 and aarch64 only")
    done = subprocess.run(
        [sys.executable, "-c", REFUSE, str(number), str(file)], capture_output=True, text=True, check=False
    )
    if "no seccomp here" in done.stderr:
        pytest.skip("this kernel does not let a process filter its system calls")
    expected = f"{file}: its file system has no locks ({os.strerror(number)}), without which two processes could write"
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert all(line.startswith(expected) and "choose an --output on a local disk" in line for line in lines)


def test_a_lock_leaves_neither_descriptor_nor_thread(file: Path) -> None:
    before = (len(list(Path("/proc/self/fd").iterdir())), threading.active_count())
    for _ in range(50):
        with RunLock(file):
            assert threading.active_count() == before[1]
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before
