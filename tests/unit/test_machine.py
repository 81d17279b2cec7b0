"""How the workflow prepares this machine for its jobs."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from d2dmoe.jobs.machine import (
    AROUND_JOBS,
    SINGLE,
    end_gracefully,
    limit_threads,
    link_interpreter,
)


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """A Python environment whose path needs quotes, as the one that runs; the working folder."""
    base = Path(sys.prefix)
    own = tmp_path / "d'été, a folder" / "env"
    (own / "bin").mkdir(parents=True)
    (own / "bin/python").symlink_to(Path(sys.executable).resolve())
    config = base / "pyvenv.cfg"
    if config.exists():
        (own / "pyvenv.cfg").write_text(config.read_text())
    monkeypatch.setattr(sys, "executable", str(own / "bin/python"))
    monkeypatch.chdir(own.parent)
    return own


def test_an_interpreter_whose_path_needs_quotes_is_called_by_a_link(environment):
    for _ in range(2):  # the second call finds the link
        sys.executable = str(environment / "bin/python")
        link_interpreter(Path.cwd())
        command = f"{sys.executable} -c 'import sys; print(sys.prefix)'"  # as Snakemake's
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).samefile(environment)


def test_a_link_of_a_moved_project_is_mended(environment):
    link = Path(".snakemake/environment")
    link.parent.mkdir()
    link.symlink_to("nowhere")
    link_interpreter(Path.cwd())
    assert link.resolve() == environment


def test_any_other_interpreter_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    link_interpreter(tmp_path)
    assert sys.executable == "/usr/bin/python3" and not list(tmp_path.iterdir())


def test_libraries_get_one_thread_unless_the_user_says_otherwise(monkeypatch):
    for name in SINGLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    limit_threads()
    assert [os.environ[name] for name in SINGLE] == ["5", "1", "1", "1"]


def test_the_shell_around_a_job_waits_until_its_state_is_saved(tmp_path):
    """Where both are told to terminate, as a cluster does. Old versions of bash stay beside a last
    command too."""
    code = (
        "import signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.3); open('saved', 'w').close(); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, save); print('ready', flush=True); time.sleep(60)"
    )
    job = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    process = subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail; {AROUND_JOBS}{job} || exit"],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(30) != 0 and (tmp_path / "saved").exists()


class Scheduler:
    """As Snakemake's: the handler and the loop take one lock, in one thread."""

    def __init__(self):
        self.lock, self.told = threading.Lock(), threading.Event()

    def exit_gracefully(self, *_arguments):
        with self.lock:
            self.told.set()


def test_a_workflow_that_is_told_to_end_while_it_chooses_jobs_does_not_wait_for_itself():
    scheduler, before = Scheduler(), signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, scheduler.exit_gracefully)
        end_gracefully(scheduler)
        with scheduler.lock:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not scheduler.told.wait(0.1)
        assert scheduler.told.wait(10)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_gracefully(scheduler)  # it has set none
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
