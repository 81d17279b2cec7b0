"""Models by name: of the hub, of a local folder, of timm or of torchvision; and their folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

import d2dmoe
from d2dmoe.api.hub import CONFIG, read_config
from d2dmoe.cli import of_transformers, of_vision
from d2dmoe.cli.opened import Loading, Opened, first_line
from d2dmoe.errors import CheckpointError, UserError
from d2dmoe.moe import MoE
from d2dmoe.surgery import find

COMPANIONS = (  # with which sentence-transformers loads a folder
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


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
    if rest and library in of_vision.LIBRARIES and not folder.exists():
        opened = of_vision.open_named(library, rest, how)
    else:
        saved = _config(folder) if (folder / CONFIG).is_file() else {}
        if "library" in saved:
            opened = of_vision.open_saved(name, saved)
        elif "architecture" in saved and "architectures" not in saved:
            opened = of_vision.open_folder(name, folder, saved)
        else:
            opened = of_transformers.open_named(name, how)
    opened.model.to(place).eval()
    return opened


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
    except (NotImplementedError, RuntimeError, AssertionError) as error:
        reason = first_line(error).partition(". ")[0]  # some go on for pages
        raise UserError(f"--device {name}: {reason}. Try --device cpu.") from error
    if device.type == "meta":
        raise UserError("--device meta holds no numbers. Try --device cpu.")
    return device


def check_converted(folder: Path) -> None:
    """Refuse, before anything is loaded, a folder without a converted model with routers.

    Raises:
        CheckpointError: there is none.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"there is no model in {folder}. `d2dmoe convert` writes a folder.")
    config = _config(folder)
    layers = (config.get("quantization_config") or config.get("d2dmoe") or {}).get("layers") or {}
    if not any("router" in layer for layer in layers.values()):
        raise CheckpointError(
            f"the model in {folder} has no routers. Give a folder that `d2dmoe convert` wrote."
        )


def is_routed(model: nn.Module) -> bool:
    """Whether a model was converted and has routers."""
    return any(moe.router is not None for moe in find(model, MoE).values())


def save(opened: Opened, new: Path, evaluation: Any = None) -> None:
    """Save a model, and what it is used with, in an empty folder."""
    d2dmoe.save_pretrained(opened.model, new, evaluation=evaluation, **opened.kept)
    if opened.made_of:
        about = _config(new) | {"made_of": opened.made_of}
        (new / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    for file in COMPANIONS:
        found = opened.companion(file)
        if found is not None and not (new / file).exists():
            (new / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(found, new / file)


def _config(folder: Path) -> dict[str, Any]:
    """What config.json says."""
    return read_config(str(folder), None, None)
