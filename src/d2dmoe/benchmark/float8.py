"""A dense baseline in eight bits: maps whose products are of fp8 numbers."""

import torch
from torch import Tensor, nn

from d2dmoe.ffn import FFN
from d2dmoe.surgery import find

FORMAT = torch.float8_e4m3fn


class Float8Linear(nn.Module):
    """A map without bias, its weight and inputs in fp8 (e4m3), each with one scale.

    That of the inputs is fixed, as after a calibration, and here 1, since they are random with
    about that magnitude: to find one in every call would take as long as the product.
    """

    weight: Tensor
    scale: Tensor
    one: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax().float() / torch.finfo(FORMAT).max
        self.register_buffer("weight", (weight / scale).to(FORMAT))  # [d_out, d_in]
        self.register_buffer("scale", scale)
        self.register_buffer("one", torch.ones_like(scale))

    def forward(self, x: Tensor) -> Tensor:  # [tokens, d_in] -> [tokens, d_out]
        return torch._scaled_mm(
            x.to(FORMAT), self.weight.T, scale_a=self.one, scale_b=self.scale, out_dtype=x.dtype
        )


def has_float8(device: torch.device) -> bool:
    """Whether the device multiplies fp8 numbers."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def to_float8(model: nn.Module) -> nn.Module:
    """Let the FFNs of a model, which have no biases, multiply in fp8, in place."""
    for ffn in find(model, FFN).values():
        for name, linear in [(n, m) for n, m in ffn.named_children() if isinstance(m, nn.Linear)]:
            setattr(ffn, name, Float8Linear(linear))
    return model
