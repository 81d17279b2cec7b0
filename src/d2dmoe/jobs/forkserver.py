"""Local jobs start as forks of one process that has imported what jobs of their kind import.

Most jobs of a miniature compute for seconds, and importing torch takes them as long. The server
imports what a script's own lines do before it forks its first job, and what more it learns from the
jobs themselves: what one of them imported, before it forks the next. It never computes, so that its
forks find neither threads nor a GPU in use.

    workflow ─ shell ─ fork_client.py ──socket── forkserver.py ─ the job
"""

import ast
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from d2dmoe.jobs.job import QUIET

SOCKET = "socket"
# Imports that look for a GPU must not start its driver, which a fork could not use.
NO_GPU = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
HOME = Path(".snakemake/forks")  # what a killed server left there, the next removes
LAUNCHER = Path(".snakemake/python")  # what the workflow calls instead of the interpreter


def start_forkserver(folder: Path) -> None:
    """Start the server, and let the workflow's jobs call it in place of Python.

    It ends with the workflow, or after it with the last of the jobs. On other systems than Linux,
    where libraries do not bear forks, jobs go on to import for themselves.

    Args:
        folder: the working directory.
    """
    if sys.platform != "linux":
        return
    shutil.rmtree(folder / HOME, ignore_errors=True)
    (folder / HOME).mkdir(parents=True)
    subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=folder,
        env=os.environ | QUIET | NO_GPU,
        stdin=subprocess.PIPE,  # closes when the workflow ends, in whatever way
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = Path(__file__).with_name("fork_client.py")
    command = [sys.executable, "-I", "-S", str(client), str(HOME / SOCKET), sys.executable]
    launcher = folder / LAUNCHER
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    launcher.chmod(0o755)
    sys.executable = str(LAUNCHER)


@dataclass
class Request:
    """A script to be run as the client would have run it."""

    command: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]  # its standard input, output and error

    @property
    def script(self) -> str:
        """The script's name, without the part that makes the workflow's copy of it unique."""
        return Path(self.command[0]).name.partition(".")[2]


class Server:
    """Takes requests, one after the other, and tells clients how their jobs ended."""

    def __init__(self, home: Path):
        self.home = home
        self.jobs: dict[int, socket.socket] = {}  # clients by their jobs' process ids
        self.modules: dict[str, list[str]] = {}  # that jobs had to import, by script
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(HOME / SOCKET))  # at most 100 characters
        self.listening.listen(128)
        self.ended, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self.selector = selectors.DefaultSelector()
        for source in (sys.stdin, self.listening, self.ended):
            self.selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Request | None:
        """Until the workflow and its last job have ended; in the process of a job, its request."""
        serving = True
        while serving or self.jobs:
            for source in [key.fileobj for key, _ in self.selector.select()]:
                if source is sys.stdin:
                    serving = False
                    self.selector.unregister(sys.stdin)
                elif source is self.listening:
                    if request := self._accept():
                        return request
                elif source == self.ended:
                    os.read(self.ended, 4096)
                    self._reap()
                elif source in self.jobs.values():  # closed by a client that was killed
                    pid = next(pid for pid, client in self.jobs.items() if client is source)
                    os.kill(pid, signal.SIGKILL)
                    self.selector.unregister(source)
        return None

    def _accept(self) -> Request | None:
        """Fork; returns the request in the fork."""
        client, _ = self.listening.accept()
        try:
            streams = socket.recv_fds(client, 1, 3)[1]
            request = Request(**json.loads(client.makefile().readline()), streams=streams)
        except (OSError, ValueError):  # the client was killed
            client.close()
            return None
        self._import(request)
        pid = os.fork()
        if pid == 0:
            client.close()
            self._become(request)
            return request
        for stream in streams:
            os.close(stream)
        self.jobs[pid] = client
        self.selector.register(client, selectors.EVENT_READ)
        _tell(client, pid)
        return None

    def _import(self, request: Request) -> None:
        """What the script's jobs have imported until now; before the first, what it says itself."""
        if request.script not in self.modules:
            self.modules[request.script] = _stated(Path(request.folder, request.command[0]))
        for name in self.modules[request.script]:
            with contextlib.suppress(Exception):  # the job will meet it again
                importlib.import_module(name)
        self.modules[request.script] = []
        gc.collect()
        gc.freeze()  # collections in jobs need not look at what will stay

    def _become(self, request: Request) -> None:
        """Leave the server behind, in a fork of it."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self.selector.close()
        for own in (self.listening, *self.jobs.values()):
            own.close()
        for target, stream in enumerate(request.streams):
            os.dup2(stream, target)
            os.close(stream)
        os.chdir(request.folder)
        os.environ.clear()
        os.environ.update(request.environment)

    def _reap(self) -> None:
        """Tell the clients of all jobs that have ended."""
        while self.jobs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            client = self.jobs.pop(pid)
            with contextlib.suppress(KeyError):
                self.selector.unregister(client)
            _tell(client, os.waitstatus_to_exitcode(status))
            client.close()
            self._learn(self.home / str(pid))

    def _learn(self, report: Path) -> None:
        """From what a job reported, if it did."""
        with contextlib.suppress(OSError, ValueError):
            about = json.loads(report.read_text())
            report.unlink()
            known = self.modules.setdefault(about["script"], [])
            known += [name for name in about["modules"] if name not in {*known, *sys.modules}]


def _stated(script: Path) -> list[str]:
    """The project's modules that a script's lines import from."""
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        lines = ast.parse(script.read_text()).body
        names = [line.module for line in lines if isinstance(line, ast.ImportFrom)]
        return [name for name in names if name and name.startswith("d2dmoe.")]
    return []


def _tell(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the client was killed
        client.sendall(f"{number}\n".encode())


def _run(request: Request, home: Path) -> NoReturn:
    """What the interpreter does with a script, but for taking down all that was imported."""
    known = set(sys.modules)
    sys.argv = request.command
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    code = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # both as multiprocessing ends its forks
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    _report(home, request.script, known)
    os._exit(code)


def _report(home: Path, script: str, known: set[str]) -> None:
    """Leave a word of what a job imported from files, in the order in which it did."""
    modules = [
        name
        for name, module in list(sys.modules.items())
        if name not in known and getattr(module, "__file__", None)
    ]
    with contextlib.suppress(OSError):
        (home / str(os.getpid())).write_text(json.dumps({"script": script, "modules": modules}))


def main() -> None:
    """Serve; in a fork, run what was asked for."""
    sys.path.pop(0)  # the working directory
    home = HOME.resolve()
    request = Server(home).serve()
    if request:
        _run(request, home)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
