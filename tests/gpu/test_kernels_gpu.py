"""The kernels on a CUDA device: in every dtype, and in graphs, streams and compiled models.

They work in memory that held NaN before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from small_kernels import (
    FORMS,
    make_exact_router,
    make_mask,
    make_tokens,
    make_weights,
    masked_sum,
    quantized,
    relative_error,
)
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.kernels import ops
from d2dmoe.moe import split_ffn
from d2dmoe.router import Router
from d2dmoe.router_kinds import ROUTER_KINDS
from d2dmoe.weights import ExpertWeights, dense

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
pytest.importorskip("triton", reason="this platform has no Triton")

Layer = Callable[[Tensor, Tensor], Tensor]  # z, mask -> outputs


class Mode(NamedTuple):
    """Numbers that the kernels compute with, and how far from fp64 their outputs may be."""

    dtype: torch.dtype
    tf32: bool
    bound: float


MODES = {
    "bf16": Mode(torch.bfloat16, False, 1e-2),
    "fp16": Mode(torch.float16, False, 1e-2),
    "fp32": Mode(torch.float32, False, 1e-5),
    "tf32": Mode(torch.float32, True, 5e-3),
}
SHAPES = [  # tokens, experts, neurons of one, d_model, d_out, form
    (12_500, 24, 128, 384, 384, "relu"),  # so many that W2's columns are put in order
    (4097, 16, 64, 72, 64, "gelu_tanh glu"),
    (4097, 24, 128, 384, 384, "relu"),
    (4097, 64, 96, 72, 40, "relu without biases"),
    (197, 128, 16, 70, 41, "gelu"),  # whose rows are not aligned
    (197, 32, 64, 72, 200, "gelu_tanh glu"),
    (197, 24, 256, 136, 72, "relu glu with biases"),
    (7, 24, 256, 136, 72, "gelu_tanh glu"),
    (7, 64, 16, 72, 40, "relu glu with biases"),
    (7, 128, 128, 72, 40, "relu without biases"),
    (1, 128, 96, 70, 41, "gelu"),
    (1, 32, 64, 384, 384, "relu"),
]
N, NEURONS, D_MODEL, D_OUT = 24, 64, 96, 48  # of the layer in most tests
FORM, BOUND = "relu glu with biases", MODES["bf16"].bound
few_and_many = pytest.mark.parametrize("tokens", [4, 300])  # decoding, and the persistent kernel


@pytest.fixture(autouse=True)
def poisoned() -> None:
    """Fill the memory that will be handed out with NaN, or -1."""
    torch.cuda.empty_cache()
    sizes = 16 * [2**20] + 8 * [2**26]  # those fill what the allocator reserves for them
    for block in [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]:
        block.fill_(0xFF)


@pytest.fixture(params=MODES)
def mode(request) -> Iterator[Mode]:
    mode, before = MODES[request.param], torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = mode.tf32
    yield mode
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def weights() -> ExpertWeights:
    return layer_weights()


@pytest.fixture(params=["expert_ffn", "dynamic_k_ffn"])
def layer(request, weights) -> Layer:
    """An operator with the experts, for z and mask as `draw` gives them."""
    return bind(request.param, weights)


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def layer_weights(device="cuda", dtype=torch.bfloat16) -> ExpertWeights:
    return make_weights(FORM, N, NEURONS, D_MODEL, D_OUT, device, dtype)


def bind(operator: str, weights: ExpertWeights) -> Layer:
    if operator == "expert_ffn":
        return lambda z, mask: ops.expert_ffn(z, mask, weights)
    n, device, dtype = weights.num_experts, weights.up.device, weights.up.dtype
    router = make_exact_router(n, weights.d_model, "regression", device, dtype)
    return lambda z, _mask: ops.dynamic_k_ffn(z, router, 0.5, weights)


def draw(
    tokens: int,
    density: float = 0.3,
    n: int = N,
    d_model: int = D_MODEL,
    dtype=torch.bfloat16,
    some: bool = False,
) -> tuple[Tensor, Tensor]:
    """Tokens whose first coordinates are their mask, which the exact router reads, and the mask.

    With `some` every token runs an expert.
    """
    z, mask = make_tokens(tokens, d_model), make_mask(tokens, n, density, seed=int(100 * density))
    row = torch.arange(tokens)
    mask[row, row % n] |= some | (row == 0)
    z[:, :n] = mask.float()
    return z.to("cuda", dtype), mask.cuda()


def again(run: Callable[[], Tensor]) -> Tensor:
    """The output in the memory of an earlier one, full of NaN."""
    run().fill_(float("nan"))
    return run()


# Numbers


@pytest.mark.parametrize("tokens, n, e, d_model, d_out, form", SHAPES)
def test_the_operator_gives_the_masked_sum(tokens, n, e, d_model, d_out, form, mode):
    weights = make_weights(form, n, e, d_model, d_out, "cuda", mode.dtype)
    z, mask = make_tokens(tokens, d_model, "cuda", mode.dtype), make_mask(tokens, n, 0.2, "cuda")
    mask[:, 2] = False  # an expert without tokens
    mask[0] = tokens == 1  # among several, a token without experts
    found = again(lambda: ops.expert_ffn(z, mask, weights))
    assert found.dtype == mode.dtype
    assert relative_error(found, masked_sum(z, mask, weights)) < mode.bound


@pytest.mark.parametrize("mode", ["bf16", "fp32"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
@few_and_many
def test_every_activation_gives_the_masked_sum(tokens, form, mode):
    weights = make_weights(form, 8, 64, 72, 40, "cuda", mode.dtype)
    z, mask = make_tokens(tokens, 72, "cuda", mode.dtype), make_mask(tokens, 8, 0.5, "cuda")
    found = again(lambda: ops.expert_ffn(z, mask, weights))
    assert relative_error(found, masked_sum(z, mask, weights)) < mode.bound


@pytest.mark.parametrize("mode", ["bf16", "fp16", "fp32"], indirect=True)
@pytest.mark.parametrize("form", ["relu", "gelu_tanh glu"])
@pytest.mark.parametrize("tokens", [1, 4, 300])
def test_weights_may_be_int8(tokens, form, mode):
    weights = quantized(make_weights(form, 24, 96, 640, 200, "cuda", mode.dtype))
    z, mask = make_tokens(tokens, 640, "cuda", mode.dtype), make_mask(tokens, 24, 0.2, "cuda")
    mask[0, 3] = True
    found = again(lambda: ops.expert_ffn(z, mask, weights))
    assert relative_error(found, masked_sum(z, mask, weights)) < mode.bound


@pytest.mark.parametrize("kind", ROUTER_KINDS)
@pytest.mark.parametrize("mode", ["bf16", "fp32"], indirect=True)
@pytest.mark.parametrize(
    "tokens, n, d_model",
    [(1, 24, 72), (4, 100, 136), (16, 256, 256), (300, 24, 72), (300, 256, 256)],
)
def test_the_fused_operator_gives_the_masked_sum_of_its_choice(tokens, n, d_model, kind, mode):
    z, mask = draw(tokens, 0.1, n, d_model, mode.dtype, some=kind == "classification")
    weights = make_weights("relu", n, 32, d_model, 40, "cuda", mode.dtype)
    router = make_exact_router(n, d_model, kind, "cuda", mode.dtype)
    found = again(lambda: ops.dynamic_k_ffn(z, router, 0.5, weights))
    assert relative_error(found, masked_sum(z, mask, weights)) < mode.bound


@few_and_many
def test_more_experts_than_the_fused_router_knows_may_be_chosen_from(tokens):
    z, mask = draw(tokens, 0.05, n=300, d_model=320)
    weights = make_weights("relu", 300, 32, 320, 40, "cuda", torch.bfloat16)
    found = bind("dynamic_k_ffn", weights)(z, mask)
    assert relative_error(found, masked_sum(z, mask, weights)) < BOUND


@few_and_many
def test_all_tokens_may_run_one_expert_or_every_expert_or_none(tokens):
    weights = layer_weights(dtype=torch.float32)
    z, mask = make_tokens(tokens, D_MODEL, "cuda"), make_mask(tokens, N, 0, "cuda")
    none = again(lambda: ops.expert_ffn(z, mask, weights))
    assert torch.equal(none, weights.down_bias.expand(tokens, -1))
    mask[:, 5] = True
    one = again(lambda: ops.expert_ffn(z, mask, weights))
    assert relative_error(one, masked_sum(z, mask, weights)) < 1e-5
    every = again(lambda: ops.expert_ffn(z, torch.ones_like(mask), weights))
    assert relative_error(every, dense(z, None, weights).double().cpu()) < 1e-5


def test_no_tokens_give_no_outputs(layer):
    z, mask = draw(4)
    assert layer(z[:0], mask[:0]).shape == (0, D_OUT)


def test_rows_may_lie_beyond_two_to_the_31():
    width = 768
    tokens = 2**31 // width + 200
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of the device's memory")
    weights = make_weights("relu", 4, 16, width, width, "cuda", torch.bfloat16)
    z, mask = (
        torch.zeros(tokens, width, device="cuda", dtype=torch.bfloat16),
        make_mask(tokens, 4, 1),
    )
    ends = torch.cat([torch.arange(64), torch.arange(tokens - 64, tokens)])
    z[ends.cuda()] = make_tokens(128, width, "cuda", torch.bfloat16)
    mask[ends] = make_mask(128, 4, 0.5)
    found = ops.expert_ffn(z, mask.cuda(), weights)[ends.cuda()]
    assert relative_error(found, masked_sum(z[ends.cuda()], mask[ends], weights)) < BOUND


@few_and_many
def test_deterministic_algorithms_give_the_same_bytes(layer, weights, tokens, deterministic):
    z, mask = draw(tokens)
    first = layer(z, mask)
    assert relative_error(first, masked_sum(z, mask, weights)) < BOUND
    for _ in range(5):
        assert torch.equal(first, layer(z, mask))


# Layouts of memory


def strided(x: Tensor) -> Tensor:
    """An equal tensor that has other numbers between its own in memory."""
    return torch.stack([x, x.flip(0)], -1)[..., 0]


def shifted(x: Tensor) -> Tensor:
    """An equal, contiguous tensor that starts in memory at an odd place."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


@few_and_many
@pytest.mark.parametrize("moved", [strided, shifted])
@pytest.mark.parametrize("part", ["z", "mask", "weights", "router"])
def test_tensors_may_lie_in_memory_as_they_like(part, moved, tokens, weights):
    def move(x, name: str):
        return moved(x) if name == part and isinstance(x, Tensor) else x

    z, mask = draw(tokens)
    expected = masked_sum(z, mask, weights)
    router = make_exact_router(N, D_MODEL, "regression", "cuda", torch.bfloat16)
    z, mask = move(z, "z"), move(mask, "mask")
    weights = ExpertWeights(*(move(x, "weights") for x in weights))
    router = router._make(move(x, "router") for x in router)
    assert relative_error(ops.expert_ffn(z, mask, weights), expected) < BOUND
    assert relative_error(ops.dynamic_k_ffn(z, router, 0.5, weights), expected) < BOUND


@few_and_many
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_may_be_on_another_device_than_the_current_one(tokens):
    weights = layer_weights("cuda:1")
    z, mask = (x.to("cuda:1") for x in draw(tokens))
    for operator in ("expert_ffn", "dynamic_k_ffn"):
        found = bind(operator, weights)(z, mask)
        assert relative_error(found, masked_sum(z, mask, weights)) < BOUND


# How they are launched


@contextmanager
def refused_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@few_and_many
def test_the_host_never_waits_for_the_device(layer, weights, tokens):
    z, mask = draw(tokens)
    layer(z, mask)
    with refused_synchronisation():
        found = layer(z, mask)
    assert relative_error(found, masked_sum(z, mask, weights)) < BOUND


@few_and_many
def test_replays_of_a_graph_follow_the_routing(layer, weights, tokens):
    z, mask = draw(tokens, 0.5)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        layer(z, mask)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        out = layer(z, mask)
    for density in (0.1, 1.0, 0.0, 0.4):
        for old, new in zip((z, mask), draw(tokens, density), strict=True):
            old.copy_(new)
        expected = masked_sum(z, mask, weights)
        for _ in range(2):
            out.fill_(float("nan"))
            graph.replay()
            assert relative_error(out, expected) < BOUND


@pytest.mark.parametrize("tokens", [16, 20_000])
def test_two_streams_may_run_the_layer_at_once(layer, weights, tokens):
    inputs = [draw(tokens, density) for density in (0.2, 0.6)]
    streams, found = [torch.cuda.Stream() for _ in inputs], [[] for _ in inputs]
    layer(*inputs[0])
    torch.cuda.synchronize()
    for _ in range(10):
        for stream, given, outputs in zip(streams, inputs, found, strict=True):
            with torch.cuda.stream(stream):
                outputs.append(layer(*given))
    torch.cuda.synchronize()
    for given, outputs in zip(inputs, found, strict=True):
        expected = masked_sum(*given, weights)
        assert all(relative_error(output, expected) < BOUND for output in outputs)


# As operators


@few_and_many
def test_the_operators_are_well_formed(tokens):
    weights = layer_weights(dtype=torch.float32)
    z, mask = draw(tokens, dtype=torch.float32)
    router = make_exact_router(N, D_MODEL, "regression", "cuda")
    torch.library.opcheck(ops._expert_ffn, (z, mask, *ops._flat(weights)))
    torch.library.opcheck(ops._dynamic_k_ffn, (z, *router, 0.5, *ops._flat(weights)))


@few_and_many
@pytest.mark.parametrize("rule, value", [("dynamic_k", 0.5), ("top_k", 3)])
def test_a_compiled_layer_equals_the_eager_one(rule, value, tokens):
    torch.manual_seed(0)
    ffn = FFN(nn.Linear(D_MODEL, N * 16), nn.Linear(N * 16, D_MODEL), "relu")
    moe = split_ffn(ffn, torch.randperm(N * 16).view(N, 16))
    moe.router, moe.backend.name = Router(D_MODEL, 32, N, "regression"), "dynamic_k"
    moe.selection.rule, moe.selection.value = rule, value
    model = nn.Sequential(moe, nn.GELU()).cuda().eval()
    z = make_tokens(tokens, D_MODEL, "cuda").view(2, -1, D_MODEL)
    with torch.no_grad():
        expected = model(z).double().cpu()
        found = torch.compile(model, fullgraph=True)(z)
    assert relative_error(found, expected) < 1e-5
