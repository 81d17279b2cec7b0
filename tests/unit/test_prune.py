"""Laws of pruning: what is unimportant, what leaves, what that saves, and what comes after it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import ABOUT, MODEL, SPEC, make_dense, make_images, others_later, read_from
from small_language import (
    TINY,
    language_spec,
    make_corpus_split,
    make_language,
    make_text_split,
)
from torch import Tensor, nn

from d2dmoe.attention import ROLES, Projection, find_projections
from d2dmoe.checkpoint import fresh_model, load_dense_model, load_model, save_model
from d2dmoe.compression.importance import importance, most_important
from d2dmoe.compression.prune import keep_units, rebuild, unit_widths
from d2dmoe.config.compression import PruneConfig, remaining
from d2dmoe.config.stages import ClusteringConfig, ProjectionsConfig, RouterConfig, SparsifyConfig
from d2dmoe.data.splits import Batch
from d2dmoe.errors import CheckpointError
from d2dmoe.evaluation import evaluate_routed
from d2dmoe.ffn import FFN
from d2dmoe.flops import count
from d2dmoe.formulas import ffn_flops
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.models.build import count_heads, separate_projections
from d2dmoe.quality import batches_of
from d2dmoe.seeding import seed_for
from d2dmoe.spec import ModelSpec, build
from d2dmoe.stages.clustering import cluster
from d2dmoe.stages.projections import convert_projections
from d2dmoe.stages.prune import prune
from d2dmoe.stages.router import train_routers
from d2dmoe.stages.sparsify import sparsify
from d2dmoe.surgery import find

CPU = torch.device("cpu")
RUN = Run(seed=0, device=CPU)
WITH_HEADS = ["vit", "bert"]
SPLITS = {
    "vit": dataclasses.replace(make_images(12), about=ABOUT),
    "bert": make_text_split(),
    "gpt2": make_corpus_split(6),
    "gemma": make_corpus_split(6),
}
TRAINING = {"lr": 0.001, "batch_size": 4}
HALF = {"kind": "prune", "heads": 0.5, "neurons": 0.5, "epochs": 0} | TRAINING


def make_model(name: str) -> nn.Module:
    return make_dense() if name == "vit" else make_language(name)


def spec_of(name: str) -> ModelSpec:
    return SPEC if name == "vit" else language_spec(name)


def resized(name: str, heads: int | None, d_ff: int) -> nn.Module:
    return rebuild(make_model(name), spec_of(name), heads, d_ff)


def samples(name: str, batch_size: int = 6) -> list[Batch]:
    return list(batches_of(SPLITS[name], batch_size, CPU))


def scored(name: str, model: nn.Module, batch_size: int = 6) -> dict[str, Tensor]:
    widths = unit_widths(name, model, heads=name in WITH_HEADS)
    return importance(model, widths, samples(name, batch_size))


def silence(name: str, model: nn.Module, heads: bool) -> dict[str, int]:
    """Set to zero, in every layer, what reads one unit; gives the unit by the reader's name."""
    silent = {}
    for layer, (reader, width) in enumerate(unit_widths(name, model, heads).items()):
        unit = silent[reader] = layer % 2 + (width == 1)
        with torch.no_grad():
            model.get_submodule(reader).weight[:, unit * width : (unit + 1) * width] = 0
    return silent


@pytest.mark.parametrize("name", ["vit", *TINY])
def test_what_nobody_reads_leaves_first_and_changes_nothing(name):
    model, heads = make_model(name), name in WITH_HEADS
    with torch.no_grad():
        silent = silence(name, model, heads)
        before = [logits_of(model, inputs) for inputs, _ in samples(name)]
    scores = scored(name, model)
    for reader, unit in silent.items():
        assert scores[reader].argmin() == unit and scores[reader][unit] == 0
        assert scores[reader].count_nonzero() == len(scores[reader]) - 1
    d_ff = next(iter(find(model, FFN).values())).d_ff
    left = count_heads(name, model) - 1 if heads else None
    keep_units(name, model, left, d_ff - 1, lambda n, k: most_important(scores[n], k))
    assert {ffn.d_ff for ffn in find(model, FFN).values()} == {d_ff - 1}
    with torch.no_grad():
        for (inputs, _), expected in zip(samples(name), before, strict=True):
            torch.testing.assert_close(logits_of(model, inputs), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_importance_is_the_mean_sensitivity_to_a_mask(name):
    """By the definition: a mask on each unit, and a sample at a time."""
    model = make_model(name)
    widths = unit_widths(name, model, heads=True)
    scores = importance(model, widths, samples(name))
    for reader, width in widths.items():
        layer, total = model.get_submodule(reader), 0.0
        for inputs, targets in samples(name, batch_size=1):
            mask = torch.ones(layer.in_features // width, requires_grad=True)

            def masked(_layer, args, mask=mask, width=width):
                return (args[0] * mask.repeat_interleave(width),)

            handle = layer.register_forward_pre_hook(masked)
            loss = nn.functional.cross_entropy(logits_of(model, inputs), targets)
            total = total + torch.autograd.grad(loss, mask)[0].abs()
            handle.remove()
        expected = (total / len(SPLITS[name])).double()
        torch.testing.assert_close(scores[reader], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_neither_batches_nor_their_padding_change_the_importance(name):
    model = make_model(name)
    alone = scored(name, model, batch_size=1)
    for reader, scores in scored(name, model, batch_size=4).items():
        torch.testing.assert_close(scores, alone[reader], rtol=1e-3, atol=1e-6)


def test_of_equally_important_units_the_first_stay():
    assert most_important(torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]), 3).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("units", "share", "left"),
    [(8, 0.0, 8), (8, 0.5, 4), (8, 0.99, 1), (1, 0.9, 1), (12, 1 / 3, 8), (3072, 0.75, 768)],
)
def test_at_least_one_unit_is_left(units, share, left):
    assert remaining(units, share) == left


@pytest.mark.parametrize("name", ["vit", *TINY])
def test_flops_and_parameters_of_fewer_neurons_are_those_of_a_smaller_model(name):
    cfg = (MODEL if name == "vit" else TINY[name]).model_copy(update={"d_ff": 12})
    smaller, _ = fresh_model(cfg, SPLITS[name].about)
    pruned = resized(name, None, 12)
    inputs = {k: v[:1] for k, v in samples(name)[0][0].items()}
    assert count(pruned, inputs) == count(smaller, inputs)
    shapes = {k: v.shape for k, v in smaller.state_dict().items()}
    assert {k: v.shape for k, v in pruned.state_dict().items()} == shapes


@pytest.mark.parametrize("name", WITH_HEADS)
def test_flops_fall_by_those_of_the_heads(name):
    """Of each token and head 4 d_model d_head products in the maps, 2 tokens d_head in between."""
    inputs = {k: v[:1] for k, v in samples(name)[0][0].items()}
    whole, half = make_model(name), resized(name, 1, 32)
    tokens = 5 if name == "vit" else inputs["input_ids"].shape[1]
    saved = 2 * (4 * 16 + 2 * tokens) * 8 * tokens
    assert count(whole, inputs) - count(half, inputs) == 2 * saved  # in two layers
    assert count_heads(name, half) == 1


@pytest.fixture
def parents(monkeypatch, tmp_path) -> Callable[[str], Path]:
    """Saves a dense model; every stage reads the small split of the model that it is given."""

    def save(name: str) -> Path:
        read_from(SPLITS[name], monkeypatch)
        save_model(tmp_path / name, make_model(name), spec_of(name))
        return tmp_path / name

    return save


def half(path: Path, **options) -> tuple[nn.Module, ModelSpec, list[dict]]:
    return prune(path, PruneConfig(**HALF | options), RUN)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_a_saved_pruned_model_comes_back(parents, name, tmp_path):
    model, spec, history = half(parents(name), epochs=1)
    assert spec == spec_of(name).with_part("prune", heads=1, d_ff=16)
    assert len(history) == 1 and "validation_loss" in history[0]
    save_model(tmp_path / "pruned", model, spec)
    loaded, again = load_dense_model(tmp_path / "pruned")
    assert again == spec and not model.training
    assert count_heads(name, loaded) == 1
    inputs, _ = samples(name)[0]
    with torch.no_grad():
        assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


@pytest.mark.parametrize("name", TINY)
def test_neurons_alone_can_leave_every_architecture(parents, name):
    path = parents(name)
    model, spec, _ = half(path, heads=0.0)
    assert spec.parts == {"prune": {"heads": None, "d_ff": 16}}
    assert not find(model, Projection)
    kept, _ = load_dense_model(path)
    widths = unit_widths(name, kept, heads=False)
    chosen = torch.randperm(6, generator=torch.Generator().manual_seed(seed_for("importance", 0)))
    batches = [SPLITS[name].batch(SPLITS[name].read(part), CPU) for part in chosen.split(4)]
    scores = importance(kept, widths, batches)
    keep_units(name, kept, None, 16, lambda n, k: most_important(scores[n], k))
    for ours, theirs in zip(model.parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_same_seed_gives_the_same_bytes_and_few_samples_others(parents, tmp_path):
    path, files = parents("bert"), {}
    for name, options in {"first": {}, "second": {}, "other": {"samples": 1}}.items():
        model, spec, _ = half(path, **options)
        save_model(tmp_path / name, model, spec)
        files[name] = (tmp_path / name).read_bytes()
    assert files["first"] == files["second"] != files["other"]


@pytest.mark.workflow
def test_all_that_is_left_is_trained_on(parents):
    path = parents("vit")
    untrained, _, _ = half(path)
    trained, _, history = half(path, epochs=30, lr=0.01)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    for before, after in zip(untrained.parameters(), trained.parameters(), strict=True):
        assert not torch.equal(before, after)


@pytest.mark.parametrize("name", others_later(WITH_HEADS, ["vit"]))
def test_a_pruned_model_goes_through_all_later_stages(parents, name, tmp_path):
    parent, path = parents(name), tmp_path / "stage"
    save_model(path, *half(parent)[:2])
    cfg = ProjectionsConfig(epochs=1, maps=list(ROLES), multiple=4, **TRAINING)
    model, spec, _ = convert_projections(path, cfg, RUN)
    mlps = {f.role: f for f in find(model, FFN).values() if f.role != "ffn"}
    assert (mlps["o"].d_model, mlps["o"].d_out, mlps["q"].d_out) == (8, 16, 8)
    assert not find_projections(model, ROLES)
    save_model(path, model, spec)
    cfg = SparsifyConfig(epochs=1, mode="relu_hoyer", alpha=0.01, **TRAINING)
    save_model(path, *sparsify(path, cfg, RUN)[:2])
    whole, _ = load_dense_model(path)
    cfg = ClusteringConfig(expert_size=4, projection_expert_size=2)
    model, spec, _ = cluster(path, cfg, RUN)
    widths = spec.parts["projections"]["widths"]
    experts = {"ffn": 4} | {role: width // 2 for role, width in widths.items()}
    assert spec.parts["clustering"] == {"num_experts": experts}
    inputs, _ = samples(name)[0]
    with torch.no_grad():
        expected = logits_of(whole, inputs)
        torch.testing.assert_close(logits_of(model, inputs), expected, rtol=0, atol=1e-5)
    save_model(path, model, spec)
    cfg = RouterConfig(epochs=1, width=4, projection_width=2, **TRAINING)
    save_model(path, *train_routers(path, cfg, RUN)[:2])
    model, spec = load_model(path)
    assert spec.parts["prune"] == {"heads": 1, "d_ff": 16}
    stages = ["prune", "projections", "sparsify", "clustering", "router"]
    assert list(spec.parts) == stages
    points, layers, _ = evaluate_routed(model, SPLITS[name], "dynamic_k", [0.0, 1.0], 4, CPU)
    assert points[0]["flops"] > points[1]["flops"] and len(layers) == 2 * 2 * 5


def test_what_leaves_saves_what_the_formula_says(parents):
    path = parents("vit")
    inputs = {k: v[:1] for k, v in samples("vit")[0][0].items()}
    model, _, _ = half(path, heads=0.0)
    saved = count(load_dense_model(path)[0], inputs) - count(model, inputs)
    assert saved == 2 * 5 * (ffn_flops(16, 32) - ffn_flops(16, 16))  # two layers of five tokens


def test_projections_taken_apart_already_stay(parents):
    model, _, _ = half(parents("vit"))
    before = find(model, Projection)
    assert find(separate_projections("vit", model), Projection) == before


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_heads_of_other_architectures_are_refused(parents, name):
    with pytest.raises(CheckpointError, match=rf"'{name}'.*\(heads: 0\)"):
        half(parents(name))


def test_a_model_is_pruned_once_and_before_its_conversion(parents, tmp_path):
    path = tmp_path / "pruned"
    save_model(path, *half(parents("vit"))[:2])
    with pytest.raises(CheckpointError, match="prune the dense model"):
        half(path)


def test_weights_of_another_shape_are_refused(parents, tmp_path):
    model, spec, _ = half(parents("bert"))
    save_model(tmp_path / "wrong", model, spec.with_part("prune", heads=1, d_ff=15))
    with pytest.raises(CheckpointError, match="does not fit its own spec"):
        load_dense_model(tmp_path / "wrong")


def test_the_rebuilt_model_is_pruned_before_anything_else():
    spec = SPEC.with_part("prune", heads=1, d_ff=7).with_part("projections", widths={"q": 4})
    model = build(spec.with_part("sparsify", activation="silu"))
    shapes = {f.role: (f.d_model, f.d_ff, f.d_out) for f in find(model, FFN).values()}
    assert shapes == {"ffn": (16, 7, 16), "q": (16, 4, 8)}
    assert {f.activation_name for f in find(model, FFN).values()} == {"silu"}
