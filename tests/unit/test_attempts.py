"""Laws of attempts: the time of each counts, of one that was killed too, up to its last note."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2dmoe.errors import CheckpointError
from d2dmoe.jobs.attempts import counted, load_attempts, save_attempts

FIRST = {"host": "there", "began": "2025-01-01T00:00:00+00:00", "s": 100.0}

KILLED = """
import sys, time
from pathlib import Path
from d2dmoe.jobs.attempts import counted

with counted(Path(sys.argv[1]), every_s=0.05):
    time.sleep(100)
"""


def test_an_attempt_that_is_killed_counts_up_to_its_last_note(tmp_path):
    path = tmp_path / "notes"
    save_attempts(path, [FIRST])
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
    try:
        deadline = time.monotonic() + 60
        while load_attempts(path)[-1]["s"] not in (0.2, 0.3, 0.4):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    first, second = load_attempts(path)
    assert first == FIRST and 0.2 <= second["s"] < 100
    with counted(path, every_s=100) as attempts:
        assert [attempt["s"] for attempt in attempts()] == [100.0, second["s"], 0.0]


def test_an_attempt_that_fails_counts(tmp_path):
    with pytest.raises(KeyError), counted(tmp_path / "notes", every_s=100):
        raise KeyError
    (attempt,) = load_attempts(tmp_path / "notes")
    assert attempt.keys() == FIRST.keys()


def test_without_notes_there_was_no_attempt(tmp_path):
    assert load_attempts(tmp_path / "notes") == []


def test_a_full_disk_does_not_end_a_job_while_it_computes(tmp_path):
    folder = tmp_path / "folder"
    with counted(folder / "notes", every_s=0.01) as attempts:
        (folder / "notes").unlink()
        folder.rmdir()
        folder.touch()  # nothing can be written there
        time.sleep(0.1)
        assert len(attempts()) == 1
    assert folder.is_file()


def test_every_flip_of_a_bit_is_named(tmp_path):
    path = tmp_path / "notes"
    save_attempts(path, [FIRST, FIRST])
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="notes is damaged. Delete it and run"):
            load_attempts(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"\n\n\n"])
def test_what_are_no_notes_is_named(tmp_path: Path, content):
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(CheckpointError, match="notes is damaged"):
        load_attempts(tmp_path / "notes")
