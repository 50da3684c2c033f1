"""A real SLURM cluster of one node, with made-up GPUs and a partition that preempts, below a folder."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SYSTEM_PATHS = "/usr/sbin:/sbin"
# Everything that is slow by default and has nothing to do with what is tested is made quick: cred_expire is also how
# long a requeued job waits before it starts again, KillWait the time between SIGTERM and SIGKILL.
CONFIG = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
KillWait=10
MinJobAge=86400
MaxArraySize=17
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES DefaultTime=10 MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=localhost DefaultTime=10 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def why_impossible() -> str | None:
    """What this machine lacks; None if a cluster can be started."""
    path = f"{os.environ['PATH']}:{SYSTEM_PATHS}"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return (
            f"{', '.join(missing)} not found; on Debian and Ubuntu: "
            "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
        )
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return f"the host name {socket.gethostname()} does not resolve, which slurmd needs"
    return None


class Cluster:
    """Starts the daemons on free ports of 127.0.0.1, as this user.

    Args:
        folder: empty, with a path short enough for a unix socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:{SYSTEM_PATHS}",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir()
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        ports = self._free_ports()
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(folder=self.folder, user=getpass.getuser(), controller_port=ports[0], node_port=ports[1])
        )
        gpus = []
        for index in range(2):  # a GPU is a character device to SLURM; the last digit becomes its number
            device = self.folder / f"gpu{index}"
            device.symlink_to("/dev/null")
            gpus.append(f"Name=gpu File={device}\n")
        (self.folder / "gres.conf").write_text("".join(gpus))
        munge = {
            "key-file": key,
            "seed-file": self.folder / "munge" / "seed",
            "socket": self.folder / "munge.sock",
            "pid-file": self.folder / "munged.pid",
            "log-file": self.folder / "munged.log",
        }
        self.run("munged", "--force", *(f"--{name}={value}" for name, value in munge.items()))
        self.run("slurmctld")
        self.run("slurmd")
        wait_for(lambda: "idle" in self.run("sinfo", "--noheader", "--format", "%T"), 60, "the node to be idle")

    def stop(self) -> None:
        """Cancel what runs, then end the three daemons by their process ids."""
        self.run("scancel", "--user", getpass.getuser(), "--quiet", check=False)
        # slurmstepd outlives slurmd, so the jobs must go first
        deadline = time.monotonic() + 30
        while self.run("squeue", "--noheader", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        for name in ("slurmd", "slurmctld", "munged"):
            file = self.folder / f"{name}.pid"
            if file.exists() and file.read_text().strip():
                _end(int(file.read_text()), name)

    def run(self, *command: str, check: bool = True) -> str:
        program = shutil.which(command[0], path=self.environment["PATH"])
        assert program is not None
        done = subprocess.run(
            [program, *command[1:]], env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self.run("squeue", "--noheader", "--states=all", "--array", "--jobs", job, "--format", "%T").strip()

    def restarts(self, job: str) -> int:
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return int(shown.split("Restarts=")[1].split()[0])

    def wait_for_state(self, job: str, state: str, seconds: float = 30) -> None:
        wait_for(lambda: self.state(job) == state, seconds, f"job {job} to be {state}")

    @staticmethod
    def _free_ports() -> list[int]:
        sockets = [socket.socket() for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        return ports


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.1)


def _end(pid: int, name: str) -> None:
    def alive() -> bool:
        try:  # a zombie has no executable; another process may have got the number
            return Path(f"/proc/{pid}/exe").readlink().name.startswith(name)
        except OSError:
            return False

    if alive():
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    if alive():
        os.kill(pid, signal.SIGKILL)
