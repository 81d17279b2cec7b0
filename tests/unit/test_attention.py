"""Attention projections: taken apart exactly, replaced by MLPs, converted like FFNs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import (
    ABOUT,
    SPEC,
    clusters,
    make_dense,
    make_images,
    others_later,
    randomise,
    read_from,
    with_experts,
    with_routers,
)
from small_language import (
    CAUSAL,
    TINY,
    language_spec,
    make_corpus_split,
    make_language,
    make_text_split,
    make_tokens,
)
from torch import nn
from torch.nn.functional import pad

from d2dmoe.activity import count_active
from d2dmoe.api.losses import SparsityPenalty
from d2dmoe.attention import (
    ROLES,
    Projection,
    SelfAttention,
    find_projections,
    mlp_width,
    projection_mlps,
    replace_projections,
)
from d2dmoe.checkpoint import load_dense_model, load_model, read_model, save_model
from d2dmoe.config.stages import ClusteringConfig, ProjectionsConfig, RouterConfig, SparsifyConfig
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.data.splits import Split, TextSplit
from d2dmoe.errors import CheckpointError
from d2dmoe.evaluation import evaluate_dense, evaluate_routed
from d2dmoe.ffn import FFN
from d2dmoe.flops import model_cost
from d2dmoe.formulas import ffn_flops, router_flops
from d2dmoe.inputs import logits_of
from d2dmoe.jobs.run import Run
from d2dmoe.models.build import separate_projections
from d2dmoe.moe import MoE, set_selection
from d2dmoe.sparsity import penalty, watch_activations
from d2dmoe.spec import ModelSpec, build
from d2dmoe.stages.clustering import cluster
from d2dmoe.stages.projections import convert_projections
from d2dmoe.stages.router import train_routers
from d2dmoe.stages.sparsify import sparsify
from d2dmoe.surgery import find

ARCHITECTURES = ["vit", *TINY]
CPU = torch.device("cpu")
WIDTHS = dict.fromkeys(ROLES, 8)


def make_model(name: str) -> nn.Module:
    return make_dense() if name == "vit" else make_language(name)


def spec_of(name: str) -> ModelSpec:
    return SPEC if name == "vit" else language_spec(name)


def make_batch(name: str) -> dict[str, torch.Tensor]:
    if name == "vit":
        images = make_images(3)
        return images.batch(images.read(torch.arange(3)), CPU)[0]
    return {"input_ids": make_tokens(3)}


def with_mlps(name: str, seed: int = 3) -> nn.Module:
    return randomise(build(spec_of(name).with_part("projections", widths=WIDTHS)), seed)


def split_all(model: nn.Module) -> nn.Module:
    ffns = find(model, FFN).values()
    return to_moe(model, [clusters(f.activated.weight, 4) for f in ffns])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_projections_taken_apart_change_nothing(name):
    model, inputs = make_model(name), make_batch(name)
    with torch.no_grad():
        before = logits_of(model, inputs)
        after = logits_of(separate_projections(name, model), inputs)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    layers = len(find(model, FFN))
    assert [p.role for p in find(model, Projection).values()] == list(ROLES) * layers


def test_projections_taken_apart_change_nothing_beside_padding():
    model, ids = make_language("bert"), make_tokens(3)
    mask = torch.ones_like(ids)
    mask[1, 5:], mask[2, 2:] = 0, 0
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        after = separate_projections("bert", model)(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_fused_attention_taken_apart_is_equal(causal, padded, bias):
    fused = randomise(nn.MultiheadAttention(12, 3, bias=bias, batch_first=True))
    z = torch.randn(4, 6, 12, generator=torch.Generator().manual_seed(0))
    options = {}
    if causal:
        forbidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
        options |= {"attn_mask": forbidden, "is_causal": True}
    if padded:
        options["key_padding_mask"] = torch.arange(6).expand(4, 6) >= torch.tensor(
            [[6], [4], [1], [5]]
        )
    with torch.no_grad():
        expected, _ = fused(z, z, z, need_weights=False, **options)
        out, weights = SelfAttention(fused)(z, z, z, **options)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
        if causal:  # the mask alone says the same
            del options["is_causal"]
            torch.testing.assert_close(SelfAttention(fused)(z, z, z, **options)[0], out)
    assert weights is None


@pytest.mark.parametrize("options", [{"batch_first": False}, {"kdim": 8}, {"add_bias_kv": True}])
def test_an_attention_of_another_form_is_refused(options):
    with pytest.raises(ValueError, match="plain self-attention"):
        SelfAttention(nn.MultiheadAttention(12, 3, **({"batch_first": True} | options)))


def test_attention_weights_are_refused():
    attention, z = SelfAttention(nn.MultiheadAttention(4, 1, batch_first=True)), torch.ones(1, 2, 4)
    with pytest.raises(ValueError, match="weights"):
        attention(z, z, z, need_weights=True)


@pytest.mark.parametrize(
    ("d_in", "d_out", "factor", "multiple", "expected"),
    [
        (768, 768, 1.0, 1, 384),  # d² + d over 2 d + 1: about d / 2
        (768, 768, 2.0, 1, 768),
        (2048, 256, 1.0, 1, 228),  # K of a grouped-query attention, by the same cost
        (96, 24, 1.0, 8, 16),
        (96, 24, 1.0, 4, 20),
        (4, 4, 0.1, 8, 8),  # never none
    ],
)
def test_width_of_an_mlp(d_in, d_out, factor, multiple, expected):
    assert mlp_width(nn.Linear(d_in, d_out), factor, multiple) == expected


@pytest.mark.parametrize("maps", ["qkvo", "qk", "o"])
@pytest.mark.parametrize("name", others_later(ARCHITECTURES, ["vit", "gemma"]))
def test_any_subset_is_replaced(name, maps):
    model = separate_projections(name, make_model(name))
    layers = len(find(model, FFN))
    shapes = {n: (p.in_features, p.out_features) for n, p in find(model, Projection).items()}
    mlps = projection_mlps(model, {role: 8 for role in maps})
    replace_projections(model, mlps)
    replaced = {n: f for n, f in find(model, FFN).items() if f.role != "ffn"}
    assert [f.role for f in replaced.values()] == [
        r for _ in range(layers) for r in ROLES if r in maps
    ]
    assert all((f.d_model, f.d_out) == shapes[n] for n, f in replaced.items())
    kept = find_projections(model, ROLES)
    assert len(kept) == layers * (4 - len(maps))
    assert logits_of(model, make_batch(name)).isfinite().all()


def test_gemmas_keys_and_values_are_narrower():
    model = with_mlps("gemma")
    d_out = {f.role: f.d_out for f in find(model, FFN).values()}
    assert d_out["k"] == d_out["v"] < d_out["q"]


@pytest.mark.parametrize("name", others_later(ARCHITECTURES, ["vit", "gemma"]))
def test_with_all_experts_on_the_split_model_is_equal(name):
    model, inputs = with_mlps(name), make_batch(name)
    with torch.no_grad():
        dense = logits_of(model, inputs)
        torch.testing.assert_close(logits_of(split_all(model), inputs), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", others_later(ARCHITECTURES, ["vit", "gemma"]))
def test_cost_of_all_parts(name):
    """Counted by torch, and layer by layer: MLPs cost what their maps cost."""
    linear, sample = make_model(name), {k: v[:1] for k, v in make_batch(name).items()}
    before = model_cost(linear, sample)
    separate_projections(name, linear)
    maps = [p.in_features * p.out_features for p in find(linear, Projection).values()]
    linear_flops = 2 * sum(maps) * before.tokens
    model = with_mlps(name)
    mlps = [f for f in find(model, FFN).values() if f.role != "ffn"]
    widths = [ffn_flops(f.d_model, f.d_ff, d_out=f.d_out) for f in mlps]
    cost = model_cost(model, sample)
    assert cost.fixed == before.fixed - linear_flops
    assert cost.dense == before.dense - linear_flops + sum(widths) * before.tokens
    routed = add_routers(split_all(model), "regression", width=6, projection_width=2)
    moes = find(routed, MoE).values()
    routers = sum(router_flops(m.d_model, 6 if m.role == "ffn" else 2, m.num_experts) for m in moes)
    executed = {n: before.tokens * m.num_experts for n, m in find(routed, MoE).items()}
    assert model_cost(routed, sample).total(executed) == cost.dense + routers * before.tokens


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_a_cache_equals_that_without(name, routed):
    model = with_mlps(name)
    if routed:
        model = add_routers(split_all(model), "regression", 6, 2).eval()
        set_selection(model, "dynamic_k", 0.5)
    prompt = make_tokens(2, 4)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options["attention_mask"] = torch.ones_like(prompt)
    cached, uncached = (model.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert cached.shape == (2, 10) and torch.equal(cached, uncached)


@pytest.mark.parametrize("name", others_later(ARCHITECTURES, ["vit", "gemma"]))
def test_save_and_load(name, tmp_path):
    ffn = next(iter(find(make_model(name), FFN).values()))
    spec = spec_of(name).with_part("projections", widths=dict.fromkeys(ROLES, 8))
    spec = with_experts(spec, ffn.d_ff // 4, **dict.fromkeys(ROLES, 4))
    spec = with_routers(spec, projection_width=3)
    model, inputs = randomise(build(spec), 5), make_batch(name)
    assert {m.num_experts for m in find(model, MoE).values()} == {ffn.d_ff // 4, 4}
    save_model(tmp_path / "model.safetensors", model, spec)
    loaded, again = load_model(tmp_path / "model.safetensors")
    set_selection(model, "dynamic_k", 0.3)
    set_selection(loaded, "dynamic_k", 0.3)
    assert again == spec
    with torch.no_grad():
        assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


def test_the_clamped_penalty_measures_projections_by_their_relu():
    model = with_mlps("vit")
    for ffn in find(model, FFN).values():
        ffn.set_activation("gelu" if ffn.role == "ffn" else "relu")
    with watch_activations(model) as layers:
        model(**make_batch("vit"))
    for ffn, layer in zip(find(model, FFN).values(), layers.values(), strict=True):
        a = layer.hidden if ffn.role != "ffn" else (layer.pre + 10).clamp(min=0)
        assert penalty("gelu_clamped", [layer]) == a.sum(-1).mean()


def test_the_penalty_is_the_ffns_mean_plus_the_projections_mean():
    """So attention weighs as much as the FFNs, whatever the numbers of their layers."""
    model = with_mlps("vit")
    with SparsityPenalty(model) as loss, watch_activations(model) as layers:
        model(**make_batch("vit"))
        by_role = {layer.projection: [] for layer in layers.values()}
        for layer in layers.values():
            by_role[layer.projection].append(penalty("relu_hoyer", [layer]))
        ffns, projections = by_role[False], by_role[True]
        expected = sum(ffns) / 2 + sum(projections) / 8
        assert (len(ffns), len(projections)) == (2, 8)
        torch.testing.assert_close(penalty("relu_hoyer", layers.values()), expected)
        torch.testing.assert_close(loss(), expected)


# The stage, and those after it.

RUN = Run(seed=0, device=CPU)
SPLITS = {
    "vit": dataclasses.replace(make_images(12), about=ABOUT),
    "bert": make_text_split(),
    "gpt2": make_corpus_split(6),
    "gemma": make_corpus_split(6),
}
OPTIONS = {"epochs": 1.5, "lr": 0.01, "batch_size": 3}
EPOCHS = 45
IMITATION = ProjectionsConfig(**OPTIONS | {"epochs": EPOCHS, "lr": 0.01}, multiple=4)
SHORT = ProjectionsConfig(**OPTIONS, multiple=4)
WIDTH_OF = {"vit": (8, 8), "bert": (8, 8), "gpt2": (8, 8), "gemma": (8, 4)}  # of q and o; k and v


@pytest.fixture
def parents(monkeypatch, tmp_path) -> Callable[..., Path]:
    """Saves a dense model; every stage reads the small split of its name."""

    def save(name: str, samples: Split | None = None) -> Path:
        read_from(samples or SPLITS[name], monkeypatch)
        save_model(tmp_path / name, make_model(name), spec_of(name))
        return tmp_path / name

    return save


@pytest.fixture(scope="module", params=others_later(ARCHITECTURES, ["vit"]))
def chain(request, tmp_path_factory) -> SimpleNamespace:
    """A conversion with attention projections, from a dense model to the routers."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    paths = {stage: folder / stage for stage in ("dense", "mlps", "sparse", "split", "routed")}
    history, made = {}, {}

    def save(stage: str, model: nn.Module, spec: ModelSpec, rows: list[dict] = ()) -> None:
        save_model(paths[stage], model, spec)
        history[stage], made[stage] = rows, (model.eval(), spec)

    with pytest.MonkeyPatch.context() as monkeypatch:
        read_from(SPLITS[name], monkeypatch)
        save("dense", make_model(name), spec_of(name))
        save("mlps", *convert_projections(paths["dense"], IMITATION, RUN))
        cfg = SparsifyConfig(mode="relu_hoyer", alpha=0.01, **OPTIONS)
        save("sparse", *sparsify(paths["mlps"], cfg, RUN))
        save(
            "split",
            *cluster(
                paths["sparse"], ClusteringConfig(expert_size=4, projection_expert_size=2), RUN
            ),
        )
        cfg = RouterConfig(width=6, projection_width=3, **OPTIONS)
        save("routed", *train_routers(paths["split"], cfg, RUN))
    return SimpleNamespace(name=name, paths=paths, history=history, made=made)


def test_the_error_of_the_imitation_falls_and_so_does_its_loss(chain):
    rows = chain.history["mlps"]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert all(list(row) == ["epoch", "lr", "loss", "error", "sparsity"] for row in rows)
    for key in ("loss", "error"):
        assert rows[-1][key] < 0.7 * rows[0][key]


def test_imitation_brings_the_model_nearer_to_its_original_than_fresh_mlps(chain, monkeypatch):
    read_from(SPLITS[chain.name], monkeypatch)
    untrained = IMITATION.model_copy(update={"epochs": 0.0})
    fresh, _, _ = convert_projections(chain.paths["dense"], untrained, RUN)
    inputs = make_batch(chain.name)
    with torch.no_grad():
        original, far, near = (
            logits_of(model, inputs)
            for model in (make_model(chain.name), fresh, chain.made["mlps"][0])
        )
    assert (near - original).square().mean() < 0.8 * (far - original).square().mean()


def test_every_stage_comes_back_in_its_own_form(chain):
    inputs = make_batch(chain.name)
    for stage, path in chain.paths.items():
        model, spec = chain.made[stage]
        loaded, again = load_model(path)
        assert again == spec and loaded.state_dict().keys() == model.state_dict().keys()
        for kind in (FFN, MoE, Projection):
            ours, theirs = find(model, kind), find(loaded, kind)
            assert [(n, x.role) for n, x in ours.items()] == [
                (n, x.role) for n, x in theirs.items()
            ]
        with torch.no_grad():
            assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


def test_the_saved_spec_says_what_the_projections_became(chain):
    outer, inner = WIDTH_OF[chain.name]
    widths = {"q": outer, "k": inner, "v": inner, "o": outer}
    parts = [chain.made[stage][1].parts for stage in chain.paths]
    order = ["projections", "sparsify", "clustering", "router"]
    assert [list(own) for own in parts] == [order[:count] for count in range(5)]
    assert all(own["projections"] == {"widths": widths} for own in parts[1:])
    experts = {moe.role: moe.num_experts for moe in find(chain.made["split"][0], MoE).values()}
    assert experts == {"ffn": 32 // 4} | {role: width // 2 for role, width in widths.items()}
    assert all(own["clustering"] == {"num_experts": experts} for own in parts[3:])


def outside(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights outside of the projections, whichever form these have."""
    inside = [n for kind in (FFN, Projection) for n, x in find(model, kind).items()]
    inside = [n for n in inside if getattr(model.get_submodule(n), "role", "ffn") != "ffn"]
    state = model.state_dict()
    return {n: w for n, w in state.items() if not n.startswith(tuple(f"{i}." for i in inside))}


def test_imitation_changes_nothing_but_the_projections(chain):
    before = outside(separate_projections(chain.name, make_model(chain.name)))
    after = outside(chain.made["mlps"][0])
    assert before.keys() == after.keys() and len(before) > 10
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_training_the_routers_of_projections_changes_nothing_else(chain):
    (_, before), (_, after) = (read_model(chain.paths[stage]) for stage in ("split", "routed"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(".router." in name for name in after.keys() - before.keys())


def test_sparsification_trains_the_mlps_of_projections_too(chain):
    before, after = (chain.made[stage][0] for stage in ("mlps", "sparse"))
    for name, ffn in find(after, FFN).items():
        assert not torch.equal(ffn.activated.weight, before.get_submodule(name).activated.weight)


def test_all_experts_on_is_the_model_of_mlps_and_costs_its_routers_more(chain):
    samples, routed = SPLITS[chain.name], load_model(chain.paths["routed"])[0]
    (plain,) = evaluate_dense(load_model(chain.paths["sparse"])[0], samples, 4, CPU).points
    points, layers, _ = evaluate_routed(routed, samples, "dynamic_k", [0.0, 0.5, 1.0], 4, CPU)
    assert points[0]["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert points[0]["accuracy"] == plain["accuracy"]
    moes = list(find(routed, MoE).values())
    hidden = {"ffn": 6} | dict.fromkeys(ROLES, 3)
    per_token = sum(router_flops(m.d_model, hidden[m.role], m.num_experts) for m in moes)
    expected = plain["flops"] + plain["tokens"] * per_token
    assert points[0]["flops"] == pytest.approx(expected, rel=1e-14)
    costs = [point["flops"] for point in points]
    assert costs[0] > costs[1] > costs[2] > plain["flops"] / 4
    for row in layers:
        assert 1 <= row["experts"] <= row["num_experts"]
    assert [row["experts"] for row in layers[:10]] == [row["num_experts"] for row in layers[:10]]
    places = [(row["role"], row["layer"]) for row in layers]
    assert sorted(places) == sorted([(r, i) for r in ("ffn", *ROLES) for i in (0, 1)] * 3)


def test_the_cost_is_that_of_the_experts_executed_per_role_and_layer(chain):
    samples, routed = SPLITS[chain.name], load_model(chain.paths["routed"])[0]
    (full, point), layers, _ = evaluate_routed(routed, samples, "dynamic_k", [0.0, 0.5], 4, CPU)
    executed = {(x["role"], x["layer"]): x["experts"] for x in layers if x["knob_value"] == 0.5}
    saved = 0.0
    for role in ("ffn", *ROLES):
        of_role = [moe for moe in find(routed, MoE).values() if moe.role == role]
        for layer, moe in enumerate(of_role):
            size, gated = moe.expert_size, moe.gate is not None
            expert = ffn_flops(moe.d_model, size, gated, moe.d_out)
            saved += (moe.num_experts - executed[role, layer]) * expert * full["tokens"]
    assert 0 < full["flops"] - point["flops"] == pytest.approx(saved, rel=1e-9)


@pytest.mark.parametrize("name", others_later(ARCHITECTURES, ["bert"]))
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(parents, name, tmp_path):
    parent, files = parents(name), []
    for i, seed in enumerate((0, 0, 1)):
        model, spec, _ = convert_projections(parent, SHORT, dataclasses.replace(RUN, seed=seed))
        save_model(tmp_path / str(i), model, spec)
        files.append((tmp_path / str(i)).read_bytes())
    assert files[0] == files[1] != files[2]


def test_mlps_of_another_seed_begin_with_other_weights(parents):
    parent, untrained = parents("vit"), SHORT.model_copy(update={"epochs": 0.0})
    first, second = (
        find(convert_projections(parent, untrained, run)[0], FFN)
        for run in (RUN, dataclasses.replace(RUN, seed=1))
    )
    for name, ffn in first.items():
        assert torch.equal(ffn.up.weight, second[name].up.weight) == (ffn.role == "ffn")


@pytest.mark.parametrize("maps", ["qkvo", "v", "qo"])
@pytest.mark.parametrize("name", others_later(ARCHITECTURES, ["vit", "gemma"]))
def test_only_the_maps_asked_for_are_converted(parents, name, maps):
    cfg = SHORT.model_copy(update={"maps": list(maps)})
    model, spec, _ = convert_projections(parents(name), cfg, RUN)
    assert list(spec.parts["projections"]["widths"]) == [role for role in ROLES if role in maps]
    roles = [f.role for f in find(model, FFN).values() if f.role != "ffn"]
    assert sorted(roles) == sorted(maps * 2)
    original = separate_projections(name, make_model(name))
    kept = find(model, Projection)
    assert {p.role for p in kept.values()} == set(ROLES) - set(maps)
    for n, p in kept.items():
        assert torch.equal(p.weight, original.get_submodule(n).weight)


def test_mlps_with_more_cost_are_wider(parents):
    parent = parents("vit")
    widths = [
        convert_projections(parent, SHORT.model_copy(update={"factor": f}), RUN)[1]
        for f in (0.5, 1.0, 2.0)
    ]
    assert [spec.parts["projections"]["widths"]["q"] for spec in widths] == [4, 8, 16]


class MorePadding(TextSplit):
    """Batches with five columns of padding more than they need."""

    def batch(self, raw, device):
        inputs, targets = super().batch(raw, device)
        return {name: pad(x, (0, 5)) for name, x in inputs.items()}, targets


def test_padding_does_not_enter_the_loss(parents):
    samples = make_text_split((5, 3, 7, 4, 6, 2))
    padded = MorePadding(samples.tokens, samples.offsets, samples.labels, samples.about)
    found = [convert_projections(parents("bert", s), SHORT, RUN) for s in (samples, padded)]
    for one, other in zip(*(history for _, _, history in found), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    first, second = (model.state_dict() for model, _, _ in found)
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=1e-4)


@pytest.mark.workflow
def test_a_stronger_penalty_makes_sparser_projections(parents):
    parent, last = parents("vit"), []
    for alpha in (0.0, 1.0):
        cfg = IMITATION.model_copy(update={"alpha": alpha, "epochs": 20.0})
        last.append(convert_projections(parent, cfg, RUN)[2][-1])
    assert last[1]["sparsity"] < 0.8 * last[0]["sparsity"]


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_projections_of_a_pruned_model_are_as_narrow_as_its_heads(parents, name, tmp_path):
    parents(name)
    spec = spec_of(name).with_part("prune", heads=1, d_ff=16)
    save_model(tmp_path / "pruned", randomise(build(spec)), spec)
    model, converted, _ = convert_projections(tmp_path / "pruned", SHORT, RUN)
    assert list(converted.parts) == ["prune", "projections"]
    assert converted.parts["prune"] == spec.parts["prune"]
    shapes = {f.role: (f.d_model, f.d_out) for f in find(model, FFN).values()}
    assert shapes == {"ffn": (16, 16), "o": (8, 16)} | dict.fromkeys("qkv", (16, 8))
    save_model(tmp_path / "mlps", model, converted)
    loaded, _ = load_dense_model(tmp_path / "mlps")
    inputs = make_batch(name)
    with torch.no_grad():
        assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


def test_projections_are_converted_once(chain, monkeypatch):
    read_from(SPLITS[chain.name], monkeypatch)
    message = "mlps holds a model that the stage projections has made already"
    with pytest.raises(CheckpointError, match=message):
        convert_projections(chain.paths["mlps"], SHORT, RUN)


def test_projections_are_converted_before_the_split(chain, monkeypatch):
    read_from(SPLITS[chain.name], monkeypatch)
    made = "made by dense, projections, sparsify, clustering; a dense one is needed"
    with pytest.raises(CheckpointError, match=made):
        convert_projections(chain.paths["split"], SHORT, RUN)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_ffns_are_in_the_histogram_of_active_neurons(name):
    model, inputs = with_mlps(name), make_batch(name)
    histogram = count_active(model, [inputs])
    d_ff = next(f.d_ff for f in find(model, FFN).values() if f.role == "ffn")
    tokens = 3 * 5 if name == "vit" else inputs["input_ids"].numel()
    assert histogram.shape == (2, d_ff + 1) and histogram.sum(1).tolist() == [tokens] * 2
