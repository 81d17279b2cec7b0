"""Laws of the host's memory that a process may still take."""

import psutil
import pytest

from d2dmoe.jobs import memory
from d2dmoe.jobs.memory import free_memory


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The root of control groups that limit nothing."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_name", lambda: "job/step")
    (tmp_path / "groups/job/step").mkdir(parents=True)
    return tmp_path / "groups"


def limit(group, most: str, used: int, files: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 7\n")


def test_without_limits_the_machine_says_what_is_free(groups, monkeypatch):
    about = psutil.virtual_memory()._replace(available=12345)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: about)
    assert free_memory() == 12345
    limit(groups / "job", "max", 100, 10)
    assert free_memory() == 12345


def test_the_narrowest_limit_of_the_groups_around_counts(groups):
    limit(groups / "job", "1000", 400, 100)
    assert free_memory() == 700
    limit(groups / "job/step", "900", 300, 50)
    assert free_memory() == 650
    limit(groups, "600", 500, 0)
    assert free_memory() == 100
