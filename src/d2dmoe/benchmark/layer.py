"""One layer's wall-clock time at several executed shares (the paper's figures 5 and 11).

dense_eager              the layer in torch
dense_addmm              CUDA, ReLU or GELU: the activation fused into the first product
dense_compiled           CUDA: by torch.compile with its defaults; `max-autotune` takes 20 s, and
                         leaves a layer of ViT-B slower, 0.83 ms, than `dense_addmm`, 0.75
mlp_equal_flops          a dense MLP as narrow as what dynamic-k executes; on CUDA as `dense_addmm`,
                         or compiled where it has no such form
dynamic_k                router, selection, index lists and experts
dynamic_k_experts        index lists and experts alone, by a given mask
dynamic_k_deterministic  CUDA: as dynamic_k, with bits that repeat

On CUDA all are replays of CUDA graphs, so that neither Python nor launches count.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from d2dmoe.activations import torch_function
from d2dmoe.benchmark.common import DTYPES, machine, width
from d2dmoe.benchmark.masks import MASKS, TAU, recorded, selecting_router, with_choices
from d2dmoe.config.benchmarks import LayerBenchmark
from d2dmoe.jobs.progress import logger
from d2dmoe.kernels import ops
from d2dmoe.timing import Timing, compare
from d2dmoe.weights import ExpertWeights, RouterWeights

COLUMNS = [
    "device", "torch", "triton", "dtype", "tokens", "d_model", "num_experts", "expert_size",
    "activation", "mask", "fraction", "backend", "median_ms", "p20_ms", "p80_ms", "peak_mb",
]  # fmt: skip

# Activations that `torch._addmm_activation` has, and whether each is its GELU.
ADDMM = {"relu": False, "gelu": True}

Function = Callable[[], Tensor]


class Layer(NamedTuple):
    """Tokens and weights that are timed."""

    z: Tensor  # [tokens, d_model]
    weights: ExpertWeights
    router: RouterWeights
    projection: tuple[Tensor, Tensor] | None  # the map [d_out, d_model] that experts replace; bias


def all_rows(
    cfg: LayerBenchmark, device: torch.device, points: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """The rows of a layer in all of its number formats; see `layer_rows`."""
    rows = []
    for dtype in cfg.dtypes:
        rows += layer_rows(cfg, dtype, device, points)
        gc.collect()
        torch.cuda.empty_cache()  # the graphs' memory, which the next format could not use
    return rows


def layer_rows(
    cfg: LayerBenchmark,
    dtype: str,
    device: torch.device,
    points: Mapping[str, Tensor],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of `COLUMNS`, one per mask, executed share and backend.

    The router of `dynamic_k` selects exactly the wanted mask, for the first numbers of each token
    are that token's mask, and the router copies them to its scores. So every mask has tokens of its
    own, the same for all backends that it is timed with, and alike in all other numbers.

    Args:
        cfg: the layer, and what is timed.
        dtype: a key of `DTYPES`.
        device: where it runs.
        points: masks recorded of a converted model, bool [layers, tokens, n], by operating point;
            read where `cfg.masks` has `converted`.
        seed: of weights, tokens and masks.

    Returns:
        `fraction` is the share really executed; that of a dense layer is 1.
    """
    torch.compiler.reset()  # what was compiled for an earlier layer
    generator = torch.Generator().manual_seed(seed)
    layer = _layer(cfg, DTYPES[dtype], device, generator)
    common = machine(device) | {"dtype": dtype} | cfg.shape
    dense = {("dense_" + name, 1.0): function for name, function in _dense(layer).items()}
    rows = []
    for kind in cfg.masks:
        functions = dict(dense)
        for wanted in cfg.fractions:
            mask = _mask(kind, cfg, wanted, generator, points).to(device)
            functions |= _sparse(layer, mask)
        # Every narrow MLP may be a compilation of its own; beyond the limit they would run eagerly.
        with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=64):
            timings = compare(functions, device, cfg.round_s, graph=True)
        rows += [common | row for row in _timed(timings, kind)]
    return rows


def _timed(timings: Mapping[tuple[str, float], Timing], mask: str) -> Iterator[dict[str, Any]]:
    """The columns of rows that are not the same for the whole layer."""
    for (backend, fraction), timing in timings.items():
        what = f"{mask}: {backend} at {fraction:.3f}"
        logger.info("%s took %.4g ms", what, timing.median_ms)
        yield {"mask": mask, "fraction": fraction, "backend": backend} | timing._asdict()


def _mask(
    kind: str,
    cfg: LayerBenchmark,
    fraction: float,
    generator: torch.Generator,
    points: Mapping[str, Tensor],
) -> Tensor:
    if kind == "converted":
        return recorded(points, cfg.tokens, fraction)
    return MASKS[kind](cfg.tokens, cfg.num_experts, fraction, generator)


def _layer(
    cfg: LayerBenchmark, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Layer:
    """Random tokens, experts and map, and a router; never zeros, which multiply faster."""
    n, e, d = cfg.num_experts, cfg.expert_size, cfg.d_model

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * shape[-1] ** -0.5).to(device, dtype)

    gate = draw(n, e, d) if cfg.gated else None
    biases = (None, gate, None, None) if cfg.gated else (draw(n, e), None, None, draw(d))
    weights = ExpertWeights(draw(n, e, d), draw(n, e, d), cfg.activation, *biases)
    *maps, kind = selecting_router(n, cfg.router_width, d, generator)
    router = RouterWeights._make([*(x.to(device, dtype) for x in maps), kind])
    z = torch.randn(cfg.tokens, d, generator=generator).to(device, dtype)
    return Layer(z, weights, router, (draw(d, d), draw(d)) if cfg.projection else None)


def _sparse(layer: Layer, mask: Tensor) -> dict[tuple[str, float], Function]:
    """What is timed for a mask, by backend and executed share."""
    _, weights, router, _ = layer
    z = with_choices(layer.z, mask)
    fraction = mask.float().mean().item()
    narrow = _narrowed(weights, width(weights.num_experts * weights.expert_size, fraction))

    def dynamic_k() -> Tensor:
        return ops.dynamic_k_ffn(z, router, TAU, weights)

    functions = {
        "mlp_equal_flops": _fused(z, narrow),
        "dynamic_k": dynamic_k,
        "dynamic_k_experts": lambda: ops.expert_ffn(z, mask, weights),
    }
    if z.is_cuda:
        functions["dynamic_k_deterministic"] = lambda: _deterministic(dynamic_k)
    return {(backend, fraction): function for backend, function in functions.items()}


def _deterministic(function: Function) -> Tensor:
    """Its output under torch's deterministic algorithms, set as the stages of the workflow do."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # a debugging aid, and slow
    try:
        return function()
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        settings.fill_uninitialized_memory = fills


def _dense(layer: Layer) -> dict[str, Function]:
    """What the experts replace, in all forms."""
    if layer.projection is None:
        forms = _mlp(layer.z, layer.weights)
    else:
        weight, bias = layer.projection
        forms = {"eager": lambda: linear(layer.z, weight, bias)}
    return forms | ({"compiled": _compiled(forms["eager"])} if layer.z.is_cuda else {})


def _fused(z: Tensor, weights: ExpertWeights) -> Function:
    """A dense MLP of all experts with the activation fused into a product, where torch can."""
    forms = _mlp(z, weights)
    if "addmm" in forms:
        return forms["addmm"]
    return _compiled(forms["eager"]) if z.is_cuda else forms["eager"]


def _compiled(function: Function) -> Function:
    return torch.compile(function, dynamic=False)


def _mlp(z: Tensor, weights: ExpertWeights) -> dict[str, Function]:
    """A dense MLP of all experts: `eager`, and `addmm` where torch has that on the device."""
    # The weights as a dense layer has them: [d_ff, d_model] and [d_out, d_ff].
    up, down = weights.up.flatten(0, 1), weights.down.flatten(0, 1).T.contiguous()
    gate = None if weights.gate is None else weights.gate.flatten(0, 1)
    up_bias: Any = None if weights.up_bias is None else weights.up_bias.flatten()
    activate, down_bias = torch_function(weights.activation), weights.down_bias

    def eager() -> Tensor:
        if gate is None:
            hidden = activate(linear(z, up, up_bias))
        else:
            hidden = activate(linear(z, gate)) * linear(z, up)
        return linear(hidden, down, down_bias)

    def addmm() -> Tensor:
        use_gelu = ADDMM[weights.activation]
        hidden = torch._addmm_activation(up_bias, z, up.T, use_gelu=use_gelu)
        return linear(hidden, down, down_bias)

    forms = {"eager": eager}
    if z.is_cuda and gate is None and weights.activation in ADDMM:
        forms["addmm"] = addmm
    return forms


def _narrowed(weights: ExpertWeights, neurons: int) -> ExpertWeights:
    """A dense layer of the first neurons, as one expert."""

    def cut(weight: Any) -> Any:
        return None if weight is None else weight.flatten(0, 1)[None, :neurons].contiguous()

    x = weights
    biases = (cut(x.up_bias), cut(x.gate), cut(x.gate_bias), x.down_bias)
    return ExpertWeights(cut(x.up), cut(x.down), x.activation, *biases)
