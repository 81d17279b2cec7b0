"""Laws of quantisation: the error, the size, what stays a float, and that all else works on."""

import dataclasses
from pathlib import Path

import pytest
import torch
from small import (
    ABOUT,
    OPTIONS,
    SPEC,
    make_dense,
    make_images,
    make_routed,
    make_split,
    others_later,
    randomise,
    with_experts,
    with_routers,
)
from small_language import (
    TINY,
    language_spec,
    make_corpus_split,
    make_language,
    make_routed_language,
    make_text_split,
    make_tokens,
)
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from d2dmoe.attention import ROLES
from d2dmoe.checkpoint import load_dense_model, load_model, save_model
from d2dmoe.compression.quantize import LARGEST, Int8, quantize_experts, quantize_weights
from d2dmoe.config.compression import QuantizeConfig
from d2dmoe.config.stages import SparsifyConfig
from d2dmoe.errors import CheckpointError
from d2dmoe.evaluation import evaluate_dense, evaluate_routed
from d2dmoe.ffn import FFN
from d2dmoe.flops import model_cost
from d2dmoe.inputs import logits_of
from d2dmoe.io.tensors import load_tensors
from d2dmoe.jobs.run import Run
from d2dmoe.kernels.cpu import grouped
from d2dmoe.models.build import separate_projections
from d2dmoe.moe import MoE, set_selection, watch_inputs
from d2dmoe.spec import ModelSpec, build
from d2dmoe.stages.quantize import quantize
from d2dmoe.stages.sparsify import sparsify
from d2dmoe.surgery import find

CPU = torch.device("cpu")
CFG = QuantizeConfig(weights="int8")
SPLITS = {
    "vit": dataclasses.replace(make_images(12), about=ABOUT),
    "bert": make_text_split(),
    "gpt2": make_corpus_split(6),
    "gemma": make_corpus_split(6),
}
RUN = Run(seed=0, device=CPU)


def spec_of(name: str) -> ModelSpec:
    return SPEC if name == "vit" else language_spec(name)


def int8(spec: ModelSpec) -> ModelSpec:
    return spec.with_part("quantize", weights="int8")


def make_model(name: str) -> nn.Module:
    return make_dense() if name == "vit" else make_language(name)


def save(path: Path, model: nn.Module, spec: ModelSpec) -> Path:
    save_model(path, model, spec)
    return path


def save_quantized(path: Path, parent: Path) -> Path:
    """The quantised model of a file, as a file."""
    model, spec, _ = quantize(parent, CFG, RUN)
    return save(path, model, spec)


def batch_of(name: str) -> dict[str, torch.Tensor]:
    return SPLITS[name].batch(SPLITS[name].read(torch.arange(4)), CPU)[0]


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The matrices of linear maps and experts, as the modules compute with them."""
    maps = {f"{n}.weight": m.weight for n, m in find(model, nn.Linear).items()}
    experts = {
        f"{name}.{part}": getattr(moe, part)
        for name, moe in find(model, MoE).items()
        for part in ("up", "gate", "down")
        if getattr(moe, part) is not None
    }
    return maps | experts


@pytest.mark.parametrize(
    ("shape", "summed"), [((5, 7), (1,)), ((3, 1), (1,)), ((2, 4, 6), (2,)), ((2, 4, 6), (0, 1))]
)
def test_no_weight_moves_by_more_than_half_a_step(shape, summed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0] *= 1000  # of the others little would be left with one scale for all
    stored = Int8(weight, summed)
    q, scale = stored.right_inverse(weight)
    largest = weight.abs().amax(summed)
    assert q.dtype == torch.int8 and q.shape == shape
    assert (q.abs().amax(summed) == LARGEST).all()
    error = (stored(q, scale) - weight).abs().amax(summed)
    scale = scale.squeeze(summed)
    torch.testing.assert_close(scale, largest / LARGEST)
    assert (error <= scale / 2 + 1e-6 * largest).all()


def test_zeros_stay_zeros_and_what_was_rounded_stays_so():
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    weight[2], weight[:, 3] = 0, 0
    stored = Int8(weight, (1,))
    once = stored(*stored.right_inverse(weight))
    assert once[weight == 0].count_nonzero() == 0
    torch.testing.assert_close(stored(*stored.right_inverse(once)), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["vit", *TINY])
def test_every_matrix_but_tied_ones_is_quantised_and_the_answers_stay_close(name, tmp_path):
    path = save(tmp_path / "dense", make_model(name), spec_of(name))
    model, spec, history = quantize(path, CFG, RUN)
    assert spec == int8(spec_of(name)) and not model.training and not history
    dense = separate_projections(name, load_dense_model(path)[0])
    tied = {"lm_head.weight"} if name in ("gpt2", "gemma") else set()
    before, after = weights_of(dense), weights_of(model)
    assert before.keys() == after.keys()
    for key, weight in after.items():
        error = (weight - before[key]).abs().max()
        assert error == 0 if key in tied else 0 < error < 0.01
    matrices = {k for k, p in dense.named_parameters() if p.ndim > 1} - before.keys()
    assert all(torch.equal(model.get_parameter(k), dense.get_parameter(k)) for k in matrices)
    with torch.no_grad():
        logits = [logits_of(m, batch_of(name)) for m in (dense, model)]
    assert 0 < (logits[1] - logits[0]).norm() < 0.1 * logits[0].norm()


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_tied_weights_stay_tied(name, tmp_path):
    path = save(tmp_path / "dense", make_language(name), language_spec(name))
    path = save_quantized(tmp_path / "int8", path)
    model, _ = load_model(path)
    assert not is_parametrized(model.lm_head)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert load_tensors(path, "")[0].keys().isdisjoint({"lm_head.weight"})


def test_the_file_is_about_a_quarter_the_size(tmp_path):
    options = OPTIONS | {"d_model": 128, "d_ff": 512, "heads": 4}
    spec = SPEC.model_copy(update={"options": options})
    path = save(tmp_path / "dense", randomise(build(spec)), spec)
    small = save_quantized(tmp_path / "int8", path)
    assert small.stat().st_size < 0.28 * path.stat().st_size
    tensors, _ = load_tensors(small, "")
    integers = [t for t in tensors.values() if t.dtype == torch.int8]
    assert sum(t.numel() for t in integers) == 2 * (4 * 128**2 + 2 * 128 * 512) + 3 * 128


def pruned(spec: ModelSpec, heads: int | None, d_ff: int) -> ModelSpec:
    return spec.with_part("prune", heads=heads, d_ff=d_ff)


STAGES = {
    "dense": lambda spec: spec,
    "split": with_experts,
    "routed": lambda spec: with_routers(with_experts(spec)),
    "exits": lambda spec: spec.with_part("ztw", every=1, width=8),
    "halting": lambda spec: spec.with_part("avit", depth=1.5, gamma=3.0, beta=-1.0),
    "pruned": lambda spec: with_routers(with_experts(pruned(spec, heads=1, d_ff=16))),
    "projections": lambda spec: with_routers(
        with_experts(
            spec.with_part("projections", widths=dict.fromkeys(ROLES, 8)),
            **dict.fromkeys(ROLES, 4),
        )
    ),
}
CASES = [("vit", stage) for stage in STAGES] + [
    (name, stage) for name in TINY for stage in ("dense", "routed", "projections")
]


@pytest.mark.workflow
@pytest.mark.parametrize(("name", "stage"), CASES)
def test_a_saved_quantised_model_of_any_stage_comes_back(name, stage, tmp_path):
    spec = STAGES[stage](spec_of(name))
    path = save(tmp_path / "float", randomise(build(spec)), spec)
    model, spec, _ = quantize(path, CFG, RUN)
    loaded, again = load_model(save(tmp_path / "int8", model, spec))
    assert again == spec and not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    with torch.no_grad():
        ours, theirs = (logits_of(m, batch_of(name)) for m in (model, loaded))
    assert torch.equal(ours, theirs)


def test_a_single_neuron_and_a_single_expert_are_no_exception():
    model = randomise(build(with_experts(pruned(SPEC, heads=None, d_ff=1), 1)))
    before = {key: weight.detach().clone() for key, weight in weights_of(model).items()}
    for key, weight in weights_of(quantize_weights("vit", model)).items():
        if key in before:  # the projections were fused
            assert (weight - before[key]).abs().max() < 0.01


@pytest.mark.parametrize("name", ["vit", *TINY])
def test_the_split_and_the_quantisation_commute(name):
    """A map's scales belong to its outputs, so the experts' are those of the FFN."""
    dense = make_model(name)
    ordered = build(
        with_experts(spec_of(name))
    )  # contiguous experts: neuron j of expert i is neuron i e + j
    quantize_weights(name, dense)
    with torch.no_grad():
        ffns = find(make_model(name), FFN).values()
        for ffn, moe in zip(ffns, find(ordered, MoE).values(), strict=True):
            moe.up.copy_(ffn.up.weight.unflatten(0, (8, -1)))
            moe.down.copy_(ffn.down.weight.T.unflatten(0, (8, -1)))
            if ffn.gate is not None:
                moe.gate.copy_(ffn.gate.weight.unflatten(0, (8, -1)))
    quantize_weights(name, ordered)
    for ffn, moe in zip(find(dense, FFN).values(), find(ordered, MoE).values(), strict=True):
        assert torch.equal(moe.up.flatten(0, 1), ffn.up.weight)
        assert torch.equal(moe.down.flatten(0, 1).T, ffn.down.weight)
        if ffn.gate is not None:
            assert torch.equal(moe.gate.flatten(0, 1), ffn.gate.weight)


def test_with_all_experts_on_the_quantised_split_model_is_the_quantised_dense_one():
    dense = quantize_weights("vit", make_dense())
    split = quantize_weights("vit", make_split())
    inputs = batch_of("vit")
    with torch.no_grad():
        expected = logits_of(dense, inputs)
        torch.testing.assert_close(logits_of(split, inputs), expected, rtol=0, atol=1e-4)


def test_experts_may_be_quantised_alone():
    model = quantize_experts(make_routed())
    parametrized = {name for name, module in model.named_modules() if is_parametrized(module)}
    assert parametrized == set(find(model, MoE))


def test_the_kernels_get_the_experts_as_integers():
    model = quantize_experts(make_routed())
    for moe in find(model, MoE).values():
        stored, floats = moe.weights, moe.weights.dequantized()
        assert stored.up.dtype == stored.down.dtype == torch.int8
        assert torch.equal(floats.up, moe.up) and torch.equal(floats.down, moe.down)


def test_the_grouped_computation_is_that_of_the_mask(tmp_path):
    model = quantize_weights("vit", make_routed())
    moe = next(iter(find(model, MoE).values()))
    set_selection(model, "dynamic_k", 0.5)
    with torch.no_grad(), watch_inputs(model) as seen:
        logits_of(model, batch_of("vit"))
        z = next(iter(seen.values())).flatten(0, -2)
        mask = moe.selection(moe.router(z))
        torch.testing.assert_close(grouped(z, mask, moe.weights), moe(z), rtol=0, atol=1e-5)
        assert moe.output_norms(z).shape == mask.shape


@pytest.mark.parametrize("name", others_later(["vit", *TINY], ["bert"]))
def test_evaluation_and_cost_are_as_before(name):
    def make() -> nn.Module:
        return make_routed() if name == "vit" else make_routed_language(name)

    sample = {k: v[:1] for k, v in batch_of(name).items()}
    plain, model = make(), quantize_weights(name, make())
    assert model_cost(model, sample) == model_cost(plain, sample)
    points, layers, _ = evaluate_routed(model, SPLITS[name], "dynamic_k", [0.0, 0.6], 4, CPU)
    expected, *_ = evaluate_routed(plain, SPLITS[name], "dynamic_k", [0.0], 4, CPU)
    assert points[0]["flops"] == expected[0]["flops"] > points[1]["flops"]
    assert points[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.05)
    assert len(layers) == 4


@pytest.mark.parametrize("name", others_later(["vit", *TINY], ["vit"]))
def test_dense_models_are_evaluated_as_before(name):
    plain, model = make_model(name), quantize_weights(name, make_model(name))
    (expected,) = evaluate_dense(plain, SPLITS[name], 4, CPU).points
    (point,) = evaluate_dense(model, SPLITS[name], 4, CPU).points
    assert point["flops"] == expected["flops"]
    scales = sum(len(w) for w in weights_of(model).values())
    tied = len(model.lm_head.weight) if name in ("gpt2", "gemma") else 0
    assert point["params"] == expected["params"] + scales - tied  # a scale is a parameter too


def test_the_same_model_gives_the_same_bytes(tmp_path):
    path = save(tmp_path / "dense", make_dense(), SPEC)
    first, second = (save_quantized(tmp_path / name, path) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_quantised_model_is_neither_quantised_nor_trained(tmp_path):
    path = save(tmp_path / "dense", make_dense(), SPEC)
    path = save_quantized(tmp_path / "int8", path)
    with pytest.raises(CheckpointError, match="the stage quantize has made already"):
        quantize(path, CFG, RUN)
    cfg = SparsifyConfig(epochs=1, lr=0.01, mode="relu_l1", alpha=0.0)
    with pytest.raises(CheckpointError, match="made by dense, quantize; a dense one is needed"):
        sparsify(path, cfg, RUN)


def test_a_damaged_file_and_one_of_other_weights_are_refused(tmp_path):
    path = save(tmp_path / "dense", make_dense(), SPEC)
    save(tmp_path / "wrong", make_dense(), int8(SPEC))
    with pytest.raises(CheckpointError, match="does not fit its own spec"):
        load_model(tmp_path / "wrong")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        quantize(path, CFG, RUN)


def test_generation_works_on_it():
    model, prompt = quantize_weights("gpt2", make_language("gpt2")), make_tokens(2, 4)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options["attention_mask"] = torch.ones_like(prompt)
    assert model.generate(prompt, **options).shape == (2, 8)
