"""The figures of published results, for `snakemake figures`; where these lie, says `publishing`."""

import csv
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from d2dmoe.config.experiment import parse_config
from d2dmoe.errors import ConfigError, DataError
from d2dmoe.extensions import import_extensions
from d2dmoe.figures import WALL_CLOCK
from d2dmoe.io.csvfile import write_csv
from d2dmoe.io.read import columns_of, read_table
from d2dmoe.plan.benchmarks import APPENDIX, DRAWN
from d2dmoe.plan.plan import Plan
from d2dmoe.plan.publishing import place, published_suites, requests
from d2dmoe.plan.tables import figure_path
from d2dmoe.tables import COLUMNS, LAYER, of_first_layer

CONFIG = "config.yaml"
SHOWN, FEW = 6, 3  # faults in a message, columns in a fault
REMEDY = (
    "Make it anew with this version (`snakemake publish` fills results/published), or draw it with "
    "the version that made it."
)


@dataclass(frozen=True)
class Drawing:
    """A figure of published results."""

    name: str  # where it lies, without an ending
    draw: str  # of its record
    inputs: dict[str, Path]
    arguments: dict[str, Any]
    task: str | None = None  # whose rows of the tables it shows; None: all

    def files(self, scratch: Path) -> dict[str, Path]:
        """Its inputs; of tables its task's rows, written into a folder once for all figures."""
        if self.task is None:
            return self.inputs
        return {
            name: _rows(path, self.task, scratch) if path.suffix == ".csv" else path
            for name, path in self.inputs.items()
        }


def drawings(reference: Path) -> list[Drawing]:
    """All figures of the published results in the folders of `reference`.

    Raises:
        ConfigError: tables lie there without their configuration, or it is none of this version.
        DataError: nothing is published; or files or columns that figures need are missing, all of
            which one message names, the first of them at least.
    """
    found = [
        drawing
        for folder in sorted(path for path in reference.glob("*") if path.is_dir())
        for drawing in (*_of_tasks(folder), *_of_benchmarks(folder))
    ]
    if not found:
        raise DataError(f"{reference} holds no published results. {REMEDY}")
    needed = {path: COLUMNS.get(x, ()) for drawing in found for x, path in drawing.inputs.items()}
    faults = [fault for path, columns in needed.items() if (fault := _fault(path, columns))]
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        lines = "\n  ".join([*faults[:SHOWN], *more])
        raise DataError(f"{reference} lacks what figures are drawn of:\n  {lines}\n{REMEDY}")
    return found


def _of_tasks(folder: Path) -> Iterator[Drawing]:
    if (folder / "tables").is_dir():
        published = published_suites(folder / "tables")
        for figure, suite, task, request in requests(plan_of(folder / CONFIG)):
            if suite not in published:
                continue
            path = Path(figure_path(suite, figure.name, "png", task)).with_suffix("")
            name = f"{folder.name}/{path.relative_to('results/figures')}"
            inputs = {x: folder / place(file, x, task) for x, file in request.inputs.items()}
            yield Drawing(name, figure.draw, inputs, request.arguments, task)


def _rows(path: Path, task: str, scratch: Path) -> Path:
    """A table of all tasks with a task's rows alone."""
    own = scratch / str(path.absolute().relative_to("/")) / f"{task}.csv"
    if not own.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows = (row for row in csv.DictReader(file, restval="") if row["task"] == task)
            write_csv(own, rows, columns_of(path))
    return own


def _of_benchmarks(folder: Path) -> Iterator[Drawing]:
    for name, arguments in DRAWN.items():
        table = folder / f"{name.removesuffix(APPENDIX)}.csv"
        if table.is_file() and not (name.endswith(APPENDIX) and _of_one_layer(table)):
            yield Drawing(f"{folder.name}/{name}", WALL_CLOCK.draw, {"table": table}, arguments)


def _of_one_layer(table: Path) -> bool:
    return bool(of_first_layer(read_table(table, LAYER)).all())


def plan_of(path: Path) -> Plan:
    """Of a published configuration, whose data and weights need not be here."""
    if not path.is_file():
        raise ConfigError(
            f"{path}, the configuration of the tables beside it, is missing. {REMEDY}"
        )
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except (ConfigError, OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} is no configuration of this version: {error}. {REMEDY}"
        ) from error


def parsed(config: str) -> Plan:
    """Of a configuration as `publishing.config_text` writes it.

    Raises:
        ConfigError: it is none of this version.
        ValueError, YAMLError: it is no configuration.
    """
    raw = yaml.safe_load(config)
    if not isinstance(raw, dict):
        raise ConfigError("it holds no options")
    import_extensions(raw)
    return Plan(parse_config(raw), Path())


def _fault(path: Path, columns: Collection[str]) -> str | None:
    """What figures need of a file and do not find."""
    if not path.is_file():
        return f"{path} is missing"
    missing = [column for column in columns if column not in columns_of(path)] if columns else []
    names = ", ".join(missing[:FEW]) + (f" and {len(missing) - FEW} more" if missing[FEW:] else "")
    return f"{path} has no column {names}" if missing else None
