"""The benchmarks: masks have the share that they say, and every backend is timed at each."""

import pandas as pd
import pytest
import torch

from d2dmoe.benchmark.layer import COLUMNS, all_rows, layer_rows
from d2dmoe.benchmark.masks import GROUP, MASKS
from d2dmoe.benchmark.timing import ROUNDS, compare
from d2dmoe.config.benchmarks import LayerBenchmark
from d2dmoe.csvfile import write_csv
from d2dmoe.figures.wall_clock import draw

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


@pytest.mark.parametrize("gated", [False, True])
def test_every_mask_share_and_backend_has_a_row_with_the_share_really_executed(gated):
    rows = pd.DataFrame(layer_rows(cfg(gated=gated, masks=["bernoulli", "clustered"]), "fp32", CPU))
    assert list(rows.columns) == COLUMNS
    assert set(rows["backend"]) == {"dense_eager", "mlp_equal_flops", "dynamic_k"}
    assert (
        len(rows) == 2 * (1 + 2 * 2) and not rows.duplicated(["mask", "fraction", "backend"]).any()
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


def test_the_figure_has_a_panel_per_layer_format_and_mask(tmp_path):
    layers = [cfg(masks=["bernoulli", "clustered"]), cfg(gated=True)]
    write_csv(tmp_path / "cpu.csv", all_rows(layers, CPU), COLUMNS)
    figure = draw(tmp_path / "cpu.csv")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 3 and len(set(titles)) == 3
    assert len(figure.axes[0].get_lines()) == 3  # dense, of equal FLOPs, dynamic-k
