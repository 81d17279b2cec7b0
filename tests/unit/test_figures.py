"""Laws of the figures: they draw what the tables say; the same tables give the same bytes."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame, concat
from small import others_later

from d2dmoe.errors import UserError
from d2dmoe.figures import (
    activity,
    cost_formula,
    differences,
    layers,
    load_maps,
    parameters,
    projections,
    saved_share,
    style,
    tradeoff,
    wall_clock,
)
from d2dmoe.formulas import layer_ratio
from d2dmoe.selection_rules import RULES

LABELS = {"a": "D2DMoE", "b": "MoEf."}
NAMED = {"labels": LABELS, "looks": {"a": 0, "b": 1, "c": 2}}


def points(variant: str, seed: int, curve: dict[float, float]) -> DataFrame:
    """Operating points of one seed, by a curve {flops_ratio: relative_value}."""
    rows = DataFrame({"flops_ratio": list(curve), "relative_value": list(curve.values())})
    rows["flops"], rows["value"] = 5e6 * rows["flops_ratio"], 0.8 * rows["relative_value"]
    rows["knob_value"] = np.linspace(1, 0, len(curve)) if len(curve) > 1 else np.nan
    return rows.assign(task="t", metric="accuracy", variant=variant, seed=seed)


@pytest.fixture
def table() -> DataFrame:
    """Two variants of two seeds each; seeds 0 and 1 of 'a' both cover the ratios 0.4 to 0.9."""
    dense = [points("dense", s, {1.0: 0.98 + 0.01 * s}) for s in (0, 1)]
    tuned = [points("dense_finetuned", s, {1.0: 1.0}) for s in (0, 1)]
    a = [points("a", 0, {0.2: 0.9, 0.4: 0.94, 1.0: 1.0}), points("a", 1, {0.4: 0.96, 0.9: 0.96})]
    b = [points("b", s, {0.3: 0.2, 0.6: 0.93, 1.0: 0.99}) for s in (0, 1)]
    return concat(dense + tuned + a + b, ignore_index=True)


def panel(task: str, variants: list[str], metric: str = "accuracy", labels=LABELS):
    looks = {variant: place for place, variant in enumerate(variants)}
    shown = {"task": task, "title": task, "metric": metric, "variants": variants}
    return shown | {"labels": labels, "looks": looks, "training_free": []}


def draw(table: DataFrame, variants: list[str]):
    return tradeoff.draw(table, [panel("t", variants)], "Methods")


def texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def line_of(axes, label: str):
    return next(line for line in axes.lines if line.get_label() == label)


def test_mean_curve_interpolates_each_seed_at_equal_cost(table):
    line = line_of(draw(table, ["a", "b"]).axes[0], "D2DMoE")
    x, y = line.get_xdata(), line.get_ydata()
    assert (x[0], x[-1]) == (0.4, 0.9)  # what both seeds cover
    assert y[0] == pytest.approx(95.0)  # mean of 94 and 96, both measured
    # Seed 0 rises by 1 % per 0.1 from 94 at 0.4, seed 1 stays at 96.
    assert np.interp(0.6, x, y) == pytest.approx(96.0)


@pytest.fixture
def lean(table) -> DataFrame:
    """The same, where `b` has half of the parameters at its cheapest operating point."""
    whole = table["variant"] != "b"
    return table.assign(params=np.where(whole | (table["knob_value"] < 1), 100.0, 50.0))


def test_parameters_are_drawn_with_the_best_that_they_keep(lean):
    (axes,) = parameters.draw(lean, [panel("t", ["a", "b"])], "Parameters").axes
    (bars,) = [c for c in axes.containers if len(c.lines[0].get_xdata()) == 2]
    x, y = bars.lines[0].get_data()
    assert x.tolist() == [0.5, 1.0] and y == pytest.approx([20, 99])


def test_the_best_operating_point_is_that_of_the_mean_over_seeds(lean):
    rows = lean[lean["variant"] == "a"].assign(knob_value=[0.0, 1.0, 2.0, 0.0, 1.0])
    (best,) = parameters.best_points(rows[rows["knob_value"] < 2]).itertuples()
    assert (best.params, best.mean) == (100, pytest.approx(95))  # of 0.94 and 0.96
    assert best.deviation == pytest.approx(np.sqrt(2))


def test_band_is_the_standard_deviation_over_seeds(table):
    axes = draw(table, ["a"]).axes[0]
    (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    vertices = band.get_paths()[0].vertices
    left = vertices[np.isclose(vertices[:, 0], 0.4), 1]
    assert left.max() - left.min() == pytest.approx(2 * np.std([94, 96], ddof=1))


def test_one_seed_has_no_band(table):
    axes = draw(table[table["seed"] == 0], ["a"]).axes[0]
    assert not [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert axes.get_title() == "Methods\nt, 1 seed"


def test_seeds_without_a_common_cost_have_points_but_no_curve(table):
    apart = concat([points("a", 0, {0.2: 0.9, 0.3: 0.95}), points("a", 1, {0.6: 0.9, 0.7: 0.95})])
    axes = draw(concat([table[table["variant"] != "a"], apart]), ["a"]).axes[0]
    curve, markers = axes.lines[:2]
    assert len(curve.get_xdata()) == 0
    assert sorted(markers.get_xdata()) == pytest.approx([0.4, 0.5])


def test_tradeoff_legend_names_variants_dense_models_and_references(table):
    figure = draw(table, ["b", "a"])
    expected = ["MoEf.", "D2DMoE", "dense", "dense, fine-tuned"]
    assert texts(figure.legends[0])[:4] == expected
    assert figure.axes[0].get_title() == "Methods\nt, 2 seeds"


def test_collapsed_points_are_cut_and_counted(table):
    axes = draw(table, ["b"]).axes[0]
    assert axes.get_ylim()[0] == 95
    assert axes.get_xlabel().endswith("2 operating points below the axis")
    lossy = table.assign(metric="loss")
    axes = tradeoff.draw(lossy, [panel("t", ["b"], "loss")], "Methods").axes[0]
    assert axes.get_ylim()[0] == 85  # losses fall more slowly
    assert axes.get_xlabel().endswith("1 operating point below the axis")


def test_a_poor_variant_stays_visible(table):
    poor = points("c", 0, {0.5: 0.2, 1.0: 0.76})
    axes = draw(concat([table, poor]), ["a", "c"]).axes[0]
    assert axes.get_ylim()[0] == pytest.approx(71)
    assert axes.get_xlabel().endswith("1 operating point below the axis")
    near = points("c", 0, {0.5: 0.93, 1.0: 0.965})
    axes = draw(concat([table, near]), ["a", "c"]).axes[0]
    assert axes.get_ylim()[0] == pytest.approx(91.5)


def test_a_variant_that_collapses_flattens_no_other_and_is_named(table):
    alone = draw(table, ["a"]).axes[0].get_ylim()
    for best in (0.2, 0.74):
        collapsed = points("c", 0, {0.5: 0.1, 1.0: best})
        axes = draw(concat([table, collapsed]), ["a", "c"]).axes[0]
        note = f"4 operating points below the axis\nall of c is below: at most {100 * best:.0f} %"
        assert axes.get_xlabel().endswith(note)
        assert axes.get_ylim() == (95, alone[1])


@pytest.fixture
def compressed(table) -> DataFrame:
    """Beside the curves, models with one operating point and no knob: their costs differ by seed or
    do not."""
    same = [points("same", seed, {0.6: 0.96 + 0.02 * seed}) for seed in (0, 1)]
    other = [points("other", seed, {0.6 + 0.1 * seed: 0.95}) for seed in (0, 1)]
    return concat([table, *same, *other], ignore_index=True)


@pytest.mark.parametrize(
    ("variant", "cost", "quality", "deviation"),
    [("same", 0.6, 97.0, np.sqrt(2)), ("other", 0.65, 95.0, 0.0)],
)
def test_one_operating_point_is_a_marker_with_its_deviation(
    compressed, variant, cost, quality, deviation
):
    axes = draw(compressed, [variant]).axes[0]
    marker, _, (error,) = axes.containers[0].lines
    assert (*marker.get_xdata(), *marker.get_ydata()) == pytest.approx((cost, quality))
    assert (marker.get_linestyle(), marker.get_marker()) == ("None", style.look(0).marker)
    (ends,) = error.get_segments()
    assert list(ends[:, 1]) == pytest.approx([quality - deviation, quality + deviation])
    assert not [c for c in axes.collections if isinstance(c, PolyCollection)]


def test_markers_of_what_trains_nothing_are_hollow_and_the_legend_says_so(compressed):
    shown = panel("t", ["a", "same"]) | {"training_free": ["a", "same"]}
    figure = tradeoff.draw(compressed, [shown, panel("t", ["b"])], "Methods")
    hollow, filled = (
        [line for line in axes.lines if line.get_marker() in style.MARKERS]
        for axes in figure.axes[:2]
    )
    assert hollow and {line.get_markerfacecolor() for line in hollow} == {style.PAPER}
    assert {line.get_markeredgecolor() for line in hollow} <= {*style.COLOURS}  # they are seen
    assert {line.get_markerfacecolor() for line in filled} == {style.look(0).colour}
    assert texts(figure.legends[0])[-1] == tradeoff.HOLLOW
    assert tradeoff.HOLLOW not in texts(draw(compressed, ["a", "same"]).legends[0])


def test_legend_shows_a_line_for_curves_alone(compressed):
    (legend,) = draw(compressed, ["same", "a"]).legends
    lines = {h.get_label(): h.get_linestyle() for h in legend.legend_handles}
    assert lines["same"] == "None" != lines["D2DMoE"]


def test_a_label_of_a_curve_in_any_panel_has_a_line(compressed):
    labels = {"same": "x", "a": "x"}
    panels = [panel("t", [name], labels=labels) for name in labels]
    (legend,) = tradeoff.draw(compressed, panels, "Methods").legends
    assert legend.legend_handles[0].get_linestyle() != "None"


@pytest.mark.parametrize("knob", ["confidence", "depth"])
def test_knobs_without_experts_have_curves_too(table, knob):
    rows = table[table["variant"] == "a"].assign(knob=knob, variant="c")
    rows["flops"], rows["value"] = 5e6 * rows["flops_ratio"], 0.8 * rows["relative_value"]
    rows["knob_value"] = 12 * rows["knob_value"]
    axes = draw(concat([table, rows]), ["a", "c"]).axes[0]
    assert (line_of(axes, "c").get_xydata() == line_of(axes, "D2DMoE").get_xydata()).all()


@pytest.fixture
def tasks(table) -> DataFrame:
    """Task t with its accuracy and a loss that is 0.9 of it throughout, task u with a loss only,
    where MoEfication is called 'm'."""
    loss = table.assign(metric="loss", relative_value=0.9 * table["relative_value"])
    renamed = loss["variant"].replace({"b": "m"})
    return concat([table, loss, loss.assign(task="u", variant=renamed)], ignore_index=True)


def draw_tasks(tasks: DataFrame, *more):
    t, u = panel("t", ["a", "b"]), panel("u", ["m", "a"], "loss", {"m": "MoEf.", "a": "D2DMoE"})
    return tradeoff.draw(tasks, [t, u, *more], "Methods")


def test_panels_are_titled_with_the_task(tasks):
    figure = draw_tasks(tasks)
    assert figure.get_suptitle() == "Methods"
    assert [axes.get_title() for axes in figure.axes] == [
        "t, 2 seeds",
        "u, 2 seeds",
    ]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "accuracy / better dense (%)",
        "better dense loss / loss (%)",
    ]


def test_one_panel_of_a_loss_says_what_it_shows(tasks):
    figure = tradeoff.draw(tasks, [panel("t", ["a"], "loss")], "Methods")
    assert figure.axes[0].get_title() == "Methods\nt, 2 seeds"
    assert figure.axes[0].get_ylabel() == "better dense loss / loss (%)"


def test_panels_draw_the_rows_of_their_metric(tasks):
    for axes, share in zip(draw_tasks(tasks).axes, (1, 0.9), strict=True):
        line = line_of(axes, "D2DMoE")
        assert line.get_ydata()[0] == pytest.approx(95.0 * share)
        markers = axes.lines[axes.lines.index(line) + 1]  # of 3 values of the knob in 2 seeds
        assert min(markers.get_ydata()) == pytest.approx(93.0 * share)
        assert len(markers.get_ydata()) == 3


def test_panels_share_one_legend_with_an_entry_per_label(tasks):
    figure = draw_tasks(tasks, panel("t", ["b", "a"], "loss", LABELS | {"b": "third"}))
    (legend,) = figure.legends
    assert texts(legend) == [
        "D2DMoE", "MoEf.", "third", "dense", "dense, fine-tuned", "better dense (100 %)",
        "99 % of it",
    ]  # fmt: skip
    assert not any(axes.get_legend() for axes in figure.axes)


@pytest.mark.parametrize("label", ["D2DMoE", "MoEf."])
def test_variants_of_one_label_share_one_look(tasks, label):
    figure = draw_tasks(tasks)
    entry = next(h for h in figure.legends[0].legend_handles if h.get_label() == label)
    for line in (line_of(axes, label) for axes in figure.axes):
        assert line.get_color() == entry.get_color()
        assert line.get_linestyle() == entry.get_linestyle()


def test_panels_have_their_own_ranges_and_notes(tasks):
    accuracy, loss = draw_tasks(tasks).axes
    assert accuracy.get_xlabel().endswith("\n4 operating points below the axis")
    # m has 18 and 83.7 below that, a 83.7 and 84.6 (means of seeds).
    assert loss.get_ylim()[0] == 85
    assert loss.get_xlabel().endswith("\n4 operating points below the axis")
    assert accuracy.get_ylim()[0] == 95


@pytest.mark.parametrize("count", others_later([2, 3, 4, 5], first=[3]))
def test_panels_stand_in_two_columns_without_empty_ones(table, count):
    figure = tradeoff.draw(table, [panel("t", ["a"])] * count, "Methods")
    assert len(figure.axes) == count
    assert {axes.get_subplotspec().colspan.start for axes in figure.axes} == {0, 1}
    assert figure.get_figwidth() == style.WIDE


def test_a_missing_metric_is_named(table, tasks):
    with pytest.raises(UserError, match=r"'loss' of task 't'.*tradeoff\.csv; it holds: accuracy"):
        tradeoff.draw(table, [panel("t", ["a"], "loss")], "Methods")
    with pytest.raises(UserError, match=r"'accuracy' of task 'u'.*; it holds: loss"):
        tradeoff.draw(tasks, [panel("t", ["a"]), panel("u", ["a"])], "Methods")
    with pytest.raises(UserError, match=r"'loss' of task 'v'.*nothing of this task"):
        tradeoff.draw(tasks, [panel("v", ["a"], "loss")], "Methods")


def test_a_variant_looks_alike_wherever_it_stands(table):
    shown = panel("t", ["a", "b"]) | {"looks": {"a": 4, "b": 2}}
    alone = panel("t", ["b"]) | {"looks": {"b": 2}}
    for panels in ([shown], [alone]):
        line = line_of(tradeoff.draw(table, panels, "Methods").axes[0], "MoEf.")
        assert line.get_color() == style.look(2).colour


def test_the_absolute_scales_are_those_of_the_better_dense_model(table):
    axes = draw(table, ["a"]).axes[0]
    above, right = (child for child in axes.child_axes)
    assert above.get_xlabel() == "MFLOPs per sample" and right.get_ylabel() == "accuracy"
    assert above._functions[0](0.5) == pytest.approx(2.5)
    assert right._functions[0](99.0) == pytest.approx(0.792)
    lossy = table.assign(metric="loss", value=2.0 / table["relative_value"])
    right = tradeoff.draw(lossy, [panel("t", ["a"], "loss")], "Methods").axes[0].child_axes[1]
    assert right._functions[0](80.0) == pytest.approx(2.5)


def test_looks_of_variants_differ_in_every_sign():
    looks = [style.look(i) for i in range(5)]
    for sign in ("colour", "marker", "line"):
        assert len({getattr(look, sign) for look in looks}) == 5
    assert len({style.look(i) for i in range(30)}) == 30
    assert len({(style.look(i).colour, style.look(i).marker) for i in range(30)}) == 30  # no lines


@pytest.fixture
def counts() -> DataFrame:
    """Two layers of 100 neurons; in layer 0 a token has 10 or 30 active neurons."""
    rows = [("a", 0, 10, 3), ("a", 0, 30, 1), ("a", 1, 50, 4), ("b", 0, 5, 4), ("b", 1, 7, 4)]
    table = DataFrame(rows, columns=["variant", "layer", "active", "tokens"])
    return concat([table.assign(task="t", seed=s, d_ff=100) for s in (0, 1)], ignore_index=True)


def test_histogram_shares_and_mean(counts):
    rows = counts[(counts["variant"] == "a") & (counts["layer"] == 0)]
    edges, shares, mean = activity.histogram(rows)
    assert shares.sum() == pytest.approx(100)
    assert sorted(shares[shares > 0]) == pytest.approx([25, 75])
    peak = int(shares.argmax())
    assert edges[peak] < 10 < edges[peak + 1]
    assert mean == pytest.approx(15)


@pytest.mark.parametrize("d_ff", [7, 50, 64, 100, 3072])
def test_histogram_bins_hold_every_count(d_ff):
    rows = DataFrame({"seed": 0, "active": range(d_ff + 1), "d_ff": d_ff, "tokens": 1})
    edges, shares, _ = activity.histogram(rows)
    assert shares.sum() == pytest.approx(100)
    assert len(shares) <= activity.BINS + 1
    assert np.allclose(shares[:-1], shares[0])  # no comb from rounding


def test_activity_has_a_panel_per_layer(counts):
    figure = activity.draw(counts, "t", "t", ["a", "b"], **NAMED)
    assert [axes.get_title() for axes in figure.axes] == ["layer 0", "layer 1"]
    assert texts(figure.legends[0]) == ["D2DMoE", "MoEf.", "mean over tokens"]
    means = [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert means == pytest.approx([15, 5])


@pytest.fixture
def executed() -> DataFrame:
    """Two variants, two seeds, three layers of 8 experts, τ 0.1 and 0.5."""
    keys = [(v, s, tau, n) for v in "ab" for s in (0, 1) for tau in (0.1, 0.5) for n in range(3)]
    table = DataFrame(keys, columns=["variant", "seed", "knob_value", "layer"])
    experts = 4.0 + 2 * table["seed"] - table["layer"]
    ffns = table.assign(task="t", knob="dynamic_k", num_experts=8, experts=experts, std=1.0)
    return ffns.assign(role="ffn")


def test_layers_are_shares_with_both_deviations(executed):
    profile = layers.per_layer(executed[(executed["variant"] == "a") & executed["layer"].eq(1)])
    (row,) = profile.to_dict("records")
    expected = {"mean": 50.0, "seeds": np.std([37.5] * 2 + [62.5] * 2, ddof=1), "tokens": 12.5}
    assert row == pytest.approx(expected)


def test_layers_have_a_panel_per_operating_point(executed):
    figure = layers.draw(executed, "t", "t", ["a", "b"], **NAMED, values=[0.5, 0.1])
    assert [axes.get_title() for axes in figure.axes] == ["τ = 0.5", "τ = 0.1"]
    means = figure.axes[0].containers[0].lines[0]
    assert list(means.get_ydata()) == pytest.approx([62.5, 50.0, 37.5])


@pytest.mark.parametrize(("count", "lines"), [(3, 1), (12, 2)])
def test_panels_of_few_layers_stand_beside_each_other(executed, count, lines):
    table = concat([executed[executed["layer"] == 0].assign(layer=n) for n in range(count)])
    figure = layers.draw(table, "t", "t", ["a"], **NAMED, values=[0.1, 0.5])
    spots = [axes.get_subplotspec() for axes in figure.axes]
    assert len({spot.rowspan.start for spot in spots}) == lines
    assert figure.axes[-1].get_xlabel() == "layer"
    assert texts(figure.legends[0])[0] == "D2DMoE" and len(texts(figure.legends[0])) == 3


@pytest.mark.parametrize("rule", RULES)
def test_layers_call_an_operating_point_by_the_symbol_of_its_rule(executed, rule):
    figure = layers.draw(executed.assign(knob=rule), "t", "t", ["a"], **NAMED, values=[0.5])
    assert [axes.get_title() for axes in figure.axes] == [f"{RULES[rule].symbol} = 0.5"]


def test_layers_of_attention_projections_are_not_drawn_among_the_ffns(executed):
    projections = [executed.assign(role=role, experts=1.0, num_experts=2) for role in "qkvo"]
    figures = [
        layers.draw(table, "t", "t", ["a"], **NAMED, values=[0.5])
        for table in (executed, concat([executed, *projections], ignore_index=True))
    ]
    alone, among = (f.axes[0].containers[0].lines[0].get_ydata() for f in figures)
    assert list(alone) == list(among)


@pytest.mark.parametrize("count", [2, 12, 18, 26])
def test_layers_number_as_many_as_fit(executed, count):
    table = executed[executed["layer"] == 0]
    table = concat([table.assign(layer=n) for n in range(count)])
    figure = layers.draw(table, "t", "t", ["a"], **NAMED, values=[0.1, 0.5])
    numbers = list(figure.axes[-1].get_xticks())
    assert numbers == list(range(0, count, 1 if count <= layers.TICKS else 2))


def test_layers_reject_an_unknown_operating_point(executed):
    with pytest.raises(UserError, match=r"'a' has no operating point 0.3 .*it has: 0.1, 0.5"):
        layers.draw(executed, "t", "t", ["a"], **NAMED, values=[0.3])


def costs(variant: str, roles: dict[str, float], knobs=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0)):
    """Operating points of two seeds and their experts: 8 in each role's layer, each of this share
    of the cost; routers cost 0.02."""
    points, executed = [], []
    for seed, knob in [(seed, knob) for seed in (0, 1) for knob in knobs]:
        about = {"task": "t", "variant": variant, "seed": seed, "knob_value": knob}
        counts = {role: 8 - 7 * knob ** (place + 1 + seed) for place, role in enumerate(roles)}
        rest = 1 - 8 * sum(roles.values())
        ratio = 0.02 + rest + sum(roles[role] * count for role, count in counts.items())
        points.append(about | {"metric": "accuracy", "flops_ratio": ratio})
        layer = {"layer": 0, "num_experts": 8}
        executed += [about | layer | {"role": x, "experts": count} for x, count in counts.items()]
    return DataFrame(points), DataFrame(executed)


FFNS = {"ffn": 0.08}
WITH_ATTENTION = FFNS | {"q": 0.01, "k": 0.005, "v": 0.005, "o": 0.01}


@pytest.mark.parametrize(("roles", "saved"), [(FFNS, 0.62), (WITH_ATTENTION, 0.86)])
def test_the_bound_of_a_saving_is_what_no_expert_accounts_for(roles, saved):
    found = saved_share.bounds(*costs("a", roles))
    assert found == pytest.approx((0.64, saved))


def test_a_bound_needs_operating_points():
    assert np.isnan(saved_share.bounds(*costs("a", FFNS, knobs=(0.3,)))).sum() == 0  # of two seeds
    points, executed = costs("a", FFNS, knobs=(0.0,))
    assert np.isnan(saved_share.bounds(points, executed)).all()
    row = {"task": "t", "metric": "accuracy", "title": "t", "variants": ["a"]} | NAMED
    kept = dict.fromkeys([f"flops_ratio_at_99{end}" for end in ("", "_low", "_high")], 0.7)
    summary = DataFrame([{"variant": "a", "task": "t", "metric": "accuracy"} | kept])
    FigureCanvasAgg(saved_share.draw([row], summary, points, executed)).draw()


def test_saved_share_has_a_line_for_each_task_and_original():
    tables = [costs("a", FFNS), costs("b", WITH_ATTENTION)]
    points, executed = (concat(both, ignore_index=True) for both in zip(*tables, strict=True))
    kept = {
        f"flops_ratio_at_99{end}": x for end, x in {"": 0.7, "_low": 0.6, "_high": 0.75}.items()
    }
    summary = DataFrame([{"variant": "a"} | kept, {"variant": "b"} | dict.fromkeys(kept, np.nan)])
    summary = summary.assign(task="t", metric="accuracy")
    row = {"task": "t", "metric": "accuracy", "title": "ViT on $noise", "variants": ["a", "b"]}
    figure = saved_share.draw([row | NAMED], summary, points, executed)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "ViT on $noise" and names[3] == "GPT2-base, 1,024 tokens"
    assert len(names) == 1 + len(saved_share.ORIGINALS)
    shares = [patch.get_width() for patch in axes.patches]
    assert shares[:2] == pytest.approx([64, 63.5], abs=0.05)
    lines = {(line.get_color(), line.get_marker()): list(line.get_xdata()) for line in axes.lines}
    looks = {name: style.look(NAMED["looks"][name]) for name in "ab"}
    assert lines[looks["a"].colour, looks["a"].marker] == pytest.approx([30])
    assert lines[looks["a"].colour, "|"] == pytest.approx([62])
    assert lines[looks["b"].colour, "|"] == pytest.approx([86])
    assert lines[looks["b"].colour, "x"] == [0]  # never at 99 %
    assert (looks["b"].colour, looks["b"].marker) not in lines
    assert lines[looks["a"].colour, "None"] == pytest.approx([25, 40])  # its interval


def test_saved_share_draws_the_originals_where_nothing_is_converted():
    (axes,) = saved_share.draw([]).axes
    assert len(axes.patches) == len(saved_share.ORIGINALS) == len(axes.get_yticks())


def compared(rival: str, at: float, difference: float, half: float, measure: str = "quality"):
    ends = {"low": difference - half, "high": difference + half}
    row = {"task": "t", "metric": "accuracy", "variant": "a", "rival": rival, "measure": measure}
    return row | {"at": at, "difference": difference} | ends


def test_differences_show_how_much_better_the_others_are_than_the_first():
    rows = [compared("b", 0.7, 0.02, 0.01), compared("b", 0.5, -0.03, 0.02)]
    rows += [compared("b", 0.99, 0.1, 0.1, "cost"), compared("c", 0.99, 0.1, 0.1, "cost")]
    own = panel("t", ["a", "b", "c"])
    figure = differences.draw([own], "Paired", DataFrame(rows))
    (axes,) = figure.axes
    (drawn,) = axes.containers  # `c` meets no budget
    points, _, (bars,) = drawn.lines
    assert list(points.get_xdata()) == pytest.approx([0.5, 0.7])
    assert list(points.get_ydata()) == pytest.approx([3, -2])
    ends = [tuple(bar[:, 1]) for bar in bars.get_segments()]
    assert ends == [pytest.approx((1, 5)), pytest.approx((-3, -1))]
    assert axes.get_ylabel() == "better than D2DMoE by (points)"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["MoEf."]
    FigureCanvasAgg(figure).draw()


def test_differences_need_a_comparison():
    rows = DataFrame([compared("b", 0.5, 0.1, 0.1)]).assign(task="other")
    with pytest.raises(UserError, match="compares 'a' of task 't' with nothing"):
        differences.draw([panel("t", ["a", "b"])], "Paired", rows)
    FigureCanvasAgg(differences.draw([], "Paired")).draw()


@pytest.mark.parametrize("count", [1, 3, 9])
def test_load_maps_pair_each_image_with_its_map(count):
    rng = np.random.default_rng(0)
    tensors = {
        "images": rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8),
        "loads": rng.random((count, 2, 2), dtype=np.float32),
        "labels": np.arange(count) % 2,
    }
    figure = load_maps.draw(tensors, {"classes": ["cat", "dog"]}, "ViT on pets", "ours, τ = 0.2")
    assert figure.get_suptitle() == "Executed experts per patch\nViT on pets, ours, τ = 0.2"
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 2 * count
    assert [a.get_title() for a in drawn[::2]] == [["cat", "dog"][i % 2] for i in range(count)]
    overlays = [axes.images[-1] for axes in drawn[1::2]]
    np.testing.assert_allclose(overlays[-1].get_array(), 100 * tensors["loads"][-1])
    assert len({overlay.get_clim() for overlay in overlays}) == 1  # one colour scale
    assert overlays[0].get_extent() == drawn[0].images[0].get_extent()


def test_load_maps_need_images():
    empty = {"images": np.empty((0, 3, 8, 8), np.uint8), "loads": np.empty((0, 2, 2))}
    with pytest.raises(UserError, match="no images"):
        load_maps.draw(empty | {"labels": np.empty(0, int)}, {"classes": ["cat"]}, "t", "x")


def test_cost_formula_draws_the_counted_ratio():
    figure = cost_formula.draw()
    # The paper's ViT-B.
    assert figure.get_suptitle() == "Cost of a dynamic-k layer, d_model = 768, d_ff = 3,072"
    left, right = figure.axes
    line = line_of(left, "k/n = 0.25")
    ratio = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert ratio[512] == layer_ratio(768, 3072, 512, 128, 128)
    assert min(ratio) == 4  # a quarter of 2 experts is less than one
    assert len(texts(left.get_legend())) == len(cost_formula.SHARES)
    assert len(texts(right.get_legend())) == len(cost_formula.WIDTHS)


def test_cost_formula_needs_a_width_that_splits():
    with pytest.raises(UserError, match="d_ff = 7 is odd"):
        cost_formula.draw(4, 7)


@pytest.fixture
def timed() -> DataFrame:
    """Two layers, each timed dense and by dynamic-k at two shares."""
    rows = []
    for tokens in (9, 99):
        layer = {"device": "GPU", "torch": "2", "triton": "3", "tokens": tokens, "d_model": 8}
        layer |= {"num_experts": 4, "expert_size": 2, "activation": "relu", "dtype": "fp32"}
        for backend, fraction, ms in [
            ("dense_eager", 1.0, 2.0),
            ("dynamic_k", 0.5, 1.5),
            ("dynamic_k", 1.0, 3.0),
        ]:
            times = {"median_ms": ms, "p20_ms": 0.9 * ms, "p80_ms": 1.1 * ms, "peak_mb": 1.0}
            point = {"mask": "bernoulli", "backend": backend, "fraction": fraction}
            rows.append(layer | point | times)
    return DataFrame(rows)


@pytest.mark.parametrize(("chosen", "tokens"), [("all", [9, 99]), ("first", [9]), ("others", [99])])
def test_wall_clock_has_a_panel_for_each_layer_asked_for(timed, chosen, tokens):
    figure = wall_clock.draw(timed, layers=chosen)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [int(title.split()[0]) for title in titles] == tokens
    assert all(title.endswith("relu, fp32, tokens choose independently") for title in titles)
    assert figure.get_suptitle() == "One layer on GPU"
    dense, curve = figure.axes[0].lines
    assert list(dense.get_ydata()) == [2.0, 2.0]  # one time, whatever the share
    assert list(curve.get_xdata()) == [50, 100] and list(curve.get_ydata()) == [1.5, 3.0]
    assert texts(figure.legends[0]) == ["dense, eager", "dynamic-k"]


def test_an_odd_number_of_timed_panels_leaves_its_legend_a_place(timed):
    third = timed[timed["tokens"] == 9].assign(tokens=999)
    figure = wall_clock.draw(concat([timed, third]))
    assert not figure.legends
    assert texts(figure.axes[-1].get_legend()) == ["dense, eager", "dynamic-k"]


@pytest.mark.parametrize(
    ("lengths", "width", "columns"),
    [([4, 4, 4, 4], style.WIDTH, 2), ([26, 17], style.WIDTH, 2), ([30, 30], style.WIDTH, 1)]
    + [([10] * 9, style.WIDE, 4), ([50], style.WIDE, 1)],
)
@style.styled
def test_a_legend_has_as_many_columns_as_fit(lengths, width, columns):
    figure = Figure(figsize=(width, 2), layout="constrained")
    style.legend(figure, [Line2D([], [], label="x" * length) for length in lengths])
    (legend,) = figure.legends
    assert legend._ncols == columns
    FigureCanvasAgg(figure).draw()
    box = legend.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.x1


def test_the_variants_of_a_task_differ_in_colour():
    assert len({style.look(i).colour for i in range(10)}) == 10
    assert len({style.look(i).marker for i in range(9)}) == 9
    assert len({(style.look(i).colour, style.look(i).line) for i in range(40)}) == 40


def overlapping(figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other."""
    renderer = figure.canvas.get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in figure.axes[0].texts]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    return [(a, b) for (a, first), (b, second) in pairs if first.overlaps(second)]


@pytest.mark.workflow
def test_projections_shows_each_map_before_and_after(tmp_path):
    figure = projections.draw()
    style.save(figure, tmp_path / "f.png", tmp_path / "f.pdf")
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert all(drawn.count(name) == 2 for name in "QKVO")
    assert drawn.count("R") == 4 + 2  # the converted maps', the last step's, the key's
    assert figure.get_figwidth() == style.WIDE


def test_projections_has_no_text_over_another_or_the_edge():
    figure = projections.draw()
    FigureCanvasAgg(figure)
    assert overlapping(figure) == []
    renderer, page = figure.canvas.get_renderer(), figure.bbox
    for text in figure.axes[0].texts:
        box = text.get_window_extent(renderer)
        assert page.x0 < box.x0 and box.x1 < page.x1 and page.y0 < box.y0 and box.y1 < page.y1


def test_missing_variants_are_named(table, counts, executed):
    with pytest.raises(UserError, match=r"'c'.*results/tables/tradeoff\.csv; it holds: a, b"):
        draw(table, ["a", "c"])
    with pytest.raises(UserError, match=r"'dense_finetuned'.*tradeoff\.csv"):
        draw(table[table["variant"] != "dense_finetuned"], ["a"])
    with pytest.raises(UserError, match=r"'c'.*results/tables/activity\.csv"):
        activity.draw(counts, "t", "t", ["c"], **NAMED)
    with pytest.raises(UserError, match=r"'a' of task 'u'.*layers\.csv; it holds: nothing"):
        layers.draw(executed, "u", "u", ["a"], **NAMED, values=[0.1])
    with pytest.raises(UserError, match="no variants"):
        draw(table, [])


@pytest.mark.workflow
def test_same_tables_same_bytes(table, tmp_path):
    saved = []
    for folder in ("first", "second"):
        files = tmp_path / folder / "f.png", tmp_path / folder / "f.pdf"
        style.save(draw(table, ["a", "b"]), *files)
        saved.append([file.read_bytes() for file in files])
    assert saved[0] == saved[1]
    assert b"CreationDate" not in saved[0][1]
