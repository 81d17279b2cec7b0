"""Laws of saved training states: never lost, never half, never another training's."""

import errno
import math
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent import futures
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small import make_images, others_later
from small_language import make_corpus_split, make_language
from torch import nn

from d2dmoe.config.training import TrainingConfig
from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.inputs import logits_of
from d2dmoe.io import tensors
from d2dmoe.io.tensors import load_tensors, save_tensors
from d2dmoe.jobs.state import TrainingState
from d2dmoe.training import TrainingBatches, cross_entropy_loss, fit, make_optimizer

CFG = TrainingConfig(epochs=2, lr=0.1, batch_size=8)


def trained(path: Path, width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, TrainingState]:
    """A model after one step, its optimiser, and where its state goes."""
    torch.manual_seed(0)
    model = nn.Linear(4, width)
    optimizer = make_optimizer(model, CFG)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer, TrainingState(path, every_s=0)


def save(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, step: int = 1
) -> None:
    state.save(model, optimizer, step, [], {})
    state.wait()


def debris(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_saved_state_is_restored_in_full(tmp_path):
    model, optimizer, state = trained(tmp_path / "state")
    history = [{"epoch": 1, "loss": 0.1 + 0.2}]
    state.save(model, optimizer, 7, history, {"loss": torch.tensor(1 / 3, dtype=torch.float64)})
    state.wait()
    fresh = nn.Linear(4, 3)
    restored = make_optimizer(fresh, CFG)
    assert state.load(fresh, restored) == (7, history, {"loss": 1 / 3})
    for key, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[key])
    saved, loaded = (o.state_dict()["state"] for o in (optimizer, restored))
    assert saved.keys() == loaded.keys() == {0, 1}
    for index in saved:
        assert saved[index].keys() == loaded[index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(saved[index][k], loaded[index][k]) for k in saved[index])


def test_without_a_state_training_starts_at_its_beginning(tmp_path):
    model, optimizer, state = trained(tmp_path / "state")
    assert state.load(model, optimizer) == (0, [], {})


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_state_is_an_error_that_names_file_and_remedy(tmp_path, keep):
    model, optimizer, state = trained(tmp_path / "state")
    save(model, optimizer, state)
    state.path.write_bytes(state.path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"{state.path} is damaged.*Delete it") as caught:
        state.load(model, optimizer)
    assert str(caught.value).count("\n") == 0


def test_the_state_of_another_model_is_an_error_that_names_file_and_remedy(tmp_path):
    model, optimizer, state = trained(tmp_path / "state")
    save(model, optimizer, state)
    other, its_optimizer, _ = trained(tmp_path / "state", width=2)
    with pytest.raises(CheckpointError, match=f"(?s){state.path} is not the state.*Delete it"):
        state.load(other, its_optimizer)
    save_tensors(state.path, {"weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"(?s){state.path} is not the state.*Delete it"):
        state.load(model, optimizer)


def test_a_state_that_bears_the_name_of_another_is_refused(tmp_path):
    model, optimizer, state = trained(tmp_path / "a.safetensors")
    save(model, optimizer, state)
    state.path.rename(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="b.safetensors is not the state.*it is that of a"):
        TrainingState(tmp_path / "b.safetensors", 0).load(model, optimizer)


class Clock:
    """The time, which passes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("d2dmoe.jobs.state.time", clock)
    return clock


def train_for(seconds: float, state: TrainingState, cost: float, clock: Clock, monkeypatch):
    """Steps of a second each; when the copies of their states were made, each of which a thread
    writes in `cost` seconds while the steps go on."""
    began: list[float] = []
    written = threading.Event()

    def write(*_args) -> None:
        assert written.wait(60)

    def finish() -> None:
        written.set()
        state.wait()

    monkeypatch.setattr("d2dmoe.jobs.state.save_tensors", write)
    model, optimizer, _ = trained(state.path)
    start, ends = clock.now, math.inf
    while clock.now < start + seconds:
        tick = clock.now + 1
        if ends <= tick:
            clock.now, ends = ends, math.inf
            finish()
        clock.now = tick
        if state.due():
            assert ends == math.inf  # one at a time
            began.append(clock.now)
            ends = clock.now + cost
            written.clear()
            state.save(model, optimizer, 1, [], {})
    finish()
    return began


@pytest.mark.parametrize("cost", others_later([0.1, 2.0, 30.0, 600.0], [30.0]))
def test_at_most_two_per_cent_of_the_time_go_into_saving(tmp_path, clock, monkeypatch, cost):
    state = TrainingState(tmp_path / "state", every_s=60)
    state.cost = cost
    seconds = 200_000 if cost > 10 else 20_000  # several states, and not thousands
    saved = train_for(seconds, state, cost, clock, monkeypatch)
    assert 0.015 * seconds < len(saved) * max(cost, 60 * 0.02) <= 0.02 * seconds
    for count, when in enumerate(saved, 1):
        assert count * cost <= 0.02 * (when + cost - 1000)  # at any time


def test_a_cheap_state_is_saved_as_often_as_is_asked_for(tmp_path, clock, monkeypatch):
    state = TrainingState(tmp_path / "state", every_s=60)
    saved = train_for(3600, state, 0.01, clock, monkeypatch)
    assert len(saved) >= 59 and all(60 <= b - a < 62 for a, b in pairwise(saved))


def test_a_disk_slower_than_expected_is_made_up_for(tmp_path, clock, monkeypatch):
    state = TrainingState(tmp_path / "state", every_s=60)  # its first save is taken for cheap
    saved = train_for(20_000, state, 100.0, clock, monkeypatch)
    assert saved[0] < 1062 and saved[1] - 1000 >= 2 * 100 / 0.02 - 100


def test_the_first_state_of_a_large_model_waits_for_its_size(tmp_path, clock):
    model = nn.Linear(50_000, 1000, bias=False, device="meta")  # 200 MB, with its moments 600
    state = TrainingState(tmp_path / "state", every_s=60)
    state.load(model, make_optimizer(model, CFG))
    clock.now += 100
    assert not state.due()
    clock.now += 50  # 2 % of 150 s are the 3 s at 200 MB/s
    assert state.due()


def test_a_signal_saves_whatever_it_takes(tmp_path, clock):
    state = TrainingState(tmp_path / "state", every_s=60)
    state.cost = 1e6
    assert not state.due()
    state.asked = signal.SIGTERM
    assert state.due()


def test_the_log_says_what_the_first_state_takes(tmp_path, caplog):
    model, optimizer, state = trained(tmp_path / "state", width=2**18)  # 3 · 5 MiB
    with caplog.at_level("INFO", logger="d2dmoe"):
        for step in (1, 2):
            save(model, optimizer, state, step)
    (line,) = (record.getMessage() for record in caplog.records)
    told = (
        r"state of 15.0 MiB saved after step 1 in [\d.]+ s, of which the training waited [\d.]+ s, "
        r"with 15.0 MiB more memory of the host"
    )
    assert re.fullmatch(told, line)


class Cut(Exception):
    """Stands for a power cut."""


def train_tied(name: str, state: TrainingState | None = None, cut_at: int | None = None):
    """Weights and history of a language model whose head is its embedding."""
    model, taken = make_language(name).train(), 0
    cfg = TrainingConfig(epochs=2, lr=0.01, batch_size=2)

    def losses(batch, _progress):
        nonlocal taken
        if taken == cut_at:
            raise Cut
        taken += 1
        return {"loss": cross_entropy_loss(logits_of(model, batch[0]), batch[1])}

    batches = TrainingBatches(make_corpus_split(4), cfg, 0, torch.device("cpu"))
    history = fit(model, losses, batches, cfg, name="test", state=state)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return model.state_dict(), history


@pytest.mark.parametrize("steps", others_later([1, 2, 3], [2]))
@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_a_tied_model_is_saved_once_and_resumes_exactly(tmp_path, name, steps):
    path = tmp_path / "state"
    with pytest.raises(Cut):
        train_tied(name, TrainingState(path, every_s=0), cut_at=steps)
    saved, _ = load_tensors(path, "")
    assert "model/lm_head.weight" not in saved
    weights, history = train_tied(name, TrainingState(path, every_s=0))
    expected, its_history = train_tied(name)
    assert history == its_history and weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_then_ends_the_training(tmp_path, number):
    state = TrainingState(tmp_path / "state", every_s=3600)
    before = signal.getsignal(number)
    model, steps = nn.Linear(1, 1), 0

    def losses(_batch, _progress):
        nonlocal steps
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), number)
        return {"loss": model.weight.square().sum()}

    batches = TrainingBatches(make_images(24), CFG, 0, torch.device("cpu"))
    with pytest.raises(UserError, match=f"{number.name} after 2 steps.*Run the same command"):
        fit(model, losses, batches, CFG, name="test", state=state)
    assert steps == 2 and signal.getsignal(number) == before
    weight = model.weight.detach().clone()
    restored = nn.Linear(1, 1)
    optimizer = make_optimizer(restored, CFG)
    assert TrainingState(state.path, 0).load(restored, optimizer)[0] == 2
    assert torch.equal(restored.weight, weight)


class Disk:
    """A slow one: writes from the so manieth on begin when they are let, and may fail then."""

    def __init__(self, monkeypatch, first: int = 1, error: Exception | None = None):
        self.first, self.error = first, error
        self.let, self.begun = threading.Event(), 0
        self.write_tensors = tensors.write_tensors
        monkeypatch.setattr(tensors, "write_tensors", self.write)

    def write(self, path: Path, *what) -> None:
        self.begun += 1
        if self.begun >= self.first:
            path.write_bytes(b"half a file")
            assert self.let.wait(60)
            if self.error:
                raise self.error
        self.write_tensors(path, *what)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def train_slowly(state: TrainingState, at: Callable[[int], object]) -> list[float]:
    """The weight before each of the six steps of a training, each of which begins with `at`."""
    model, weights = nn.Linear(1, 1, bias=False), []
    nn.init.ones_(model.weight)

    def losses(_batch, _progress):
        weights.append(model.weight.item())
        at(len(weights))
        return {"loss": model.weight.square().sum()}

    batches = TrainingBatches(make_images(24), CFG, 0, torch.device("cpu"))
    fit(model, losses, batches, CFG, name="test", state=state)
    return weights


def saved_weight(path: Path) -> tuple[int, float]:
    """The steps of a state, and the weight after them."""
    model = nn.Linear(1, 1, bias=False)
    step, _, _ = TrainingState(path, 0).load(model, make_optimizer(model, CFG))
    return step, model.weight.item()


SOON = 1e-9  # seconds between states: the first is due after the first step


def test_the_training_goes_on_while_its_state_is_written(tmp_path, monkeypatch):
    disk, state = Disk(monkeypatch), TrainingState(tmp_path / "state", SOON)

    def at(step: int) -> None:
        if step == 5:
            assert disk.begun == 1 and not state.path.exists()
            disk.let.set()

    weights = train_slowly(state, at)
    assert len(set(weights)) == 6  # every step changes the weight, and the state has the first's
    assert saved_weight(state.path) == (1, weights[1]) and debris(tmp_path) == []


def test_a_state_of_every_step_waits_for_the_one_before(tmp_path, monkeypatch):
    disk, state, steps = Disk(monkeypatch), TrainingState(tmp_path / "state", 0), []

    def at(step: int) -> None:
        steps.append(step)
        if step == 2:
            threading.Timer(0.2, disk.let.set).start()
        if step == 3:
            assert disk.let.is_set()

    train_slowly(state, at)
    assert disk.begun == len(steps) == 6 and saved_weight(state.path)[0] == 6


def test_a_signal_waits_for_the_state_that_is_written_and_writes_another(tmp_path, monkeypatch):
    disk, state = Disk(monkeypatch), TrainingState(tmp_path / "state", SOON)

    def at(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.2, disk.let.set).start()

    with pytest.raises(UserError, match="SIGTERM after 3 steps; the state is saved"):
        train_slowly(state, at)
    assert disk.begun == 2 and saved_weight(state.path)[0] == 3 and debris(tmp_path) == []


def test_a_signal_on_a_full_disk_does_not_say_that_the_state_is_saved(tmp_path, monkeypatch):
    state = TrainingState(tmp_path / "state", every_s=3600)
    Disk(monkeypatch, error=FULL).let.set()
    with pytest.raises(UserError, match="the disk is full"):
        train_slowly(state, lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize("every_s", [0, math.inf])
def test_a_disk_that_is_full_later_is_told_and_the_earlier_state_intact(
    tmp_path, monkeypatch, every_s
):
    state = TrainingState(tmp_path / "state", SOON)
    save(*trained(state.path)[:2], state)
    before, state.spent, state.began = state.path.read_bytes(), 0.0, 0.0
    disk, steps = Disk(monkeypatch, error=FULL), []
    monkeypatch.setattr(state, "load", lambda *_: (0, [], {}))

    def at(step: int) -> None:
        steps.append(step)
        if step == 2:
            disk.let.set()
            futures.wait([state._written])
            state.every_s = every_s  # whether the next is due or not

    with pytest.raises(UserError, match="the disk is full. The earlier version is intact.*free"):
        train_slowly(state, at)
    assert steps == [1, 2] and disk.begun == 1
    assert state.path.read_bytes() == before and debris(tmp_path) == []


def test_a_disk_that_is_full_at_the_end_is_told(tmp_path, monkeypatch):
    disk, state = Disk(monkeypatch, error=FULL), TrainingState(tmp_path / "state", SOON)
    with pytest.raises(UserError, match="the disk is full"):
        train_slowly(state, lambda step: step == 6 and threading.Timer(0.3, disk.let.set).start())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [None, FULL], ids=["written", "full"])
def test_what_ends_a_training_lets_its_state_be_written(tmp_path, monkeypatch, caplog, error):
    disk, state = Disk(monkeypatch, error=error), TrainingState(tmp_path / "state", SOON)

    def at(step: int) -> None:
        if step == 3:
            threading.Timer(0.2, disk.let.set).start()
            raise Cut

    with pytest.raises(Cut), caplog.at_level("WARNING", logger="d2dmoe"):
        train_slowly(state, at)
    if error:
        assert "the last state of the training was not saved" in caplog.text
        assert list(tmp_path.iterdir()) == []
    else:
        assert saved_weight(state.path)[0] == 1 and debris(tmp_path) == []


@pytest.mark.parametrize("error", [None, FULL], ids=["written", "full"])
def test_a_state_that_is_written_while_it_is_removed_leaves_nothing(tmp_path, monkeypatch, error):
    disk, (model, optimizer, state) = Disk(monkeypatch, error=error), trained(tmp_path / "state")
    state.save(model, optimizer, 1, [], {})
    threading.Timer(0.2, disk.let.set).start()
    state.remove()
    assert disk.let.is_set() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times", [1.9, 2.1])
def test_where_memory_is_scarce_a_state_is_written_at_once_without_a_copy(
    tmp_path, monkeypatch, times
):
    model, optimizer, state = trained(tmp_path / "state", width=1000)
    seen: list[tuple[bool, bool]] = []

    def write(_path, tensors, _metadata) -> None:
        copy = tensors["model/weight"].data_ptr() != model.weight.data_ptr()
        seen.append((copy, threading.current_thread() is not threading.main_thread()))

    monkeypatch.setattr("d2dmoe.jobs.state.save_tensors", write)
    size = 3 * sum(p.nbytes for p in model.parameters()) + 2 * 4  # with moments and their steps
    monkeypatch.setattr("d2dmoe.jobs.state.free_memory", lambda: int(times * size))
    save(model, optimizer, state)
    assert seen == [(times > 2, times > 2)]


def test_remove_deletes_the_state_and_may_be_repeated(tmp_path):
    model, optimizer, state = trained(tmp_path / "state")
    save(model, optimizer, state)
    state.remove()
    state.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_the_earlier_state_intact(tmp_path, monkeypatch):
    model, optimizer, state = trained(tmp_path / "state")
    save(model, optimizer, state)
    before = state.path.read_bytes()
    Disk(monkeypatch, error=FULL).let.set()
    state.save(model, optimizer, 2, [], {})
    with pytest.raises(UserError, match="the disk is full. The earlier version is intact.*free"):
        state.save(model, optimizer, 3, [], {})
    assert state.path.read_bytes() == before and debris(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_is_told_and_leaves_the_earlier_file_intact(small_disk):
    path = small_disk / "model.safetensors"
    save_tensors(path, {"weight": torch.ones(1000)})
    with pytest.raises(UserError, match="the disk is full. The earlier version is intact"):
        save_tensors(path, {"weight": torch.ones(100_000)})
    assert torch.equal(load_tensors(path, "")[0]["weight"], torch.ones(1000))
    assert debris(small_disk) == []
    with pytest.raises(UserError, match="the disk is full. To go on"):
        save_tensors(small_disk / "new", {"weight": torch.ones(100_000)})
    assert [p.name for p in small_disk.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot save .*file/state"):
        save_tensors(tmp_path / "file" / "state", {"weight": torch.ones(1)})


def test_a_missing_file_is_an_error_with_the_callers_remedy(tmp_path):
    with pytest.raises(CheckpointError, match="nothing does not exist. Do this."):
        load_tensors(tmp_path / "nothing", "Do this.")
    with pytest.raises(CheckpointError, match="Do this."):
        load_tensors(tmp_path, "Do this.")  # a folder
