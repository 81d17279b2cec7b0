"""Converted models in folders and on the hub.

Those of transformers have its own form, which its `AutoModel…` classes read after `import d2dmoe`;
others that of `api.folders`. A model card comes with each.
"""

import re
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn

from d2dmoe.api import folders
from d2dmoe.api.base import base_of, copy_processing
from d2dmoe.api.card import write_card
from d2dmoe.api.factories import library_of
from d2dmoe.api.forwards import unwrapped
from d2dmoe.api.hub import CONFIG, fetch, read_config
from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.layers import describe
from d2dmoe.lookup import resolve
from d2dmoe.registration import MODELS, attach, is_of_transformers
from d2dmoe.surgery import check_module

TRANSFORMERS = "transformers"
MODEL_FILE = "model.safetensors"  # of the workflow's folders, beside which lies no configuration


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    factory: str | None = None,
    options: dict[str, Any] | None = None,
    tokenizer: Any = None,
    image_processor: Any = None,
    evaluation: Any = None,
    base_model: str | None = None,
    license: str | None = None,
    repo_id: str | None = None,
    max_shard_size: str | int = "5GB",
) -> Path:
    """Save a converted model with its operating point, and a model card (README.md).

    A model of transformers is saved as by its own `save_pretrained`, which does as well, but adds
    neither card nor tokenizer.

    Args:
        model: with converted layers: FFNs, experts, or experts and routers.
        folder: is made if it is not there; files of the same names are overwritten.
        factory: "module:function" that builds the dense model, of one that is not transformers'.
            Read from models of timm and torchvision where they show what built them. Without one
            `from_pretrained` needs a dense model.
        options: the factory's, as JSON has them.
        tokenizer: or processor, to be saved too; by default the files beside the model that this
            one was loaded from, where they are on this machine.
        image_processor: likewise.
        evaluation: for the card, what `evaluate` gave or a mapping with its names.
        base_model: for the card, the dense model's name on the hub; known of one loaded by it.
        license: for the card, the base model's; known where the base's own card is at hand.
        repo_id: for the card, the name by which the model will be loaded.
        max_shard_size: bytes, or such as "5GB"; larger weights are split into several files.

    Returns:
        The folder.

    Raises:
        UserError: nothing in the model was converted, it has adapters that are not merged, the
            factory given builds another one, or the folder cannot be written.
    """
    model, folder = unwrapped(model), _as_path(folder)
    check_module(model)
    _check_merged(model)
    _check_others(tokenizer, image_processor, evaluation, max_shard_size)
    _check_converted(model)
    _make(folder)
    base = base_of(model)
    if is_of_transformers(model):
        library = TRANSFORMERS
        cast(Any, attach(model)).save_pretrained(folder, max_shard_size=max_shard_size)
        copy_processing(base, folder)
    else:
        library = library_of(model)
        folders.save(model, folder, factory, options, max_shard_size)
    for processor in (tokenizer, image_processor):
        if processor is not None:
            processor.save_pretrained(folder)
    base = replace(base, name=base_model or base.name, license=license or base.license)
    write_card(model, folder, repo_id or folder.resolve().name, library, base, evaluation)
    return folder


def from_pretrained(
    name: str | Path,
    model: nn.Module | None = None,
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **options: Any,
) -> nn.Module:
    """The converted model of a folder, or of that name on the hub, in eval mode.

    Args:
        name: of a folder that was written by `save_pretrained`, ours or transformers', or of one in
            which the workflow left a model.
        model: a dense one of the same architecture, which is changed in place. Where the folder
            names a class of transformers or a factory of timm or torchvision none is needed; code
            of others that a folder names is not run. Of one of transformers only the class counts.
        dtype: of the weights; by default as saved.
        revision: a branch, tag or commit on the hub.
        options: of transformers' `from_pretrained`, such as `device_map` and `token`.

    Raises:
        UserError: `name` is neither a path nor text, `model` no module, or `dtype` none of torch's.
        CheckpointError: the folder is not there, damaged, holds no converted model, or one that
            needs `model`.
    """
    _as_path(name)
    if model is not None:
        check_module(model)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise UserError(f"dtype = {dtype!r} must be one of torch's, as torch.bfloat16")
    if (of_workflow := _of_workflow(Path(name))) is not None:
        if model is not None or options or revision is not None:
            raise UserError(
                f"{name} is a model of the workflow, which its file rebuilds: leave model=, "
                "revision= and options out"
            )
        loaded, _spec = resolve("d2dmoe.checkpoint:load_model")(of_workflow)
        return loaded if dtype is None else loaded.to(dtype)
    about = read_config(str(name), revision, options.get("token"))
    if folders.KEY in about:
        if options.keys() - {"token"}:
            raise UserError(
                f"{', '.join(options)}: options of transformers, but {name} is a model of "
                f"{about.get('library')}. Leave them out."
            )
        folder = fetch(str(name), [CONFIG, folders.WEIGHTS], revision, options.get("token"))
        loaded = folders.load(folder, about, model)
        return loaded if dtype is None else loaded.to(dtype)
    if (about.get("quantization_config") or {}).get("quant_method") != "d2dmoe":
        raise CheckpointError(
            f"{name} holds no converted model: its config.json says of none. Load it as its own "
            "library does, and call d2dmoe.convert(model)."
        )
    options |= {} if dtype is None else {"dtype": dtype}
    options |= {} if revision is None else {"revision": revision}
    return _by_transformers(str(name), _class_of(about, model), options)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Converted by D2DMoE",
    api: HfApi | None = None,
    **saving: Any,
) -> str:
    """Save a converted model, with its card, and upload it; returns the commit's address.

    Args:
        model: as in `save_pretrained`.
        repo_id: "owner/name"; is made if it is not there.
        private: whether one that is made can be seen by its owner alone. It is the default, since
            the base model's licence binds the converted one: look at the card, then publish.
        token: of the hub; by default that of `hf auth login`.
        revision: the branch, which must be there; by default the main one.
        commit_message: what is said of the upload.
        api: the client; by default one made with the token.
        saving: the other arguments of `save_pretrained`.

    Raises:
        UserError: as in `save_pretrained`, or the hub refuses.
    """
    if not isinstance(repo_id, str):
        raise UserError(f"repo_id = {repo_id!r} must be a text, as 'owner/name'")
    api = api or HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, repo_id=repo_id, **saving)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(
                f"{repo_id} cannot be written ({type(error).__name__}: {error}). Check the name, "
                "the network, and that `hf auth login` was given a token that may write."
            ) from error
    return str(commit)


def _as_path(folder: Any) -> Path:
    """A folder that was given as a path or as text.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(folder, str | PathLike) or not str(folder):
        raise UserError(f"a folder is given as a path or as text, not as {folder!r}")
    return Path(folder)


def _make(folder: Path) -> None:
    """
    Raises:
        UserError: the folder is not there and cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error}): give another folder") from error


def _check_converted(model: nn.Module) -> None:
    """
    Raises:
        UserError: no layer of the model was converted.
    """
    if not describe(model)["layers"]:
        raise UserError(
            f"Nothing in this {type(model).__name__} was converted. Call d2dmoe.convert(model) "
            "first, or save it as its own library does."
        )


def _check_others(tokenizer: Any, image_processor: Any, evaluation: Any, size: Any) -> None:
    """Refuse what is saved beside the model and is not of its kind."""
    for name, given in (("tokenizer", tokenizer), ("image_processor", image_processor)):
        if given is not None and not hasattr(given, "save_pretrained"):
            raise UserError(
                f"{name} must be one of transformers, as AutoTokenizer.from_pretrained(…) gives, "
                f"not {given!r:.80}"
            )
    if not (evaluation is None or isinstance(evaluation, Mapping) or is_dataclass(evaluation)):
        raise UserError(
            "evaluation must be what d2dmoe.evaluate gave, or a mapping as {'accuracy': 0.9}, not "
            f"{evaluation!r:.80}"
        )
    is_bytes = isinstance(size, int) and size > 0
    if not is_bytes and not re.fullmatch(r"\s*\d+(\.\d+)?\s*[KMGT]B\s*", str(size), re.IGNORECASE):
        raise UserError(f"max_shard_size = {size!r}: give a number of bytes, or a text as '5GB'")


def _of_workflow(path: Path) -> Path | None:
    """The file in which the workflow saved a model, given it or its folder; None if it is none."""
    file = path / MODEL_FILE if path.is_dir() and not (path / CONFIG).exists() else path
    return file if file.name == MODEL_FILE and file.is_file() else None


def _check_merged(model: nn.Module) -> None:
    """
    Raises:
        UserError: modules hold adapters beside their weights, as PEFT's LoRA has them.
    """
    adapted = next((n for n, m in model.named_modules() if hasattr(m, "base_layer")), None)
    if adapted is not None:
        raise UserError(
            f"{adapted} has an adapter beside its weights, which a folder of the whole model does "
            "not hold. Merge it first (of PEFT: model = model.merge_and_unload()), and save that."
        )


def _class_of(about: dict[str, Any], model: nn.Module | None) -> Any:
    """The class that a configuration of transformers names, or that of a model."""
    if model is not None:
        return type(model)
    name = next(iter(about.get("architectures") or []), "")
    kind = getattr(import_module(TRANSFORMERS), str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, resolve(f"{MODELS}:PreTrainedModel"))):
        raise CheckpointError(
            f"transformers has no class {name!r}, of which the saved model is. Install the release "
            "that has it, or call from_pretrained(folder, model=…) with a model of the class."
        )
    return kind


def _by_transformers(name: str, kind: Any, options: dict[str, Any]) -> nn.Module:
    try:
        return kind.from_pretrained(name, **options)
    except (AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name} cannot be loaded ({type(error).__name__}: {error}). {folders.AGAIN}"
        ) from error
