"""Damaged tables, descriptions and records, read as the jobs that come later read them.

The tables are real: parts of those in results/reference.
"""

import json
import random
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from mutations import damaged, json_of, mutated, with_cells
from safetensors.numpy import save_file

from d2dmoe import tables
from d2dmoe.claims.evidence import evidence_of
from d2dmoe.claims.ledger import ledger, wall_clock_ledger
from d2dmoe.config.data import data_config
from d2dmoe.data.splits import open_split
from d2dmoe.data.text_splits import split_documents, split_labelled
from d2dmoe.fairness import fairness, tuning, wall_times
from d2dmoe.figures import FIGURES, by_key
from d2dmoe.io.csvfile import write_csv, write_rows
from d2dmoe.io.read import read, read_table
from d2dmoe.lookup import resolve
from d2dmoe.plan.claims import claim_options
from d2dmoe.plan.plan import Plan, load_plan
from d2dmoe.plan.tables import pairs
from d2dmoe.significance import statistics
from d2dmoe.stages.downstream import read_points

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results/reference"
TASK = "vision"
DAMAGED_BYTES = 0.15  # share of the cases; the others have other cells

Read = Callable[[], object]


@cache
def _plan() -> Plan:
    return load_plan(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")), ROOT)


@cache
def _text(name: str, most: int = 400) -> str:
    """A reference table's rows of one task and seed: the first so many of each variant."""
    table = pd.read_csv(REFERENCE / f"{name}.csv", dtype=str, keep_default_na=False)
    if "task" in table:
        table = table[table["task"] == TASK]
    if "seed" in table:
        table = table[table["seed"] == "0"]
    if "variant" in table:
        table = table.groupby("variant", sort=False).head(most)
    return table.head(4000).to_csv(index=False, lineterminator="\n")


def _write(name: str, folder: Path, rng: random.Random | None, most: int = 400) -> Path:
    """The table in a folder, damaged where there is a generator."""
    text = _text(name, most)
    content = text.encode()
    if rng is not None:
        as_bytes = rng.random() < DAMAGED_BYTES
        content = damaged(content, rng) if as_bytes else with_cells(text, rng).encode()
    path = folder / f"{Path(name).name}.csv"
    path.write_bytes(content)
    return path


MINIATURE = "miniature/tables/"


def _gathered(rng: random.Random, folder: Path) -> Read:
    name = rng.choice(("tradeoff", "layers", "summary", "reference", "fairness", "tuning"))
    path = _write(MINIATURE + name, folder, rng)
    entries = [{"path": str(path)}, {"path": str(path)}]
    return lambda: write_rows(folder / "out.csv", tables.gather(entries))


def _points(rng: random.Random, folder: Path) -> list[dict[str, Any]]:
    """The operating points of a dense model and a variant, as evaluations write them."""
    entries = []
    for variant, reference in (("dense", True), ("d2dmoe", False)):
        rows = pd.read_csv(_write(MINIATURE + "tradeoff", folder, None), keep_default_na=False)
        rows = rows[rows["variant"] == variant]
        wide = rows.pivot(index=["knob", "knob_value", "flops", "params"], columns="metric")
        text = wide["value"].reset_index().to_csv(index=False)
        path = folder / f"{variant}.csv"
        path.write_text(with_cells(text, rng) if rng.random() < 0.6 else text, encoding="utf-8")
        labels = {"task": TASK, "model": "vit", "dataset": "images", "method": "d2dmoe"}
        labels |= {"variant": variant, "seed": 0, "reference": reference}
        entries.append({"path": str(path)} | labels)
    return entries


def _tradeoff(rng: random.Random, folder: Path) -> Read:
    entries = _points(rng, folder)

    def make() -> None:
        rows = tables.tradeoff(entries, ["accuracy", "loss"])
        write_csv(folder / "out.csv", rows, tables.TRADEOFF_COLUMNS)

    return make


def _tuning(rng: random.Random, folder: Path) -> Read:
    entries = [entry | {"lr": 0.001, "chosen": True} for entry in _points(rng, folder)]
    return lambda: write_rows(folder / "out.csv", tuning(entries, "accuracy"))


def _boolq(rng: random.Random, folder: Path) -> Read:
    entries = [Path(entry["path"]) for entry in _points(rng, folder)]
    return lambda: read_points(entries[1], entries[0])


def _statistics(rng: random.Random, folder: Path) -> Read:
    """Outcomes of samples, whose file is damaged or holds other numbers."""
    found = {
        "correct": np.array([[1, 0, 1], [1, 1, 1]], np.uint8),
        "loss": np.array([[0.1, 2.0, 0.3], [0.1, 0.2, 0.3]], np.float32),
        "flops": np.array([[5.0, 6.0, 7.0], [9.0, 9.0, 9.0]], np.float32),
        "targets": np.ones(3, np.int32),
    }
    whole, broken = folder / "whole.safetensors", folder / "broken.safetensors"
    save_file(found, whole)
    if rng.random() < 0.5:
        broken.write_bytes(damaged(whole.read_bytes(), rng))
    else:
        name = rng.choice([*found])
        values = found[name].copy()
        values.flat[rng.randrange(values.size)] = rng.choice([0, 1, 200, *_strange(values.dtype)])
        save_file(found | {name: values[: rng.choice([1, None])]}, broken)
    about = {"task": TASK, "method": "d2dmoe", "seed": 0, "validation": str(whole)}
    entries = [
        about | {"variant": "dense", "reference": True, "test": str(rng.choice([whole, broken]))},
        about | {"variant": "d2dmoe", "reference": False, "test": str(broken)},
    ]
    metric = rng.choice(["accuracy", "loss", "perplexity"])

    def make() -> None:
        summary, rows = statistics(entries, metric, [("dense", "d2dmoe")], resamples=3)
        write_csv(folder / "out.csv", summary, tables.SUMMARY)
        write_csv(folder / "rows.csv", rows, tables.COMPARISON)

    return make


def _strange(dtype: np.dtype) -> list[float]:
    return [float("nan"), float("inf"), -1.0] if dtype.kind == "f" else []


@cache
def _made(name: str) -> str:
    """A table of statistics, as of the variants of the task."""
    if name == "summary":
        columns, numbers = tables.SUMMARY, dict.fromkeys(tables.ESTIMATED, 0.9)
        variants = _plan().task(TASK).variants
        rows = [{"task": TASK, "method": x.method, "variant": v} for v, x in variants.items()]
        rows = [row | {"metric": "accuracy", "seeds": 1, "samples": 9} | numbers for row in rows]
    else:
        columns, numbers = tables.COMPARISON, {"difference": 0.1, "low": -0.1, "high": 0.3}
        rows = [
            {"task": TASK, "variant": one, "rival": other, "metric": "accuracy", "seeds": 1}
            | {"measure": measure, "at": at, "samples": 9, "verdict": "undecided"}
            | numbers
            for one, other in pairs(_plan(), "main", TASK)
            for measure, at in (("quality", 0.5), ("mean quality", 0.4), ("cost", 0.99))
        ]
    return pd.DataFrame(rows)[columns].to_csv(index=False)


def _claims(rng: random.Random, folder: Path) -> Read:
    names = ("tradeoff", "layers", "activity", "patch_load", "summary", "comparisons")
    broken = rng.choice(names)
    paths = {n: _write(MINIATURE + n, folder, rng if n == broken else None) for n in names[:4]}
    for name in names[4:]:
        paths[name] = folder / f"{name}.csv"
        text = _made(name)
        paths[name].write_text(with_cells(text, rng) if name == broken else text, encoding="utf-8")
    options = claim_options(_plan(), "main")[TASK]

    def make() -> None:
        found = {name: read_table(path, tables.COLUMNS[name]) for name, path in paths.items()}
        ledger([evidence_of(TASK, found, **options)])

    return make


def _timed(rng: random.Random, folder: Path) -> Read:
    path = _write(rng.choice(("cpu/cpu", "h200/layer")), folder, rng)
    needed = [*tables.COLUMNS["table"], *tables.LAYER]
    return lambda: wall_clock_ledger([read_table(path, needed)])


def _drawn(rng: random.Random, folder: Path) -> Read:
    """A figure of the task, drawn but not saved."""
    drawn = _plan().task(TASK).figures.of_figures()
    figure = by_key()[rng.choice([key for key in drawn if key != "load_maps"])]
    request = resolve(figure.request)(_plan(), "main", TASK, figure)
    paths = {name: _write(MINIATURE + name, folder, rng, most=40) for name in request.inputs}

    def make() -> None:
        inputs = {name: read(path, tables.COLUMNS[name]) for name, path in paths.items()}
        resolve(figure.draw)(**inputs, **request.arguments)

    return make


def _drawn_times(rng: random.Random, folder: Path) -> Read:
    path = _write(rng.choice(("cpu/cpu", "h200/model", "h200/decode")), folder, rng)
    draw = resolve("d2dmoe.figures.wall_clock:draw")
    return lambda: draw(table=read(path, tables.COLUMNS["table"]))


def _fairness(rng: random.Random, folder: Path) -> Read:
    about, record = folder / "dataset.json", folder / "record.json"
    about.write_text(json_of(mutated({"sizes": {"train": 9, "test": 3}}, rng, aliases=False)))
    told = {"rule": "sparsify", "s": 4.0, "attempts": [{"s": 2.5}, {"s": 1.5}]}
    if rng.random() < 0.5:
        record.write_bytes(damaged(json.dumps(told).encode(), rng))
    else:
        record.write_text(json_of(mutated(told, rng, aliases=False)))
    stage = {"stage": "sparsify", "epochs": 1.0, "batch_size": 4}
    entry = {"task": TASK, "method": "d2dmoe", "variant": "a", "seed": 0, "lr": 0.1, "rates": [0.1]}
    entry |= {"about": str(about), "stages": [stage], "records": [str(record)]}
    return lambda: (fairness([entry]), wall_times([entry]))


DESCRIPTION: Mapping[str, Any] = {
    "kind": "texts", "sha256": {"train": "0" * 64}, "pad_id": 0, "classes": ["a", "b"],
}  # fmt: skip


def _description(rng: random.Random, folder: Path) -> Read:
    path = folder / "dataset.json"
    if rng.random() < 0.5:
        path.write_bytes(damaged(json.dumps(DESCRIPTION).encode(), rng))
    else:
        path.write_text(json_of(mutated(dict(DESCRIPTION), rng, aliases=False)))
    return lambda: open_split(folder, "train")


ROWS = [{"text": f"text number {i} of many", "label": f"class {i % 3}"} for i in range(24)]


def _texts(rng: random.Random, folder: Path) -> Read:
    """A set of texts as a user brings it: CSV, JSON, one object a line, or plain text."""
    ending = rng.choice(("csv", "json", "jsonl", "txt", "parquet"))
    for split, rows in (("train", ROWS), ("test", [r | {"text": f"new {r}"} for r in ROWS[:9]])):
        path = folder / f"{split}.{ending}"
        _save_rows(path, rows, rng)
    values = {"kind": "texts", "source": f"path:{folder}", "length": 9, "validation": 3}
    tokenizer = {"tokenizer": {"vocab_size": 300}}
    if ending == "txt":
        corpus = values | tokenizer | {"kind": "corpus"}
        return lambda: [list(x) for x in split_documents(data_config(corpus), ROOT).values()]
    return lambda: split_labelled(data_config(values | tokenizer), ROOT)


def _save_rows(path: Path, rows: list[dict[str, str]], rng: random.Random) -> None:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
        content = path.read_bytes()
    elif path.suffix == ".csv":
        content = with_cells(frame.to_csv(index=False), rng).encode()
    elif path.suffix == ".txt":
        content = "\n\n".join(frame["text"]).encode()
    else:
        changed: Any = mutated(rows, rng, aliases=False)
        lines = changed if isinstance(changed, list) else [changed]
        as_list = path.suffix == ".json"
        content = (json_of(changed) if as_list else "\n".join(map(json_of, lines))).encode()
    path.write_bytes(damaged(content, rng) if rng.random() < 0.3 else content)


CASES = (_gathered, _tradeoff, _tuning, _boolq, _statistics, _claims, _timed, _drawn, _drawn_times)
CASES += (_fairness, _description, _texts, _texts)
assert FIGURES  # drawn by their records


def case(rng: random.Random, folder: Path) -> Read:
    """A call that reads a damaged file as a job does."""
    for path in folder.iterdir():
        path.unlink()
    return rng.choice(CASES)(rng, folder)
