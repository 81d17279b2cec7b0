"""Makes transformers know converted models, without importing it.

transformers asks its table of quantisers what a folder's `quantization_config` means. Ours is added
as soon as that table exists: at once, or when transformers is asked for a model.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, TypeVar

MODELS = "transformers.modeling_utils"  # imported before any model is loaded, after that table
QUANTIZER = "d2dmoe.huggingface.quantizer"  # adds itself to the table

M = TypeVar("M")  # of models


def register() -> None:
    """Let transformers load and save converted models, as soon as it is imported."""
    if MODELS in sys.modules:
        _add()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def attach(model: M) -> M:
    """Let a model of transformers, whatever was put into it, be saved as what it is by its own
    `save_pretrained`; or those that others surround, as PEFT and one's own classes do. Returns the
    model.

    Raises:
        UserError: transformers has quantised the model.
    """
    if MODELS in sys.modules:
        for part in _outermost(model):
            import_module(QUANTIZER).attach(part)
    return model


def _outermost(model: Any) -> Iterator[Any]:
    """The model if it is one of transformers, else those inside of it that are."""
    if is_of_transformers(model):
        yield model
    else:
        for child in model.children():
            yield from _outermost(child)


def is_of_transformers(model: Any) -> bool:
    """Whether it is a `PreTrainedModel`; nothing is imported, the model has made it."""
    models = sys.modules.get(MODELS)
    return models is not None and isinstance(model, models.PreTrainedModel)


def _add() -> None:
    import_module(QUANTIZER)


class _Finder:
    """Finds that module as Python would, and adds our entry when it has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODELS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            import_it = spec.loader.exec_module

            def import_and_add(module: ModuleType) -> None:
                import_it(module)
                _add()

            setattr(spec.loader, "exec_module", import_and_add)  # noqa: B010
        return spec
