"""Laws of discovery: what is an FFN is found by its numbers and adopted without a change of the
model's outputs; what is none, or cannot be proved, stays as it was and is refused by name."""

import copy
import json
import warnings

import pytest
import torch
from small import others_later
from torch import nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

import d2dmoe
from d2dmoe.activations import ACTIVATIONS, torch_function
from d2dmoe.api.convert import default_size
from d2dmoe.attention import Projection
from d2dmoe.discovery.ffns import adopt_ffns
from d2dmoe.discovery.projections import separate_projections
from d2dmoe.discovery.trace import Example
from d2dmoe.errors import UserError
from d2dmoe.ffn import FFN
from d2dmoe.layers import Bypass, describe, rebuild
from d2dmoe.moe import MoE
from d2dmoe.surgery import find

D, D_FF, TOKENS = 16, 48, 12


class Block(nn.Module):
    """An FFN of odd names; `kind` says how it is written."""

    def __init__(self, kind: str, act):
        super().__init__()
        self.kind, self.banana = kind, act
        self.x1 = nn.Linear(D, 2 * D_FF if kind.startswith("fused") else D_FF)
        self.x3, self.x2 = nn.Linear(D, D_FF), nn.Linear(D_FF, D)
        self.dropout = nn.Dropout(0.3)
        if kind in ("plain", "residual") or kind.startswith("fused"):
            del self.x3

    def forward(self, z):
        if self.kind == "gated":
            return self.x2(self.dropout(self.banana(self.x1(z)) * self.x3(z)))
        if self.kind.startswith("fused"):
            one, other = self.x1(z).chunk(2, dim=-1)
            gate, up = (one, other) if self.kind == "fused gate first" else (other, one)
            return self.x2(self.banana(gate) * up)
        out = self.x2(self.dropout(self.banana(self.x1(z))))
        return z + out if self.kind == "residual" else out


class Model(nn.Module):
    def __init__(self, kind: str, act, layers: int = 2):
        super().__init__()
        self.blocks = nn.ModuleList(Block(kind, act) for _ in range(layers))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


class Act(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def example() -> Example:
    torch.manual_seed(1)
    return Example((torch.randn(2, TOKENS, D),), {})


def outputs(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(*example().args)


def made(kind: str, act) -> nn.Module:
    torch.manual_seed(0)
    return Model(kind, act)


KINDS = ("plain", "residual", "gated", "fused gate first", "fused gate last")


@pytest.mark.parametrize("kind", KINDS)
def test_ffns_are_found_however_they_are_written(kind):
    model = made(kind, nn.SiLU())
    before = outputs(model)
    adoption = adopt_ffns(model, example())
    ffns = find(model, FFN)
    assert not adoption.refused and len(ffns) == 2
    assert {ffn.activation_name for ffn in ffns.values()} == {"silu"}
    assert all((ffn.gate is not None) == (kind in KINDS[2:]) for ffn in ffns.values())
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_known_by_its_values_alone(name, dtype):
    """Weights so small that all activations look alike on the example."""
    model = made("plain", torch_function(name)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-2)
    adoption = adopt_ffns(model, Example((example().args[0].to(dtype),), {}))
    assert not adoption.refused
    assert {ffn.activation_name for ffn in find(model, FFN).values()} == {name}


class StarReLU(nn.Module):
    """As CAFormer has it."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(0.9)), nn.Parameter(torch.tensor(-0.4))

    def forward(self, x):
        return self.scale * relu(x).square() + self.shift


@pytest.mark.parametrize("bias", [True, False])
def test_what_scales_and_shifts_an_activation_goes_into_the_last_map(bias):
    model = made("plain", StarReLU())
    for block in model.blocks if not bias else ():
        block.x2 = nn.Linear(D_FF, D, bias=False)
    model.blocks.append(model.blocks[0])  # called twice
    before = outputs(model)
    adoption = adopt_ffns(model, example())
    assert not adoption.refused
    assert {ffn.activation_name for ffn in find(model, FFN).values()} == {"relu_squared"}
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)


def test_parameters_dropouts_and_modes_stay():
    model = made("plain", nn.ReLU()).train()
    model.blocks[0].x1.weight.requires_grad_(False)
    model.blocks[1].eval()
    parameters = {id(parameter) for parameter in model.parameters()}
    adopt_ffns(model, example())
    first, second = find(model, FFN).values()
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert not first.up.weight.requires_grad and second.up.weight.requires_grad
    assert (first.hidden_dropout.p, first.dropout.p) == (0.3, 0.0)
    assert first.training and not second.training and not second.up.training


def test_one_block_that_two_places_share_stays_one():
    model = made("plain", nn.ReLU())
    model.blocks[1] = model.blocks[0]
    before = outputs(model)
    d2dmoe.convert(model, 16, example=example().args)
    assert model.blocks[0] is model.blocks[1] and len(find(model, MoE)) == 1
    torch.testing.assert_close(outputs(model), before)


def test_hooks_whose_modules_go_are_named():
    model, calls = made("plain", nn.ReLU()), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append("block"))
    model.blocks[1].x1.register_forward_pre_hook(lambda *_: calls.append("map"))
    with pytest.warns(UserWarning, match="hooks of blocks.0 and 1 more"):
        d2dmoe.convert(model, 12, example=example().args)
    calls.clear()
    outputs(model)
    assert not calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = made("plain", nn.ReLU())
        other.register_forward_hook(lambda *_: calls.append("model"))
        d2dmoe.convert(other, 12, example=example().args)
    calls.clear()
    outputs(other)
    assert calls == ["model"]


def tied(kind: str) -> nn.Module:
    """A model of three blocks, of which the last shares tensors with the first."""
    model: nn.Module = Model("plain", nn.GELU(), layers=3)
    one, other = model.blocks[0], model.blocks[2]
    if kind == "all":
        other.x1.weight, other.x2.weight = one.x1.weight, one.x2.weight
        other.x1.bias, other.x2.bias = one.x1.bias, one.x2.bias
    elif kind == "one matrix":
        other.x2.weight = one.x2.weight
    elif kind == "a bias":
        other.x2.bias = one.x2.bias
    elif kind == "memory":
        other.x1.weight.data = one.x1.weight.data
    elif kind == "outside":
        model = nn.Sequential(model, nn.Linear(D, D_FF))
        model[1].weight = one.x1.weight
    return model


@pytest.mark.parametrize("kind", ["all", "one matrix", "a bias", "memory", "outside"])
def test_weights_that_several_modules_share_are_not_parted(kind):
    model = tied(kind)
    before, tensors = outputs(model), len(list(model.parameters()))
    refused = dict(d2dmoe.inspect(model, example=example().args[0]).refused)
    assert refused and all("shares weights with" in reason for reason in refused.values())
    d2dmoe.convert(model, 12, example=example().args[0])
    parted = 1 if kind != "outside" else 2  # the blocks between them
    assert len(find(model, MoE)) == parted and len(refused) == 3 - parted
    assert len(list(model.parameters())) == tensors  # of an FFN as many as of its experts
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)


def test_ffns_of_ones_own_that_share_weights_are_named():
    model = nn.Sequential(*(FFN(nn.Linear(D, D_FF), nn.Linear(D_FF, D), "relu") for _ in range(2)))
    model[1].down.weight = model[0].down.weight
    with pytest.raises(UserError, match="0: it shares weights with 1.down"):
        d2dmoe.convert(model, 12)
    assert not find(model, MoE)
    model[1] = model[0]
    assert len(find(d2dmoe.convert(model, 12), MoE)) == 1


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (nn.LeakyReLU(), "LeakyReLU"),
        (nn.Sequential(nn.ReLU(), nn.LayerNorm(D_FF)), "LayerNorm"),
        (lambda x: relu(x).flip(-1), "between"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm1d(TOKENS, affine=False)), "BatchNorm1d"),
        (lambda x: relu(x).clamp(max=6), "between"),  # ReLU6, far above what the example reaches
    ],
)
def test_what_is_nearly_an_ffn_is_refused_by_name_and_stays(act, reason):
    model = made("plain", act)
    before, printed = outputs(model), str(model)
    with pytest.raises(UserError, match=r"blocks\.0\.x1") as error:
        d2dmoe.convert(model, 16, example=example().args)
    assert reason in str(error.value)
    assert str(model) == printed and torch.equal(outputs(model), before)


class Inline(Block):
    def forward(self, z):
        return z + self.x2(gelu(self.x1(z)))


def test_an_activation_that_cannot_be_replaced_is_refused():
    model = made("residual", None)
    model.blocks[1] = Inline("residual", None)
    model.blocks[0].banana = relu  # an attribute can be
    adoption = adopt_ffns(model, example())
    assert list(find(model, FFN)) == ["blocks.0.x1"]
    assert list(adoption.refused) == ["blocks.1.x1"]
    adoption.undo()
    assert model.blocks[0].banana is relu and not find(model, (FFN, Bypass))


class Channels(nn.Module):
    """A block on [batch, D, *positions], whose maps are convolutions of one position."""

    def __init__(self, convolution, gated=False, between=None, **options):
        super().__init__()
        self.x1 = convolution(D, 2 * D_FF if gated else D_FF, 1, **options)
        self.act, self.between = nn.GELU(), between or nn.Identity()
        self.x2, self.gated = convolution(D_FF, D, 1, bias=False), gated

    def forward(self, z):
        one = self.between(self.x1(z))
        if self.gated:
            gate, up = one.chunk(2, dim=1)
            return self.x2(self.act(gate) * up)
        return z + self.x2(self.act(one))


def image(positions: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, D, *range(3, 3 + positions))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("positions", [1, 2])
def test_convolutions_of_one_position_are_maps_of_its_features(positions, gated):
    torch.manual_seed(0)
    convolution = (nn.Conv1d, nn.Conv2d)[positions - 1]
    model = nn.Sequential(*(Channels(convolution, gated) for _ in range(2))).eval()
    fresh, x = copy.deepcopy(model), image(positions)
    with torch.no_grad():
        before = model(x)
        d2dmoe.convert(model, num_experts=4, example=x)
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
    d2dmoe.train_routers(model, [x], steps=1, width=4)
    d2dmoe.set_operating_point(model, "top_k", 1)
    found = d2dmoe.evaluate(model, [x])
    assert [row["executed"] for row in found.layers] == [1.0, 1.0]
    tokens, expert = x[0, 0].numel(), 2 * (3 if gated else 2) * D * D_FF // 4
    assert found.flops == 2 * tokens * (2 * 4 * (D + 4) + expert)
    rebuild(fresh, describe(model)).load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Channels(nn.Conv2d, between=nn.BatchNorm2d(D_FF)), "BatchNorm2d"),
        (Channels(nn.Conv2d, between=nn.Conv2d(D_FF, D_FF, 3, padding=1)), "between"),
        (Channels(nn.Conv2d, groups=2), "2 groups"),
    ],
)
def test_convolutions_that_are_no_such_maps_are_refused(block, reason):
    with pytest.raises(UserError, match=reason):
        d2dmoe.convert(nn.Sequential(block), 16, example=image(2))


class Lying(nn.Linear):
    """A map that computes more than it says, where the probe does not look."""

    def forward(self, x):
        return super().forward(x) + x.mean()


def test_a_map_that_computes_more_is_refused():
    model = made("plain", nn.ReLU())
    lying = Lying(D_FF, D)
    lying.load_state_dict(model.blocks[0].x2.state_dict())
    model.blocks[0].x2 = lying
    adoption = adopt_ffns(model, example())
    assert list(find(model, FFN)) == ["blocks.1"]
    assert "more than its weight" in adoption.refused["blocks.0.x1"]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(D, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(D, D_FF), nn.ReLU(), nn.Linear(D_FF, D)) for _ in range(4)
        )

    def forward(self, x):
        weights = self.router(x).softmax(-1).unbind(-1)
        return sum(w[..., None] * e(x) for w, e in zip(weights, self.experts, strict=True))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Experts(), "mixture"),
        (nn.Linear(D, D), "no feed-forward"),
        (nn.Sequential(nn.Linear(D, D, device="meta")), "meta"),
    ],
)
def test_models_that_cannot_be_converted_are_refused(model, reason):
    with pytest.raises(UserError, match=reason):
        d2dmoe.convert(model, 16, example=example().args)


def test_a_model_of_which_nothing_is_known_asks_for_an_example():
    with pytest.raises(UserError, match="example="):
        d2dmoe.convert(made("plain", nn.ReLU()), 16)


def test_a_size_that_does_not_divide_names_those_nearby_and_changes_nothing():
    model = made("plain", nn.ReLU())
    printed = str(model)
    with pytest.raises(UserError, match="12, 16"):
        d2dmoe.convert(model, 14, example=example().args)
    assert str(model) == printed
    assert [default_size(n) for n in (48, 3072, 11008)] == [16, 48, 172]


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, D_FF, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_torch_s_fast_path_does_not_bypass_the_layers():
    model, fresh = encoder(), encoder()
    before = outputs(model)
    d2dmoe.convert(model, 16)
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)
    rebuild(fresh, describe(model)).load_state_dict(model.state_dict())
    assert torch.equal(outputs(fresh), outputs(model))


@pytest.mark.parametrize("projections", [False, True])
def test_torch_s_encoders_leave_padding_out_without_the_layers_weights(projections):
    """In evaluation mode they make nested tensors of what is no padding, and read weights."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, D_FF, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2).eval(), example().args[0]
    padding = torch.arange(TOKENS).expand(2, -1) >= torch.tensor([[7], [TOKENS]])
    assert model.use_nested_tensor
    with torch.no_grad():
        before = model(x, src_key_padding_mask=padding)
        if projections:
            separate_projections(model)
        else:
            d2dmoe.convert(model, 16)
        after = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(after[~padding], before[~padding], rtol=0, atol=1e-5)


@pytest.mark.workflow
def test_projections_are_separate_and_imitated_and_split():
    model, fresh = encoder(), encoder()
    before = outputs(model)
    separate_projections(model)
    assert len(find(model, Projection)) == 8
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="imitate_projections"):
        d2dmoe.convert(copy.deepcopy(model), 16, attention=("q",))
    history = d2dmoe.imitate_projections(model, [example().args[0]], steps=60, lr=1e-2, alpha=0.0)
    assert history[-1]["error"] < history[0]["error"] / 2
    d2dmoe.convert(model, 16, attention=("q", "k", "v", "o"))
    assert len(find(model, MoE)) == 10 and not find(model, Projection)
    rebuild(fresh, describe(model)).load_state_dict(model.state_dict())
    assert torch.equal(outputs(fresh), outputs(model))


class Grouped(nn.Module):
    """Attention whose one map gives, for each group of heads, its queries, a key and a value."""

    def __init__(self, groups: int, queries: int):
        super().__init__()
        self.shape = (groups, queries + 2, 4)
        self.query_key_value = nn.Linear(D, groups * (queries + 2) * 4)
        self.dense = nn.Linear(groups * queries * 4, D)

    def parts(self, fused):
        """Q, K and V, each [..., heads, 4]."""
        by_group = fused.unflatten(-1, self.shape)
        return by_group[..., :-2, :].flatten(-3, -2), by_group[..., -2, :], by_group[..., -1, :]

    def forward(self, x):
        q, k, v = (part.transpose(1, 2) for part in self.parts(self.query_key_value(x)))
        k, v = (part.repeat_interleave(self.shape[1] - 2, dim=1) for part in (k, v))
        return self.dense(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


@pytest.mark.parametrize(("groups", "queries"), [(4, 1), (2, 2), (1, 4)])
def test_projections_that_lie_by_groups_of_heads_are_taken_apart(groups, queries):
    model = nn.Sequential(Grouped(groups, queries), *made("plain", nn.ReLU()).blocks)
    attention, x = model[0], example().args[0]
    before, expected = outputs(model), attention.parts(attention.query_key_value(x))
    separate_projections(model, x)
    torch.testing.assert_close(outputs(model), before)
    for role, values in zip("qkv", expected, strict=True):
        part = getattr(attention.query_key_value, role)
        assert part.role == role
        torch.testing.assert_close(part(x), values.flatten(-2))
    described = json.loads(json.dumps(describe(model)))
    again = rebuild(
        nn.Sequential(Grouped(groups, queries), *made("plain", nn.ReLU()).blocks), described
    )
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(outputs(again), before)


def gpt_neox() -> nn.Module:
    sizes = {"hidden_size": D, "num_hidden_layers": 2, "intermediate_size": D_FF}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, num_attention_heads=4, **sizes))


def bloom() -> nn.Module:
    return BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=D, n_layer=2, n_head=4))


def falcon() -> nn.Module:
    sizes = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2}
    return FalconForCausalLM(FalconConfig(vocab_size=50, new_decoder_architecture=True, **sizes))


@pytest.mark.parametrize("make", others_later([gpt_neox, bloom, falcon], [bloom]))
def test_projections_of_transformers_that_lie_by_heads_become_experts(make, tmp_path):
    torch.manual_seed(0)
    model, tokens = make().eval(), torch.arange(2, 26).view(2, 12)
    with torch.no_grad():
        before = model(tokens).logits
        separate_projections(model)
        torch.testing.assert_close(model(tokens).logits, before)
    d2dmoe.imitate_projections(model, [tokens], steps=1, maps=["q", "v"], multiple=4)
    d2dmoe.convert(model, 4, attention=["q", "v"])
    assert [moe.role for moe in find(model, MoE).values()].count("v") == 2
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_inspection_counts_what_fires_and_leaves_the_model():
    model = made("plain", nn.ReLU())
    printed = str(model)
    with torch.no_grad():
        model.blocks[0].x1.weight.zero_()
        model.blocks[0].x1.bias.copy_((torch.arange(D_FF) < 12).float() - 0.5)  # 12 of 48 fire
    found = d2dmoe.inspect(model, [example().args[0]])
    assert found.ffns[0].firing == 0.25 and "25.0%" in str(found)
    assert found.ffns[0].share == 0.5  # two blocks, and nothing else
    assert str(model) == printed
