"""Attention projections: taken apart exactly, replaced by MLPs, converted like FFNs."""

import pytest
import torch
from small import SPEC, make_dense, make_images, randomise
from small_language import ABOUT_OF, CAUSAL, TINY, language_spec, make_language, make_tokens
from torch import nn

from d2dmoe.attention import (
    ROLES,
    Projection,
    SelfAttention,
    find_projections,
    mlp_width,
    projection_mlps,
    replace_projections,
)
from d2dmoe.checkpoint import ProjectionsSpec, RouterSpec, dense_model, load_dense_model, save_model
from d2dmoe.config.stages import ProjectionsConfig, RouterConfig, SparsifyConfig, SplitConfig
from d2dmoe.conversion import add_routers, build, load_model, to_moe
from d2dmoe.evaluate import evaluate_routed
from d2dmoe.experts import assign_neurons
from d2dmoe.ffn import FFN
from d2dmoe.flops import ffn_flops, model_cost, router_flops
from d2dmoe.inputs import logits_of
from d2dmoe.models import separate_projections
from d2dmoe.moe import MoE, set_selection
from d2dmoe.run import Run
from d2dmoe.sparsity import penalty, watch_activations
from d2dmoe.stages.projections import convert_projections
from d2dmoe.surgery import find

ARCHITECTURES = ["vit", *TINY]
CPU = torch.device("cpu")
WIDTHS = dict.fromkeys(ROLES, 8)


def make_model(name: str) -> nn.Module:
    return make_dense() if name == "vit" else make_language(name)


def spec_of(name: str, **changes):
    return SPEC.with_(**changes) if name == "vit" else language_spec(name, **changes)


def make_batch(name: str) -> dict[str, torch.Tensor]:
    if name == "vit":
        images = make_images(3)
        return images.batch(images.read(torch.arange(3)), CPU)[0]
    return {"input_ids": make_tokens(3)}


def with_mlps(name: str, seed: int = 3) -> nn.Module:
    spec = spec_of(name, projections=ProjectionsSpec(widths=WIDTHS))
    return randomise(dense_model(spec), seed)


def split_all(model: nn.Module) -> nn.Module:
    ffns = find(model, FFN).values()
    return to_moe(model, [assign_neurons(f.activated.weight, 4, "kmeans", 0) for f in ffns])


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
@pytest.mark.parametrize("name", ARCHITECTURES)
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_with_all_experts_on_the_split_model_is_equal(name):
    model, inputs = with_mlps(name), make_batch(name)
    with torch.no_grad():
        dense = logits_of(model, inputs)
        torch.testing.assert_close(logits_of(split_all(model), inputs), dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cost_of_all_parts(name):
    """Counted by torch, and layer by layer: MLPs cost what their maps cost."""
    linear, sample = make_model(name), {k: v[:1] for k, v in make_batch(name).items()}
    before = model_cost(linear, sample)
    separate_projections(name, linear)
    projections = [p for p in find(linear, Projection).values()]
    maps = 2 * sum(p.in_features * p.out_features for p in projections) * before.tokens
    model = with_mlps(name)
    mlps = [f for f in find(model, FFN).values() if f.role != "ffn"]
    widths = [ffn_flops(f.d_model, f.d_ff, d_out=f.d_out) for f in mlps]
    cost = model_cost(model, sample)
    assert cost.fixed == before.fixed - maps
    assert cost.dense == before.dense - maps + sum(widths) * before.tokens
    routed = add_routers(split_all(model), "regression", width=6, projection_width=2)
    moes = find(routed, MoE).values()
    routers = sum(router_flops(m.d_model, 6 if m.role == "ffn" else 2, m.num_experts) for m in moes)
    executed = {n: before.tokens * m.num_experts for n, m in find(routed, MoE).items()}
    assert model_cost(routed, sample).total(executed) == cost.dense + routers * before.tokens


@pytest.mark.parametrize("name", CAUSAL)
def test_generation_with_a_cache_equals_that_without(name):
    model = add_routers(split_all(with_mlps(name)), "regression", 6, 2).eval()
    set_selection(model, "dynamic_k", 0.5)
    prompt = make_tokens(2, 4)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options["attention_mask"] = torch.ones_like(prompt)
    cached, uncached = (model.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert cached.shape == (2, 10) and torch.equal(cached, uncached)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_save_and_load(name, tmp_path):
    widths = dict.fromkeys(ROLES, 8)
    spec = spec_of(name, projections=ProjectionsSpec(widths=widths, expert_size=2))
    ffn = next(iter(find(make_model(name), FFN).values()))
    router = RouterSpec(kind="regression", width=6, projection_width=3)
    spec = spec.with_(num_experts=ffn.d_ff // 4, router=router)
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
