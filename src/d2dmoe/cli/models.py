"""Models by name: of the hub, of a local folder, of timm or of torchvision, with what prepares
their inputs."""

import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import d2dmoe
from d2dmoe.cli.download import consent, hub_bytes
from d2dmoe.cli.encoders import Encode, Images, Inputs, Texts
from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.lookup import look_up
from d2dmoe.moe import MoE
from d2dmoe.surgery import find


class Kind(NamedTuple):
    """What models were made to do, as the table of transformers says that holds their class."""

    name: str
    table: str  # in transformers.models.auto.modeling_auto


KINDS = (  # in this order: some classes stand in several tables
    Kind("seq2seq", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    Kind("causal", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    Kind("masked", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    Kind("classifier", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    Kind("classifier", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    Kind("embedder", "MODEL_MAPPING_NAMES"),  # without a head: sentence encoders, DINOv2
)
UNUSED = ("pooler.", "embeddings.position_ids")  # weights that embeddings do not need
COMPANIONS = (  # with which sentence-transformers loads a folder
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
Where = tuple[str, dict[str, Any]]  # arguments of from_pretrained


@dataclass
class Opened:
    """A model with what it needs to be used on a person's data."""

    name: str
    model: nn.Module
    kind: str  # of `KINDS`, or "other"
    make_encoder: Callable[[], Encode]  # not before it is needed: inspect does without
    classes: Sequence[str] = ()  # of a classifier's outputs, where they have names
    find: Callable[[str], Path | None] = lambda file: None  # a file beside the weights
    keep: list[Any] = field(default_factory=list)  # tokenizer or image processor, once needed

    @cached_property
    def encode(self) -> Encode:
        """What makes the model's inputs of texts or images.

        Raises:
            UserError: there is no tokenizer or image processor, or inputs are of another kind.
        """
        return self.make_encoder()


@dataclass(frozen=True)
class Loading:
    """How models are loaded."""

    device: str = "auto"  # cpu, cuda, …; auto is a GPU where there is one
    max_length: int = 128  # tokens after which texts are cut off
    yes: bool = False  # whether large files are fetched without a question


def open_model(name: str, how: Loading) -> Opened:
    """Load a model, dense or converted, in evaluation mode.

    Args:
        name: NAME or NAME@REVISION of the hub, a folder, timm:NAME or torchvision:NAME.
        how: where it goes, and what it may cost.

    Raises:
        UserError: there is no such model, it cannot be loaded, or it may not be fetched.
    """
    place, folder = _device(how.device), Path(name)
    library, _, rest = name.partition(":")
    if rest and library in LIBRARIES and not folder.exists():
        opened = LIBRARIES[library].open(name, rest, how)
    elif (folder / "config.json").is_file() and "library" in (saved := _config(folder)):
        wrap = look_up(LIBRARIES, saved["library"], "library").wrap
        opened = wrap(name, d2dmoe.from_pretrained(name), saved)
    else:
        opened = _of_transformers(name, how)
    opened.model.to(place).eval()
    return opened


def check_converted(folder: Path) -> None:
    """Refuse, before anything is loaded, a folder without a converted model with routers.

    Raises:
        CheckpointError: there is none.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"there is no model in {folder}. `d2dmoe convert` writes a folder.")
    config = _config(folder)
    layers = (config.get("quantization_config") or config).get("layers") or {}
    if not any("router" in layer for layer in layers.values()):
        raise CheckpointError(
            f"the model in {folder} has no routers. Give a folder that `d2dmoe convert` wrote."
        )


def is_routed(model: nn.Module) -> bool:
    """Whether a model was converted and has routers."""
    return any(moe.router is not None for moe in find(model, MoE).values())


def save(opened: Opened, new: Path) -> None:
    """Save a model, and what it is used with, in an empty folder."""
    d2dmoe.save_pretrained(opened.model, new)
    for companion in opened.keep:
        companion.save_pretrained(new)
    for file in COMPANIONS:
        found = opened.find(file)
        if found is not None and not (new / file).exists():
            (new / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(found, new / file)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {_first_line(error)}. Try --device cpu.") from error


def _of_transformers(name: str, how: Loading) -> Opened:
    import transformers

    transformers.logging.set_verbosity_error()
    where = _where(name, how)
    config = _load("configuration", transformers.AutoConfig, name, where)
    architecture = (getattr(config, "architectures", None) or ["none"])[0]
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise CheckpointError(
            f"{name}: its architecture {architecture} is none of transformers "
            f"{transformers.__version__}. Install a version that has it; models that bring code of "
            "their own are not run."
        )
    options = {"use_safetensors": True, "dtype": "auto", "output_loading_info": True}
    model, found = _load("model", model_class, name, where, **options)
    missing = [key for key in found["missing_keys"] if not key.startswith(UNUSED)]
    if missing:
        raise CheckpointError(
            f"{name}: {len(missing)} tensors of {architecture} are missing, first {missing[0]}. "
            "Fetch the model again, or train it first: fresh weights are not converted."
        )
    opened = Opened(name, model, _kind(architecture), lambda: _encoder(opened, where, how))
    opened.find = partial(_beside, where)
    if opened.kind == "classifier":
        opened.classes = [str(config.id2label[i]) for i in sorted(config.id2label)]
    return opened


def _where(name: str, how: Loading) -> Where:
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{name} holds no config.json. Give the folder that save_pretrained or `d2dmoe "
                "convert` wrote."
            )
        return name, {"local_files_only": True}
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"there is no folder {name}. Correct the path.")
    name, _, revision = name.partition("@")
    consent(name, hub_bytes(name, revision or None), how.yes)
    return name, {"revision": revision} if revision else {}


def _load(what: str, loader: Any, name: str, where: Where, **options: Any) -> Any:
    place, known = where
    try:
        return loader.from_pretrained(place, **known, **options)
    except UserError:
        raise
    except Exception as error:  # OSError, ValueError, SafetensorError, the hub client's own
        raise CheckpointError(
            f"{name}: the {what} cannot be loaded ({type(error).__name__}: {_first_line(error)}). "
            "Fetch it again, or give a folder that save_pretrained wrote, with config.json, "
            "model.safetensors and the tokenizer's or image processor's files."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _kind(architecture: str) -> str:
    from transformers.models.auto import modeling_auto

    for kind in KINDS:
        for names in getattr(modeling_auto, kind.table).values():
            if architecture in ((names,) if isinstance(names, str) else names):
                return kind.name
    return "other"


def _encoder(opened: Opened, where: Where, how: Loading) -> Encode:
    import transformers

    model: Any = opened.model
    if model.main_input_name == "input_ids":
        tokenizer = _load("tokenizer", transformers.AutoTokenizer, opened.name, where)
        opened.keep.append(tokenizer)
        positions = getattr(model.config, "max_position_embeddings", None)
        limits = (how.max_length, tokenizer.model_max_length, positions)
        return Texts(tokenizer, min(n for n in limits if n and n > 0))
    if model.main_input_name == "pixel_values":
        processor = _load("image processor", transformers.AutoImageProcessor, opened.name, where)
        opened.keep.append(processor)
        return Images(partial(processor, return_tensors="pt"))
    raise UserError(
        f"{opened.name} reads {model.main_input_name}; the command line has texts and images only. "
        "Use the library, with batches of your own."
    )


def _beside(where: Where, file: str) -> Path | None:
    """A file of the model's folder or of the hub's, None where there is none."""
    from transformers.utils.hub import cached_file

    place, options = where
    found = cached_file(
        place, file, **options,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)


def _open_timm(name: str, rest: str, how: Loading) -> Opened:
    import timm

    if not timm.is_model(rest):
        near = timm.list_models(f"*{rest.partition('.')[0]}*")[:5] or ["see timm.list_models()"]
        raise UserError(f"{name}: timm has no such model. Near: {', '.join(near)}.")
    about = timm.get_pretrained_cfg(rest)
    if about is None or not about.has_weights:
        raise UserError(f"{name}: timm has no pretrained weights for it. Choose another.")
    if about.hf_hub_id:
        consent(name, hub_bytes(about.hf_hub_id), how.yes)
    return _of_timm(name, _fetched(name, partial(timm.create_model, rest, pretrained=True)), {})


def _of_timm(name: str, model: Any, _saved: dict[str, Any]) -> Opened:
    from timm.data import create_transform, resolve_model_data_config

    def encoder() -> Encode:
        transform = create_transform(**resolve_model_data_config(model), is_training=False)
        return Images(_one_by_one(model, transform))

    return Opened(name, model, "classifier" if model.num_classes else "embedder", encoder)


def _open_torchvision(name: str, rest: str, how: Loading) -> Opened:
    from torchvision import models

    if rest not in models.list_models():
        raise UserError(f"{name}: torchvision has no such model. See torchvision.models.")
    weights: Any = models.get_model_weights(rest)
    consent(name, int(weights.DEFAULT.meta.get("_file_size", 0) * 2**20), how.yes)
    model = models.get_model(rest)
    fetch = partial(weights.DEFAULT.get_state_dict, check_hash=True, weights_only=True)
    model.load_state_dict(_fetched(name, fetch))
    return _of_torchvision(name, model, {"factory": rest})


def _of_torchvision(name: str, model: nn.Module, saved: dict[str, Any]) -> Opened:
    from torchvision import models

    weights: Any = models.get_model_weights(saved["factory"])
    transform = weights.DEFAULT.transforms()
    classes = weights.DEFAULT.meta.get("categories", ())
    encoder = lambda: Images(_one_by_one(model, transform))  # noqa: E731
    return Opened(name, model, "classifier", encoder, classes)


def _fetched(name: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except Exception as error:  # each library raises its clients' own
        raise CheckpointError(
            f"{name}: its weights cannot be had ({type(error).__name__}: {_first_line(error)}). "
            "Check the network, or convert a local folder."
        ) from error


def _one_by_one(model: nn.Module, transform: Callable) -> Callable[[list[Any]], Inputs]:
    argument = next(iter(inspect.signature(model.forward).parameters))
    return lambda images: {argument: torch.stack([transform(image) for image in images])}


def _config(folder: Path) -> dict[str, Any]:
    """What config.json says."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{folder}/config.json cannot be read ({error}). Save the model again."
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}/config.json holds no object. Save the model again.")
    return config


class Library(NamedTuple):
    """A library of models beside transformers."""

    open: Callable[[str, str, Loading], Opened]  # by its name there, with pretrained weights
    wrap: Callable[[str, Any, dict[str, Any]], Opened]  # a model and what config.json says of it


LIBRARIES = {
    "timm": Library(_open_timm, _of_timm),
    "torchvision": Library(_open_torchvision, _of_torchvision),
}
