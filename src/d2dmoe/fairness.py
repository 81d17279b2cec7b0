"""What every method was given: steps, samples, learning rates tried, wall time.

A comparison is worth nothing if a baseline was starved. `fairness.csv` says what each method had
beyond the dense model that all share; `wall_times.csv`, apart since it never repeats, the time that
it took; `tuning.csv` what every learning rate tried came to, on validation samples.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from d2dmoe import curve
from d2dmoe.config.training import TrainingConfig
from d2dmoe.errors import DataError
from d2dmoe.io.read import REMEDY, read
from d2dmoe.tables import tradeoff

LABELS = ["task", "method", "variant"]
TRIAL_BUDGETS = [0.6, 0.7, 0.8, 0.9, 1.0]
"""Ratios at which learning rates are compared: up to the dense cost, for what is sought is a saving
that keeps the dense quality."""


class Sizes(BaseModel):
    """Of `dataset.json`, how many samples each split has."""

    sizes: dict[str, Annotated[int, Field(gt=0)]]


class Times(BaseModel):
    """Of a job's record, how long it took."""

    s: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of all attempts
    attempts: list[Any]


def fairness(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per task and variant.

    Args:
        entries: one per task, variant, seed and training: task, method, variant, seed, lr (peak
            rate of the longest stage), rates (those tried), about (path of `dataset.json`), and
            stages: dicts of stage, epochs and batch_size. A method that needs a training for every
            operating point has several entries a seed.

    Returns:
        Rows task, method, variant, seeds, trainings (per seed), stages, epochs, steps and samples
        (of one training), lr, rates_tried. Stages that variants share count for each of them.
    """
    rows = []
    for labels, group in _by_labels([_training(entry) for entry in entries]):
        common = group.iloc[0].drop([*LABELS, "seed"])
        rows.append(labels | _counts(group) | common.to_dict())
    return rows


def wall_times(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How long the jobs of every variant took, all attempts together; a row per task and variant.

    Args:
        entries: as for `fairness`, each with task, method, variant, seed, and records: the paths of
            its jobs' records.

    Returns:
        Rows task, method, variant, seeds, trainings (per seed), jobs and attempts (of all seeds),
        wall_s_mean and wall_s_std (over seeds, of all trainings of a seed together, in seconds).
        Jobs that variants share count for each of them.
    """
    rows = []
    for labels, group in _by_labels([_times(entry) for entry in entries]):
        seconds = group.groupby("seed")["wall_s"].sum()
        rows.append(
            labels
            | _counts(group)
            | {name: int(group[name].sum()) for name in ("jobs", "attempts")}
            | {"wall_s_mean": round(float(seconds.mean()), 1)}
            | {"wall_s_std": round(float(seconds.std()), 1)}  # empty for one seed
        )
    return rows


def _by_labels(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The rows of each task and variant."""
    for keys, group in pd.DataFrame(rows).groupby(LABELS, sort=False):
        yield dict(zip(LABELS, keys, strict=True)), group


def _counts(trainings: pd.DataFrame) -> dict[str, int]:
    sizes = trainings.groupby("seed").size()
    return {"seeds": len(sizes), "trainings": int(sizes.max())}


def _training(entry: dict[str, Any]) -> dict[str, Any]:
    """What one training had."""
    samples = _training_samples(Path(entry["about"]))
    stages = {stage["stage"]: _steps(stage, samples) for stage in entry["stages"]}
    seen = sum(stages[s["stage"]] * s["batch_size"] for s in entry["stages"])
    return {key: entry[key] for key in (*LABELS, "seed")} | {
        "stages": " ".join(f"{name}:{steps}" for name, steps in stages.items() if steps),
        "epochs": round(sum(stage["epochs"] for stage in entry["stages"]), 4),
        "steps": sum(stages.values()),
        "samples": seen,
        "lr": entry["lr"],
        "rates_tried": " ".join(f"{rate:g}" for rate in entry["rates"]),
    }


def _steps(stage: dict[str, Any], samples: int) -> int:
    cfg = TrainingConfig(epochs=stage["epochs"], lr=1.0, batch_size=stage["batch_size"])
    return cfg.steps(samples)


def _times(entry: dict[str, Any]) -> dict[str, Any]:
    """How long one training's jobs took."""
    records = [_record(Path(path)) for path in entry["records"]]
    return {key: entry[key] for key in (*LABELS, "seed")} | {
        "jobs": len(records),
        "attempts": sum(len(record.attempts) for record in records),
        "wall_s": sum(record.s for record in records),
    }


def _training_samples(about: Path) -> int:
    sizes = read(about)
    try:
        return Sizes.model_validate(sizes).sizes["train"]
    except (LookupError, ValueError) as error:
        raise DataError(f"{about} does not say how many samples train. {REMEDY}") from error


def _record(path: Path) -> Times:
    record = read(path)
    try:
        return Times.model_validate(record)
    except ValueError as error:
        raise DataError(f"{path} does not say how long the job took. {REMEDY}") from error


def tuning(entries: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """What every learning rate of every variant came to on validation samples.

    Args:
        entries: as for `tables.tradeoff`, each with lr and chosen (whether the variant has it); the
            dense models' points are the reference, those fine-tuned at any rate among them.
        metric: the task's main metric.

    Returns:
        Rows task, method, variant, lr, chosen, metric, seeds, quality_at_0.6 … quality_at_1.0 and
        quality_at_dearest (operating point), means over seeds; score, the mean of the qualities at
        the budgets that the variant meets at all its rates, or, if there is none, at the dearest;
        best: whether the score is the variant's highest.
    """
    points = pd.DataFrame(tradeoff(list(entries), [metric]))
    points = points[points["lr"] > 0]
    keys = ["task", "method", "variant", "lr", "chosen", "metric"]
    rows = []
    for values, group in points.groupby(keys, sort=False):
        seeds = [_measures(own) for _seed, own in group.groupby("seed")]
        means = {name: float(np.mean([m[name] for m in seeds])) for name in seeds[0]}
        rows.append(dict(zip(keys, values, strict=True)) | {"seeds": len(seeds)} | means)
    return [scored for variant in _by_variant(rows) for scored in _scored(variant)]


def _by_variant(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    names = dict.fromkeys(row["variant"] for row in rows)
    return [[row for row in rows if row["variant"] == name] for name in names]


def _scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials of a variant with their scores."""
    budgets = [f"quality_at_{ratio}" for ratio in TRIAL_BUDGETS]
    shared = [b for b in budgets if not any(np.isnan(row[b]) for row in rows)]
    scores = [float(np.mean([row[b] for b in shared or ["quality_at_dearest"]])) for row in rows]
    top = max(scores)
    return [row | {"score": s, "best": s == top} for row, s in zip(rows, scores, strict=True)]


def quality_at(points: pd.DataFrame, ratio: float) -> float:
    """Relative quality of one seed's curve at a budget; NaN where its cheapest point exceeds it."""
    costs, qualities = (points[name].to_numpy() for name in ("flops_ratio", "relative_value"))
    if ratio < costs.min():
        return float("nan")
    return float(curve.quality_at(np.array([ratio]), costs[None], qualities[None]).item())


def _measures(points: pd.DataFrame) -> dict[str, float]:
    qualities = {f"quality_at_{ratio}": quality_at(points, ratio) for ratio in TRIAL_BUDGETS}
    dearest = points.sort_values("flops_ratio")["relative_value"].iloc[-1]
    return qualities | {"quality_at_dearest": float(dearest)}
