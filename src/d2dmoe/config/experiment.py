"""The whole configuration: tasks, variants, seeds; checked before any job starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from d2dmoe.config.benchmarks import BenchmarksConfig
from d2dmoe.config.data import check_source
from d2dmoe.config.downstream import check_boolq
from d2dmoe.config.explain import explain
from d2dmoe.config.figures import Name
from d2dmoe.config.strict import Strict
from d2dmoe.config.task import SUITES, TaskConfig
from d2dmoe.errors import ConfigError
from d2dmoe.plan.checks import check_masks

TARGETS = ("all", "validation", "tuning", "benchmarks", *SUITES)  # of the workflow


class RuntimeConfig(Strict):
    """How jobs run; never changes a result."""

    save_every_s: float = Field(60.0, ge=0, description="Seconds between saved training states")
    log_every_s: float = Field(10.0, ge=0, description="Seconds between progress lines")


class Config(Strict):
    """The experiment that `snakemake all` runs."""

    # Not strict: snakemake's --config seeds='[0,1]' gives the numbers in a list as text.
    seeds: list[Annotated[int, Field(ge=0, strict=False)]] = Field(
        min_length=1, description="One run each"
    )
    runtime: RuntimeConfig = RuntimeConfig()
    tasks: dict[Name, TaskConfig] = Field(min_length=1)
    benchmarks: BenchmarksConfig = BenchmarksConfig()

    @model_validator(mode="after")
    def _distinct_names(self):
        for name in TARGETS:
            if name in self.tasks:
                raise ValueError(f"tasks.{name}: the name is a target's; call the task otherwise")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {self.seeds} has repetitions; each must be given once")
        return self

    @model_validator(mode="after")
    def _benchmarks_fit(self):
        check_masks(self.benchmarks, self.tasks)
        return self


def load_config(raw: Mapping[str, Any], root: Path) -> Config:
    """Check a configuration; `root` is the repository, where `resources/` lies.

    Raises:
        ConfigError: one message with a line for every fault: key, value, what is allowed.
        DataError: a task's dataset is not there.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError("the configuration is empty; it needs the keys seeds and tasks")
    try:
        config = Config.model_validate(dict(raw))
    except ValidationError as error:
        lines = [explain(fault, Config) for fault in error.errors()]
        raise ConfigError("the configuration is wrong:\n  " + "\n  ".join(lines)) from None
    for task in config.tasks.values():
        check_source(task.data, root)
        if task.boolq:
            check_boolq(task.boolq, root)
    return config
