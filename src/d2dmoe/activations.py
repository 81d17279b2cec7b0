"""The activation functions of FFNs: one record each says all that the project knows of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from d2dmoe.lookup import look_up, resolve, table_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """An element-wise function between the two maps of an FFN.

    A neuron is idle where its pre-activation is at most `threshold`. `exact` says whether it then
    puts out exactly 0, as ReLU does; the output of other functions fades, and is there below 1e-7.
    """

    name: str
    torch: str  # a function of a tensor
    triton: str  # a Triton function of an fp32 block
    threshold: float
    exact: bool
    options: Mapping[str, Any] = field(default_factory=dict)  # of the torch function
    aliases: tuple[str, ...] = ()  # names in transformers' configurations


ACTIVATIONS = table_of(
    [
        Activation(
            "relu",
            torch="torch.nn.functional:relu",
            triton="d2dmoe.kernels.activations:relu",
            threshold=0.0,
            exact=True,
            aliases=("relu",),
        ),
        Activation(
            "relu_squared",
            torch="d2dmoe.activations:relu_squared",
            triton="d2dmoe.kernels.activations:relu_squared",
            threshold=0.0,
            exact=True,
            aliases=("relu2", "relu_squared"),
        ),
        Activation(
            "gelu",
            torch="torch.nn.functional:gelu",
            triton="d2dmoe.kernels.activations:gelu",
            threshold=-10.0,
            exact=False,
            aliases=("gelu",),
        ),
        Activation(
            "gelu_tanh",  # GPT-2's and Gemma's
            torch="torch.nn.functional:gelu",
            options={"approximate": "tanh"},
            triton="d2dmoe.kernels.activations:gelu_tanh",
            threshold=-10.0,
            exact=False,
            aliases=("gelu_new", "gelu_pytorch_tanh"),
        ),
        Activation(
            "quick_gelu",  # CLIP's: x sigmoid(1.702 x)
            torch="d2dmoe.activations:quick_gelu",
            triton="d2dmoe.kernels.activations:quick_gelu",
            threshold=-12.0,
            exact=False,
            aliases=("quick_gelu",),
        ),
        Activation(
            "silu",  # Llama's
            torch="torch.nn.functional:silu",
            triton="d2dmoe.kernels.activations:silu",
            threshold=-20.0,
            exact=False,
            aliases=("silu", "swish"),
        ),
    ]
)


@cache
def torch_function(name: str) -> "Callable[[Tensor], Tensor]":
    """The activation `name` in torch.

    Raises:
        UnknownName: there is no such activation.
    """
    activation = look_up(ACTIVATIONS, name, "activation")
    return partial(resolve(activation.torch), **activation.options)


def relu_squared(x: "Tensor") -> "Tensor":
    """max(x, 0)² (So et al. 2021, arXiv 2109.08668)."""
    return x.relu().square()


def quick_gelu(x: "Tensor") -> "Tensor":
    """x σ(1.702 x)."""
    return x * (1.702 * x).sigmoid()
