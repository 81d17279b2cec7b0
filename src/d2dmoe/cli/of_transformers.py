"""Models of transformers, by a name of the hub or a folder."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from huggingface_hub.utils import disable_progress_bars
from transformers.models.auto import modeling_auto
from transformers.utils.hub import cached_file

from d2dmoe.api.hub import fetch, read_config
from d2dmoe.cli import of_timm, of_vision
from d2dmoe.cli.download import consent, hub_bytes
from d2dmoe.cli.encoders import Encode, Images, Texts
from d2dmoe.cli.opened import Loading, Opened, attempt
from d2dmoe.errors import CheckpointError, UserError


class Kind(NamedTuple):
    """What models were made to do, and the table of transformers that holds their classes."""

    name: str
    table: str


KINDS = (  # in this order: some classes stand in several tables
    Kind("seq2seq", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    Kind("causal", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    Kind("masked", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    Kind("classifier", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    Kind("classifier", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    Kind("embedder", "MODEL_MAPPING_NAMES"),  # without a head: sentence encoders, DINOv2
)
UNUSED = ("pooler.", "embeddings.position_ids")  # weights that embeddings do not need
WHOLE = (
    "Fetch it again, or give a folder that save_pretrained wrote, with config.json, "
    "model.safetensors and the files of its tokenizer or image processor."
)
Where = tuple[str, dict[str, Any]]  # arguments of from_pretrained


def open_named(name: str, how: Loading) -> Opened:
    """Load a model of a folder, or of that name on the hub.

    Raises:
        UserError: it is not there, not whole, of an unknown class, or may not be fetched.
    """
    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
        disable_progress_bars()
    where = _where(name, how)
    config = _load("configuration", transformers.AutoConfig, name, where)
    if isinstance(config, transformers.TimmWrapperConfig) and not config.architectures:
        folder = fetch(where[0], ["config.json", of_timm.WEIGHTS], where[1].get("revision"), None)
        return of_vision.open_folder(name, folder, read_config(str(folder), None, None))
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
            "Fetch it again, or train it first: fresh weights are not worth a conversion."
        )
    kind = _kind(architecture)
    opened = Opened(name, model, kind, lambda: _encoder(opened, where, how.max_length))
    opened.companion = partial(_beside, where)
    if kind == "classifier":
        opened.classes = [str(config.id2label[i]) for i in sorted(config.id2label)]
    return opened


def _where(name: str, how: Loading) -> Where:
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{name} holds no config.json. {WHOLE}")
        return name, {"local_files_only": True}
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"there is no folder {name}. Correct the path.")
    name, _, revision = name.partition("@")
    consent(name, hub_bytes(name, revision or None), how.yes)
    return name, {"revision": revision} if revision else {}


def _load(what: str, loader: Any, name: str, where: Where, **options: Any) -> Any:
    place, known = where
    call = partial(loader.from_pretrained, place, **known, **options)
    return attempt(f"{name}: the {what} cannot be loaded", WHOLE, call)


def _kind(architecture: str) -> str:
    for kind in KINDS:
        for names in getattr(modeling_auto, kind.table).values():
            if architecture in ((names,) if isinstance(names, str) else names):
                return kind.name
    return "other"


def _encoder(opened: Opened, where: Where, max_length: int) -> Encode:
    model: Any = opened.model
    if model.main_input_name == "input_ids":
        tokenizer = _load("tokenizer", transformers.AutoTokenizer, opened.name, where)
        opened.kept["tokenizer"] = tokenizer
        positions = getattr(model.config, "max_position_embeddings", None)
        limits = (max_length, tokenizer.model_max_length, positions)
        return Texts(tokenizer, min(n for n in limits if n and n > 0))
    if model.main_input_name == "pixel_values":
        processor = _load("image processor", transformers.AutoImageProcessor, opened.name, where)
        opened.kept["image_processor"] = processor
        return Images(partial(processor, return_tensors="pt"))
    raise UserError(
        f"{opened.name} reads {model.main_input_name}; the command line has texts and images only. "
        "Use the library, with batches of your own."
    )


def _beside(where: Where, file: str) -> Path | None:
    """A file of the model's folder or of the hub's; None where there is none."""
    place, options = where
    found = cached_file(
        place, file, **options,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)
