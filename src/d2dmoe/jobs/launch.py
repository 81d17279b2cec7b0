"""Jobs of several processes: torchrun starts the script that runs, anew for each of them.

    script ── torchrun ── script, as many as the machine has GPUs for the job
      └─ by srun, on each of several machines of a SLURM job

A process that ends by a fault ends the others. What tells the job to terminate reaches all.
"""

import os
import socket
import sys
from typing import NoReturn

from d2dmoe.errors import UserError

PORT = 29400  # and the thousands after it, by the number of the SLURM job


def launched() -> bool:
    """Whether this process is one of those that torchrun, or whatever does as it does, started."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, nodes: int) -> NoReturn:
    """Become torchrun of the script that runs, with so many processes on each of the machines.

    Raises:
        UserError: several machines are asked for outside of SLURM.
    """
    options = [f"--nnodes={nodes}", f"--nproc-per-node={processes}"]
    if nodes == 1:
        options += ["--standalone"]
        srun = []
    else:
        job = os.environ.get("SLURM_JOB_ID")
        if not job:
            raise UserError(
                f"resources.nodes = {nodes} asks for machines of a SLURM cluster: run the workflow "
                "with --profile profiles/slurm, or ask for one"
            )
        place = f"{socket.gethostname()}:{PORT + int(job) % 1000}"
        options += ["--rdzv-backend=c10d", f"--rdzv-endpoint={place}", f"--rdzv-id={job}"]
        srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap"]
    command = [*srun, sys.executable, "-m", __name__, *options, *sys.argv]
    os.execvp(command[0], command)


def main() -> None:
    """torchrun, but for its reports of processes that failed: the job's log says why."""
    os.environ["LOGLEVEL"] = "CRITICAL"  # torch reads it when it is imported
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(sys.argv[1:]))
    except (ChildFailedError, SignalException):
        sys.exit(1)


if __name__ == "__main__":
    main()
