"""A SLURM cluster of one node, without accounting, on this machine: for tests and for trying the
profile.

    python tools/slurm_node.py start FOLDER
    python tools/slurm_node.py stop FOLDER

Needs root and Debian's packages (apt-get install slurm-wlm munge), no systemd. FOLDER holds the
daemons' configuration, logs, sockets and state; its path must be short. SLURM's commands find the
configuration by a link where Debian expects it.
`--gpus N` gives the node N devices that are called GPUs and are none. Jobs in the partition
`urgent` preempt those in `all`, the default one, which are put back into the queue.
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory}{gres}
PartitionName=all Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
"""
LINK = Path("/etc/slurm/slurm.conf")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # stand for GPUs


def start(folder: Path, gpus: int) -> None:
    """Write the configuration and start the three daemons, each of which puts itself into the
    background and its process id into a file."""
    if LINK.exists():
        raise SystemExit(f"this machine belongs to a cluster already: {LINK} is there")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    write_config(folder, gpus)
    LINK.parent.mkdir(exist_ok=True)
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(folder / "slurm.conf")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    files = [f"--{name}={folder}/munge{end}" for name, end in MUNGE.items()]
    run("munged", "--force", *files)
    run("slurmctld", "-f", folder / "slurm.conf")
    run("slurmd", "-f", folder / "slurm.conf", "-N", socket.gethostname())
    if not wait_until(lambda: "idle" in answer("sinfo", "--noheader", "--format=%T"), 60):
        raise SystemExit(f"the node does not get idle; see the logs in {folder}")


MUNGE = {
    "key-file": ".key",
    "socket": ".socket",
    "pid-file": "d.pid",
    "log-file": "d.log",
    "seed-file": ".seed",
}


def write_config(folder: Path, gpus: int) -> None:
    """slurm.conf, and gres.conf with the GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    text = CONFIG.format(
        host=socket.gethostname(),
        folder=folder,
        ports=free_ports(2),
        cpus=len(os.sched_getaffinity(0)),
        memory=memory,
        gres=f" Gres=gpu:{gpus}" if gpus else "",
    )
    lines = [f"Name=gpu File={device}\n" for device in DEVICES[:gpus]]
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("".join(lines))


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens at now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def run(*command: str | Path) -> None:
    """Run a daemon until it is in the background."""
    subprocess.run(list(map(str, command)), check=True, timeout=60)


def answer(*command: str) -> str:
    """What one of SLURM's commands prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def wait_until(happened: Callable[[], bool], timeout_s: float) -> bool:
    """Whether something happens in time."""
    until = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def stop(folder: Path) -> None:
    """Cancel all jobs, then end the daemons, the authentication last."""
    if LINK.is_symlink() and LINK.readlink() == folder / "slurm.conf":
        answer("scancel", "--user=root")
        wait_until(lambda: not answer("squeue", "--noheader"), timeout_s=40)
        LINK.unlink()
    for name in ("slurmd", "slurmctld", "munged"):
        if process := process_of(folder, name):
            os.kill(process, signal.SIGTERM)
            wait_until(lambda name=name: not process_of(folder, name), timeout_s=30)


def process_of(folder: Path, daemon: str) -> int | None:
    """The process of a daemon, if it runs."""
    try:
        process = int((folder / f"{daemon}.pid").read_text())
        runs = Path(f"/proc/{process}/comm").read_text().strip() == daemon
    except (OSError, ValueError):
        return None
    return process if runs else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["start", "stop"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if arguments.what == "start":
        start(folder, arguments.gpus)
    else:
        stop(folder)
