"""Zero-shot BoolQ of a saved model at each compute budget."""

import math
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from d2dmoe.checkpoint import load_model
from d2dmoe.data.splits import open_split
from d2dmoe.downstream import BoolQ, Point, calibrate, check_installed, load_boolq
from d2dmoe.evaluation import evaluate_routed
from d2dmoe.io.read import read_table
from d2dmoe.jobs.progress import Progress
from d2dmoe.jobs.run import Run
from d2dmoe.moe import set_selection
from d2dmoe.selection_rules import RULES

MEASURED = ("flops_ratio", "accuracy", "stderr", "samples")
UNREACHABLE = dict.fromkeys(("knob_value", "flops_ratio_validation", *MEASURED), math.nan)


def boolq(
    model_path: Path,
    tokenizer_path: Path,
    points_path: Path,
    dense_path: Path,
    cfg: dict[str, Any],
    run: Run,
) -> list[dict]:
    """A row per budget; one that even the cheapest operating point exceeds has no numbers.

    Args:
        model_path: dense, or converted with routers.
        tokenizer_path: the task's tokenizer.json.
        points_path: the model's operating points on validation data.
        dense_path: the dense model's one on the same data.
        cfg: source, budgets, limit and batch_size (of the measurements on validation data).
        run: device and data.

    Returns:
        Rows budget, knob, knob_value, flops_ratio_validation, and of the BoolQ run flops_ratio,
        accuracy, stderr (the standard error of the accuracy), samples.

    Raises:
        UserError: lm-eval is not installed, or model, data or questions are not in order.
    """
    check_installed()
    rows = load_boolq(cfg["source"], Path.cwd())
    model, _spec = load_model(model_path)
    model.to(run.device)
    task = BoolQ(model, tokenizer_path, rows)
    knob, points, dense_flops = read_points(points_path, dense_path)
    split = open_split(run.data, "validation")

    def measure(value: float) -> float:
        found = evaluate_routed(model, split, knob, [value], cfg["batch_size"], run.device)
        return found.points[0]["flops"] / dense_flops

    @cache  # budgets may share an operating point
    def ask(point: Point | None) -> dict[str, float]:
        return _ask(task, model, knob, point, cfg["limit"])

    progress = Progress("BoolQ at budget", len(cfg["budgets"]), every_s=run.log_every_s)
    continuous = knob in RULES and not RULES[knob].whole
    results = []
    for budget in cfg["budgets"]:
        point = calibrate(points, budget, measure if continuous else None)
        results.append({"budget": budget, "knob": knob} | ask(point))
        progress.update(len(results))
    return results


def read_points(points_path: Path, dense_path: Path) -> tuple[str, list[Point], float]:
    """The knob, the measured operating points, and the FLOPs per sample of the dense model."""
    table = read_table(points_path, ["knob", "knob_value", "flops"])
    dense = float(read_table(dense_path, ["flops"])["flops"][0])
    rows = table[["knob_value", "flops"]].astype(float).itertuples(index=False)
    return table["knob"][0], [Point(value, flops / dense) for value, flops in rows], dense


def _ask(
    task: BoolQ, model: nn.Module, knob: str, point: Point | None, limit: int | None
) -> dict[str, float]:
    if point is None:
        return UNREACHABLE
    set_selection(model, knob, point.value)  # does nothing to a dense model
    known = {"knob_value": point.value, "flops_ratio_validation": point.ratio}
    return known | task.ask(limit)
