"""What the page shows of one folder of results: its tables, and what they tell.

A table that is not there, or is of another version, leaves out what it would show, and the page
says so; a damaged one is an error.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd

from d2dmoe.claims.ledger import COLUMNS as CLAIM
from d2dmoe.config.task import SUITES
from d2dmoe.config.variant import DENSE_VARIANTS
from d2dmoe.errors import DataError
from d2dmoe.explorer.columns import columns
from d2dmoe.explorer.costs import Fit, Sizes, fit, split, split_dense
from d2dmoe.figures import style
from d2dmoe.figures.dense import DENSE
from d2dmoe.figures.select import INVERTED
from d2dmoe.io.read import REMEDY, columns_of, read, read_table
from d2dmoe.selection_rules import RULES
from d2dmoe.tables import COLUMNS, POINT

NEEDED = {  # what each table is read for, and the columns that this needs
    "tradeoff": ("quality and cost", COLUMNS["tradeoff"]),
    "layers": ("executed experts per layer and the parts of the cost", COLUMNS["layers"]),
    "summary": ("intervals at equal cost", COLUMNS["summary"]),
    "comparisons": ("differences between variants", COLUMNS["comparisons"]),
    "activity": ("active neurons", COLUMNS["activity"]),
    "patch_load": ("load maps", [*COLUMNS["patch_load"], "row", "column"]),
    "token_load": (
        "executed experts per token at every operating point",
        [*POINT, "knob", "knob_value", "sample", "position", "token", "experts", "num_experts"],
    ),
    "claims": ("claims", CLAIM),
}
UNCHECKED = ("token",)  # texts among numbers: empty of patches
IMAGES = 8  # drawn of a table of load per patch
PLACES = 6  # significant digits of a patch's load


@dataclass(frozen=True)
class Variant:
    """What a configuration says of a variant."""

    name: str
    label: str
    place: int  # of its look; see `style.look`
    hollow: bool = False
    stages: Sequence[tuple[str, str]] = ()  # the stages behind it, and their options as YAML
    targets: Mapping[int, Sequence[str]] = field(default_factory=dict)  # its tables, by seed


@dataclass(frozen=True)
class Task:
    """What a configuration says of a task."""

    title: str
    metric: str  # the one that counts
    variants: Mapping[str, Variant]
    chosen: Sequence[str]  # variants that are shown first
    sizes: Sizes | None = None
    maps: Mapping[str, Path] = field(default_factory=dict)  # what figure 8b is drawn of
    mapped: str = ""  # variant and operating point of that


@dataclass(frozen=True)
class Source:
    """A folder of results."""

    name: str
    tables: Path
    shown: str  # the folder, as the page calls it
    command: str = ""  # makes a table whose path follows; empty: it is not known
    tasks: Mapping[str, Task] = field(default_factory=dict)  # empty: without a configuration
    suites: Sequence[str] = SUITES  # that are shown


def results(source: Source) -> dict[str, Any]:
    """All that the page holds of a folder.

    Raises:
        DataError: a table is damaged.
    """
    notes: dict[str, str] = {}
    read_in = {name: _gathered(source, name, notes) for name in NEEDED}
    tables = {name: table for name, table in read_in.items() if table is not None}
    points = tables.get("tradeoff")
    known = [] if points is None else [*points["task"].unique()]
    order = [*(x for x in source.tasks if x in known), *(x for x in known if x not in source.tasks)]
    texts: dict[tuple[str, str], int] = {}
    tasks = [_task(name, source.tasks.get(name), tables, texts) for name in order]
    loads = tables.pop("patch_load", None)
    maps = {name: _maps(source.tasks.get(name), name, loads) for name in order}
    token_loads = tables.pop("token_load", None)
    tokens = {name: _tokens(source.tasks.get(name), name, token_loads) for name in order}
    if "activity" in tables:
        tables["activity"] = _moments(tables["activity"])
    if not source.tasks and known:
        notes["config"] = (
            f"The configuration of {source.shown} is not there, so variants have their names in "
            "the tables, and neither commands nor options are known."
        )
    return {
        "name": source.name,
        "folder": source.shown,
        "command": source.command,
        "notes": notes,
        "tasks": tasks,
        "stages": [list(text) for text in texts],
        "tables": {name: columns(table) for name, table in tables.items()},
        "maps": {name: found for name, found in maps.items() if found},
        "tokens": {name: found for name, found in tokens.items() if found},
    }


def _gathered(source: Source, name: str, notes: dict[str, str]) -> pd.DataFrame | None:
    """A table of all suites, with a column for the suite; a variant that several suites have is the
    first one's."""
    what, needed = NEEDED[name]
    found = []
    for suite in source.suites:
        path = source.tables / ("" if suite == SUITES[0] else suite) / f"{name}.csv"
        if not path.is_file():
            continue
        if missing := [column for column in needed if column not in columns_of(path)]:
            notes.setdefault(
                name,
                f"{_shown(source, path)} is of another version: it has no column {missing[0]}, so "
                f"{what} cannot be shown.",
            )
            continue
        # The ledger's columns are all texts.
        checked = [x for x in needed if x not in UNCHECKED and name != "claims"]
        found.append(read_table(path, checked).assign(suite=suite))
    if not found:
        notes.setdefault(name, f"There is no {name}.csv in {source.shown}, so no {what}.")
        return None
    table = pd.concat(found, ignore_index=True)
    if name in ("claims", "comparisons", "summary"):
        return table
    first = table.groupby(["task", "variant"])["suite"].transform("first")
    return table[table["suite"] == first].reset_index(drop=True)


def _shown(source: Source, path: Path) -> str:
    return f"{source.shown}/{path.relative_to(source.tables)}"


def _task(
    name: str,
    said: Task | None,
    tables: Mapping[str, pd.DataFrame],
    texts: dict[tuple[str, str], int],
) -> dict[str, Any]:
    own = {key: table[table["task"] == name] for key, table in tables.items() if "task" in table}
    points = own["tradeoff"]
    variants = dict.fromkeys(points["variant"])
    metrics = [*dict.fromkeys(points["metric"])]
    if said:
        first_metric = said.metric
        metrics.sort(key=lambda metric: metric != first_metric)
    suites, main = points.groupby("variant")["suite"].first(), points["suite"].iloc[0]
    first = [x for x in variants if x not in DENSE_VARIANTS and suites[x] == main]
    said = said or Task(name, metrics[0], {}, first)
    costs = _costs(points[points["metric"] == metrics[0]], own.get("layers"), said.sizes)
    unknown = [x for x in variants if x not in said.variants and x not in DENSE_VARIANTS]
    described = []
    for variant in variants:
        about = said.variants.get(variant)
        if about is None:  # known by its rows alone
            place = unknown.index(variant) if variant in unknown else 0
            about = Variant(variant, DENSE_VARIANTS.get(variant, variant), place)
        described.append(
            {
                "name": variant,
                "label": about.label,
                "suite": suites[variant],
                "look": _look(about),
                "stages": [texts.setdefault(stage, len(texts)) for stage in about.stages],
                "targets": {str(seed): list(paths) for seed, paths in about.targets.items()},
                "cost": costs.get(variant),
            }
        )
    return {
        "name": name,
        "title": said.title,
        "metrics": metrics,
        "falling": [metric for metric in metrics if metric in INVERTED],
        "chosen": [x for x in said.chosen if x in variants] or first,
        "symbols": {knob: RULES[knob].symbol for knob in points["knob"].unique() if knob in RULES},
        "variants": described,
    }


def _look(about: Variant) -> dict[str, Any]:
    if about.name in DENSE:
        return look(style.Look(style.INK, str(DENSE[about.name]["marker"]), "-"))
    return look(style.look(about.place, about.hollow))


def look(signs: style.Look) -> dict[str, Any]:
    """A look as the page draws it; the colour of the dense models is that of text there."""
    dashes = [] if isinstance(signs.line, str) else list(signs.line[1])
    return {
        "colour": "" if signs.colour == style.INK else signs.colour,
        "marker": signs.marker,
        "dashes": dashes,
        "hollow": signs.hollow,
    }


def _costs(
    points: pd.DataFrame, layers: pd.DataFrame | None, sizes: Sizes | None
) -> dict[str, dict[str, Any]]:
    """The parts of the cost of every variant that has experts, and of the dense models."""
    if layers is None or not set(points["variant"]) & set(DENSE_VARIANTS):
        return {}
    of_variants = {name: rows for name, rows in points.groupby("variant", sort=False)}
    fits: dict[str, Fit] = {}
    for name, rows in of_variants.items():
        found = fit(rows, layers[layers["variant"] == name])
        if found:
            fits[str(name)] = found
    if not fits:
        return {}
    dense = float(next(of_variants[x] for x in DENSE_VARIANTS if x in of_variants)["flops"].mean())
    ffns = next(iter(fits.values())).ffns  # the first variant's base is the dense model
    costs = {name: split(found, dense, ffns, sizes) for name, found in fits.items()}
    of_dense = split_dense(dense, ffns, sizes)
    return costs | {name: of_dense for name in DENSE_VARIANTS if name in of_variants}


def _moments(activity: pd.DataFrame) -> pd.DataFrame:
    """Of each histogram of active neurons the mean and the standard deviation over tokens."""
    weighted = activity.assign(
        mean=activity["active"] * activity["tokens"],
        square=activity["active"] ** 2 * activity["tokens"],
    )
    sums = weighted.groupby([*POINT, "layer", "d_ff"], sort=False, as_index=False)[
        ["tokens", "mean", "square"]
    ].sum()
    mean = sums["mean"] / sums["tokens"]
    deviation = np.sqrt(np.maximum(sums["square"] / sums["tokens"] - mean**2, 0))
    return sums.drop(columns="square").assign(mean=mean, std=deviation)


def _maps(said: Task | None, task: str, loads: pd.DataFrame | None) -> dict[str, Any] | None:
    """Load maps of a task's images: the published pictures, or else what the table of patches says
    of the first images."""
    if said and said.maps and all(path.is_file() for path in said.maps.values()):
        tensors, about = (read(said.maps[name]) for name in ("load_maps", "dataset"))
        return {
            "point": said.mapped,
            "images": [_png(image.transpose(1, 2, 0)) for image in tensors["images"]],
            "names": [about["classes"][int(label)] for label in tensors["labels"]],
            "loads": [_rounded(load) for load in tensors["loads"]],
        }
    rows = loads[loads["task"] == task] if loads is not None else pd.DataFrame()
    if rows.empty:
        return None
    first = rows[rows["image"] < IMAGES].groupby("image")
    grids = [x.pivot(index="row", columns="column") for _, x in first]
    return {
        "point": f"{rows['variant'].iloc[0]}, seed {rows['seed'].iloc[0]}",
        "images": [],
        "names": [f"image {image}" for image in first.groups],
        "loads": [_rounded(grid["load"].to_numpy()) for grid in grids],
        "objects": [_rounded(grid["object_share"].to_numpy()) for grid in grids],
    }


def _tokens(said: Task | None, task: str, loads: pd.DataFrame | None) -> dict[str, Any] | None:
    """What each token of a task's samples runs, by operating point and sample; of texts the tokens.

    Raises:
        DataError: a token is not written as JSON, or is not at every operating point.
    """
    rows = loads[loads["task"] == task] if loads is not None else pd.DataFrame()
    if rows.empty:
        return None
    first = rows.iloc[0]
    variant = said.variants.get(first["variant"]) if said else None
    of_value = [own for _, own in rows.groupby("knob_value", sort=False)]
    experts = [[[*map(int, x)] for _, x in own.groupby("sample")["experts"]] for own in of_value]
    if len({tuple(map(len, samples)) for samples in experts}) > 1:
        raise DataError(f"token_load.csv is damaged: {task} lacks tokens. {REMEDY}")
    try:
        texts = [[*map(_text, own)] for _, own in of_value[0].groupby("sample")["token"]]
    except ValueError as error:
        raise DataError(
            f"token_load.csv is damaged: {task} has a token {error}. {REMEDY}"
        ) from None
    return {
        "point": f"{variant.label if variant else first['variant']}, seed {first['seed']}",
        "symbol": RULES[first["knob"]].symbol if first["knob"] in RULES else first["knob"],
        "values": [float(own["knob_value"].iloc[0]) for own in of_value],
        "num_experts": int(first["num_experts"]),
        "experts": experts,
        "texts": [] if rows["token"].isna().all() else texts,
    }


def _text(token: Any) -> str:
    """What a cell says of a token; of a patch nothing.

    Raises:
        ValueError: it is no text as JSON has it.
    """
    text = "" if pd.isna(token) else json.loads(str(token))
    if not isinstance(text, str):
        raise ValueError(f"{token} without quotes")
    return text


def _rounded(load: np.ndarray) -> list[list[float]]:
    return [[float(f"{x:.{PLACES}g}") for x in line] for line in load]


def _png(pixels: np.ndarray) -> str:
    """A picture [H, W, 3] as the address of an image."""
    buffer = io.BytesIO()
    undated: dict[str, Any] = {"Software": None}
    matplotlib.image.imsave(buffer, np.ascontiguousarray(pixels), format="png", metadata=undated)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
