"""Laws of trainings that several processes share: each is the training of one, on any number of
them, however the weights lie, and whatever becomes of the processes."""

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint  # before the processes fork
import torch.distributed.fsdp  # noqa: F401
from several import together
from small import (
    ABOUT,
    MODEL,
    make_dense,
    make_images,
    make_routed,
    make_split,
    others_later,
    read_from,
    with_experts,
    with_options,
    with_routers,
)
from small_language import (
    TINY,
    language_spec,
    make_corpus_split,
    make_language,
    make_text_split,
    split_language,
)
from torch import nn

from d2dmoe.checkpoint import load_model, save_model
from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.config.training import TaskTrainingConfig
from d2dmoe.data.batches import TrainingBatches
from d2dmoe.data.share import Share
from d2dmoe.distributed import Parts, blocks_of
from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.evaluation import evaluate_routed
from d2dmoe.io.tensors import load_tensors, write_tensors
from d2dmoe.jobs import shards
from d2dmoe.jobs import state as states
from d2dmoe.jobs.run import Run
from d2dmoe.jobs.state import TrainingState
from d2dmoe.lookup import resolve
from d2dmoe.pooling import pooled, shared_batches
from d2dmoe.processes import largest, leads, place, spread, told
from d2dmoe.spec import build
from d2dmoe.stages import STAGES
from d2dmoe.stages.evaluate import evaluate_dense
from d2dmoe.training import cross_entropy_loss, fit

CPU = torch.device("cpu")
COPIES, PARTS = ResourcesConfig(gpu=2, shard=False), ResourcesConfig(gpu=2, shard=True)
KINDS = {"copies": COPIES, "parts": PARTS}
STEPS = 4
TRAINING = {"lr": 1e-3, "batch_size": 7, "warmup": 0.0}
# Dropout in every place, batch norms in the stem, and batches that two processes cannot halve.
HARD = with_options(dropout=0.1, stem=[4, 4])
IMAGES = make_images(7)
TEXTS = make_text_split((5, 12, 3, 7, 12, 4, 9))
CORPUS = make_corpus_split(7)
SPLITS = {"vit": IMAGES, "bert": TEXTS, "gpt2": CORPUS, "gemma": CORPUS}
IMAGES.about.update(ABOUT)

CURVES: dict[str, tuple[str, str, str, dict[str, Any]]] = {  # architecture, parent, stage, options
    "dense": ("vit", "", "dense", {"model": MODEL.model_copy(update={"dropout": 0.1})}),
    "dense of text": ("bert", "", "dense", {"model": TINY["bert"]}),
    "finetune": ("vit", "dense", "finetune", {"mixup": 0.8, "augment": {"flip": True}}),
    "prune": ("vit", "plain", "prune", {"kind": "prune", "heads": 0.5, "neurons": 0.5}),
    "distill": ("vit", "plain", "distill", {"kind": "distill", "model": MODEL}),
    "projections": ("vit", "plain", "projections", {"multiple": 4, "dropout": 0.1}),
    "projections of text": ("bert", "plain", "projections", {"multiple": 4, "dropout": 0.1}),
    "sparsify": ("vit", "dense", "sparsify", {"mode": "relu_hoyer", "alpha": 0.01}),
    "sparsify of text": ("bert", "plain", "sparsify", {"mode": "relu_hoyer", "alpha": 0.01}),
    "router": ("vit", "split", "router", {"width": 6}),
    "router of text": ("bert", "split", "router", {"width": 6}),
    "router of gated": ("gemma", "split", "router", {"width": 6, "kind": "root_regression"}),
    "router by classes": ("gpt2", "split", "router", {"width": 6, "kind": "classification"}),
    "tune": ("vit", "routed", "tune", {"tau": [0.1, 0.5]}),
    "ztw": ("vit", "plain", "ztw", {"every": 1}),
    "avit": ("vit", "plain", "avit", {"depth": 1.0, "beta": 0.0}),
    "cmoe": ("vit", "plain", "cmoe", {"expert_size": 4, "shared": 2, "top_k": 4, "samples": 7}),
    "factorllm": ("vit", "plain", "factorllm", {"active": 2}),
    "factorllm of text": ("bert", "plain", "factorllm", {"active": 2}),
    "seer": ("vit", "routed", "seer", {"removed": 0.25, "scope": "layer", "active": 0.5}),
    "sam": ("vit", "routed", "sam", {"groups": 2, "active": 0.5}),
    "ldpruner": ("vit", "plain", "ldpruner", {"removed": 1, "samples": 7}),
    "dyn_adapter": ("vit", "plain", "dyn_adapter", {"width": 4, "every": 1}),
}


HUNDRED = ("sparsify", "router of gated")  # stages that always take a hundred steps
# In parts a stage takes longer on a CPU: some take four steps too, all a hundred.
BY_KIND = {
    "copies": [*CURVES],
    "parts": ["dense", "projections of text", "sparsify", "router of gated", "tune", "avit"],
}
# The fast tests take one of each way to share a batch.
FAST = ["dense", "projections of text", "sparsify", "router of gated", "avit", "seer"]
TRAININGS = [
    pytest.param(kind, name, marks=[] if name in FAST else pytest.mark.workflow)
    for kind, names in BY_KIND.items()
    for name in names
]


def parents(folder: Path) -> dict[tuple[str, str], Path]:
    """Saved models that stages start from."""
    made = {("vit", "dense"): (make_dense(HARD), HARD), ("vit", "plain"): (make_dense(), None)}
    made["vit", "split"] = make_split(), "experts"
    made["vit", "routed"] = make_routed(), "routers"
    for name in ("bert", "gpt2", "gemma"):
        made[name, "plain"] = make_language(name, "relu"), None
        made[name, "split"] = split_language(make_language(name, "relu")), "experts"
    paths = {}
    for (name, kind), (model, about) in made.items():
        spec = with_options() if name == "vit" else language_spec(name, activation="relu")
        specs = {"experts": with_experts, "routers": lambda s: with_routers(with_experts(s))}
        spec = about if about is HARD else specs[about](spec) if about else spec
        paths[name, kind] = folder / f"{name}-{kind}"
        save_model(paths[name, kind], model, spec)
    return paths


def curve(name: str, paths: dict, how: ResourcesConfig, steps: int = STEPS) -> list[dict]:
    """The losses of a stage's steps: an epoch is one."""
    architecture, parent, stage, options = CURVES[name]
    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS[architecture], monkeypatch)
        record, path = STAGES[stage], paths.get((architecture, parent))
        cfg = resolve(record.options).model_validate(TRAINING | {"epochs": steps} | options)
        run = Run(seed=0, device=CPU, resources=how)
        model, spec, history = resolve(record.make)(path, cfg, run)
        save_model(paths["folder"] / f"{name}-{place().size}-{how.shard}", model, spec)
    return history


def curves(paths: dict, how: ResourcesConfig, names: Iterable[str]) -> dict[str, list[dict]]:
    return {name: curve(name, paths, how) for name in names}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("parents")
    return parents(folder) | {"folder": folder}


@pytest.fixture(scope="module")
def asked(request) -> list[str]:
    """The trainings that are tested now: those of the fast tests, and all others with them."""
    own = [item for item in request.session.items if item.path == request.path]
    names = {item.callspec.params.get("name") for item in own if hasattr(item, "callspec")}
    return [name for name in CURVES if name in FAST or name in names]


@pytest.fixture(scope="module")
def alone(paths, asked) -> dict[str, list[dict]]:
    return curves(paths, ResourcesConfig(), asked)


@pytest.fixture(scope="module")
def shared(paths, alone, asked) -> dict[str, dict[str, list[dict]]]:
    """What two processes make of the same."""
    both = {}
    for kind, names in BY_KIND.items():
        own = [name for name in names if name in asked]
        both[kind], other = together(2, curves, paths, KINDS[kind], own)
        assert both[kind] == other
    return both


def check_equal(found: list[dict], expected: list[dict]) -> None:
    """Divergences are differences of larger numbers, and nearly 0: they get single precision's
    share of these."""
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert row == pytest.approx(other, rel=1e-6, abs=5e-7)


@pytest.mark.parametrize(("kind", "name"), TRAININGS)
def test_every_training_of_two_processes_has_the_losses_of_one(kind, name, shared, alone):
    assert len({row["loss"] for row in alone[name]}) == STEPS  # it learns
    check_equal(shared[kind][name], alone[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["projections of text", "router of gated", "sparsify"])
def test_what_two_processes_leave_is_a_whole_model(name, kind, shared, paths):
    files = [paths["folder"] / f"{name}-{end}" for end in (f"2-{KINDS[kind].shard}", "1-None")]
    (one, spec), (other, its_spec) = map(load_model, files)
    assert spec == its_spec
    for key, weight in one.state_dict().items():
        if weight.ndim > 1:  # biases of keys change no output: rounding decides them
            torch.testing.assert_close(other.state_dict()[key], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.workflow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CURVES)
def test_a_hundred_steps_of_two_processes_are_those_of_one(name, kind, paths, request):
    if name not in HUNDRED and not request.config.getoption("--hundred-steps"):
        pytest.skip("takes minutes for all stages: pytest -m workflow --hundred-steps")
    (found, _), expected = (
        together(2, curve, name, paths, KINDS[kind], 100),
        curve(name, paths, ResourcesConfig(), 100),
    )
    check_equal(found, expected)


def train(
    path: Path | None,
    how: ResourcesConfig,
    end: Callable[[int], None] = lambda step: None,
    every_s: float = 0,
    **options: Any,
) -> tuple[list[float], list[dict]]:
    """The losses of the steps of a training that saves its state after each, or every so often, and
    its history; `end` is called before each step, and may raise."""
    cfg = TaskTrainingConfig(epochs=4, **TRAINING | options)
    resumes = path is not None and any(path.parent.iterdir())
    torch.manual_seed(1 + place().rank if resumes else 0)  # of which nothing is left
    model = build(HARD).train()
    seen: list[float] = []

    def losses(batch, _progress):
        end(len(seen))
        loss = cross_entropy_loss(model(**batch[0]), batch[1], 0.1)
        seen.append(loss.item())
        return {"loss": loss}

    batches = TrainingBatches(make_images(17), cfg, 0, CPU, Share(*place()))
    state = TrainingState(path, every_s) if path else None
    try:
        history = fit(model, losses, batches, cfg, name="test", state=state, how=how)
    except Cut:
        history = []
    return seen, history


class Cut(Exception):
    """Stands for a power cut."""


def cut_at(step: int) -> Callable[[int], None]:
    def end(done: int) -> None:
        if done == step:
            raise Cut

    return end


@pytest.fixture(scope="module")
def undisturbed() -> tuple[list[float], list[dict]]:
    return train(None, ResourcesConfig())


CHANGES = [
    ((2, COPIES), (1, COPIES)),
    ((2, PARTS), (1, COPIES)),
    ((1, COPIES), (2, COPIES)),
    ((1, COPIES), (2, PARTS)),
    ((2, COPIES), (3, PARTS)),
]


@pytest.mark.parametrize("change", others_later(CHANGES, CHANGES[1:2]))
def test_a_training_goes_on_with_another_number_of_processes(tmp_path, change, undisturbed):
    (before, after), (losses, history) = change, undisturbed
    path = tmp_path / "state.safetensors"

    def several(size: int, how: ResourcesConfig, *arguments: Any) -> tuple:
        found = [train(path, how, *arguments)] if size == 1 else None
        return (found or together(size, train, path, how, *arguments))[0]

    done, _ = several(*before, cut_at(3))
    rest, found = several(*after)
    assert done + rest == pytest.approx(losses, rel=1e-6)
    check_equal(found, history)
    assert len(list(tmp_path.iterdir())) == 1  # a file, or a folder of shards


@pytest.mark.workflow
def test_a_killed_process_ends_the_others_and_nothing_is_lost(tmp_path, undisturbed):
    path, kills = tmp_path / "state.safetensors", [(1, 2), (0, 1), (1, 3)]

    def attempt(rank: int, step: int) -> None:
        def end(done: int) -> None:
            if done == step and place().rank == rank:
                os.kill(os.getpid(), signal.SIGKILL)

        train(path, COPIES, end)

    for rank, step in kills:
        with pytest.raises(AssertionError, match="was killed"):
            together(2, attempt, rank, step)
    rest, history = together(2, train, path, COPIES)[0]
    losses, expected = undisturbed
    again = len(rest) - len(losses) + sum(step for _, step in kills)
    assert 0 <= again <= len(kills)  # of a kill, the step whose state was being written
    check_equal(history, expected)


def slow_disk(rank: int, wait: Callable[[], None]) -> None:
    """Let one of the processes wait before it writes; it and its disk end with this process."""

    def write(*what: Any) -> None:
        if place().rank == rank:
            wait()
        write_tensors(*what)

    shards.write_tensors = write


def saved_steps(path: Path) -> list[str]:
    return sorted(p.parent.name for p in path.with_suffix(".shards").glob("*/about.txt"))


@pytest.mark.parametrize("slow", others_later([0, 1], first=[1]))
@pytest.mark.parametrize("kind", others_later(KINDS, first=["copies"]))
def test_processes_go_on_while_their_state_is_written(tmp_path, kind, slow, undisturbed):
    path = tmp_path / "state.safetensors"

    def go_on() -> tuple[list[float], list[str]]:
        let, before = threading.Event(), []

        def end(done: int) -> None:
            if done == 5:  # the other process has written the first step's state long ago
                time.sleep(0.2)
                before.extend(saved_steps(path))
                let.set()

        slow_disk(slow, lambda: let.wait(60))
        return train(path, KINDS[kind], end, every_s=1e-9)[0], before

    losses, _ = undisturbed
    for found, before in together(2, go_on):
        assert found == pytest.approx(losses, rel=1e-6) and before == []
    assert saved_steps(path) == ["1"]
    assert train(path, COPIES)[0] == pytest.approx(losses[1:], rel=1e-6)


@pytest.mark.workflow
def test_a_process_that_is_killed_while_it_writes_leaves_the_earlier_state(tmp_path, undisturbed):
    path = tmp_path / "state.safetensors"

    def die() -> None:
        writes = iter(range(3))
        slow_disk(1, lambda: next(writes) == 2 and os.kill(os.getpid(), signal.SIGKILL))
        train(path, COPIES)

    with pytest.raises(AssertionError, match="was killed"):
        together(2, die)
    assert saved_steps(path) == ["2"]
    assert train(path, COPIES)[0] == pytest.approx(undisturbed[0][2:], rel=1e-6)


@pytest.mark.parametrize("every_s", others_later([0, 1e-9], first=[0]))
def test_a_disk_that_is_full_for_one_process_is_told_by_all(tmp_path, every_s):
    path = tmp_path / "state.safetensors"
    together(2, train, path, COPIES, cut_at(2))

    def fill() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def told_full() -> str:
        slow_disk(1, fill)
        with pytest.raises(UserError, match="shard-00002.*the disk is full") as caught:
            train(path, COPIES, every_s=every_s)
        return str(caught.value)

    assert len({*together(2, told_full)}) == 1
    assert saved_steps(path) == ["2"]


@pytest.mark.parametrize("kind", others_later(KINDS, first=["copies"]))
def test_every_number_of_a_state_is_written_by_one_process(tmp_path, kind):
    several, alone = tmp_path / "several.safetensors", tmp_path / "alone.safetensors"
    together(2, train, several, KINDS[kind], cut_at(1))
    train(alone, COPIES, cut_at(1))
    files = [*several.with_suffix(".shards").glob("1/*.safetensors")]
    sizes = [sum(t.nbytes for t in load_tensors(file, "")[0].values()) for file in files]
    assert sum(sizes) == sum(t.nbytes for t in load_tensors(alone, "")[0].values())
    assert len(sizes) == 2 and max(sizes) < 1.5 * min(sizes)


def test_one_machine_without_room_for_a_copy_is_enough_to_save_without(monkeypatch):
    tensors = {"a": torch.zeros(10)}  # 40 bytes in each of the processes

    def fits(free: list[int], hosts: list[str]) -> bool:
        monkeypatch.setattr(states, "free_memory", lambda: free[place().rank])
        monkeypatch.setattr("socket.gethostname", lambda: hosts[place().rank])
        return states._copy_fits(tensors)

    assert together(2, fits, [160, 160], ["a", "a"]) == [True] * 2
    assert together(2, fits, [159, 160], ["a", "a"]) == [False] * 2
    assert together(2, fits, [80, 80], ["a", "b"]) == [True] * 2
    assert together(2, fits, [80, 79], ["a", "b"]) == [False] * 2


@pytest.mark.workflow
def test_a_signal_to_one_process_saves_the_state_and_stops_all(tmp_path, undisturbed):
    path = tmp_path / "state.safetensors"

    def told_to_stop() -> str:
        def end(done: int) -> None:
            if done == 2 and place().rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(UserError, match="stopped by SIGTERM after 3 steps") as caught:
            train(path, PARTS, end)
        return str(caught.value)

    assert len(set(together(2, told_to_stop))) == 1
    assert train(path, COPIES)[0] == pytest.approx(undisturbed[0][3:], rel=1e-6)


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """The folder of the state of a training that two processes have begun."""
    folder = tmp_path_factory.mktemp("cut")
    together(2, train, folder / "state.safetensors", PARTS, cut_at(2))
    return folder


@pytest.mark.parametrize("what", ["shard", "about.txt", "missing"])
def test_a_damaged_state_of_several_processes_is_named(tmp_path, cut, what):
    path = shutil.copytree(cut, tmp_path / "damaged") / "state.safetensors"
    (state,) = path.with_suffix(".shards").iterdir()
    file = state / what if what == "about.txt" else sorted(state.glob("shard-*"))[0]
    if what == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state.shards.2 is damaged.*Delete it"):
        train(path, COPIES)


@pytest.mark.workflow
def test_what_a_process_that_was_killed_while_it_saved_left_is_no_state(tmp_path):
    path = tmp_path / "state.safetensors"
    together(2, train, path, PARTS, cut_at(1))
    left = path.with_suffix(".shards") / "2"
    left.mkdir()
    (left / "shard-00007-model-00001-of-00001.safetensors").write_bytes(b"half a file")
    assert len(together(2, train, path, COPIES)[0][0]) == 4 * 2 - 1


@pytest.mark.parametrize("accumulate", others_later([2, 3], first=[3]))
@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_shared_batch_add_up_to_it(kind, accumulate):
    def one_curve(accumulate: int, how: ResourcesConfig) -> list[dict]:
        cfg = TaskTrainingConfig(epochs=4, **TRAINING, accumulate=accumulate)
        torch.manual_seed(0)
        model = build(with_options()).train()

        def losses(batch, _progress):
            return {"loss": cross_entropy_loss(model(**batch[0]), batch[1])}

        batches = TrainingBatches(IMAGES, cfg, 0, CPU, Share(*place()))
        return fit(model, losses, batches, cfg, name="test", how=how)

    TRAINING["batch_size"] = 6
    try:
        found = together(2, one_curve, accumulate, KINDS[kind])[0]
        check_equal(found, one_curve(1, ResourcesConfig()))
    finally:
        TRAINING["batch_size"] = 7


def test_a_batch_smaller_than_the_processes_is_refused():
    def refused() -> str:
        with pytest.raises(UserError, match="3 samples in 2 parts.*too small for 2 processes"):
            Parts.of(3, 2)
        return Parts.of(4, 2).sizes

    assert together(2, refused) == [[1, 1], [1, 1]]


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "gemma"])
def test_the_blocks_of_a_model_are_found(name):
    model = make_dense() if name == "vit" else make_language(name)
    blocks = blocks_of(model)
    assert len(blocks) == 2 and len({type(block) for block in blocks}) == 1


@pytest.mark.parametrize("kind", others_later(KINDS, first=["copies"]))
def test_recomputed_activations_change_nothing(kind, paths, alone):
    how = KINDS[kind].model_copy(update={"recompute": True})
    names = ["sparsify", "router of gated"]
    found, _ = together(2, curves, paths, how, names)
    for name in names:
        check_equal(found[name], alone[name])


def test_a_pooled_mean_is_that_of_all_rows_and_so_is_its_gradient():
    rows = torch.arange(1.0, 8.0)

    def shared() -> tuple[float, float]:
        own = rows[Share(*place()).run(7)]
        scale = nn.Parameter(torch.tensor(2.0))
        with shared_batches():
            mean = pooled((own * scale).mean(), len(own))
        mean.square().backward()
        return mean.item(), scale.grad.item()

    found = together(3, shared)
    assert [mean for mean, _ in found] == [8.0] * 3
    assert sum(gradient for _, gradient in found) / 3 == pytest.approx(2 * 8 * 4)


def test_processes_share_items_and_say_things_in_their_order():
    def say() -> tuple:
        return spread("abcde", str.upper), told(place().rank), largest(place().rank), leads()

    results = [(list("ABCDE"), [0, 1], 1, leads) for leads in (True, False)]
    assert together(2, say) == results
    assert spread("abc", str.upper) == list("ABC") and told(3) == [3] and leads()


def test_two_processes_measure_what_one_does(paths, monkeypatch):
    split = make_images(23)
    read_from(split, monkeypatch)

    def measured() -> tuple:
        model, _ = load_model(paths["vit", "routed"])
        routed = evaluate_routed(model, split, "dynamic_k", [0.0, 0.3], 4, CPU)
        cfg = {"split": "test", "batch_size": 4, "values": []}
        dense = evaluate_dense(paths["vit", "plain"], "none", cfg, Run(seed=0, device=CPU))
        return routed, dense

    expected = measured()
    for found in together(3, measured):
        for one, other in zip(found, expected, strict=True):
            assert one.points == other.points and one.layers == other.layers
            assert all(torch.equal(one.samples[key], x) for key, x in other.samples.items())


def test_of_several_processes_the_first_writes(tmp_path):
    def write() -> bool:
        path = tmp_path / str(place().rank)
        save_model(path, make_dense(), with_options())
        return path.exists()

    assert together(2, write) == [True, False]
