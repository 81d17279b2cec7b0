"""How transformers loads and saves converted models: as what it calls a quantiser.

That is its one way to change a model's modules before the weights are loaded. Nothing else of
quantised models applies: a converted one trains, casts and compiles as any other.

transformers only warns of methods that it does not know, and of tensors that are missing, and goes
on with fresh weights. So beside the weights lies an empty tensor with the name of a weight that
was replaced: without this package its size does not fit, which transformers refuses.
"""

import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import initialization
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.ffn import FFN
from d2dmoe.huggingface.config import METHOD, ConversionConfig
from d2dmoe.lookup import resolve
from d2dmoe.moe import MoE
from d2dmoe.surgery import find

ALIGNMENT = 64  # bytes, of memory that torch allocates
PARTS = ("attentions", "projections", "channels_first", "layers", "bypassed")  # of a description
HOLDERS = ("attentions", "channels_first")  # those that make further modules

AGAIN = "Fetch the folder again, or save the model anew."


def attach(model: PreTrainedModel) -> PreTrainedModel:
    """See `registration.attach`; the models inside the model can be saved by themselves too. One
    into which nothing was put stays as it is."""
    if not _described(model)["layers"]:
        return model
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and _described(part)["layers"]:
            if not isinstance(getattr(part, "hf_quantizer", None), ConversionQuantizer | None):
                raise UserError(
                    f"{type(part).__name__} is quantised by transformers and cannot be saved as a "
                    "converted model. Load it without quantization_config and convert it again."
                )
            part.hf_quantizer = ConversionQuantizer(ConversionConfig(part))  # type: ignore[assignment]
    model.config.quantization_config = ConversionConfig(model)
    return model


@register_quantizer(METHOD)
class ConversionQuantizer(HfQuantizer):
    """Puts our modules into a model before its weights are loaded."""

    requires_calibration = True  # models are converted in memory, not while they are loaded
    quantization_config: ConversionConfig

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Put the described modules into a model without weights.

        Raises:
            CheckpointError: they do not fit the model, or the files' tensors do not fit them.
        """
        before = list(model.state_dict())
        with _described_well(model):
            described = _named_as_in(model, self.quantization_config.described)
            resolve("d2dmoe.layers:rebuild")(model, described)
            for name in _names(described):  # or a class would draw weights for what was there
                holder: Any = model.get_submodule(name.rpartition(".")[0])
                holder._is_hf_initialized = True
            self.absent = set(self.quantization_config.described["absent"])
        replaced = _first_replaced(before, model)
        if replaced:
            ignored = set(model._keys_to_ignore_on_load_unexpected or ())
            name = re.escape(replaced.removeprefix(_prefix(model)))
            model._keys_to_ignore_on_load_unexpected = ignored | {f"{name}$"}
        _check_shapes(model, described["layers"], checkpoint_files or [])

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Let it be a model like any other, which only is saved in another way.

        Raises:
            CheckpointError: tensors are missing. In a class other than the one that was saved,
                those outside the converted layers may be, as a fresh head is: transformers warns.
        """
        missing = set(_not_loaded(model)) - self.absent
        if type(model).__name__ not in (model.config.architectures or []):
            missing = {name for name in missing if _lies_in(_places(model), name)}
        if missing:
            first = sorted(missing)[:3]
            raise CheckpointError(
                f"{model.name_or_path}: {len(missing)} tensors are missing, first {first}. {AGAIN}"
            )
        for name in ("is_quantized", "quantization_method"):  # no casting, no training
            delattr(model, name)
        _align(model)
        attach(model)

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `save_pretrained` writes; it asks before it writes the configuration.

        Raises:
            UserError: others than this package have replaced modules of the model.
        """
        tensors, dense, places = model.state_dict(), _dense_names(model), _places(model)
        absent = [n for n in dense if n not in tensors and not _lies_in(places, n)]
        _check_known(model, absent, set(tensors) - set(dense))
        model.config.quantization_config = ConversionConfig(model, absent=absent)
        replaced = _first_replaced(dense, model)
        return tensors | ({replaced: torch.empty(0)} if replaced else {}), {}


def _align(model: PreTrainedModel) -> None:
    """Move weights to where torch puts its own: in a mapped file they lie at odd addresses, and
    the last bits of a product depend on that."""
    for layer in find(model, (FFN, MoE)).values():
        for parameter in layer.parameters():
            if parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()


def _described(model: PreTrainedModel) -> dict[str, Any]:
    return resolve("d2dmoe.layers:describe")(model)


def _places(model: PreTrainedModel) -> list[str]:
    """Names of the modules that are not the class's own."""
    return _names(_described(model))


def _names(described: dict[str, Any]) -> list[str]:
    """All names of a description."""
    return [name for part in PARTS for name in described.get(part, [])]


def _lies_in(modules: Iterable[str], name: str) -> bool:
    """Whether a tensor's name is below one of some modules'."""
    return name.startswith(tuple(f"{module}." for module in modules))


def _dense_names(model: PreTrainedModel) -> list[str]:
    """Names of the tensors that the model's class has by itself."""
    with (
        torch.device("meta"),
        initialization.meta_device_safe_creation_ops(),
        initialization.no_init_weights(),
    ):
        return list(type(model)(copy.deepcopy(model.config)).state_dict())


def _first_replaced(before: Iterable[str], model: PreTrainedModel) -> str | None:
    """A tensor that a converted layer of the dense model had; None if there is none."""
    replaced, places = set(before) - set(model.state_dict()), _places(model)
    return min((name for name in replaced if _lies_in(places, name)), default=None)


def _check_known(model: PreTrainedModel, absent: list[str], unknown: set[str]) -> None:
    """Refuse a model whose class would make fresh weights in place of what stands there now."""
    holders = {name.rpartition(".")[0] for name in absent}
    strange = sorted(name for name in unknown if _lies_in(holders, name))
    if strange:
        raise UserError(
            f"{type(model).__name__} cannot be saved: {strange[0]} and {len(strange) - 1} more "
            "tensors are of modules that its class has not. Merge adapters into the weights "
            "(merge_and_unload), or undo what replaced them."
        )


def _prefix(model: PreTrainedModel) -> str:
    """Of the names in a model with a head, which those in the same model without one lack."""
    return f"{model.base_model_prefix}."


def _named_as_in(model: PreTrainedModel, described: dict[str, Any]) -> dict[str, Any]:
    """The description with the names that the modules have in a model, which may lack the head of
    the one that was saved, or have one that it lacked.

    Raises:
        AttributeError: the model has no module of a name.
    """
    modules, prefix, names = dict(model.named_modules()), _prefix(model), _names(described)
    ways = (
        {name: name for name in names},
        {name: name[len(prefix) :] for name in names if name.startswith(prefix)},
        {name: prefix + name for name in names},
    )
    new = max(ways, key=lambda way: sum(name in modules for name in way.values()))
    made = [new[name] for part in HOLDERS for name in described.get(part, []) if name in new]
    for name in new.values():
        if name not in modules and not _lies_in(made, name):
            raise AttributeError(f"it has no module {name}")

    def renamed(part: Any) -> Any:
        if isinstance(part, list):
            return [new[name] for name in part if name in new]
        return {new[name]: about for name, about in part.items() if name in new}

    return {name: renamed(described[name]) for name in PARTS if name in described}


@contextmanager
def _described_well(model: PreTrainedModel) -> Iterator[None]:
    """Errors in a description name it."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, UserError, ValueError) as error:
        raise CheckpointError(
            f"quantization_config in config.json of {model.name_or_path} does not fit "
            f"{type(model).__name__} ({type(error).__name__}: {error}). Save the model anew, or "
            "with the release of d2dmoe that is installed here."
        ) from error


def _check_shapes(model: PreTrainedModel, layers: Iterable[str], files: list[str]) -> None:
    """Compare the tensors of the converted layers with those in the files."""
    expected = {
        f"{layer}.{name}": tuple(tensor.shape)
        for layer in layers
        for name, tensor in model.get_submodule(layer).state_dict().items()
    }
    prefix = _prefix(model)
    for path in files:
        for key, shape in _shapes_in(path).items():
            names = (key, key.removeprefix(prefix), prefix + key)
            name = next((name for name in names if name in expected), None)
            if name and shape != expected[name]:
                raise CheckpointError(
                    f"{path}: {key} has the shape {list(shape)}, but config.json says "
                    f"{list(expected[name])}. {AGAIN}"
                )


def _shapes_in(path: str) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}). {AGAIN}") from error


def _not_loaded(model: PreTrainedModel) -> Iterator[str]:
    """Names of tensors that no file had; transformers marks those that it has loaded or tied.
    Those on the meta device are read from disk when they are used."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not getattr(tensor, "_is_hf_initialized", False) and tensor.device.type != "meta":
            yield name
