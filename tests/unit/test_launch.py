"""Which launch the expert kernel gets: from the user's cache, or a default."""

import json
import logging
from dataclasses import asdict, replace
from multiprocessing import get_context

import pytest
import torch
from small import others_later
from small_kernels import make_tokens, make_weights, masked_sum, relative_error

from d2dmoe.errors import UserError
from d2dmoe.kernels import launch as launches
from d2dmoe.kernels.launch import Entry, Launch, launch_for, shape_of, token_class

pytest.importorskip("triton", reason="this platform has no Triton")
from triton.runtime.errors import OutOfResources  # noqa: E402

from d2dmoe.kernels import gpu, tuning  # noqa: E402
from d2dmoe.timing import Timing  # noqa: E402

WEIGHTS = make_weights("relu", 4, 16, d_model=24, d_out=32)
GATED = make_weights("gelu_tanh glu", 4, 16, d_model=24, d_out=32)
FEW, MANY = make_tokens(100, 24), make_tokens(1000, 24)
MASK = torch.ones(100, 4, dtype=torch.bool)
DEFAULT = Launch(block_k=32, registers=None, per_processor=1)  # fp32


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """The user's cache, missing at first; what earlier tests read and learnt is forgotten."""
    monkeypatch.setenv("D2DMOE_CACHE", str(tmp_path / "cache"))
    forget()
    yield launches.user_table()
    forget()


def forget() -> None:
    """As a new process."""
    launches._table.cache_clear()
    launches._fastest.cache_clear()


def line(tokens: int, weights=WEIGHTS, **launch) -> dict:
    shape = shape_of(make_tokens(1, 24), weights)
    return shape._asdict() | {"tokens": tokens, "launch": launch, "ms": 1.0}


def write(path, *lines: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(lines))


# What is looked up


def test_a_shape_that_was_not_measured_gets_a_default():
    assert launch_for(FEW, WEIGHTS) == DEFAULT
    assert launch_for(FEW.bfloat16(), WEIGHTS) == Launch()
    assert launch_for(FEW.half(), GATED) == Launch(registers=None)


def test_options_that_an_entry_leaves_out_are_the_defaults(user):
    write(user, line(128, num_warps=4), line(1024, tile=64))
    assert launch_for(FEW, WEIGHTS) == Launch(num_warps=4)
    assert launch_for(MANY, WEIGHTS) == Launch(tile=64)


def test_the_entry_of_the_nearest_class_of_tokens_counts(user):
    write(user, line(64, tile=32), line(1024, tile=256))
    tiles = {n: launch_for(make_tokens(n, 24), WEIGHTS).tile for n in (1, 64, 128, 256, 257, 9999)}
    assert tiles == {1: 32, 64: 32, 128: 32, 256: 256, 257: 256, 9999: 256}


@pytest.mark.parametrize("tokens, expected", [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_tokens_are_rounded_up_to_a_power_of_two(tokens, expected):
    assert token_class(tokens) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"device": "NVIDIA H100 80GB HBM3"},
        {"dtype": "float16"},
        {"d_model": 32},
        {"d_out": 24},
        {"expert_size": 32},
        {"num_experts": 8},
        {"gated": True},
    ],
)
def test_an_entry_counts_for_its_shape_only(user, other):
    write(user, line(128, tile=32) | other)
    assert launch_for(FEW, WEIGHTS) == DEFAULT


def test_the_deterministic_launch_does_not_depend_on_what_was_measured(user):
    write(user, line(128, tile=32, block_n=128))
    torch.use_deterministic_algorithms(True)
    try:
        found = launch_for(FEW, WEIGHTS)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found == replace(DEFAULT, superblock=256, tile=64, deterministic=True)
    assert launch_for(FEW, WEIGHTS) == Launch(tile=32, block_n=128)


def test_the_table_is_read_once(user, monkeypatch):
    write(user, line(128, tile=32))
    read, paths = launches.read_table, []
    monkeypatch.setattr(launches, "read_table", lambda path: paths.append(path) or read(path))
    for tokens in (FEW, FEW, MANY):
        for weights in (WEIGHTS, GATED):
            launch_for(tokens, weights)
    assert paths == [user]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for Triton's interpreter")
@pytest.mark.parametrize("options", others_later([{}, {"tile": 32, "superblock": 64}], [{}]))
def test_the_kernel_runs_by_the_launch_that_is_looked_up(user, options):
    write(user, line(128, **options))
    mask = MASK & (torch.arange(100)[:, None] % 3 != torch.arange(4))
    found = gpu.expert_ffn(FEW, mask, WEIGHTS)
    assert relative_error(found, masked_sum(FEW, mask, WEIGHTS)) < 1e-5


# What cannot be used


@pytest.mark.parametrize("text", ["", "[{", '{"tile": 32}', "[1]", b"\xff"])
def test_a_damaged_cache_is_reported_once_and_not_used(user, text, caplog):
    write(user)
    user.write_bytes(text if isinstance(text, bytes) else text.encode())
    for tokens in (FEW, MANY):
        assert launch_for(tokens, WEIGHTS) == DEFAULT
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(user) in record.message and "Delete it" in record.message


@pytest.mark.parametrize(
    "bad",
    [
        line(128, clusters=2),
        line(128, tile="wide"),
        line(0, tile=64),
        line(128, tile=64) | {"kernel": 2},
        {"launch": {}},
    ],
)
def test_entries_of_another_version_are_skipped(user, bad, caplog):
    write(user, bad, line(2048, tile=32))
    assert launch_for(FEW, WEIGHTS) == Launch(tile=32)
    assert not caplog.records


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    assert launches.user_table() == tmp_path / "cache" / "launches.json"
    monkeypatch.delenv("D2DMOE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert launches.user_table() == tmp_path / "xdg" / "d2dmoe" / "launches.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert launches.user_table() == tmp_path / ".cache" / "d2dmoe" / "launches.json"


# Tuning


@pytest.fixture
def timed(monkeypatch) -> list[Launch]:
    """Launches that were timed; those of 4 warps cannot be launched, of others the first is the
    slowest and the last the fastest."""
    seen: list[Launch] = []

    def run(z, weights, launch, mask):
        if launch.num_warps == 4:
            raise OutOfResources(300_000, 232_448, "shared memory")

    def compare(runs, device, round_s):
        for call in runs.values():
            call()
        seen.extend(runs)
        return {launch: Timing(9.0 - i, 0, 0, None) for i, launch in enumerate(runs)}

    monkeypatch.setattr(tuning.persistent, "run", run)
    monkeypatch.setattr(tuning, "compare", compare)
    return seen


def test_the_fastest_candidate_is_kept_and_used_from_then_on(timed, user):
    assert launch_for(FEW, WEIGHTS) == DEFAULT
    fastest = tuning.tune(FEW, WEIGHTS, MASK)
    assert fastest == timed[-1] != DEFAULT
    assert launch_for(FEW, WEIGHTS) == fastest
    forget()
    assert launch_for(FEW, WEIGHTS) == fastest
    (entry,) = launches.read_table(user)
    assert entry["launch"] == asdict(fastest) and entry["ms"] == 9.0 - (len(timed) - 1)


def test_candidates_that_cannot_be_launched_are_left_out(timed, caplog):
    caplog.set_level(logging.INFO)
    tuning.tune(FEW, WEIGHTS, MASK)
    tried = tuning.candidates(shape_of(FEW, WEIGHTS), 128)
    assert timed == [launch for launch in tried if launch.num_warps != 4]
    assert 1 < len(timed) < len(tried)
    assert f"{len(tried)} launches" in caplog.text and f"{len(timed)} of them ran" in caplog.text
    assert "out of resource: shared memory" in caplog.text


def test_where_no_candidate_can_be_launched_the_cause_and_a_remedy_are_named(timed, monkeypatch):
    monkeypatch.setattr(tuning, "candidates", lambda *_: [Launch(num_warps=4)])
    with pytest.raises(UserError, match="24 → 32, float32.*shared memory.*backend.name"):
        tuning.tune(FEW, WEIGHTS, MASK)


def test_what_is_known_is_not_timed_again_unless_asked(timed, user):
    write(user, line(128, tile=32))
    assert tuning.tune(FEW, WEIGHTS, MASK) == Launch(tile=32)
    assert not timed and launches.read_table(user) == [line(128, tile=32)]
    found = tuning.tune(FEW, WEIGHTS, MASK, again=True)
    assert found == timed[-1] == launch_for(FEW, WEIGHTS)
    count = len(timed)
    tuning.tune(FEW, GATED, MASK)  # another shape
    tuning.tune(MANY, WEIGHTS, MASK)  # another class of tokens
    assert len(timed) > count and len(launches.read_table(user)) == 3


def test_an_entry_replaces_that_of_its_shape_and_tokens_and_leaves_others_alone(timed, user):
    unknown = line(128, GATED, clusters=2)
    write(user, line(128, tile=32), line(1024, tile=32), unknown)
    tuning.tune(FEW, WEIGHTS, MASK, again=True)
    kept = launches.read_table(user)
    assert kept[:2] == [line(1024, tile=32), unknown] and len(kept) == 3
    assert not list(user.parent.glob(".*"))  # nothing half written


def test_a_damaged_cache_is_replaced(timed, user):
    write(user)
    user.write_text("[{")
    found = tuning.tune(FEW, WEIGHTS, MASK)
    forget()
    assert launch_for(FEW, WEIGHTS) == found


def test_where_the_cache_cannot_be_written_the_process_keeps_what_it_found(timed, user, caplog):
    user.parent.write_text("a file where the folder should be")
    found = tuning.tune(FEW, WEIGHTS, MASK)
    assert launch_for(FEW, WEIGHTS) == found != DEFAULT
    assert "later ones not" in caplog.text


def save_all(path, entries: list[Entry]) -> None:
    for entry in entries:
        tuning._save(entry, path)


def test_no_entry_is_lost_where_processes_write_at_the_same_time(user):
    entries = [Entry.model_validate(line(tokens)) for tokens in range(1, 21)]
    process = get_context("fork").Process
    writers = [process(target=save_all, args=(user, entries[i::4])) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(entry["tokens"] for entry in launches.read_table(user)) == list(range(1, 21))


@pytest.mark.parametrize("dtype, size", [("bfloat16", 2), ("float32", 4)])
@pytest.mark.parametrize("weights", [WEIGHTS, GATED])
@pytest.mark.parametrize("tokens", [128, 65_536])
def test_candidates_differ_and_their_stages_fit_into_shared_memory(dtype, size, weights, tokens):
    shape = shape_of(FEW, weights)._replace(dtype=dtype)
    tried = tuning.candidates(shape, tokens)
    assert len(set(tried)) == len(tried) == 8
    for launch in tried:
        first = launch.block_k * (launch.tile + 128 * (1 + shape.gated))
        second = launch.block_n * 128
        assert launch.num_stages * size * max(first, second) <= 227 * 1024
        threads = 32 * launch.num_warps * launch.per_processor
        assert threads * (launch.registers or 0) <= 65_536
        assert launch.superblock % launch.tile == 0 and not launch.deterministic
