"""What the explorer shows: published results, or those of one's own configuration."""

from pathlib import Path
from typing import Any

from d2dmoe.config.model import GemmaConfig, TransformerConfig
from d2dmoe.config.task import SUITES, Suite
from d2dmoe.errors import DataError
from d2dmoe.explorer.costs import Sizes
from d2dmoe.explorer.results import Source, Task, Variant, results
from d2dmoe.explorer.timings import backends, claims, masks, timings
from d2dmoe.methods import METHODS
from d2dmoe.plan.explorer import mapped
from d2dmoe.plan.figures import looks
from d2dmoe.plan.lineage import Lineage
from d2dmoe.plan.plan import Plan, options_of
from d2dmoe.plan.published import CONFIG, plan_of
from d2dmoe.plan.publishing import as_yaml, place, published_suites
from d2dmoe.plan.tables import MAIN
from d2dmoe.plan.variants import labels

SHOWN = "results/reference"  # where the page says that published results lie
RUN = "uv run snakemake --cores 2"
CLAIMS = "claims.csv"  # of the benchmarks, beside their tables
TIMED = ("model", "decode", "layer", "cpu")  # tables of benchmarks, in the order of the page


def published(reference: Path) -> dict[str, Any]:
    """All that the page holds of the published results in the folders of `reference`.

    Raises:
        ConfigError: a configuration is none of this version.
        DataError: nothing is published, or a table is damaged.
    """
    folders = sorted(path for path in reference.glob("*") if path.is_dir())
    if not folders:
        raise DataError(f"{reference} holds no published results.")
    sources = [_published(folder) for folder in folders if (folder / "tables").is_dir()]
    return _data("published results", sources, [(folder, folder.name) for folder in folders])


def own(plan: Plan, suite: Suite, folder: Path, configfiles: list[str]) -> dict[str, Any]:
    """The same of one suite's results in a folder, where a plan's run left them.

    Raises:
        DataError: a table is damaged.
    """
    command = " ".join([RUN, *(["--configfile", *configfiles, "--"] if configfiles else [])])
    name = "your results" if suite == MAIN else f"your {suite}"
    maps = {
        task: {name: folder.parent / path for name, path in request.inputs.items()}
        for task, request in mapped(plan).items()
    }
    tables, shown = folder / "tables", "results/tables"
    source = Source(name, tables, shown, command, _tasks(plan, suite, maps), (suite,))
    return _data(name, [source], [(folder / "benchmarks", "this machine")])


def _data(title: str, sources: list[Source], timed: list[tuple[Path, str]]) -> dict[str, Any]:
    files = [
        (path, f"{name}: {table}")
        for table in TIMED
        for folder, name in timed
        if (path := folder / f"{table}.csv").is_file()
    ]
    ledgers = [path for folder, _ in timed if (path := folder / CLAIMS).is_file()]
    return {
        "title": title,
        "suites": list(SUITES),
        "scales": [results(source) for source in sources],
        "timings": [timings(path, name) for path, name in files],
        "timed_claims": [claims(path) for path in ledgers],
        "backends": backends(),
        "masks": masks(),
    }


def _published(folder: Path) -> Source:
    """Of one folder; an older one may lack its configuration."""
    tables, config, shown = folder / "tables", folder / CONFIG, f"{SHOWN}/{folder.name}"
    if not config.is_file():
        return Source(folder.name, tables, f"{shown}/tables")
    plan = plan_of(config)
    maps = {
        task: {name: folder / place(path, name, task) for name, path in request.inputs.items()}
        for task, request in mapped(plan).items()
    }
    command = f"{RUN} --configfile {shown}/{CONFIG} --"
    first, *_ = published_suites(tables) or [MAIN]
    return Source(folder.name, tables, f"{shown}/tables", command, _tasks(plan, first, maps))


def _tasks(plan: Plan, suite: Suite, maps: dict[str, dict[str, Path]]) -> dict[str, Task]:
    drawn_maps = mapped(plan)
    lines: dict[tuple[str, str], list[Lineage]] = {}
    for every in SUITES:
        for line in plan.lineages[every]:
            lines.setdefault((line.task, line.variant), []).append(line)
    found = {}
    for name, cfg in plan.config.tasks.items():
        drawn = cfg.figures_of(suite).variants()
        found[name] = Task(
            title=cfg.title or name,
            metric=cfg.data.metrics[0],
            variants={v: _variant(plan, x) for (t, v), x in lines.items() if t == name},
            chosen=drawn.get("tradeoff") or max(drawn.values(), key=len, default=[]),
            sizes=_sizes(cfg.model),
            maps=maps.get(name, {}),
            mapped=drawn_maps[name].arguments["point"] if name in drawn_maps else "",
        )
    return found


def _variant(plan: Plan, lines: list[Lineage]) -> Variant:
    """Of all its lineages: seeds, and trainings of one seed."""
    first, targets = lines[0], dict[int, list[str]]()
    for line in lines:
        own_targets = targets.setdefault(line.seed, [])
        if line.evaluation("test") not in own_targets:  # suites share variants
            own_targets.append(line.evaluation("test"))
    name = first.variant
    return Variant(
        name,
        labels(plan.task(first.task))[name],
        looks(plan).get(name, 0),
        METHODS[first.method.name].training_free,
        [(step.stage.name, as_yaml(options_of(step))) for step in first.steps],
        targets,
    )


def _sizes(model: TransformerConfig) -> Sizes:
    head = getattr(model, "head_dim", model.d_model // model.heads)
    return Sizes(
        model.layers,
        model.d_model,
        model.d_ff,
        gated=isinstance(model, GemmaConfig),
        d_q=model.heads * head,
        d_kv=getattr(model, "key_value_heads", model.heads) * head,
    )
