"""The whole configuration: tasks, variants, seeds, benchmarks; each value by itself checked."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from d2dmoe.config.benchmarks import BenchmarksConfig
from d2dmoe.config.explain import explain_all, shown
from d2dmoe.config.resources import ResourcesConfig
from d2dmoe.config.strict import Name, Seeds, Strict
from d2dmoe.config.task import TaskConfig
from d2dmoe.errors import ConfigError

MOST_VALUES = 100_000  # of a configuration; those that come with the project have hundreds
LONGEST_TEXT = 1000  # characters
LARGEST = 1e12  # of all numbers


class RuntimeConfig(Strict):
    """How jobs run; never changes a result."""

    save_every_s: float = Field(
        60.0,
        ge=0,
        description="Least seconds between saved training states, which take at most 2 % of the "
        "time; 0: after every step, whatever it takes",
    )
    log_every_s: float = Field(10.0, ge=0, description="Seconds between progress lines")
    jobs_per_gpu: int = Field(
        1,
        gt=0,
        description="Jobs that share a GPU, which small models leave idle most of the time; "
        "`--resources device=` then says how many run on all GPUs together",
    )
    graphs: bool = Field(
        False,
        description="On a GPU, record the steps of trainings as CUDA graphs: those of small models "
        "wait for kernels to start",
    )


class Config(Strict):
    """The experiment that `snakemake all` runs."""

    seeds: Seeds = Field(description="One run each")
    extensions: list[str] = Field(
        [], description="Modules that add records to the tables; imported before all else is read"
    )
    runtime: RuntimeConfig = RuntimeConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tasks: dict[Name, TaskConfig] = Field(min_length=1)
    benchmarks: BenchmarksConfig = BenchmarksConfig()

    def seeds_of(self, task: str) -> list[int]:
        """The task's own, or those of all."""
        return self.tasks[task].seeds or self.seeds


def parse_config(raw: Mapping[str, Any]) -> Config:
    """A configuration of plain values; what its sections must be together, `plan.checks` checks.

    Raises:
        ConfigError: one message with a line for every fault: key, value, what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError("the configuration is empty; it needs the keys seeds and tasks")
    check_values(raw)
    try:
        return Config.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError("the configuration is wrong:\n  " + explain_all(error, Config)) from None


def check_values(raw: Any) -> None:
    """Refuse a tree that aliases have blown up, or closed to a circle, before anything walks it,
    and values beyond all that an option can take.

    Raises:
        ConfigError: it is such a one.
    """
    waiting, count = [raw], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise ConfigError(
                f"the configuration has more than {MOST_VALUES} values, those of aliases counted "
                "wherever they stand. Look for aliases (*name) within what aliases name."
            )
        if isinstance(value, Mapping):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise ConfigError(
                f"the configuration has a text of {len(value)} characters, {shown(value)}; "
                f"at most {LONGEST_TEXT} are allowed"
            )
        elif isinstance(value, int | float) and abs(value) > LARGEST:
            raise ConfigError(f"no option takes a number as large as {shown(value)}")
