"""What a model's forward takes, whatever the model is wrapped into."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from d2dmoe.surgery import check_module


def unwrapped(model: Any) -> Any:
    """The model inside `DistributedDataParallel`, `torch.compile` and PEFT's wrappers."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile's
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):  # PEFT's; adapters stay in it
            model = model.get_base_model()
        else:
            return model


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether transformers calls it one: its decoder reads tokens of its own."""
    return bool(getattr(getattr(unwrapped(model), "config", None), "is_encoder_decoder", False))


def generates(model: nn.Module) -> bool:
    """Whether it is one of transformers' decoders that predict their own next tokens."""
    can_generate = getattr(unwrapped(model), "can_generate", None)
    return bool(can_generate and can_generate()) and not is_encoder_decoder(model)


@dataclass(frozen=True)
class Forward:
    """The arguments of a model's forward."""

    signature: inspect.Signature
    names: tuple[str, ...]  # of arguments that may be given by keyword
    others: frozenset[str]  # that it hands on, as transformers' models do
    open: bool  # whether it takes any others too
    main_input: str | None  # what a lone tensor is, by transformers' convention

    @classmethod
    def of(cls, model: nn.Module) -> "Forward":
        """
        Raises:
            ModelError: this is no torch module.
        """
        check_module(model)
        model = unwrapped(model)
        signature = inspect.signature(model.forward)
        parameters = signature.parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        rest = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        main_input = getattr(model, "main_input_name", None)
        typed = [
            kind for p in rest for kind in get_args(p.annotation)
        ]  # Unpack[TransformersKwargs]
        others = frozenset(name for kind in typed for name in getattr(kind, "__annotations__", ()))
        return cls(signature, tuple(names), others, bool(rest) and not main_input, main_input)

    def takes(self, name: str) -> bool:
        """Whether forward can be called with an argument of this name."""
        return self.open or name in self.names or name in self.others

    def nearest(self, name: str) -> str:
        """A hint for a message: the argument that was meant, or all of them."""
        near = get_close_matches(name, self.names, n=1)
        return f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(self.names)}"

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by their names; those that do not fit are left out."""
        positional = [
            p.name for p in self.signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        return dict(zip(positional, args, strict=False)) | dict(kwargs)
