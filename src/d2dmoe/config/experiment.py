"""The whole configuration: tasks, variants, seeds, benchmarks; each value by itself checked."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from d2dmoe.config.benchmarks import BenchmarksConfig
from d2dmoe.config.explain import explain
from d2dmoe.config.strict import Name, Strict
from d2dmoe.config.task import TaskConfig
from d2dmoe.errors import ConfigError


class RuntimeConfig(Strict):
    """How jobs run; never changes a result."""

    save_every_s: float = Field(
        60.0,
        ge=0,
        description="Least seconds between saved training states, which take at most 2 % of the "
        "time; 0: after every step, whatever it takes",
    )
    log_every_s: float = Field(10.0, ge=0, description="Seconds between progress lines")


class Config(Strict):
    """The experiment that `snakemake all` runs."""

    # Not strict: snakemake's --config seeds='[0,1]' gives the numbers in a list as text.
    seeds: list[Annotated[int, Field(ge=0, strict=False)]] = Field(
        min_length=1, description="One run each"
    )
    extensions: list[str] = Field(
        [], description="Modules that add records to the tables; imported before all else is read"
    )
    runtime: RuntimeConfig = RuntimeConfig()
    tasks: dict[Name, TaskConfig] = Field(min_length=1)
    benchmarks: BenchmarksConfig = BenchmarksConfig()

    @model_validator(mode="after")
    def _distinct_seeds(self):
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {self.seeds} has repetitions; each must be given once")
        return self


def parse_config(raw: Mapping[str, Any]) -> Config:
    """A configuration of plain values; what its sections must be together, `plan.checks` checks.

    Raises:
        ConfigError: one message with a line for every fault: key, value, what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError("the configuration is empty; it needs the keys seeds and tasks")
    try:
        return Config.model_validate(dict(raw))
    except ValidationError as error:
        lines = [explain(fault, Config) for fault in error.errors()]
        raise ConfigError("the configuration is wrong:\n  " + "\n  ".join(lines)) from None
