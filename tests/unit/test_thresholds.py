"""Laws of CATS, CHESS and TEAL: equal to the base at density 1, cheaper with less, by hand-computed
thresholds; padding moves nothing."""

from pathlib import Path

import pytest
import torch
from small import SPEC, make_dense, make_ffn, make_inputs, others_later, read_from
from small_cases import CASES
from torch import nn

from d2dmoe.checkpoint import load_dense_model, load_model, read_model, save_model
from d2dmoe.config.stages import ClusteringConfig
from d2dmoe.errors import CheckpointError, ConfigError, ModelError
from d2dmoe.ffn import FFN, set_activation
from d2dmoe.formulas import ffn_flops
from d2dmoe.jobs.run import Run
from d2dmoe.methods.thresholds.calibration import quantiles
from d2dmoe.methods.thresholds.evaluation import evaluate_density, places_of
from d2dmoe.methods.thresholds.greedy import Block, maps_of_blocks
from d2dmoe.methods.thresholds.hidden import calibrate_hidden
from d2dmoe.methods.thresholds.inputs import calibrate_inputs
from d2dmoe.methods.thresholds.layers import (
    LEVELS,
    Threshold,
    ThresholdedLinear,
    rebuild_inputs,
    set_density,
    threshold_hidden,
)
from d2dmoe.methods.thresholds.options import InputThresholdsConfig, ThresholdsConfig
from d2dmoe.moe import MoE
from d2dmoe.stages.clustering import cluster
from d2dmoe.stages.evaluate import evaluate_dense
from d2dmoe.surgery import find, watch

RUN = Run(seed=0, device=torch.device("cpu"))
DENSITIES = [1.0, 0.7, 0.4, 0.1]
HIDDEN = {
    "cats": {"score": "magnitude"},
    "chess": {"score": "contextual"},
    "chess+": {"score": "contextual", "attention": True},
    "experts": {"score": "contextual", "expert_size": 4},
}
METHODS = [*HIDDEN, "teal"]
MEASURE = {"split": "test", "batch_size": 4, "values": []}


def measure(path: Path, values=DENSITIES):
    return evaluate_density(path, "density", MEASURE | {"values": values}, RUN)


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    """Calibrates a base by a method; returns the paths of base and result."""

    def make(
        name: str, method: str, base: nn.Module | None = None, spec=None, batch_size: int = 4
    ) -> tuple[Path, Path]:
        case = CASES[name]
        read_from(case.split, monkeypatch)
        paths = tmp_path / "base", tmp_path / method
        save_model(paths[0], base or case.make(), spec or case.spec)
        if method == "teal":
            cfg = InputThresholdsConfig(step=1.0, batch_size=batch_size)
            model, spec, _ = calibrate_inputs(paths[0], cfg, RUN)
        else:
            cfg = ThresholdsConfig(**HIDDEN[method], batch_size=batch_size)
            model, spec, _ = calibrate_hidden(paths[0], cfg, RUN)
        save_model(paths[1], model, spec)
        return paths

    return make


SOON = [("vit", "chess"), ("gemma", "cats")]
LATER = [(name, method) for name in CASES for method in METHODS]


@pytest.mark.parametrize("case", others_later(dict.fromkeys(SOON + LATER), SOON), ids=str)
def test_density_1_is_the_base_and_cost_falls_with_the_density(calibrated, case):
    name, method = case
    base, path = calibrated(name, method)
    (dense,), *_ = evaluate_dense(base, "dense", MEASURE, RUN)
    points, layers, samples = measure(path)
    assert points[0]["flops"] == pytest.approx(dense["flops"], rel=1e-12)
    for key in ("loss", "accuracy", "params", "tokens"):
        assert points[0][key] == pytest.approx(dense[key], rel=1e-5)
    flops = [point["flops"] for point in points]
    assert flops == sorted(flops, reverse=True) and len({*flops}) == len(DENSITIES)
    assert samples["flops"].mean(1).tolist() == pytest.approx(flops, rel=1e-6)
    assert all(row["experts"] == row["num_experts"] for row in layers if row["knob_value"] == 1)


def test_of_a_sparse_base_zeros_cost_nothing_though_no_output_changes(calibrated):
    base = make_dense()
    set_activation(base, "relu")
    base_path, path = calibrated(
        "vit", "cats", base, SPEC.model_copy(update={"activation": "relu"})
    )
    (dense,), *_ = evaluate_dense(base_path, "dense", MEASURE, RUN)
    (mild, less), *_ = measure(path, [1.0, 0.2])
    assert mild["loss"] == pytest.approx(dense["loss"], rel=1e-6)
    assert less["flops"] < mild["flops"] < dense["flops"]


@pytest.mark.parametrize("method", HIDDEN)
def test_the_density_is_near_its_target_on_the_samples_that_it_was_found_by(calibrated, method):
    _, path = calibrated("vit", method)
    _, layers, _ = measure(path, [0.6])
    shares = [row["experts"] / row["num_experts"] for row in layers]
    assert shares[0] == pytest.approx(0.6, abs=0.02)  # the first is before any loss
    assert max(shares) < 0.7 and min(shares) > 0.5


def test_teals_density_is_of_the_blocks_by_cost(calibrated):
    _, path = calibrated("vit", "teal")
    _, layers, _ = measure(path, [0.6])
    prices = [place.price for place in places_of(load_model(path)[0]).values()]
    cost, full = (
        sum(price * row[key] for price, row in zip(prices, layers, strict=True))
        for key in ("experts", "num_experts")
    )
    assert cost / full == pytest.approx(0.6, abs=0.05)
    assert len({round(row["experts"] / row["num_experts"], 1) for row in layers}) > 2


# Thresholds.


def test_what_is_at_or_below_the_threshold_by_its_scale_is_zero():
    threshold = Threshold(4)
    threshold.table.copy_(torch.linspace(0, 4, LEVELS))
    threshold.scale.copy_(torch.tensor([1.0, 1.0, 4.0, 0.0]))
    values = torch.tensor([[-3.0, 1.0, -0.5, 9.0], [2.0, -2.5, 0.5, 0.0]])
    kept = {
        1.0: [[-3.0, 1.0, -0.5, 0.0], [2.0, -2.5, 0.5, 0.0]],  # a channel that weighs nothing
        0.45: [[-3.0, 0.0, 0.0, 0.0], [0.0, -2.5, 0.0, 0.0]],
        0.0: [[0.0] * 4] * 2,
    }
    for density, expected in kept.items():
        threshold.density = density
        assert threshold(values).tolist() == expected
        assert torch.equal(threshold.skipped(threshold(values)), torch.tensor(expected) == 0)
    assert float(threshold.at(0.9995)) == pytest.approx(0.002)  # between two of the table


def test_a_unit_is_skipped_where_all_of_it_is_small_and_stays_whole_otherwise():
    threshold = Threshold(4, group=2)
    threshold.table.fill_(1.0)
    values = torch.tensor([[0.5, -1.5, 0.5, 1.0]])
    assert threshold.units == 2
    assert threshold(values).tolist() == [[0.5, -1.5, 0.0, 0.0]]
    assert threshold.skipped(threshold(values)).tolist() == [[False, True]]


@pytest.mark.parametrize("group", [1, 2])
def test_what_is_no_number_stays_one_that_is_seen(group):
    threshold = Threshold(4, group)
    threshold.table.fill_(1.0)
    values = torch.tensor([[torch.nan, 0.5, 0.5, 2.0]])
    assert threshold(values)[0, 0].isnan()
    assert not threshold.skipped(threshold(values))[0, 0]


def test_a_quantile_has_the_target_share_above_it():
    scores = torch.arange(10_000.0).reshape(100, 100)[torch.randperm(100)] + 1
    table = quantiles(scores)
    assert table[0] == 0 and table[-1] == scores.max() and (table.diff() >= 0).all()
    for density in (0.9, 0.5, 0.123):
        threshold = Threshold(1)
        threshold.table.copy_(table)
        above = (scores > threshold.at(density)).double().mean()
        assert above.item() == pytest.approx(density, abs=2e-3)


def test_cats_is_chess_with_equal_channel_means(calibrated):
    base = make_dense()
    for ffn in find(base, FFN).values():
        ffn.down.weight.data = 0.7 * torch.nn.functional.normalize(ffn.down.weight.data, dim=0)
    models = {}
    for method in ("cats", "chess"):
        models[method] = load_model(calibrated("vit", method, base)[1])[0]
    scales = [p.threshold.scale for p in places_of(models["chess"]).values()]
    assert all(torch.allclose(scale, torch.tensor(0.7)) for scale in scales)
    for density in DENSITIES:
        for model in models.values():
            set_density(model, density)
        with torch.no_grad():
            one, other = (model(make_inputs()) for model in models.values())
        assert torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(one, base(make_inputs()))  # they do skip


def test_a_gated_channel_weighs_as_much_as_its_up_projections_mean_output(calibrated):
    base, path = calibrated("gemma", "chess")
    model, _ = load_model(base)
    split = CASES["gemma"].split
    inputs, _ = split.batch(split.read(torch.arange(len(split))), RUN.device)
    name, ffn = next(iter(find(model, FFN).items()))
    with torch.no_grad(), watch({"up": ffn.up}, lambda _layer, _z, out: out) as seen:
        model(**inputs)
    scale = load_model(path)[0].get_submodule(f"{name}.activation.threshold").scale
    assert torch.allclose(scale, seen["up"].abs().flatten(0, 1).mean(0), atol=1e-5)


def test_experts_are_skipped_whole_in_the_groups_that_d2dmoe_has(calibrated):
    base, path = calibrated("vit", "experts")
    dense, _ = load_model(base)
    model, _ = load_model(path)
    neurons = cluster(base, ClusteringConfig(expert_size=4), RUN)[0]
    for ffn, moe in zip(find(model, FFN).values(), find(neurons, MoE).values(), strict=True):
        assert torch.equal(ffn.up.weight, moe.up.flatten(0, 1))
    set_density(model, 0.5)
    with torch.no_grad(), watch(find(model, Threshold), lambda t, z, out: (t, z, out)) as seen:
        model(make_inputs())
    for _threshold, values, kept in seen.values():
        experts, before = kept.unflatten(-1, (-1, 4)), values.unflatten(-1, (-1, 4))
        whole, gone = (experts == before).all(-1), (experts == 0).all(-1)
        assert (whole | gone).all() and whole.any() and gone.any()
    assert next(iter(seen.values()))[0].units == 8 and len(find(dense, FFN)) == 2


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("group", [1, 4])
def test_a_channel_costs_all_but_the_map_that_is_compared(gated, group):
    ffn = make_ffn(6, 8, "relu", gated=gated)
    model = nn.ModuleDict({"ffn": ffn})
    threshold_hidden(model, group)
    (place,) = places_of(model).values()
    compared = 2 * 6 * 8
    assert place.price * place.threshold.units + compared == ffn_flops(6, 8, gated)


# Padding.


@pytest.mark.parametrize("method", others_later(["chess+", "teal"], ["chess+"]))
def test_padding_moves_nothing(calibrated, method):
    """A sample alone has none."""
    _, path = calibrated("bert", method)
    values = [1.0, 0.5]
    found = [
        evaluate_density(path, "density", MEASURE | {"values": values, "batch_size": size}, RUN)
        for size in (1, 12)
    ]
    for key in ("correct", "targets", "flops"):
        assert torch.allclose(found[0].samples[key].float(), found[1].samples[key].float())
    assert torch.allclose(found[0].samples["loss"], found[1].samples["loss"], atol=1e-5)
    for one, other in zip(found[0].layers, found[1].layers, strict=True):
        assert one == pytest.approx(other)
    lengths = CASES["bert"].split.lengths
    assert lengths.max() > lengths.min()


def test_padding_moves_no_threshold(calibrated):
    tables = []
    for size in (1, 12):
        _, path = calibrated("bert", "chess+", batch_size=size)
        tables.append(read_model(path)[1])
    names = [name for name in tables[0] if name.endswith(("table", "scale"))]
    assert len(names) == 2 * 2 * 3  # two blocks: hidden channels, q, o
    for name in names:
        assert torch.allclose(tables[0][name], tables[1][name], atol=1e-5)


# The search of TEAL.


def test_every_linear_map_of_a_block_is_searched_with_the_others(tmp_path):
    model = rebuild_inputs(make_dense(), SPEC)
    blocks = maps_of_blocks(model)
    assert len(blocks) == 2
    for maps in blocks.values():
        assert sorted(layer.role for layer in maps) == sorted([*"qkvo", "up", "down"])
    assert sum(map(len, blocks.values())) == len(find(model, ThresholdedLinear))


def test_a_step_saves_the_same_share_of_a_block_whichever_map_takes_it():
    maps = [ThresholdedLinear.of(nn.Linear(4, n), "up") for n in (4, 4, 8)]
    block = Block.of(maps)
    block.take(0, 0.3)  # of the mean map's cost, a third of the block's
    assert block.sparsity.tolist() == pytest.approx([0.4, 0, 0])
    block.take(2, 0.3)
    assert block.sparsity.tolist() == pytest.approx([0.4, 0, 0.2])
    assert [mean for mean, _ in block.path] == pytest.approx([0, 0.1, 0.2])
    for index in (0, 0, 1, 1, 1):  # no further than to its end
        block.take(index, 0.3)
    assert block.open == [2] and block.path[-1][0] == pytest.approx(0.6)
    targets = torch.tensor([0.0, 0.05, 0.2, 0.35])
    found = torch.stack([density for _threshold, density in block.densities(targets)])
    assert (block.shares @ found).tolist() == pytest.approx((1 - targets).tolist())


def test_maps_whose_inputs_change_nothing_lose_them_first(calibrated):
    base = make_dense()
    for block in base.encoder.layers:
        nn.init.zeros_(block.self_attention.out_proj.weight)
    model, _ = load_model(calibrated("vit", "teal", base)[1])
    for maps in maps_of_blocks(model).values():  # an attention costs half of a block
        for layer in maps:
            dense = float(layer.threshold.at(0.5)) == 0
            assert dense == (layer.role in ("up", "down"))
        assert all(layer.threshold.at(0.25) > 0 for layer in maps if layer.role == "o")


# Refusals.


def test_a_model_that_skips_already_is_not_calibrated_again(calibrated):
    _, path = calibrated("vit", "cats")
    with pytest.raises(CheckpointError, match="a dense one is needed"):
        load_dense_model(path)
    with pytest.raises(CheckpointError, match="a dense one is needed"):
        calibrate_inputs(path, InputThresholdsConfig(), RUN)


def test_an_expert_size_that_does_not_divide_is_refused(tmp_path):
    save_model(tmp_path / "base", make_dense(), SPEC)
    cfg = ThresholdsConfig(score="magnitude", expert_size=5)
    with pytest.raises(ConfigError, match="expert_size = 5 does not divide the 32 of"):
        calibrate_hidden(tmp_path / "base", cfg, RUN)
    with pytest.raises(ModelError, match="units of 5 do not divide 32"):
        Threshold(32, 5)


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_a_density_is_a_share(density):
    with pytest.raises(ModelError, match="from 0 to 1"):
        set_density(nn.ModuleDict({"x": Threshold(4)}), density)
    with pytest.raises(ModelError, match="has no thresholds"):
        set_density(make_dense(), 0.5)
