"""What the workflow's jobs find on this machine: an interpreter, and their share of the CPUs."""

import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

# Libraries that start a thread per CPU in every job; torch is told the number by each job itself.
SINGLE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
LINK = Path(".snakemake/environment")

# The shell around a job leaves ctrl-C to the workflow. A cluster tells every process to terminate:
# the shell then waits until the job has saved its state.
AROUND_JOBS = "trap '' INT; trap : TERM; "


def link_interpreter(folder: Path) -> None:
    """Let jobs call Python by a path that a shell reads as it is.

    Snakemake does not quote the interpreter in its commands. Where its path has a space or the
    like, jobs take one without: relative to the folder in which they run, by way of a link.

    Args:
        folder: the working directory.
    """
    if shlex.quote(sys.executable) == sys.executable:
        return
    environment, link = Path(sys.executable).parents[1], folder / LINK
    if not (link.is_symlink() and link.readlink() == environment):
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(environment, target_is_directory=True)
    sys.executable = str(LINK / Path(sys.executable).relative_to(environment))


def limit_threads() -> None:
    """Jobs run side by side, so that libraries in them use one thread each, unless the user's
    environment says otherwise."""
    for name in SINGLE:
        os.environ.setdefault(name, "1")


def stop_jobs_with_the_workflow() -> None:
    """On ctrl-C trainings save their state and all other jobs end, without a word.

    A terminal interrupts every process, and Python would print a traceback in each. So jobs ignore
    it, and the workflow tells them to terminate.
    """
    from snakemake.shell import shell

    def stop(_number, _frame):
        for process in psutil.Process().children(recursive=True):
            if not process.children():  # not the shells around jobs, which only wait
                process.terminate()
        raise KeyboardInterrupt

    shell.prefix(AROUND_JOBS)
    signal.signal(signal.SIGINT, stop)


def end_gracefully(scheduler: Any) -> None:
    """On SIGTERM the workflow ends when the jobs that run have ended.

    Snakemake's own handler takes a lock that the thread it interrupts may hold, for seconds where
    hundreds of jobs wait, and would then wait for ever. A thread of its own waits for its turn.

    Args:
        scheduler: Snakemake's, whose handler is exchanged where it has set one.
    """
    end = scheduler.exit_gracefully
    if signal.getsignal(signal.SIGTERM) == end:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end).start())
