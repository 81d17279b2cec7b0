"""Which tokens are padding, as a model's own calls say it: what counts tokens leaves them out.

Layers treat all tokens alike, so that they hold nothing of a call: a padding token runs its experts
and its outputs are used by nobody. A sample costs what it would cost alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from d2dmoe.surgery import Hook

MASK = "attention_mask"
"""The argument that says which tokens are real, in models as transformers has them."""


@contextmanager
def watch_padding(model: nn.Module) -> Iterator[Callable[[], Tensor | None]]:
    """Follow the model's attention masks, for hooks on modules inside of it.

    A mask [batch, tokens], 0 for padding, that a module is called with holds for all inside of it,
    but for modules that are called with another one or with None, as decoders beside an encoder.
    What models make of it for their attentions, in other shapes, changes nothing.

    Yields:
        A function that gives the mask which holds at present, boolean [batch, tokens]; None: all
        tokens are real.
    """
    holding: list[Tensor | None] = [None]
    handles = []

    def follow(module: nn.Module, names: list[str]) -> None:
        def enter(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given = dict(zip(names, args, strict=False)) | kwargs
            unsaid = None if MASK in names else holding[-1]
            mask = given.get(MASK, unsaid)
            flags = mask is None or isinstance(mask, Tensor) and mask.ndim == 2
            holding.append(_boolean(mask) if flags else holding[-1])

        def leave(*_: Any) -> None:
            holding.pop()

        handles.append(module.register_forward_pre_hook(Hook(enter), with_kwargs=True))
        handles.append(module.register_forward_hook(Hook(leave), always_call=True))

    for module in model.modules():
        parameters = signature(module.forward).parameters
        takes_any = any(p.kind == Parameter.VAR_KEYWORD for p in parameters.values())
        if MASK in parameters or takes_any:
            follow(module, list(parameters))
    try:
        yield lambda: holding[-1]
    finally:
        for handle in handles:
            handle.remove()


def _boolean(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.bool()


def without_padding(values: Tensor, real: Tensor | None) -> Tensor:
    """Values of the real tokens alone, [real, d].

    Args:
        values: of all tokens of a call, [batch, tokens, d], [tokens, batch, d] or flattened,
            [batch · tokens, d].
        real: boolean [batch, tokens], false for padding; None: all are real. It may be longer than
            the values' tokens, as when earlier ones are cached; the last ones count. Where it is
            of other tokens than the values', as of pooled ones, all values are given.
    """
    flat = values.flatten(0, -2)
    if real is None or len(flat) % len(real):
        return flat
    batch = flat.unflatten(0, (len(real), -1))
    if values.shape[:-1] == real.T.shape != real.shape:  # tokens before samples
        batch = values.transpose(0, 1)
    tokens = batch.shape[1]
    return flat if tokens > real.shape[1] else batch[real[:, -tokens:]]
