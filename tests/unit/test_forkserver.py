"""Jobs that start as forks behave as processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from d2dmoe.jobs import forkserver

PYTHON = sys.executable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux alone")


@contextmanager
def serving(folder: Path) -> Iterator[psutil.Process]:
    """A server's process; scripts that `sys.executable` runs find modules in the folder."""
    known = set(psutil.Process().children())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "executable", PYTHON)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        forkserver.start_forkserver(folder)
        (process,) = set(psutil.Process().children()) - known
        wait_for(lambda: address_of(process).exists())
        yield process
        if process.is_running():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served")) as process:
        yield process


@pytest.fixture
def doomed(tmp_path):
    """A server that a test may kill."""
    with serving(tmp_path) as process:
        yield process


def address_of(process: psutil.Process) -> Path:
    return Path(process.cwd()) / forkserver.HOME / forkserver.SOCKET


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def script(text: str, name: str = "job.x.py") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def start(path: Path, **options) -> subprocess.Popen:
    """As Snakemake does: by a shell, without quotes around the interpreter."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(
        f"exec {sys.executable} {path}", shell=True, text=True, **pipes, **options
    )


def finish(process: subprocess.Popen, given: str = "") -> tuple[int, str, str]:
    out, error = process.communicate(given, timeout=60)
    return process.returncode, out, error


def run(text: str, given: str = "", **options) -> tuple[int, str, str]:
    return finish(start(script(text), **options), given)


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("import sys; sys.exit(None)", 0, ""),
        ("raise ValueError('a fault')", 1, "ValueError: a fault\n"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 15)", -15, ""),
        ("import os; os._exit(7)", 7, ""),
    ],
)
def test_a_job_ends_as_its_script_does(server, text, code, error):
    got, _, said = run(text)
    assert got == code and said.endswith(error) and bool(said) == bool(error)


def test_a_job_is_a_fork_with_the_callers_streams_folder_and_environment(server):
    text = (
        "import os, sys\nif __name__ == '__main__':\n"
        "    print(os.getppid(), os.getcwd(), os.environ['WHAT'], sys.argv, sys.path[0], input())"
    )
    Path("below").mkdir()
    path = script(text, "below/job.x.py").resolve()
    done = start(path, env=os.environ | {"WHAT": "é"})
    code, out, error = finish(done, "given\n")
    expected = [str(server.pid), str(Path.cwd()), "é", f"['{path}']", str(path.parent), "given"]
    assert (code, out.split(), error) == (0, expected, "")


def test_what_a_script_says_it_imports_is_there_before_its_first_job(server):
    text = (
        "import sys\nprint('d2dmoe.bootstrap' in sys.modules)\n"
        "from d2dmoe.bootstrap import RESAMPLES\nfrom d2dmoe.nowhere import nothing\n"
    )
    code, out, error = finish(start(script(text, "job.stated.py")))
    assert (code, out) == (1, "True\n") and "No module named 'd2dmoe.nowhere'" in error


def test_what_ends_with_a_process_ends_with_a_fork(server):
    """Functions registered for the exit run, threads are waited for, all output is written."""
    text = (
        "import atexit, threading, time\natexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\nprint('main')"
    )
    assert run(text) == (0, "main\nthread\nat exit\n", "")


def test_what_one_job_imported_the_next_finds_imported(server):
    Path("dear.py").write_text("import os; made_by = os.getpid()")
    text = "import os, dear; print(dear.made_by == os.getpid())"
    said = [finish(start(script(text, name)))[1] for name in ("a.x.py", "b.x.py", "c.y.py")]
    assert said == ["True\n", "False\n", "False\n"]


SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_either_process_ends_both(server, number):
    for to_job in (False, True):
        process = start(script(SLEEPER))
        job = psutil.Process(int(process.stdout.readline()))
        (job if to_job else process).send_signal(number)
        assert process.wait(30) == -number
        wait_for(lambda job=job: not job.is_running())


def test_a_job_may_answer_the_signal(server):
    text = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit('state saved'))\n"
        "print(flush=True); time.sleep(60)"
    )
    process = start(script(text))
    process.stdout.readline()
    process.terminate()
    assert finish(process) == (1, "", "state saved\n")


def test_without_the_server_a_script_runs_for_itself(doomed):
    doomed.kill()
    doomed.wait()
    assert run("import os; print(os.getppid())")[1].strip() == str(os.getpid())


@pytest.mark.workflow
def test_jobs_end_with_a_server_that_is_killed(doomed):
    process = start(script(SLEEPER))
    job = psutil.Process(int(process.stdout.readline()))
    doomed.kill()
    assert finish(process)[::2] == (1, "the fork server was killed\n")
    wait_for(lambda: not job.is_running())


def test_other_calls_of_python_are_no_jobs(server):
    done = subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True)
    assert done.stdout == "1\n"


@pytest.mark.workflow
def test_the_server_ends_after_the_workflow_and_its_last_job(tmp_path):
    """Killed workflows leave their jobs behind, which save their states."""
    workflow = (
        "import sys, subprocess\nfrom pathlib import Path\nfrom d2dmoe.jobs import forkserver\n"
        "forkserver.start_forkserver(Path.cwd())\nsubprocess.run([sys.executable, 'first.x.py'])\n"
    )
    script(workflow, tmp_path / "workflow.py")
    script("import time; print(flush=True); time.sleep(60)", tmp_path / "first.x.py")
    process = subprocess.Popen(
        [PYTHON, "workflow.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    server = psutil.Process(process.pid).children
    wait_for(lambda: any("forkserver" in " ".join(p.cmdline()) for p in server()))
    (one,) = [p for p in server() if "forkserver" in " ".join(p.cmdline())]
    home = address_of(one).parent
    process.stdout.readline()
    process.kill()
    process.wait()
    time.sleep(0.2)
    wait_for(lambda: len(one.children()) <= 1)
    assert one.is_running()
    for job in one.children():
        job.terminate()
    wait_for(lambda: not one.is_running() or one.status() == psutil.STATUS_ZOMBIE)
    assert not home.exists()
