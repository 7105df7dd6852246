"""A Slurm cluster on loopback: munged, slurmctld and one slurmd per node, as root, without systemd or a database.

Everything lies in one folder but the links in /etc/slurm: Snakemake's job step takes SLURM_CONF from the environment of
its srun, so that only the default place is left. The daemons end with the process that started them, even if it is
killed.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = Path("/etc/slurm")
FILES = ("slurm.conf", "gres.conf", "cgroup.conf")
CGROUPS = Path("/sys/fs/cgroup")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "setpriv")
NODES = ("n1", "n2")
CPUS = 5  # of a node; what the jobs that share a submission ask for
MEMORY_MB = 16000
GPU = "a100"

MARK = "# The loopback cluster of tests/integration.\n"
SLURM_CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
{tracking}
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1
# Nodes may have more CPUs and memory than the machine.
SlurmdParameters=config_overrides
SlurmdTimeout=15
# Nodes that were down serve again when their slurmd is back.
ReturnToService=2
KillWait=2
# Jobs that ended are remembered until the end of the tests.
MinJobAge=86400
MpiDefault=none
SwitchType=switch/none
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 SocketsPerBoard=1"
    " CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory} Gres=gpu:{gpu}:1 State=UNKNOWN\n"
)
# Memory limits by the kernel, where cgroups of version 1 can be made here; else slurmd looks every second.
BY_KERNEL = """\
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/cgroup"""
BY_SLURMD = """\
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill,UsePss"""
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainRAMSpace=yes
ConstrainCores=no
ConstrainDevices=no
"""


class NoClusterError(RuntimeError):
    """No cluster can be brought up here; says why and what would help."""


@dataclass
class Cluster:
    """A running cluster. `kernel_limits`: memory is limited by the kernel, else by slurmd, which looks every second."""

    folder: Path
    kernel_limits: bool
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, name: str, *command: object) -> None:
        """Start a daemon in the foreground, as a child that dies with this process."""
        with open(self.folder / "log" / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *map(str, command)],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name)

    def lose_node(self, name: str) -> None:
        """What a power cut does: slurmd and all processes of its jobs are gone, and nobody tells the controller."""
        jobs = [job["JobId"] for job in self.jobs() if job["JobState"] == "RUNNING" and job["NodeList"] == name]
        self.daemons[name].kill()
        self.daemons.pop(name).wait()
        # Job managers first: one that sees its job end reports it.
        kill(manager for manager, title in job_managers().items() if title.partition(".")[0] in jobs)
        kill(processes_with(f"SLURMD_NODENAME={name}"))

    def jobs(self) -> list[dict[str, str]]:
        """What `scontrol show job` says of every job since the start: JobId, JobState, Comment, NodeList, TRES, ..."""
        records = ask("scontrol", "--details", "--oneliner", "show", "jobs").splitlines()
        return [dict(word.split("=", 1) for word in record.split() if "=" in word) for record in records]

    def wait_until_idle(self, seconds: float) -> None:
        """Wait until all nodes serve and no job is left on any.

        Raises:
            TimeoutError: they do not in that time; carries the ends of the daemons' logs.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                idle = set(ask("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split())
                # A node can be idle a moment before its last job's record says how that ended.
                if idle == set(NODES) and not ask("squeue", "--noheader", "--states=running,completing").strip():
                    return
            except subprocess.CalledProcessError:
                pass  # the controller is not there yet
            if time.monotonic() > deadline:
                logs = sorted((self.folder / "log").glob("*"))
                ends = "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
                raise TimeoutError(f"the nodes are not idle after {seconds:.0f} s\n{ends}")
            time.sleep(0.1)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster in the folder, with two idle nodes of one fake GPU each, taken down at the end whatever happens.

    Raises:
        NoClusterError: not root, a program is missing, or this machine belongs to a cluster.
        TimeoutError: the daemons do not start; carries the ends of their logs.
    """
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        raise NoClusterError(f"{', '.join(missing)} not found; as root: sh tests/integration/setup/slurm.sh")
    if os.geteuid():
        raise NoClusterError("slurmd runs jobs as root here; run the tests as root")
    cluster = Cluster(
        folder, kernel_limits=all(os.access(CGROUPS / c / "cgroup.procs", os.W_OK) for c in ("memory", "freezer"))
    )
    with contextlib.ExitStack() as undo:
        write_configuration(cluster)
        undo.enter_context(system_configuration(folder))
        end_leftovers()
        undo.callback(take_down, cluster)
        munge = folder / "munge"
        cluster.start(
            "munged", "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={folder}/log/munged.log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        wait_for(munge / "socket", 10)
        cluster.start("slurmctld", "slurmctld", "-D")
        for name in NODES:
            cluster.start_node(name)
        cluster.wait_until_idle(60)
        yield cluster


def write_configuration(cluster: Cluster) -> None:
    folder, host = cluster.folder, socket.gethostname().partition(".")[0]
    for name in ("state", "log", "spool", "munge", "dev"):
        (folder / name).mkdir(parents=True)
    # munged refuses a socket that others cannot reach.
    for path in (folder, folder / "munge"):
        path.chmod(0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o400)
    controller, *ports = free_ports(1 + len(NODES))
    tracking = BY_KERNEL if cluster.kernel_limits else BY_SLURMD
    conf = SLURM_CONF.format(host=host, port=controller, folder=folder, tracking=tracking)
    gres = ""
    for name, port in zip(NODES, ports, strict=True):
        conf += NODE.format(name=name, host=host, port=port, cpus=CPUS, memory=MEMORY_MB, gpu=GPU)
        # slurmd sets CUDA_VISIBLE_DEVICES for device nodes only; this one is /dev/null's.
        device = folder / "dev" / name / "nvidia0"
        device.parent.mkdir()
        os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
        gres += f"NodeName={name} Name=gpu Type={GPU} File={device}\n"
    limits = CGROUP_CONF if cluster.kernel_limits else "CgroupPlugin=cgroup/v1\n"
    for name, text in zip(FILES, (conf, gres, limits), strict=True):
        (folder / name).write_text(MARK + text)


@contextlib.contextmanager
def system_configuration(folder: Path) -> Iterator[None]:
    """Links in /etc/slurm to the files in the folder; those that a killed test run left there are replaced."""
    SYSTEM.mkdir(exist_ok=True)
    links = [SYSTEM / name for name in FILES]
    with open(Path(tempfile.gettempdir(), "slurm-loopback.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NoClusterError(f"another test run on this machine has a cluster: {lock.name} is locked") from None
        for link in links:
            if link.exists() and not (link.is_symlink() and link.read_text().startswith(MARK)):
                raise NoClusterError(f"{link} is not from these tests: this machine belongs to a real cluster")
        try:
            for link in links:
                link.unlink(missing_ok=True)
                link.symlink_to(folder / link.name)
            yield
        finally:
            for link in links:
                link.unlink(missing_ok=True)


def take_down(cluster: Cluster) -> None:
    """Cancel what runs, then end the daemons and what is left of their jobs."""
    # Without a controller there is nothing to cancel.
    with contextlib.suppress(subprocess.SubprocessError):
        ask("scancel", "--user=root")
        deadline = time.monotonic() + 20
        while ask("squeue", "--noheader", "--states=running,completing") and time.monotonic() < deadline:
            time.sleep(0.1)
    for daemon in reversed(cluster.daemons.values()):
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    end_leftovers()


def end_leftovers() -> None:
    """Jobs that outlived their cluster, and the cgroups that slurmd makes and does not remove.

    Raises:
        TimeoutError: they are still there after a minute.
    """
    deadline = time.monotonic() + 60
    while left := [*job_managers(), *processes_with("SLURM_CLUSTER_NAME=loopback"), *remaining_cgroups()]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"left of Slurm jobs: {left}")
        kill(process for process in left if isinstance(process, int))
        time.sleep(0.1)


def remaining_cgroups() -> list[Path]:
    """Cgroups of the nodes that cannot be removed yet, because a process in them is still ending."""
    groups = [group for node in CGROUPS.glob("*/slurm_n[12]") for group in (node, *node.rglob("*")) if group.is_dir()]
    for group in sorted(groups, reverse=True):
        with contextlib.suppress(OSError):
            group.rmdir()
    return [group for group in groups if group.exists()]


def ask(*command: str) -> str:
    """Standard output of a Slurm command.

    Raises:
        subprocess.SubprocessError: it failed, or did not answer in 20 seconds.
    """
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def processes_with(variable: str) -> list[int]:
    """Process ids with `NAME=value` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # It may end meanwhile.
        with contextlib.suppress(OSError):
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def job_managers() -> dict[int, str]:
    """Process ids of all slurmstepd, each with the job and step that it looks after: 3.batch, 3.0."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = re.match(r"slurmstepd: \[(.+?)\]", (process / "cmdline").read_text())
            if title:
                found[int(process.name)] = title[1]
    return found


def kill(processes: Iterable[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


def wait_for(path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not appear in {seconds:.0f} s")
        time.sleep(0.05)
