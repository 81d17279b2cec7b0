"""Quality and cost of a model on samples: means, with how far they are to be trusted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from d2dmoe.api.batches import as_batches
from d2dmoe.api.costs import Costs, SampleCosts
from d2dmoe.api.intervals import Interval, ratio, ratio_interval
from d2dmoe.api.measure import Measured, measure
from d2dmoe.api.task_loss import Loss
from d2dmoe.ffn import FFN
from d2dmoe.moe import MoE
from d2dmoe.quality import perplexity
from d2dmoe.surgery import find


@dataclass(frozen=True)
class Evaluation:
    """What a model came to on samples. Printed, it is a table.

    Costs are FLOPs per sample by the convention of `d2dmoe.flops`: a sample costs what it costs
    alone, without padding. All means over samples have 95 % bootstrap intervals in `intervals`.
    """

    samples: int
    loss: float | None  # mean over all targets; None where batches have no targets
    accuracy: float | None  # share of right classes; None where targets are no classes
    perplexity: float | None  # e^loss, of tokens
    flops: float
    dense_flops: float
    flops_ratio: float
    intervals: dict[str, Interval]  # by the names above
    layers: list[dict[str, Any]]  # name, role, experts, executed (mean of a token), share
    sample_flops: Tensor  # float64 [samples]
    sample_losses: Tensor | None  # float64: the mean of a sample, or of a batch that has one loss

    def __str__(self) -> str:
        return "\n".join([*_lines(self), *_layer_lines(self.layers)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; those of single samples are left out."""
        kept = {k: v for k, v in vars(self).items() if not k.startswith("sample_")}
        return kept | {"intervals": {name: list(x) for name, x in self.intervals.items()}}


def evaluate(model: nn.Module, batches: Iterable[Any], *, loss: Loss | None = None) -> Evaluation:
    """How well a model predicts, and what that costs: of any model, dense or converted, at its
    operating point.

    Args:
        model: run in evaluation mode; left in the mode that it has.
        batches: as for `as_batches`; read once.
        loss: None: the model's own, or cross-entropy with the targets. Or a function (outputs,
            batch) -> one value a sample, or a scalar, whose interval is then over batches.

    Raises:
        UserError: batches, targets or `loss` are not as they should be.
    """
    given, costs = as_batches(batches, model), SampleCosts(model)
    measured = measure(model, given, loss, each=costs.add)
    return summarised(model, measured, costs.count())


def summarised(model: nn.Module, measured: Measured, costs: Costs) -> Evaluation:
    """The evaluation that a pass comes to."""
    flops, dense = costs.total(measured.executed), costs.dense
    ones = flops.new_ones(measured.samples)
    means = {
        "flops": (flops, ones),
        "dense_flops": (dense, ones),
        "flops_ratio": (flops, dense),
    }
    scores = measured.scores
    if scores is not None:
        means["loss"] = (scores.losses, scores.targets)
        if scores.correct is not None:
            means["accuracy"] = (scores.correct, scores.targets)
    values = {name: ratio(*sums) for name, sums in means.items()}
    found = {name: ratio_interval(*sums) for name, sums in means.items()}
    intervals = {name: interval for name, interval in found.items() if interval is not None}
    shown: dict[str, Any] = {"loss": None, "accuracy": None, "perplexity": None} | values
    if scores is not None and scores.tokens:
        shown["perplexity"] = perplexity(values["loss"])
        if "loss" in intervals:
            low, high = intervals["loss"]
            intervals["perplexity"] = perplexity(low), perplexity(high)
    return Evaluation(
        samples=measured.samples,
        intervals=intervals,
        layers=_layers(model, measured, costs),
        sample_flops=flops,
        sample_losses=None if scores is None else scores.losses / scores.targets,
        **shown,
    )


def _layers(model: nn.Module, measured: Measured, costs: Costs) -> list[dict[str, Any]]:
    """What a token executes in each layer, on average."""
    rows = []
    for name, layer in find(model, (FFN, MoE)).items():
        experts, tokens = costs.layers[name].num_experts, float(costs.tokens[name].sum())
        total = float(measured.executed.get(name, costs.all_experts(name)).sum())
        executed = total / tokens if tokens else 0.0
        row = {"name": name, "role": layer.role, "experts": experts, "executed": executed}
        rows.append(row | {"share": executed / experts})
    return rows


def _lines(found: Evaluation) -> list[str]:
    lines = [f"{found.samples:,} samples; in brackets 95 % intervals of the means"]
    for name in ("loss", "perplexity", "accuracy", "flops", "dense_flops", "flops_ratio"):
        value = getattr(found, name)
        if value is not None:
            title = {"flops": "FLOPs a sample", "dense_flops": "FLOPs of the dense model"}
            title |= {"flops_ratio": "share of the dense FLOPs"}
            lines.append(
                f"  {title.get(name, name):<26}{number(value)}{between(found.intervals.get(name))}"
            )
    return lines


def _layer_lines(layers: list[dict[str, Any]]) -> list[str]:
    """A line for each layer of experts."""
    routed = [row for row in layers if row["experts"] > 1]
    if not routed:
        return []
    width = max(len(row["name"]) for row in routed)
    lines = [f"  {'layer':<{width}}  role  executed experts of a token"]
    return lines + [
        f"  {r['name']:<{width}}  {r['role']:<4}  {r['executed']:.2f} of {r['experts']} "
        f"({r['share']:.1%})"
        for r in routed
    ]


def number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def between(interval: Interval | None) -> str:
    """An interval behind a number; nothing where there is none."""
    return "" if interval is None else f"  [{number(interval[0])}, {number(interval[1])}]"
