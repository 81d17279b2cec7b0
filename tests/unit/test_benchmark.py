"""The benchmarks: masks have the share that they say, and every backend is timed at each."""

import pandas as pd
import pytest
import torch
from small import others_later
from small_kernels import make_weights

from d2dmoe.activations import ACTIVATIONS
from d2dmoe.benchmark import layer
from d2dmoe.benchmark.common import DTYPES
from d2dmoe.benchmark.layer import COLUMNS, all_rows, layer_rows
from d2dmoe.benchmark.masks import (
    GROUP,
    MASKS,
    TAU,
    load_points,
    recorded,
    selecting_router,
    with_choices,
)
from d2dmoe.config.benchmarks import LayerBenchmark
from d2dmoe.errors import CheckpointError
from d2dmoe.figures.wall_clock import BACKENDS, draw
from d2dmoe.io.csvfile import write_csv
from d2dmoe.io.tensors import save_tensors
from d2dmoe.selection import dynamic_k
from d2dmoe.timing import ROUNDS, compare
from d2dmoe.weights import RouterWeights, scores
from d2dmoe.weights import dense as plain

CPU = torch.device("cpu")
SMALL = {"tokens": 96, "d_model": 24, "num_experts": 6, "expert_size": 8, "router_width": 8}


def cfg(**options) -> LayerBenchmark:
    return LayerBenchmark(**SMALL | {"fractions": [1.0, 0.3], "round_s": 0.001} | options)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("fraction", [0.1, 0.4, 1.0])
def test_a_mask_has_about_the_share_and_no_token_is_idle(kind, fraction):
    mask = MASKS[kind](5000, 24, fraction, generator())
    assert mask.dtype == torch.bool and mask.shape == (5000, 24) and mask.any(1).all()
    assert mask.float().mean().item() == pytest.approx(fraction, rel=0.15)


def test_tokens_of_a_group_choose_alike_and_others_do_not():
    mask = MASKS["clustered"](GROUP * 50, 24, 0.3, generator()).view(50, GROUP, 24).float()
    within = (mask[:, 0] == mask[:, 1]).float().mean()
    across = (mask[:-1, 0] == mask[1:, 0]).float().mean()
    assert within > 0.85 and across < 0.7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASKS)
# Without other neurons than the experts', and with.
@pytest.mark.parametrize("width", others_later([24, 128], [24]))
def test_the_router_selects_exactly_the_mask_in_every_format(dtype, kind, width):
    *maps, kind_of_router = selecting_router(24, width, 96, generator())
    router = RouterWeights(*(x.to(DTYPES[dtype]) for x in maps), kind_of_router)
    z = torch.randn(3000, 96, generator=generator(1)).to(DTYPES[dtype])
    for fraction in (1.0, 0.4, 0.1):
        mask = MASKS[kind](3000, 24, fraction, generator(2))
        marked = with_choices(z, mask)
        assert torch.equal(dynamic_k(scores(marked, router), TAU), mask)
        assert torch.equal(marked[:, 24:], z[:, 24:])


def test_all_backends_of_a_mask_run_it_on_the_same_tokens():
    """By the router and by the mask the experts give the same; all of them, what dense gives."""
    parts = layer._layer(cfg(), torch.float32, CPU, generator())
    for fraction in (1.0, 0.3):
        functions = layer._sparse(parts, MASKS["bernoulli"](96, 6, fraction, generator()))
        results = {backend: function() for (backend, _), function in functions.items()}
        torch.testing.assert_close(results["dynamic_k"], results["dynamic_k_experts"])
        if fraction == 1.0:
            torch.testing.assert_close(results["dynamic_k"], results["mlp_equal_flops"])


def test_deterministic_algorithms_are_on_just_for_the_call():
    found = layer._deterministic(lambda: torch.tensor(torch.are_deterministic_algorithms_enabled()))
    assert found and not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("gate", ["", " glu"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_dense_layer_beside_the_experts_is_all_of_them(activation, gate):
    weights = make_weights(activation + gate, 6, 8, d_model=24, d_out=24)
    z = torch.randn(96, 24, generator=generator())
    torch.testing.assert_close(layer._mlp(z, weights)["eager"](), plain(z, None, weights))


def test_a_projection_stands_beside_the_linear_map_that_it_replaces():
    parts = layer._layer(cfg(projection=True), torch.float32, CPU, generator())
    weight, bias = parts.projection
    assert weight.shape == (24, 24)
    (dense,) = layer._dense(parts).values()
    torch.testing.assert_close(dense(), parts.z @ weight.T + bias)
    rows = pd.DataFrame(layer_rows(cfg(projection=True), "fp32", CPU, {}))
    assert set(rows["activation"]) == {"relu projection"}


def test_a_layer_follows_the_recorded_layer_of_the_nearest_share(tmp_path):
    """Padding tokens, which run nothing, are left out."""
    masks = torch.zeros(2, 40, 6, dtype=torch.bool)
    masks[0, :, 0], masks[1, ::2, :3] = True, True
    save_tensors(tmp_path / "masks.safetensors", {"tau_0": torch.ones_like(masks), "tau_1": masks})
    points = load_points([str(tmp_path / "masks.safetensors")])
    assert torch.equal(recorded(points, 100, 0.1), masks[0, :1].expand(100, 6))
    assert torch.equal(recorded(points, 30, 0.25), masks[1, :1].expand(30, 6))
    rows = pd.DataFrame(layer_rows(cfg(masks=["converted"]), "fp32", CPU, points))
    shares = rows.loc[rows["backend"] == "dynamic_k", "fraction"]
    assert sorted(shares) == pytest.approx([0.5, 1.0]) and set(rows["mask"]) == {"converted"}
    assert load_points([]) == {}
    with pytest.raises(CheckpointError, match="run the same command again"):
        load_points([str(tmp_path / "nothing.safetensors")])


@pytest.mark.parametrize("gated", [False, True])
def test_every_mask_share_and_backend_has_a_row_with_the_share_really_executed(gated):
    both = cfg(gated=gated, masks=["bernoulli", "clustered"])
    rows = pd.DataFrame(layer_rows(both, "fp32", CPU, {}))
    assert list(rows.columns) == COLUMNS
    backends = {"mlp_equal_flops", "dynamic_k", "dynamic_k_experts"}
    assert set(rows["backend"]) == {"dense_eager"} | backends
    assert (
        len(rows) == 2 * (1 + 2 * 3) and not rows.duplicated(["mask", "fraction", "backend"]).any()
    )
    dense = rows["backend"] == "dense_eager"
    assert (rows.loc[dense, "fraction"] == 1).all()
    assert ((rows["p20_ms"] <= rows["median_ms"]) & (rows["median_ms"] <= rows["p80_ms"])).all()
    shares = rows.loc[~dense, "fraction"].round(6).unique()
    assert 1.0 in shares and any(abs(share - 0.3) < 0.1 for share in shares)


def test_functions_are_timed_in_turn():
    calls: list[str] = []
    compare({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, round_s=0.0)
    assert calls == ["a", "b"] * (1 + ROUNDS)


@pytest.mark.workflow
def test_the_figure_has_a_panel_per_layer_format_and_mask(tmp_path):
    layers = [cfg(masks=["bernoulli", "clustered"]), cfg(gated=True)]
    rows = [row for layer in layers for row in all_rows(layer, CPU, {})]
    write_csv(tmp_path / "cpu.csv", rows, COLUMNS)

    def titles(part: str) -> list[str]:
        figure = draw(pd.read_csv(tmp_path / "cpu.csv"), layers=part)
        assert all(len(axes.get_lines()) == 4 for axes in figure.axes if axes.get_title())
        assert all(axes.axison == bool(axes.get_title()) for axes in figure.axes)
        return [axes.get_title() for axes in figure.axes if axes.get_title()]

    assert len(titles("all")) == 3 == len(set(titles("all")))
    assert titles("all") == titles("first") + titles("others")
    assert len(titles("first")) == 2 and "relu gated" in titles("others")[0]


def test_the_figures_legend_names_every_backend(tmp_path):
    write_csv(tmp_path / "cpu.csv", all_rows(cfg(), CPU, {}), COLUMNS)
    table = pd.read_csv(tmp_path / "cpu.csv")
    dense = table[table["backend"] == "dense_eager"]
    sparse = table[table["backend"] == "dynamic_k"]
    others = [
        rows.assign(backend=name)
        for rows, names in (
            (dense, ["dense_addmm", "dense_compiled", "dense_fp8"]),
            (sparse, ["dynamic_k_int8", "dynamic_k_deterministic"]),
        )
        for name in names
    ]
    figure = draw(pd.concat([table, *others]))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        label for label, _ in BACKENDS.values()
    ]
    assert len({look for _, look in BACKENDS.values()}) == len(BACKENDS)
