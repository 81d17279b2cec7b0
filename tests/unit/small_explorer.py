"""What the explorer's page should show of tables, computed anew, and controls that are moved."""

import math
import random
from collections.abc import Collection
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pandas as pd

from d2dmoe.config.task import SUITES
from d2dmoe.tables import COLUMNS, ENDS

DENSE = ("dense", "dense_finetuned")
NOTHING = "–"
UNITS = {"TFLOPs": 1e12, "GFLOPs": 1e9, "MFLOPs": 1e6, "kFLOPs": 1e3, "FLOPs": 1}


def table(folder: Path, name: str, numbers_but: Collection[str] = ()) -> pd.DataFrame:
    """A table of all suites; of a variant that several have, the first one's rows."""
    paths = [folder / ("" if suite == SUITES[0] else suite) / f"{name}.csv" for suite in SUITES]
    found, known = [], set()
    for path in filter(Path.is_file, paths):
        rows = pd.read_csv(path, keep_default_na=False, na_values={"knob_value": [""]})
        if numbers_but:
            names = [x for x in rows if x not in {*numbers_but, "method"}]
            rows[names] = rows[names].apply(pd.to_numeric, errors="coerce")
        of = list(zip(rows["task"], rows["variant"], strict=True))
        found.append(rows[[pair not in known for pair in of]])
        known |= set(of)
    return pd.concat(found, ignore_index=True)


def summary_of(folder: Path) -> pd.DataFrame | None:
    """None of a version without intervals."""
    found = table(folder, "summary", {"task", "variant", "metric"})
    return found if {*COLUMNS["summary"]} <= {*found} else None


# Numbers as the page writes them.


def fixed(value: float, digits: int) -> str:
    exact = Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{exact:f}"


def percent(share: float | None, digits: int = 1) -> str:
    return NOTHING if share is None else f"{fixed(100 * share, digits)} %"


def mean(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def deviation(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    middle, total = mean(values), 0.0
    for value in values:
        total += (value - middle) ** 2
    return math.sqrt(total / (len(values) - 1))


def flops(count: float) -> str:
    unit = next(name for name, size in UNITS.items() if count >= size)
    return f"{fixed(count / UNITS[unit], 2)} {unit}"


def spread(values: list[float], digits: int, share: bool) -> str:
    scale, end = (100, " %") if share else (1, "")
    error = deviation(values)
    shown = f"{fixed(scale * mean(values), digits)}{end}"
    return shown if error is None else f"{shown} ± {fixed(scale * error, digits)}"


# What follows from the tables for a state.


class State:
    """What the page says is chosen."""

    def __init__(self, page):
        self.task = page.input_value("#task")
        self.metric = page.evaluate("state.metric")
        self.kind = page.locator("input[name=kind]:checked").input_value()
        self.budget = float(page.input_value("#budget"))
        boxes = page.evaluate(
            "[...document.querySelectorAll('.controls input[type=checkbox]:checked')]"
            ".map(x => x.id)"
        )
        self.variants = {x.removeprefix("variant-") for x in boxes if x.startswith("variant-")}
        self.all_seeds = page.locator("input[id^=seed-]").count()
        self.seeds = {int(x.removeprefix("seed-")) for x in boxes if x.startswith("seed-")}

    def rows(self, table: pd.DataFrame, variant: str) -> pd.DataFrame:
        own = table[(table["task"] == self.task) & (table["variant"] == variant)]
        return own[own["seed"].isin(self.seeds)]

    def points(self, tables, variant: str) -> list[dict]:
        """Operating points, cheapest first."""
        rows = self.rows(tables["tradeoff"], variant)
        rows = rows[rows["metric"] == self.metric]
        found = [
            {"knob": own["knob"].iloc[0], "value": value, "rows": own}
            | {"ratio": mean([*own["flops_ratio"]]), "kept": mean([*own["relative_value"]])}
            for value, own in rows.groupby("knob_value", sort=False, dropna=False)
        ]
        return sorted(found, key=lambda point: point["ratio"])

    def chosen(self, tables, variant: str) -> dict | None:
        """The point that the budget chooses."""
        points = self.points(tables, variant)
        if variant in DENSE:
            return points[0]
        if self.kind == "quality":
            fitting = [x for x in points if 100 * x["kept"] >= self.budget]
            return min(fitting, key=lambda x: x["ratio"], default=None)
        if self.kind == "flops":
            fitting = [x for x in points if 100 * x["ratio"] <= self.budget]
            return max(fitting, key=lambda x: (x["kept"], -x["ratio"]), default=None)
        all_rows = tables["tradeoff"]
        of_knob = all_rows[(all_rows["task"] == self.task) & (all_rows["knob"] == "dynamic_k")]
        tau = sorted(of_knob["knob_value"].unique())[int(self.budget)]
        found = (x for x in points if (x["knob"], x["value"]) == ("dynamic_k", tau))
        return next(found, None)

    def layers(self, tables, variant: str, point: dict) -> dict[int, tuple[float, float, int]]:
        """By layer: share of executed experts, their number, and of how many."""
        rows = self.rows(tables["layers"], variant)
        at = rows[(rows["knob"] == point["knob"]) & (rows["knob_value"] == point["value"])]
        return {
            int(layer): (
                mean([a / b for a, b in zip(own["experts"], own["num_experts"], strict=True)]),
                mean([*own["experts"]]),
                int(own["num_experts"].iloc[0]),
            )
            for layer, own in at[at["role"] == "ffn"].groupby("layer")
        }

    def interval(self, summary: pd.DataFrame | None, variant: str, point: dict | None) -> list[str]:
        """The cell of the summary's estimate, where the table of results has one."""
        if summary is None:
            return []
        budget = f"{self.budget / 100:.10g}" if self.kind == "flops" else f"{self.budget:.10g}"
        name = {"flops": f"quality_at_{budget}", "quality": f"flops_ratio_at_{budget}"}
        key, at = name.get(self.kind, ""), ["task", "variant", "metric"]
        own = summary[(summary[at] == [self.task, variant, self.metric]).all(axis=1)]
        whole = len(self.seeds) == int(self.all_seeds)
        if variant in DENSE or point is None or own.empty or key not in own or not whole:
            return [NOTHING]
        value, low, high = (own[f"{key}{end}"].iloc[0] for end in ENDS)
        what = "quality" if self.kind == "flops" else "FLOPs"
        ends = ", ".join(percent(x if math.isfinite(x) else None) for x in (low, high))
        in_one_line = f"[{ends}]".replace(" ", "\u00a0")
        return [NOTHING if math.isnan(value) else f"{what} {percent(value)} {in_one_line}"]

    def result(self, tables, variant: str) -> list[str]:
        """A variant's cells in the table of results, after its name and operating point."""
        point = self.chosen(tables, variant)
        if point is None:
            return [NOTHING] * 6
        rows, layers = point["rows"], self.layers(tables, variant, point)
        executed = None
        if layers:
            executed = sum(x[1] for x in layers.values()) / sum(x[2] for x in layers.values())
        return [
            spread([*rows["relative_value"]], 2, share=True),
            spread([*rows["value"]], 4, share=False),
            percent(point["ratio"]),
            flops(mean([*rows["flops"]])),
            percent(executed),
            f"{int(Decimal(mean([*rows['params']])).quantize(Decimal(1), ROUND_HALF_UP)):,}",
        ]


def cells(page, place: str) -> dict[str, list[str]]:
    """The cells of a table's rows, by variant."""
    return page.evaluate(
        "place => Object.fromEntries([...document.querySelectorAll(`${place} tr[data-variant]`)]"
        ".map(row => [row.dataset.variant, [...row.cells].map(cell => cell.textContent.trim())]))",
        place,
    )


def move(page, rng: random.Random) -> str:
    """Move one control, as a person would."""
    page.evaluate("document.querySelectorAll('.controls details').forEach(x => { x.open = true })")
    control = rng.choice(["task", "metric", "kind", "budget", "budget", "variant", "seed", "whole"])
    if control in ("task", "metric"):
        if not page.locator(f"#{control}").count():
            return control
        options = page.locator(f"#{control} option").evaluate_all("all => all.map(x => x.value)")
        page.select_option(f"#{control}", rng.choice(options))
    elif control == "budget":
        low, high, step = (float(page.get_attribute("#budget", x)) for x in ("min", "max", "step"))
        page.fill("#budget", f"{low + step * rng.randrange(round((high - low) / step) + 1):g}")
    else:
        place = {
            "kind": "input[name=kind]:not(:disabled)",
            "variant": "input[id^=variant-]",
            "seed": "input[id^=seed-]",
            "whole": "#whole",
        }[control]
        boxes = page.locator(place)
        boxes.nth(rng.randrange(boxes.count())).click()
    return control


def assert_shown(page, tables: dict[str, pd.DataFrame], summary: pd.DataFrame | None) -> None:
    """The view of budgets shows what the tables say, to the last digit, whatever is chosen."""
    state = State(page)
    shown = cells(page, "#results")
    known = {x for x in state.variants | {*DENSE} if state.points(tables, x)}
    assert shown.keys() == known
    for variant, (_name, at, *found) in shown.items():
        assert found[:6] == state.result(tables, variant), (vars(state), variant)
        point = state.chosen(tables, variant)
        assert found[6:] == state.interval(summary, variant, point), (vars(state), variant)
        if point is not None and not math.isnan(point["value"]):
            assert at.endswith(f" = {point['value']:.10g}")
    by_layer = {
        variant: layers
        for variant in shown
        if variant not in DENSE
        and (point := state.chosen(tables, variant))
        and (layers := state.layers(tables, variant, point))
    }
    every = sorted({layer for layers in by_layer.values() for layer in layers})
    numbers = {name: row[1:] for name, row in cells(page, "#layers").items()}
    assert numbers == {
        variant: [percent(layers[x][0] if x in layers else None) for x in every]
        for variant, layers in by_layer.items()
    }, vars(state)
