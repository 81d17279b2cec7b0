"""`d2dmoe evaluate`: quality and cost on test samples, beside the model with every expert on."""

from typing import Any

from d2dmoe.cli import options as of

PANEL = "Measure"


def run(
    model: of.Model,
    data: of.Data,
    against: of.Against = None,
    text_column: of.TextColumn = of.TEXT,
    label_column: of.LabelColumn = None,
    samples: of.Samples = None,
    max_length: of.MaxLength = of.LENGTH,
    batch_size: of.BatchSize = of.BATCH,
    seed: of.Seed = of.SEED,
    device: of.Device = of.AUTO,
    yes: of.Yes = False,
    as_json: of.AsJson = False,
) -> None:
    """Measure quality and FLOPs on test samples, at the model's operating point.

    A converted model is measured with every expert on too, and, with --against, beside the model
    that it was made of. Models without a head are held to the original's embeddings; with
    --label-column a linear head is fitted to these, on training samples, and says the accuracy.

    Examples:

    - `d2dmoe evaluate sparse --data my.csv`
    - `d2dmoe evaluate sparse --data my.csv --label-column topic --against my-bert/`
    - `d2dmoe evaluate openai-community/gpt2 --data my.txt --json`
    """
    import d2dmoe
    from d2dmoe.cli.models import is_routed
    from d2dmoe.cli.opened import Loading
    from d2dmoe.cli.output import Shown, report
    from d2dmoe.cli.samples import Data
    from d2dmoe.cli.tasks import every_expert, measuring, source_of

    rows = Data(data, text_column, label_column, samples, seed)
    count = len(rows.split("test"))
    source = source_of(model, rows, batch_size, Loading(device, max_length, yes), against)
    task = measuring(source, "test")

    def measured(what: str, one: Any) -> Any:
        return d2dmoe.evaluate(task.on(one), Shown(task.batches, what), loss=task.loss)

    ours, found = source.opened.model, {}
    if source.reference is not ours:
        found["original"] = measured("the original", source.reference)
    if is_routed(ours):
        with every_expert(ours):
            found["every expert"] = measured("every expert", ours)
        found["operating point"] = measured("the operating point", ours)
    else:
        found["dense"] = measured("the model", ours)
    result = {"model": model, "quality": task.about, "samples": count, "measured": found}
    report(result, f"{_table(found)}\n\n{task.about}; {count} test samples", as_json)


def _table(found: dict[str, Any]) -> str:
    """A line for each form of the model: means with their 95 % intervals, and costs."""
    from d2dmoe.cli.output import interval, table

    first = next(iter(found.values()))
    scores = [
        name for name in ("accuracy", "loss", "perplexity") if getattr(first, name) is not None
    ]
    rows = [
        [
            name,
            *(interval(getattr(one, score), one.intervals.get(score)) for score in scores),
            f"{one.flops / 1e6:,.1f} M",
            f"{one.flops_ratio:.3f}",
        ]
        for name, one in found.items()
    ]
    return table(["model", *scores, "FLOPs a sample", "of dense"], rows)
