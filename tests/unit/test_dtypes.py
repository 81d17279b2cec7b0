"""Layers in every number format, and under autocast: errors are of the format's size."""

import pytest
import torch
from small import make_ffn, others_later, randomise
from torch import nn

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.conversion import add_routers, to_moe
from d2dmoe.errors import UserError
from d2dmoe.ffn import FFN
from d2dmoe.kernels import ops
from d2dmoe.moe import MoE, set_selection, split_ffn
from d2dmoe.router import norm_regression_loss
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.sparsity import PENALTIES, penalty, watch_activations

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 2**-53}
HALF = [torch.bfloat16, torch.float16]
BACKENDS = ["auto", "dense", "dynamic_k"]
FORMS = [{"gated": gated, "bias": bias} for gated in (False, True) for bias in (True, False)]


def make_layer(
    dtype: torch.dtype = torch.float32,
    activation: str = "gelu",
    kind: str = "regression",
    **form,
) -> MoE:
    """Four experts of 64 neurons with a router, which the CPU computes one by one."""
    ffn = make_ffn(32, 256, activation, **form).to(dtype)
    with torch.no_grad():
        for p in ffn.parameters():
            p.mul_(0.3)
    model = to_moe(nn.Sequential(ffn), [torch.arange(256).view(4, 64)])
    torch.manual_seed(0)
    return add_routers(model, kind, 16).eval()[0]


def tokens(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def expected_of(moe: MoE, z: torch.Tensor) -> torch.Tensor:
    """The layer's output in fp64 for the experts that it selects in its own format."""
    mask = moe.selection(moe.router(z))
    assert 0 < mask.sum() < 0.6 * mask.numel()  # so that `auto` is dynamic_k
    exact = split_ffn(make_ffn(32, 256, "gelu"), torch.arange(256).view(4, 64))
    for name in ("up", "up_bias", "down", "down_bias"):
        setattr(exact, name, nn.Parameter(getattr(moe, name).double()))
    hidden = exact.hidden(z.double()) * mask.unsqueeze(-1)
    return torch.einsum("...ne,neo->...o", hidden, exact.down) + exact.down_bias


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_layer_computes_in_its_own_dtype(dtype, backend, grad):
    moe, z = make_layer(dtype), tokens(dtype)
    moe.selection.value, moe.backend.name = 0.9, backend
    with torch.set_grad_enabled(grad):
        found = moe(z)
    assert found.dtype == dtype
    assert error(found, expected_of(moe, z)) < 4 * ROUNDING[dtype]


@pytest.mark.parametrize("inputs", [torch.float32, None], ids=["fp32", "narrow"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_rounds_a_layer_as_it_does_linear_maps(dtype, backend, grad, inputs):
    moe, z = make_layer(), tokens(inputs or dtype)
    moe.selection.value, moe.backend.name = 0.9, backend
    with torch.autocast("cpu", dtype):
        with torch.set_grad_enabled(grad):
            found = moe(z)
        with torch.autocast("cpu", enabled=False):
            narrow = make_layer(dtype)
            narrow.selection.value = 0.9
    assert found.dtype == dtype
    assert error(found, expected_of(narrow, z.to(dtype))) < 6 * ROUNDING[dtype]


@pytest.mark.parametrize("kind", ROUTER_KINDS)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("activation", others_later(ACTIVATIONS, ["relu", "silu"]))
def test_every_form_of_experts_runs_under_autocast(activation, form, kind):
    moe, z = make_layer(activation=activation, kind=kind, **form), tokens()
    moe.selection.value = 0.5
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = {backend: moe.run(z, backend) for backend in BACKENDS}
    assert {x.dtype for x in found.values()} == {torch.bfloat16}
    for x in found.values():
        assert error(x, found["dense"]) < 2**-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("router", "experts"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float64, torch.half)],
)
def test_a_router_may_have_a_dtype_of_its_own(router, experts, backend):
    moe, z = make_layer(experts), tokens(experts)
    moe.router.to(router)
    moe.selection.value = 0.9
    with torch.no_grad():
        found = moe.run(z, backend)
        assert error(found, expected_of(moe, z)) < 4 * ROUNDING.get(experts, 2**-20)


@pytest.mark.parametrize("gated", [False, True])
def test_a_down_map_kept_in_fp32_stays_so(gated):
    """As transformers loads T5 in fp16."""
    ffn, z = make_ffn(32, 256, "relu", gated=gated).half(), tokens(torch.half)
    ffn.down.float()
    expected = ffn(z)
    assert expected.dtype == torch.float32
    moe = split_ffn(ffn, torch.arange(256).view(4, 64)).eval()
    assert moe.down.dtype == torch.float32 and moe.up.dtype == torch.half
    model = add_routers(nn.Sequential(moe), "regression", 16)
    set_selection(model, "dynamic_k", 0.0)
    with torch.no_grad():
        for backend in BACKENDS:
            found = moe.run(z, backend)
            assert found.dtype == torch.float32 and error(found, expected) < 1e-3
    assert moe.router.dtype == torch.half


def test_other_dtypes_than_the_layers_are_refused():
    moe, z = make_layer(torch.bfloat16), tokens()
    for backend in BACKENDS:
        with pytest.raises(UserError, match=r"tokens are torch.float32, the experts torch.bfloat"):
            moe.run(z, backend)
    weights, flat = moe.weights, z.flatten(0, 1).bfloat16()
    router = make_layer().router.weights
    with pytest.raises(UserError, match=r"tokens are torch.bfloat16, the router torch.float32"):
        ops.dynamic_k_ffn(flat, router, 0.5, weights)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert ops.dynamic_k_ffn(flat, router, 0.5, weights).dtype == torch.bfloat16


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_a_converted_model_may_change_its_dtype(convert):
    moe = make_layer()
    moe.selection.value = 0.9
    convert(moe)
    (dtype,) = {p.dtype for p in moe.parameters()}
    z = tokens(dtype)
    with torch.no_grad():
        assert error(moe(z), expected_of(moe, z)) < 4 * ROUNDING[dtype]


def test_norms_of_experts_in_fp16_do_not_overflow():
    moe = make_layer()
    with torch.no_grad():
        moe.down.mul_(1000)
    z, expected = tokens(), moe.output_norms(tokens())
    assert (expected.square() > torch.finfo(torch.half).max).any()
    with torch.autocast("cpu", torch.half):
        assert error(moe.output_norms(z), expected) < 1e-2
    moe.half()
    assert error(moe.output_norms(z.half()), expected) < 1e-2
    loss = norm_regression_loss(moe.router, moe, z.half())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in moe.router.parameters())


@pytest.mark.parametrize("mode", PENALTIES)
def test_penalties_in_fp16_neither_overflow_nor_divide_by_zero(mode):
    activation = PENALTIES[mode].activation or "gelu"
    ffn = randomise(FFN(nn.Linear(8, 512), nn.Linear(512, 8), activation), scale=2)
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ffn.up.bias.zero_()
        z[0] = 0  # an idle token

    def of(model: nn.Module, z: torch.Tensor) -> torch.Tensor:
        with watch_activations(model) as activations:
            model(z)
        return penalty(mode, activations.values())

    expected = of(nn.Sequential(ffn), z)
    found = of(nn.Sequential(ffn).half(), z.half())
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)
    found.backward()
    assert ffn.up.weight.grad.isfinite().all()
    with torch.autocast("cpu", torch.half):
        assert of(nn.Sequential(ffn.float()), z).item() == pytest.approx(expected.item(), rel=1e-2)
