"""The kernels: against the masked sum in fp64, the tables' invariants, and the choice of a backend.

Without a GPU the Triton kernels run in Triton's interpreter, in fp32.
"""

from dataclasses import replace

import pytest
import torch
from small import others_later
from small_kernels import (
    FORMS,
    SOME_FORMS,
    make_exact_router,
    make_mask,
    make_router,
    make_tokens,
    make_weights,
    masked_sum,
    quantized,
    relative_error,
)

from d2dmoe.activations import ACTIVATIONS, torch_function
from d2dmoe.errors import UnknownName, UserError
from d2dmoe.kernels import ops
from d2dmoe.kernels.cpu import grouped
from d2dmoe.kernels.launch import Launch
from d2dmoe.lookup import resolve
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.selection import dynamic_k
from d2dmoe.weights import ExpertWeights, dense, scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="this platform has no Triton")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from d2dmoe.kernels import decode, gpu, persistent  # noqa: E402

LAUNCH = Launch(superblock=128, tile=64)  # several superblocks, and several tiles of each
DETERMINISTIC = Launch(superblock=64, tile=64, deterministic=True)


def random_mask(tokens: int, n: int, density: float, seed: int = 0) -> torch.Tensor:
    return make_mask(tokens, n, density, DEVICE, seed)


def run(z, mask, weights: ExpertWeights, launch: Launch = LAUNCH) -> torch.Tensor:
    """The kernel for many tokens, whatever their number."""
    return persistent.run(z, weights, launch, mask=mask)


def tellers(n: int, d_model: int) -> ExpertWeights:
    """Experts whose summed output is the mask: the i-th adds 1 to column i, whatever its input."""
    down = torch.zeros(n, 16, n, device=DEVICE)
    down[:, 0] = torch.eye(n, device=DEVICE)
    ones = torch.ones(n, 16, device=DEVICE)
    return ExpertWeights(torch.zeros(n, 16, d_model, device=DEVICE), down, "relu", ones)


def test_the_gpu_kernels_refuse_fp64():
    weights = make_weights("relu", 3, 16, 16, 16, DEVICE, torch.float64)
    z, mask = make_tokens(4, 16, DEVICE, torch.float64), random_mask(4, 3, 0.5)
    with pytest.raises(UserError, match=r"torch.float64; the GPU kernels take fp32, fp16 and bf16"):
        gpu.expert_ffn(z, mask, weights)


# Which experts run


@pytest.mark.parametrize(
    "case",
    others_later(
        [(1, 1, 1.0), (200, 1, 0.3), (63, 3, 1.0), (64, 3, 1.0), (200, 5, 0.0)]
        + [(260, 3, 0.3), (3, 66, 0.05)],
        first=[(1, 1, 1.0), (64, 3, 1.0)],
    ),
)  # tiles are of 64 tokens, superblocks of 128, and a mask is read 64 experts at a time
def test_each_chosen_pair_of_token_and_expert_runs_once(case):
    tokens, n, density = case
    z, mask = make_tokens(tokens, 16, DEVICE), random_mask(tokens, n, density)
    for launch in (LAUNCH, DETERMINISTIC):
        assert torch.equal(run(z, mask, tellers(n, 16), launch), mask.float())


@pytest.mark.workflow
@pytest.mark.parametrize("ahead", [0, 2, 5])
@pytest.mark.parametrize("routed", [True, False])
def test_superblocks_may_be_routed_ahead_of_the_experts(ahead, routed):
    mask, launch = random_mask(200, 3, 0.5), replace(LAUNCH, superblock=64, ahead=ahead)
    z = torch.cat([mask.float(), make_tokens(200, 13, DEVICE)], 1)
    chosen = {"router": make_exact_router(3, 16, "regression", DEVICE), "tau": 0.5}
    found = persistent.run(z, tellers(3, 16), launch, **(chosen if routed else {"mask": mask}))
    assert torch.equal(found, mask.float())


@pytest.mark.workflow
@pytest.mark.parametrize("kind", ROUTER_KINDS)
@pytest.mark.parametrize(
    "tokens, n, h, launch",
    [(70, 3, 8, LAUNCH), (9, 5, 128, DETERMINISTIC), (9, 40, 20, DETERMINISTIC)],
)
def test_the_fused_router_selects_as_torch_does(tokens, n, h, launch, kind):
    z, router = make_tokens(tokens, 72, DEVICE), make_router(n, h, 72, kind, DEVICE)
    mask = persistent.run(z, tellers(n, 72), launch, router=router, tau=0.5)
    found = scores(z, router)
    near = (found - 0.5 * found.amax(-1, keepdim=True)).abs() < 1e-5
    assert ((mask == dynamic_k(found, 0.5)) | near).all() and near.float().mean() < 0.01


@pytest.mark.parametrize("tau, runs", [(0.0, True), (0.5, False)])
def test_a_token_whose_scores_are_all_0_runs_none_unless_tau_is_0(tau, runs):
    router = make_router(5, 8, 16, "regression", DEVICE)
    router = router._replace(down=router.down * 0, down_bias=router.down_bias * 0)
    z = make_tokens(3, 16, DEVICE)
    assert (persistent.run(z, tellers(5, 16), LAUNCH, router=router, tau=tau) == runs).all()


@pytest.mark.filterwarnings("ignore:invalid value")  # of numpy, in Triton's interpreter
@pytest.mark.parametrize(
    ("broken", "form"),
    [(torch.nan, "relu"), pytest.param(torch.inf, "gelu", marks=pytest.mark.workflow)],
)
def test_a_broken_token_comes_out_broken_and_alone(broken, form):
    weights, z = make_weights(form, 5, 16, 16, 16, DEVICE), make_tokens(5, 16, DEVICE)
    chosen = {"router": make_router(5, 8, 16, "regression", DEVICE), "tau": 0.6}

    def by_each_kernel() -> list[torch.Tensor]:
        return [persistent.run(z, weights, LAUNCH, **chosen), decode.run(z, weights, **chosen)]

    expected, others = by_each_kernel(), torch.arange(5) != 3
    z[3] = broken
    for found, before in zip(by_each_kernel(), expected, strict=True):
        assert not found[3].isfinite().any()
        assert relative_error(found[others], before[others]) < 1e-5


# The experts


@pytest.mark.workflow
@pytest.mark.parametrize("form", SOME_FORMS)
@pytest.mark.parametrize("tokens, e", [(1, 24), (140, 64)])
def test_the_kernels_give_the_masked_sum(form, tokens, e):
    weights = make_weights(form, 5, e, d_model=72, d_out=40, device=DEVICE)
    z, mask = make_tokens(tokens, 72, DEVICE), random_mask(tokens, 5, 0.4)
    mask[:, 2] = False  # an expert without tokens
    mask[0] = tokens < 3  # a token without experts
    expected = masked_sum(z, mask, weights)
    for launch in (LAUNCH, DETERMINISTIC):
        assert relative_error(run(z, mask, weights, launch), expected) < 1e-5
    assert relative_error(grouped(z, mask, weights), expected) < 1e-5
    assert relative_error(dense(z, mask, weights), expected) < 1e-5


@pytest.mark.workflow
@pytest.mark.parametrize("form", FORMS)
def test_every_activation_gives_the_masked_sum(form):
    """For many tokens and for few, on the GPU and on the CPU."""
    weights = make_weights(form, 3, 24, d_model=32, d_out=40, device=DEVICE)
    z, mask = 3 * make_tokens(20, 32, DEVICE), random_mask(20, 3, 0.5)
    mask[0] = True
    expected = masked_sum(z, mask, weights)
    for found in (run(z, mask, weights), grouped(z, mask, weights), dense(z, mask, weights)):
        assert relative_error(found, expected) < 1e-5
    assert relative_error(decode.run(z[:4], weights, mask=mask[:4]), expected[:4]) < 1e-5


@pytest.mark.workflow
@pytest.mark.parametrize("form", ["relu", "relu glu with biases"])
@pytest.mark.parametrize("size", [40, 130])
def test_experts_of_many_neurons_are_taken_in_chunks(size, form):
    weights = make_weights(form, 3, size, d_model=32, d_out=48, device=DEVICE)
    z, mask = make_tokens(20, 32, DEVICE), random_mask(20, 3, 0.5)
    for launch in (LAUNCH, DETERMINISTIC, replace(LAUNCH, tma=False)):
        assert relative_error(run(z, mask, weights, launch), masked_sum(z, mask, weights)) < 1e-5


@pytest.mark.workflow
@pytest.mark.parametrize(
    "form, size, d_out", [("relu", 24, 64), ("relu", 40, 96), ("gelu_tanh glu", 24, 72)]
)
def test_for_many_tokens_the_second_matrix_is_put_in_order(size, d_out, form):
    """In groups of 16 columns, and not where these do not fill it."""
    tokens = persistent.PER_NEURON * 2 * size
    weights = make_weights(form, 2, size, d_model=32, d_out=d_out, device=DEVICE)
    before = weights.down.clone()
    z, mask = make_tokens(tokens, 32, DEVICE), random_mask(tokens, 2, 0.5)
    for launch in (LAUNCH, replace(LAUNCH, tile=128, ahead=0)):
        found = run(z, mask, weights, launch)
        assert relative_error(found, masked_sum(z, mask, weights)) < 1e-5
    assert torch.equal(weights.down, before)


@pytest.mark.parametrize("sizes", others_later([(30, 48), (32, 41), (100, 200)], [(30, 48)]))
def test_rows_need_not_fill_a_block_nor_be_aligned(sizes):
    d_model, d_out = sizes
    weights = make_weights("gelu", 3, 24, d_model, d_out, device=DEVICE)
    z, mask = make_tokens(70, d_model, DEVICE), random_mask(70, 3, 0.5)
    for found in (run(z, mask, weights), decode.run(z[:3], weights, mask=mask[:3])):
        expected = masked_sum(z, mask, weights)[: len(found)]
        assert relative_error(found, expected) < 1e-5


@pytest.mark.workflow
def test_all_tokens_may_run_one_expert_or_every_expert_or_none():
    weights = make_weights("relu", 4, 32, d_model=32, d_out=32, device=DEVICE)
    z = make_tokens(140, 32, DEVICE)
    one, every, none = (torch.zeros(140, 4, dtype=torch.bool, device=DEVICE) for _ in range(3))
    one[:, 1], every[:] = True, True
    for mask in (one, every):
        assert relative_error(run(z, mask, weights), masked_sum(z, mask, weights)) < 1e-5
    assert torch.equal(run(z, none, weights), weights.down_bias.expand(140, 32))


@pytest.mark.parametrize(
    "tokens, form", [(1, form) for form in SOME_FORMS] + [(16, "relu glu with biases")]
)
def test_decoding_gives_the_masked_sum(tokens, form):
    weights = make_weights(form, 6, 40, d_model=72, d_out=56, device=DEVICE)
    before = None if weights.down_bias is None else weights.down_bias.clone()
    z, mask = make_tokens(tokens, 72, DEVICE), random_mask(tokens, 6, 0.4)
    mask[0, 3] = True
    found = decode.run(z, weights, mask=mask)
    assert relative_error(found, masked_sum(z, mask, weights)) < 1e-5
    assert before is None or torch.equal(weights.down_bias, before)


@pytest.mark.workflow
@pytest.mark.parametrize("form", ["gelu", "relu glu with biases"])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_weights_may_be_int8(form, tokens):
    """In decoding the kernel reads them, for more tokens they are made floats."""
    weights = quantized(make_weights(form, 6, 40, d_model=72, d_out=56, device=DEVICE))
    z, mask = make_tokens(tokens, 72, DEVICE), random_mask(tokens, 6, 0.4)
    mask[0, 3] = True
    expected = masked_sum(z, mask, weights)
    assert relative_error(gpu.expert_ffn(z, mask, weights), expected) < 1e-5
    assert relative_error(grouped(z, mask, weights), expected) < 1e-5
    assert relative_error(dense(z, mask, weights), expected) < 1e-5


@pytest.mark.workflow
@pytest.mark.parametrize("kind", ROUTER_KINDS)
@pytest.mark.parametrize("tokens", [1, 5])
def test_decoding_selects_as_torch_does(tokens, kind):
    router, z = make_router(20, 24, 48, kind, DEVICE), make_tokens(tokens, 48, DEVICE)
    found = decode.run(z, tellers(20, 48), router=router, tau=0.5)
    assert torch.equal(found, dynamic_k(scores(z, router), 0.5).float())


@pytest.mark.parametrize("tokens", others_later([0, 1, 3, 70], [3]))
def test_the_fused_layer_is_router_and_experts(tokens):
    weights = make_weights("gelu_tanh glu", 4, 32, d_model=48, d_out=48, device=DEVICE)
    router, z = make_router(4, 16, 48, "regression", DEVICE), make_tokens(tokens, 48, DEVICE)
    mask = dynamic_k(scores(z, router), 0.5)
    found = gpu.dynamic_k_ffn(z, router, 0.5, weights, LAUNCH)
    assert found.shape == (tokens, 48)
    if tokens:
        assert relative_error(found, masked_sum(z, mask, weights)) < 1e-5


@pytest.mark.parametrize("tokens", others_later([2, 17], first=[2]))
def test_more_experts_than_the_fused_router_knows_are_routed_before(tokens):
    n = gpu.WIDEST_ROUTER + 4
    router, z = make_exact_router(n, n, "regression", DEVICE), random_mask(tokens, n, 0.02).float()
    weights = make_weights("relu", n, 16, d_model=n, d_out=24, device=DEVICE)
    found = gpu.dynamic_k_ffn(z, router, 0.5, weights, LAUNCH)
    assert relative_error(found, masked_sum(z, z > 0, weights)) < 1e-5


# The operators


def arguments(kind: str) -> tuple:
    weights = make_weights("relu glu with biases", 4, 16, d_model=24, d_out=32, device=DEVICE)
    z = make_tokens(9, 24, DEVICE)
    if kind == "mask":
        return (z, random_mask(9, 4, 0.5), weights)
    return (z, make_router(4, 8, 24, "regression", DEVICE), 0.5, weights)


@pytest.mark.workflow
@pytest.mark.parametrize("stored", [lambda weights: weights, quantized])
def test_the_operators_are_well_formed(stored):
    z, mask, weights = arguments("mask")
    torch.library.opcheck(ops._expert_ffn, (z, mask, *ops._flat(stored(weights))))
    z, router, tau, weights = arguments("router")
    torch.library.opcheck(ops._dynamic_k_ffn, (z, *router, tau, *ops._flat(stored(weights))))


@pytest.mark.workflow
def test_the_operators_can_be_compiled_without_a_break():
    z, mask, weights = arguments("mask")
    compiled = torch.compile(lambda z: 2 * ops.expert_ffn(z, mask, weights), backend="aot_eager")
    assert relative_error(compiled(z), 2 * masked_sum(z, mask, weights)) < 1e-5


def halved_scale(weights: ExpertWeights) -> ExpertWeights:
    return weights._replace(gate_scale=weights.gate_scale.half())


def scaled_floats(weights: ExpertWeights) -> ExpertWeights:
    int8 = quantized(weights)
    return int8._replace(up=weights.up, gate=weights.gate, down=weights.down)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda z, m, x: (z[:, :8], m, x), r"tokens must be \[tokens, 24\], these are \[9, 8\]"),
        (lambda z, m, x: (z, m[:, :3], x), r"must be boolean \[9, 4\], it is torch.bool \[9, 3\]"),
        (lambda z, m, x: (z, m.float(), x), "it is torch.float32"),
        (lambda z, m, x: (z.double(), m, x), "float64, the experts torch.float32: convert one"),
        (lambda z, m, x: (z, m, x._replace(activation="tanh")), "'tanh'; allowed: relu, "),
        (lambda z, m, x: (z, m, x._replace(down=x.down.half())), "down is torch.float16 without"),
        (
            lambda z, m, x: (z, m, quantized(x)._replace(down=x.down)),
            "down is torch.float32 with torch",
        ),
        (
            lambda z, m, x: (z, m, quantized(x)._replace(down_scale=None)),
            "int8 without scales, their",
        ),
        (
            lambda z, m, x: (z, m, halved_scale(quantized(x))),
            "int8 with torch.float16 scales, their",
        ),
        (lambda z, m, x: (z, m, scaled_floats(x)), "float32 with torch.float32 scales: int8 needs"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        ops.expert_ffn(*change(*arguments("mask")))


# What the kernels are compiled with


@triton.jit
def _apply(x, y, FUNCTION: tl.constexpr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, FUNCTION(tl.load(x + place)))


def applied(reference: str, x: torch.Tensor) -> torch.Tensor:
    """A function of a record, by Triton, of fp32 [a power of two]."""
    y = torch.empty_like(x)
    _apply[(1,)](x=x, y=y, FUNCTION=resolve(reference), SIZE=len(x))
    return y


@pytest.mark.filterwarnings("ignore:overflow")  # exponentials far below 0, in the interpreter
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_the_same_function_in_triton(name):
    record, x = ACTIVATIONS[name], torch.linspace(-30, 30, 1024, device=DEVICE)
    x[:2] = torch.tensor([0.0, record.threshold])
    found, expected = applied(record.triton, x), torch_function(name)(x.double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    assert torch_function(name)(x)[1].abs() < 1e-7 and found[1].abs() < 1e-7
    if record.exact:
        idle = x <= record.threshold
        assert not found[idle].any() and not torch_function(name)(x)[idle].any()


@pytest.mark.parametrize("kind", ROUTER_KINDS)
def test_a_routers_scores_are_the_same_function_in_triton_and_never_negative(kind):
    record, x = ROUTER_KINDS[kind], torch.linspace(-30, 30, 1024, device=DEVICE)
    found, expected = applied(record.triton, x), resolve(record.scores)(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert (found >= 0).all() and (expected >= 0).all()


@pytest.mark.parametrize("tokens", [3, 40])
def test_unknown_names_are_refused_before_a_launch(tokens):
    z, weights = make_tokens(tokens, 24, DEVICE), make_weights("relu", 4, 16, 24, 32, DEVICE)
    router, mask = make_router(4, 8, 24, "regression", DEVICE), random_mask(tokens, 4, 0.5)
    with pytest.raises(UnknownName, match="unknown activation 'tanh'; allowed: relu, relu_sq"):
        gpu.expert_ffn(z, mask, weights._replace(activation="tanh"))
    for function in (gpu.dynamic_k_ffn, ops.dynamic_k_ffn):
        with pytest.raises(UnknownName, match="kind 'norms'; allowed: regression, root_"):
            function(z, router._replace(kind="norms"), 0.5, weights)


@pytest.mark.parametrize("kernel, tokens", [(decode, 3), (persistent, 40)])
def test_products_of_an_unknown_precision_are_refused(kernel, tokens, monkeypatch):
    monkeypatch.setattr(kernel, "precision", lambda _z: "bf16x9")
    z, weights = make_tokens(tokens, 24, DEVICE), make_weights("relu", 4, 16, 24, 32, DEVICE)
    with pytest.raises(Exception) as raised:  # the compiler's, or the interpreter's
        gpu.expert_ffn(z, random_mask(tokens, 4, 0.5), weights)
    error, messages = raised.value, []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__
    assert "must be ieee, tf32 or tf32x3" in "".join(messages)
