"""Which tokens are padding, as a model's own calls say it: what counts tokens leaves them out.

Layers treat all tokens alike, so that they hold nothing of a call: a padding token runs its experts
and its outputs are used by nobody. A sample costs what it would cost alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn

from d2dmoe.surgery import Hook

WHOLE, DECODER = "", "decoder"  # parts of a model, by the tokens that they read
MASK = "attention_mask"
MASKS = {  # arguments of forward: whose tokens they describe, and the value of real ones
    MASK: (WHOLE, True),  # as models of transformers have it
    f"decoder_{MASK}": (DECODER, True),
    "src_key_padding_mask": (WHOLE, False),  # torch's own layers mark padding
    "tgt_key_padding_mask": (DECODER, False),
}


def masks_of(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Which tokens of a call are real, by its arguments' names: boolean [batch, tokens], by part of
    the model; masks of other shapes are none of tokens."""
    given = {name: arguments[name] for name in MASKS if name in arguments}
    return {
        MASKS[name][0]: mask.bool().eq(MASKS[name][1])
        for name, mask in given.items()
        if isinstance(mask, Tensor) and mask.ndim == 2
    }


def real_tokens(arguments: Mapping[str, Any]) -> Tensor | None:
    """Which tokens of a call are no padding, boolean [batch, tokens]; None: all are real."""
    return masks_of(arguments).get(WHOLE)


@contextmanager
def watch_padding(model: nn.Module) -> Iterator[Callable[[], Tensor | None]]:
    """Follow the masks that the model's modules are called with, for hooks on modules inside of it.

    A mask [batch, tokens] that a module is called with holds for all inside of it, but for modules
    that are called with another one or with None, as decoders beside an encoder. What models make
    of it for their attentions, in other shapes, changes nothing.

    Yields:
        A function that gives the mask which holds at present, boolean [batch, tokens]; None: all
        tokens are real.
    """
    holding: list[Tensor | None] = [None]
    handles = []

    def follow(module: nn.Module, names: list[str]) -> None:
        takes = [name for name in MASKS if name in names]
        parts = {MASKS[name][0] for name in takes}
        part = DECODER if parts == {DECODER} else WHOLE  # whose tokens the module reads

        def enter(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given = dict.fromkeys(takes) | dict(zip(names, args, strict=False)) | kwargs
            said = [given[name] for name in MASKS if name in given and MASKS[name][0] == part]
            inherited = None if said and all(mask is None for mask in said) else holding[-1]
            holding.append(masks_of(given).get(part, inherited))

        def leave(*_: Any) -> None:
            holding.pop()

        handles.append(module.register_forward_pre_hook(Hook(enter), with_kwargs=True))
        handles.append(module.register_forward_hook(Hook(leave), always_call=True))

    for module in model.modules():
        parameters = signature(module.forward).parameters
        takes_any = any(p.kind == Parameter.VAR_KEYWORD for p in parameters.values())
        if takes_any or MASKS.keys() & parameters.keys():
            follow(module, list(parameters))
    try:
        yield lambda: holding[-1]
    finally:
        for handle in handles:
            handle.remove()


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
