"""Laws of the locks on GPUs: one job per card and host, whatever number the card has in a job."""

import fcntl
import socket
from types import SimpleNamespace

import pytest
import torch

from d2dmoe.jobs import device
from d2dmoe.jobs.device import claim_device


@pytest.fixture
def sees(monkeypatch):
    """A function that lets this process see some cards, by their UUIDs, as CUDA would give them."""
    monkeypatch.setattr(device, "_held", [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def cards(*uuids: str) -> None:
        found = [SimpleNamespace(uuid=uuid) for uuid in uuids]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)

    return cards


def claim(locks, **options) -> int | None:
    """The index of the claimed GPU."""
    return claim_device(locks, True, poll_s=0.01, **options).index


@pytest.fixture
def never_waits(monkeypatch):
    """A job that would have to wait raises instead."""

    def sleep(_seconds):
        raise BlockingIOError

    monkeypatch.setattr(device.time, "sleep", sleep)


def test_jobs_that_see_different_cards_as_their_first_both_run(sees, never_waits, tmp_path):
    for uuid in ("aaaa", "bbbb"):
        sees(uuid)
        assert claim(tmp_path / "locks") == 0


def test_jobs_that_see_the_same_card_take_turns(sees, never_waits, tmp_path):
    sees("aaaa", "bbbb")
    assert claim(tmp_path) == 0
    sees("bbbb", "aaaa")  # the second is taken, under whatever number
    assert claim(tmp_path) == 0
    with pytest.raises(BlockingIOError):
        claim(tmp_path)


def test_jobs_that_share_cards_are_spread_over_them(sees, never_waits, tmp_path):
    sees("aaaa", "bbbb")
    assert [claim(tmp_path, jobs_per_gpu=2) for _ in range(4)] == [0, 1, 0, 1]
    with pytest.raises(BlockingIOError):
        claim(tmp_path, jobs_per_gpu=2)


def test_a_card_that_gets_free_is_taken(sees, tmp_path, monkeypatch):
    sees("aaaa")
    claim(tmp_path)
    monkeypatch.setattr(device.time, "sleep", lambda _seconds: device._held.pop().close())
    assert claim(tmp_path) == 0


def test_hosts_that_share_a_folder_do_not_wait_for_each_other(
    sees, never_waits, tmp_path, monkeypatch
):
    for host in ("one", "two"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        sees("aaaa")
        assert claim(tmp_path) == 0


def test_parts_of_one_card_are_apart(sees, never_waits, tmp_path, monkeypatch):
    for part in ("MIG-1111", "MIG-GPU-aaaa/1/0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", part)
        sees("aaaa")
        assert claim(tmp_path) == 0
    with pytest.raises(BlockingIOError):
        claim(tmp_path)


def test_without_a_gpu_or_the_wish_for_one_a_job_computes_on_the_cpu(sees, tmp_path):
    sees()
    assert claim_device(tmp_path / "locks", True).type == "cpu"
    sees("aaaa")
    assert claim_device(tmp_path / "locks", False).type == "cpu"
    assert not (tmp_path / "locks").exists()


def test_the_lock_is_the_systems_own_so_that_a_killed_job_leaves_none(sees, tmp_path):
    sees("aaaa")
    claim(tmp_path)
    (file,) = tmp_path.iterdir()
    with open(file, "w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    device._held.pop().close()
    with open(file, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
