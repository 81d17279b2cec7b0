"""Layers for the tests of the kernels, and what they ought to give, in fp64."""

import torch
from torch import Tensor

from d2dmoe.activations import ACTIVATIONS, torch_function
from d2dmoe.compression.quantize import Int8
from d2dmoe.weights import ExpertWeights, RouterWeights

FORMS = {  # activation, gated, biases: every activation without and with a gate
    name + gate: (name, bool(gate), not gate) for name in ACTIVATIONS for gate in ("", " glu")
}
FORMS |= {
    "relu without biases": ("relu", False, False),
    "relu glu with biases": ("relu", True, True),
}
SOME_FORMS = ["relu", "gelu", "relu without biases", "gelu_tanh glu", "relu glu with biases"]


def make_weights(
    form: str, n: int, e: int, d_model: int, d_out: int, device: str = "cpu", dtype=torch.float32
) -> ExpertWeights:
    """Random experts whose neurons and outputs have magnitudes about 1."""
    activation, gated, biased = FORMS[form]
    generator = torch.Generator().manual_seed(n + e)

    def draw(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

    def bias(*shape: int) -> Tensor | None:
        return draw(*shape, scale=0.3) if biased else None

    up = draw(n, e, d_model, scale=d_model**-0.5)
    down = draw(n, e, d_out, scale=(n * e) ** -0.5)
    gate = draw(n, e, d_model, scale=d_model**-0.5) if gated else None
    gate_bias = bias(n, e) if gated else None
    return ExpertWeights(up, down, activation, bias(n, e), gate, gate_bias, bias(d_out))


def quantized(weights: ExpertWeights) -> ExpertWeights:
    """The weights as int8."""

    def int8(weight: Tensor | None, *summed: int) -> tuple:
        return (None, None) if weight is None else Int8(weight, summed).right_inverse(weight)

    (up, up_scale), (gate, gate_scale) = int8(weights.up, 2), int8(weights.gate, 2)
    down, down_scale = int8(weights.down, 0, 1)
    scales = {"up_scale": up_scale, "gate_scale": gate_scale, "down_scale": down_scale}
    return weights._replace(up=up, gate=gate, down=down, **scales)


def make_router(n: int, h: int, d_model: int, kind: str, device="cpu", dtype=torch.float32):
    """A random router."""
    generator = torch.Generator().manual_seed(n + h)
    shapes = ((h, d_model), (h,), (n, h), (n,))
    maps = [torch.randn(*shape, generator=generator) * shape[-1] ** -0.5 for shape in shapes]
    return RouterWeights(*(w.to(device, dtype) for w in maps), kind)


def make_tokens(tokens: int, d_model: int, device="cpu", dtype=torch.float32) -> Tensor:
    """Random inputs, [tokens, d_model]."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, d_model, generator=generator).to(device, dtype)


def make_mask(tokens: int, n: int, density: float, device="cpu", seed: int = 0) -> Tensor:
    """Random experts of each token, boolean [tokens, n]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(tokens, n, generator=generator) < density).to(device)


def make_exact_router(n: int, d_model: int, kind: str, device="cpu", dtype=torch.float32):
    """A router that selects, at tau = 0.5, what stands in the first n columns of its input, as 0 or
    1. By classification every token must have an expert: scores are never 0."""
    sharpness, offset = (1, 0) if kind == "regression" else (20, -10)
    maps = (
        torch.eye(n, d_model),
        torch.zeros(n),
        sharpness * torch.eye(n),
        torch.full((n,), float(offset)),
    )
    return RouterWeights(*(w.to(device, dtype) for w in maps), kind)


def masked_sum(z: Tensor, mask: Tensor, weights: ExpertWeights) -> Tensor:
    """The law, in fp64 on the CPU: the sum of the selected experts' outputs, plus down_bias."""
    z, mask = z.cpu().double(), mask.cpu()
    x = (v.cpu().double() if isinstance(v, Tensor) else v for v in weights)
    x = ExpertWeights(*x).dequantized()
    activate = torch_function(x.activation)

    def neurons(weight: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.einsum("td,ned->tne", z, weight)
        return out if bias is None else out + bias

    hidden = neurons(x.up, x.up_bias)
    if x.gate is None:
        hidden = activate(hidden)
    else:
        hidden = activate(neurons(x.gate, x.gate_bias)) * hidden
    out = torch.einsum("tne,neo->to", hidden * mask[..., None], x.down)
    return out if x.down_bias is None else out + x.down_bias


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error."""
    return ((found.cpu().double() - expected).norm() / expected.norm()).item()
