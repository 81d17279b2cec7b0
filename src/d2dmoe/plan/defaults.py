"""What a task may leave out where its model's weights are given: it is read from the checkpoint, or
is the usual.

A section that lacks nothing stays as it is, and so does a task that is trained from scratch. What
is filled in is as if it had been written: the same folders follow from it, and the same checks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2dmoe.config.checkpoint_files import options_said, tokens_said
from d2dmoe.config.data import CorpusConfig, ImagesConfig, TextsConfig, TokenizerConfig
from d2dmoe.config.experiment import check_values
from d2dmoe.config.strict import Strict
from d2dmoe.errors import CheckpointError
from d2dmoe.lookup import resolve
from d2dmoe.models import ARCHITECTURES
from d2dmoe.plan.usual import Options, filled, lacks, size_of, usual_sections

DATA: dict[str, type[Strict]] = {
    "images": ImagesConfig,
    "texts": TextsConfig,
    "corpus": CorpusConfig,
}
LENGTH = {"texts": 128, "corpus": 256}  # tokens of a sample, at most
IMAGENET = {  # its statistics, and the size in pixels where the weights do not say it
    "image_size": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def completed(raw: Any, root: Path) -> Any:
    """A configuration, as YAML gives it, with all that its tasks leave out.

    Args:
        raw: what is wrong in it stays so, for the checks to say.
        root: where relative paths of the configuration begin.

    Raises:
        ConfigError: it has more values, or larger ones, than any configuration needs.
        CheckpointError: weights that are to say something cannot be read, are of an architecture
            that is not described, or contradict the model section.
    """
    check_values(raw)
    return _each(raw, "tasks", lambda task: _task(_each(task, "bases", _base(root)), root))


def _each(raw: Any, key: str, change: Any) -> Any:
    """Options in which every value of the mapping at a key is changed, if there is such a one."""
    values = raw.get(key) if isinstance(raw, Mapping) else None
    if not isinstance(values, Mapping):
        return raw
    return {**raw, key: {name: change(value) for name, value in values.items()}}


def _base(root: Path) -> Any:
    """Completes compressed models, whose sections `model` may be of pretrained weights."""

    def complete(base: Any) -> Any:
        if not _is_pretrained(base) or _is_whole(base["model"]):
            return base
        return {**base, "model": _model(base["model"], _said(base["model"], root))}

    return complete


def _task(task: Any, root: Path) -> Any:
    if not _is_pretrained(task):
        return task
    given, data = task["model"], task.get("data")
    kind = data.get("kind") if isinstance(data, Mapping) else None
    whole = _is_whole(given) and kind in list(DATA) and not lacks(DATA[kind], data)
    said = {} if whole else _said(given, root)
    model = _model(given, said)
    found = {"model": model}
    kind = data.get("kind", _kind(model)) if isinstance(data, Mapping) else _kind(model)
    if isinstance(data, Mapping):
        found["data"] = _data(data, kind, model, said, root)
    return {**task, **found, **(usual_sections(task, kind, model) if kind in list(DATA) else {})}


def _is_pretrained(section: Any) -> bool:
    """Whether a task or compressed model begins with weights of one of the known forms."""
    model = section.get("model") if isinstance(section, Mapping) else None
    weights = model.get("weights") if isinstance(model, Mapping) else None
    return isinstance(weights, str) and weights.partition(":")[0] in ("hub", "path", "torchvision")


def _is_whole(model: Options) -> bool:
    """Whether a section `model` leaves nothing out."""
    known = _architecture(model)
    return known is not None and not lacks(resolve(known.options), model)


def _architecture(model: Options) -> Any:
    name = model.get("architecture")
    return ARCHITECTURES.get(name) if isinstance(name, str) else None


def _kind(model: Options) -> str | None:
    known = _architecture(model)
    return known.data if known else None


def _said(model: Options, root: Path) -> dict[str, Any]:
    """What the weights say of the model; no option that is given may differ from it."""
    said = options_said(model["weights"], root, model.get("architecture"))
    wrong = [
        f"{key} {value} (configured: {model[key]})"
        for key, value in said.items()
        if key in model and str(model[key]) != str(value)
    ]
    if wrong:
        raise CheckpointError(
            f"{model['weights']} does not fit the configured model: {', '.join(wrong)}. Leave out "
            "of the model section what the weights say."
        )
    return said


def _model(given: Options, said: Options) -> dict[str, Any]:
    known = _architecture(said)
    options = resolve(known.options).model_fields if known else {}
    return {key: value for key, value in said.items() if key in options} | dict(given)


def _data(given: Options, kind: Any, model: Options, said: Options, root: Path) -> Any:
    """Data of the kind that the architecture takes, cut by the checkpoint's own tokenizer."""
    if kind not in list(DATA):
        return given
    data = {"kind": kind, **given}
    if kind == "images":
        _check_side(data, model, said)
        usual = {key: said.get(key, value) for key, value in IMAGENET.items()}
    else:
        usual = {"length": min(LENGTH[kind], size_of(model.get("positions")))}
        if "tokenizer" not in given:
            usual["tokenizer"] = _tokenizer(model["weights"], kind, root)
    return filled(DATA[kind], data, usual)


def _check_side(data: Options, model: Options, said: Options) -> None:
    side = said.get("image_size", data.get("image_size"))
    if str(data.get("image_size", side)) != str(side):
        raise CheckpointError(
            f"{model['weights']} is for images of {side} pixels, but data.image_size is "
            f"{data['image_size']}. Leave it out, or give other weights."
        )


def _tokenizer(weights: str, kind: str, root: Path) -> dict[str, Any]:
    """The checkpoint's own, and its token of the kind that the data need."""
    key = "pad" if kind == "texts" else "end_of_text"
    usual = TokenizerConfig.model_fields[key].default
    token = tokens_said(weights, root).get(key, usual)
    return {"source": weights} | ({key: token} if token != usual else {})
