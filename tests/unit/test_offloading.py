"""Laws of offloaded experts: outputs are the resident model's to the bit; misses fall with memory;
memory divided by dynamic programming misses least; what runs misses what the simulation says."""

import copy
import itertools
import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_ffn, others_later
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import d2dmoe
from d2dmoe.benchmark.offloading import COLUMNS, offloading_rows
from d2dmoe.compression.quantize import quantize_experts
from d2dmoe.config.benchmarks import LlamaBenchmark
from d2dmoe.conversion import add_router
from d2dmoe.errors import ModelError, UserError
from d2dmoe.moe import MoE, set_operating_point, split_ffn, watch_selections
from d2dmoe.offloading import layer as layers_module
from d2dmoe.offloading import memory as memory_module
from d2dmoe.offloading.cache import ExpertCache, ranked
from d2dmoe.offloading.layer import OffloadedMoE
from d2dmoe.offloading.misses import count_misses, misses_of
from d2dmoe.offloading.offload import cache_sizes
from d2dmoe.offloading.recording import record, successors
from d2dmoe.offloading.sizes import alike, divide
from d2dmoe.surgery import find

EXPERTS, WIDTH = 8, 16
few = settings(max_examples=40, deadline=None, derandomize=True)


class Block(nn.Module):
    """A layer with a residual, which changes little."""

    def __init__(self, moe: MoE):
        super().__init__()
        self.norm, self.moe = nn.LayerNorm(WIDTH), moe

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z + 0.1 * self.moe(self.norm(z))


def make_stack(depth: int = 3, gated: bool = False, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    blocks = []
    for seed in range(depth):
        ffn = make_ffn(WIDTH, 32, "relu", seed, gated)
        moe = split_ffn(ffn, torch.randperm(32).view(EXPERTS, -1))
        add_router(moe, "regression", 12)
        blocks.append(Block(moe))
    model = nn.Sequential(*blocks).to(dtype).eval()
    return set_operating_point(model, "dynamic_k", 0.6)


def tokens(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def masks(count: int, n: int, seed: int) -> torch.Tensor:
    return torch.rand(count, n, generator=torch.Generator().manual_seed(seed)) < 0.3


# Caches, and what they miss.


def test_a_cache_holds_what_was_used_last():
    cache = ExpertCache(2, [0, 1, 2, 3])
    assert cache.missing([0, 2]) == [2]
    assert cache.admit([2, 0]) == {2: 1} and cache.slots == {0: 0, 2: 1}
    assert cache.admit([3]) == {3: 0} and cache.slots == {2: 1, 3: 0}
    assert cache.admit([0, 1, 3]) == {0: 1, 1: 0} and cache.missing([0, 1, 2, 3]) == [2, 3]
    assert ranked([0, 3, 1, 3]) == [1, 3, 2]


def by_caches(used: torch.Tensor, expected: torch.Tensor | None, size: int) -> tuple[int, int]:
    """Misses, and experts fetched ahead, of a cache of one size."""
    cache, missed, fetched = ExpertCache(size, count_misses(used).order), 0, 0
    for token in range(len(used)):
        if expected is not None:
            fetched += len(cache.admit(ranked(expected[token].tolist())))
        experts = ranked(used[token].tolist())
        missed += len(cache.missing(experts))
        cache.admit(experts)
        assert len(cache.slots) == size == len({*cache.slots.values()})
    return missed, fetched


@few
@given(n=st.integers(1, 7), count=st.integers(1, 12), seed=st.integers(0, 99), ahead=st.booleans())
def test_one_pass_counts_what_caches_of_all_sizes_miss(n, count, seed, ahead):
    used, expected = masks(count, n, seed), masks(count, n, seed + 100) if ahead else None
    found = count_misses(used, expected)
    one_by_one = [by_caches(used, expected, size) for size in range(n + 1)]
    assert [*zip(found.misses, found.fetched, strict=True)] == one_by_one
    assert found.uses == used.sum() and sorted(found.order) == [*range(n)]


@few
@given(n=st.integers(1, 9), seed=st.integers(0, 99), ahead=st.booleans())
def test_misses_fall_with_the_cache_from_all_uses_to_none(n, seed, ahead):
    used = masks(20, n, seed)
    misses = count_misses(used, masks(20, n, seed + 1) if ahead else None).misses
    assert misses[0] == used.sum() and misses[-1] == 0
    assert (np.diff(misses) <= 0).all()


def test_a_good_expectation_leaves_no_misses_where_it_fits():
    used = masks(50, 8, 0)
    most = int(used.sum(1).max())
    found = count_misses(used, used)
    assert (found.misses[most:] == 0).all() and found.fetched[most] > 0
    assert count_misses(used).misses[most] > 0


# Memory for the layers.


@few
@given(
    layers=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    total=st.integers(0, 18),
    seed=st.integers(0, 99),
)
def test_no_division_of_the_memory_misses_less(layers, total, seed):
    rng = np.random.default_rng(seed)
    misses = [np.sort(rng.integers(0, 30, n + 1))[::-1] for n in layers]

    def missed(sizes) -> int:
        return sum(own[size] for own, size in zip(misses, sizes, strict=True))

    sizes = divide(misses, total)
    assert sum(sizes) == min(total, sum(layers))
    possible = itertools.product(*(range(n + 1) for n in layers))
    assert missed(sizes) == min(missed(own) for own in possible if sum(own) <= total)
    same = alike(layers, total)
    assert sum(same) == min(total, sum(layers)) and all(map(int.__le__, same, layers))
    assert missed(sizes) <= missed(same)


def test_layers_of_other_shapes_share_no_memory():
    found = {}
    for name, (d_ff, count) in {"a": (32, 8), "b": (64, 8), "c": (32, 8)}.items():
        ffn = make_ffn(WIDTH, d_ff, "relu")
        found[name] = split_ffn(ffn, torch.arange(d_ff).view(count, -1))
    assert cache_sizes(found, 0.5, None) == {"a": 4, "b": 4, "c": 4}
    unequal = {n: count_misses(masks(20, 8, 0) & (n != "a")) for n in found}
    assert cache_sizes(found, 0.5, unequal) == {"a": 0, "b": 4, "c": 8}


def test_on_recorded_tokens_divided_memory_misses_no_more_than_equal_shares():
    model = make_stack()
    for prefetch in (False, True):
        found = misses_of(record(model, [tokens(60)]), prefetch)
        for share in (0.25, 0.5, 0.75):
            by_programming = cache_sizes(find(model, MoE), share, found)
            equal = cache_sizes(find(model, MoE), share, None)
            missed = [
                sum(int(found[n].misses[s]) for n, s in own.items())
                for own in (by_programming, equal)
            ]
            assert missed[0] <= missed[1]


# Recordings.


def test_a_recording_has_what_tokens_select_and_what_the_layer_before_expects():
    model, z = make_stack(), tokens(9)
    with torch.no_grad(), watch_selections(model) as seen:
        model(z)
        found = record(model, [z[:5], z[5:]])
        moes = find(model, MoE)
        expected = moes["1.moe"].selection(moes["1.moe"].router(model[0].norm(z)))
        assert seen.keys() == moes.keys() == found.used.keys()
    assert successors(moes) == {"0.moe": "1.moe", "1.moe": "2.moe"}
    assert found.expected.keys() == {"1.moe", "2.moe"}
    assert torch.equal(found.expected["1.moe"], expected)
    agree = (found.expected["1.moe"] == found.used["1.moe"]).float().mean()
    assert 0.8 < agree < 1  # the residual stream changes little
    with torch.no_grad(), watch_selections(model) as seen:
        model(z)
    for name, mask in seen.items():
        assert torch.equal(found.used[name], mask)


# Models.


@pytest.mark.parametrize("share", others_later([0.0, 0.25, 0.5, 0.9, 1.0], [0.0, 0.5]))
@pytest.mark.parametrize("backend", ["auto", "dense", "dynamic_k"])
@pytest.mark.parametrize(("gated", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_outputs_are_the_resident_models_to_the_bit(share, backend, gated, dtype):
    model = make_stack(gated=gated, dtype=dtype)
    for moe in find(model, MoE).values():
        moe.backend.name = backend
    calls = [tokens(count, count, dtype) for count in (1, 7, 1, 2, 1)]
    with torch.inference_mode():
        expected = [model(z) for z in calls]
    offloaded = d2dmoe.offload(model, share, [tokens(30, 9, dtype)])
    assert {type(m) for m in find(model, MoE).values()} == {OffloadedMoE}
    assert sum(x.size for x in offloaded.layers.values()) == int(share * 24 + 1e-6)
    for _ in range(2):
        with torch.no_grad():
            for z, out in zip(calls, expected, strict=True):
                assert torch.equal(model(z), out)
    assert (offloaded.traffic.misses == 0) == (share == 1)


class LateCopies(memory_module.Copies):
    """Copies that happen as late as they may: when something waits for them."""

    waiting: list = []
    inside = False

    @contextmanager
    def running(self):
        type(self).inside = True
        yield
        type(self).inside = False

    def mark(self):
        return len(self.waiting)

    def wait(self, mark):
        for number in range(mark or 0):
            if self.waiting[number] is not None:
                memory_module.copy_experts(*self.waiting[number])
                self.waiting[number] = None


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_layer_waits_for_the_copies_that_it_needs(share, monkeypatch):
    """Those of a CUDA stream are over at any time between their launch and the wait for them."""

    def copy_later(host, experts, target, places):
        job = (host, [*experts], target, [*places])
        if LateCopies.inside:
            LateCopies.waiting.append(job)
        else:
            memory_module.copy_experts(*job)

    monkeypatch.setattr(LateCopies, "waiting", [])
    monkeypatch.setattr(memory_module, "Copies", LateCopies)
    monkeypatch.setattr(layers_module, "copy_experts", copy_later)
    model, calls = make_stack(), tokens(30).split(1)
    with torch.no_grad():
        expected = [model(z) for z in calls]
        offloaded = d2dmoe.offload(model, share)
        assert all(map(torch.equal, map(model, calls), expected))
    assert offloaded.traffic.fetched > 0 and len(LateCopies.waiting) > 30


@pytest.mark.parametrize("prefetch", [False, True])
def test_what_runs_misses_what_the_simulation_says(prefetch):
    model, z = make_stack(), tokens(40)
    found = misses_of(record(model, [z]), prefetch)
    offloaded = d2dmoe.offload(model, 0.5, [z], prefetch=prefetch)
    with torch.no_grad():
        for token in z.split(1):
            model(token)
    for name, own in offloaded.layers.items():
        if own.holds_all:
            assert own.traffic.misses == own.traffic.uses == 0
        else:
            traffic = own.traffic.uses, own.traffic.misses, own.traffic.fetched
            misses, fetched = found[name].misses[own.size], found[name].fetched[own.size]
            assert traffic == (found[name].uses, misses, fetched)
    assert (offloaded.traffic.fetched > 0) == prefetch
    assert 0 < offloaded.traffic.hit_rate < 1
    assert "experts are on the device" in str(offloaded) and "0.moe" in str(offloaded)
    offloaded.reset()
    assert offloaded.traffic.uses == 0


def test_fetching_ahead_saves_misses():
    model, z = make_stack(), tokens(60)
    recording = record(model, [z])
    missed = [
        sum(int(own.misses[4]) for own in misses_of(recording, prefetch).values())
        for prefetch in (True, False)
    ]
    assert missed[0] < 0.7 * missed[1]


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=32)).eval()
    d2dmoe.add_routers(d2dmoe.convert(model, num_experts=8, method="contiguous"), "regression", 8)
    return set_operating_point(model, "dynamic_k", 0.7)


@pytest.mark.parametrize("share", others_later([0.25, 0.5, 1.0], [0.5]))
def test_generation_is_the_resident_models(share):
    model = llama()
    prompt = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 9, 2, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": mask}
    how |= {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(prompt, **how)
    offloaded = d2dmoe.offload(model, share, [{"input_ids": prompt, "attention_mask": mask}])
    found = model.generate(prompt, **how)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(map(torch.equal, found.logits, expected.logits))
    assert offloaded.traffic.fetched > 0 or share == 1


def test_a_restored_model_is_as_it_was():
    model, z = make_stack(), tokens(5)
    moes, weights = find(model, MoE), dict(model.named_parameters())
    with torch.inference_mode():
        expected = model(z)
        offloaded = d2dmoe.offload(model, 0.5)
        assert [*model.state_dict()] == [*make_stack().state_dict()]
        model(z)
        assert offloaded.restore() is model
        assert torch.equal(model(z), expected)
    assert find(model, MoE) == moes and dict(model.named_parameters()) == weights
    model(z).sum().backward()
    assert moes["0.moe"].up.grad is not None
    d2dmoe.offload(model, 0.25)


def test_moving_the_model_leaves_its_experts_where_they_are():
    model = make_stack()
    d2dmoe.offload(model, 0.5)
    names = [*model.state_dict()]
    model.to("meta")
    there = {name for name, x in model.state_dict().items() if x.is_meta}
    stay = ("moe.up", "moe.down", "moe.up_bias")
    assert there == {name for name in names if not name.endswith(stay)}
    assert [*model.state_dict()] == names


def test_what_cannot_be_offloaded_is_refused_and_stays_as_it_was():
    model, z = make_stack(), tokens(3)
    for wrong in (-0.1, 1.5, "half", True, float("nan")):
        with pytest.raises(UserError, match="must be a share of the experts"):
            d2dmoe.offload(model, wrong)
    with pytest.raises(UserError, match="convert it first"):
        d2dmoe.offload(nn.Linear(2, 2), 0.5)
    quantised = quantize_experts(make_stack())
    with pytest.raises(ModelError, match="cannot be offloaded"):
        d2dmoe.offload(quantised, 0.5)
    bare = make_stack()
    bare[1].moe.router = None
    with pytest.raises(UserError, match="1.moe: no router yet"):
        d2dmoe.offload(bare, 0.5)
    with pytest.raises(ModelError, match="meta device"):
        d2dmoe.offload(make_stack().to("meta"), 0.5)
    assert {type(moe) for moe in find(model, MoE).values()} == {MoE}
    d2dmoe.offload(model, 0.5)
    with pytest.raises(ModelError, match="offloaded already"):
        d2dmoe.offload(model, 0.5)
    with pytest.raises(UserError, match="no gradients: call the model under torch.no_grad"):
        model(z)
    for copying in (copy.deepcopy, pickle.dumps):
        with pytest.raises(ModelError, match="restore it"):
            copying(model)
    with torch.no_grad(), pytest.raises(UserError, match="the experts torch.float32"):
        model.double()(z.double())


@pytest.mark.workflow
def test_the_benchmark_compares_shares_of_one_model():
    cfg = LlamaBenchmark(
        kind="llama", phase="decode", layers=2, d_model=16, heads=2, key_value_heads=1, d_ff=32,
        vocab_size=50, context=6, batches=[1], num_experts=8, router_width=8, fractions=[0.3],
    )  # fmt: skip
    rows = [*offloading_rows("tiny", cfg, torch.device("cpu"), [1.0, 0.25], new_tokens=3)]
    assert [(row["resident"], row["prefetch"]) for row in rows] == [
        ("", ""), (1.0, True), (1.0, False), (0.25, True), (0.25, False)
    ]  # fmt: skip
    assert all([*row] == COLUMNS for row in rows)
    assert len({row["fraction"] for row in rows}) == 1 and 0.1 < rows[0]["fraction"] < 0.6
    whole, _, ahead, alone = rows[1:]
    assert whole["misses_per_token"] == 0 == alone["fetched_per_token"]
    assert 0 < ahead["hit_rate"] <= 1 > alone["hit_rate"] > 0
