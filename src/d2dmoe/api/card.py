"""The model card of a converted model: what it is, at which operating point, how good, how to load
it."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import nn

from d2dmoe.api.base import CARD, TAG, Base
from d2dmoe.layers import describe
from d2dmoe.lookup import look_up
from d2dmoe.selection_rules import RULES

CITATION = """\
@inproceedings{szatkowski2024exploiting,
  title = {Exploiting Activation Sparsity with Dense to Dynamic-k Mixture-of-Experts Conversion},
  author = {Szatkowski, Filip and W{\\'o}jcik, Bartosz and Pi{\\'o}rczy{\\'n}ski, Miko{\\l}aj and \
Scardapane, Simone},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {37},
  year = {2024},
  eprint = {2310.04361},
  archivePrefix = {arXiv}
}"""

MEASURES = {  # of an evaluation, as a card names them
    "accuracy": "Accuracy",
    "loss": "Loss",
    "perplexity": "Perplexity",
    "flops": "FLOPs of a sample",
    "dense_flops": "FLOPs of a sample, dense",
    "flops_ratio": "FLOPs executed, of the dense model's",
    "samples": "Samples",
}


def write_card(
    model: nn.Module, folder: Path, name: str, library: str, base: Base, evaluation: Any
) -> None:
    """Write the card into the model's folder.

    Args:
        model: the converted model.
        folder: where it was saved.
        name: by which the card loads it: that of the folder, or of its place on the hub.
        library: the dense model's: transformers, timm, …
        base: the dense model.
        evaluation: what `evaluate` gave, a mapping, or None.
    """
    data = ModelCardData(
        base_model=base.name,
        license=base.license,
        library_name=library if library in ("transformers", "timm") else None,
        tags=[TAG, "mixture-of-experts", "activation-sparsity", "conditional-computation"],
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        _what(model, base),
        f"## Operating point\n\n{_operating_point(model)}",
        f"## Quality and cost\n\n{_quality(evaluation)}",
        f"## Use\n\n```python\n{_usage(model, name, library)}\n```",
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    (folder / CARD).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _what(model: nn.Module, base: Base) -> str:
    layers = describe(model)["layers"].values()
    experts = {layer["num_experts"] for layer in layers if "num_experts" in layer}
    of = f" of `{base.name}`" if base.name else ""
    what = f"{type(model).__name__}{of}, of which {len(layers)} blocks were converted"
    if experts:
        numbers = " or ".join(map(str, sorted(experts)))
        what += f" to dynamic-k mixtures of {numbers} experts (D2DMoE, arXiv 2310.04361)"
    license = base.license or "not known; see the base model"
    return f"{what}.\n\nLicence of the base model: {license}."


def _operating_point(model: nn.Module) -> str:
    layers = describe(model)["layers"]
    points = {name: _point(layer) for name, layer in layers.items()}
    if len(set(points.values())) == 1:
        return f"{next(iter(points.values()))}, in every converted layer."
    return _table(("Layer", "Operating point"), points)


def _point(layer: Mapping[str, Any]) -> str:
    if "router" not in layer:
        return "All of the layer runs: it has no router"
    rule = look_up(RULES, layer["rule"], "selection rule")
    return f"`{rule.name}` at {rule.symbol} = {layer['value']:g}"


def _quality(evaluation: Any) -> str:
    values = _plain(evaluation)
    measured = {
        label: values[key] for key, label in MEASURES.items() if _is_number(values.get(key))
    }
    if not measured:
        return "Not measured."
    return _table(("Measure", "Value"), {k: f"{v:,.6g}" for k, v in measured.items()})


def _plain(evaluation: Any) -> Mapping[str, Any]:
    if evaluation is None or isinstance(evaluation, Mapping):
        return evaluation or {}
    return asdict(evaluation) if is_dataclass(evaluation) else vars(evaluation)  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join(lines + [f"| {key} | {value} |" for key, value in rows.items()])


def _usage(model: nn.Module, name: str, library: str) -> str:
    if library != "transformers":
        return f'import d2dmoe\n\nmodel = d2dmoe.from_pretrained("{name}")'
    kind = type(model).__name__
    return (
        "import d2dmoe  # without it transformers refuses the model\n"
        f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained("{name}")'
    )
