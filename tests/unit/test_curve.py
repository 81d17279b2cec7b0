"""Laws of curves: they pass through points that rise, do not fall, and lie between neighbours."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from d2dmoe.curve import not_falling, quality_at

COSTS = np.array([[0.8, 0.4, 1.0, 0.5]])
RISING = np.array([[0.98, 0.7, 1.0, 0.9]])
GRID = np.linspace(0, 1.2, 241)


def test_a_curve_passes_through_points_that_rise_whatever_their_order():
    assert quality_at(COSTS, COSTS, RISING) == pytest.approx(RISING)
    (found,) = quality_at(GRID, COSTS, RISING)
    assert (np.diff(found) >= 0).all()
    between = found[(GRID > 0.5) & (GRID < 0.8)]
    assert 0.9 < between.min() and between.max() < 0.98


def test_outside_of_the_points_the_nearest_one_counts():
    assert quality_at(np.array([0.1, 2.0]), COSTS, RISING).tolist() == [[0.7, 1.0]]


def test_noise_makes_no_curve_fall_and_keeps_its_mean():
    noisy = np.array([[0.7, 0.9, 0.98, 0.96]])  # the dearest is worse than the one before
    assert not_falling(noisy, np.ones(4)) == pytest.approx(np.array([[0.7, 0.9, 0.97, 0.97]]))


def test_points_of_equal_cost_count_as_one_of_their_mean():
    found = quality_at(np.array([0.5, 1.0]), np.array([[0.5, 0.5, 1.0]]), np.array([[0.8, 0.9, 1]]))
    assert found == pytest.approx(np.array([[0.85, 1.0]]))


def test_one_point_is_a_curve():
    found = quality_at(np.array([0.1, 0.6, 1.0]), np.array([[0.6]]), np.array([[0.99]]))
    assert found.tolist() == [[0.99] * 3]


@pytest.mark.parametrize("points", [2, 3, 4, 11])
def test_curves_are_scipys_each_at_its_own_costs(points):
    rng = np.random.default_rng(points)
    x = rng.uniform(size=(50, points))
    y = np.sort(rng.uniform(size=x.shape).round(1), axis=1)  # level pieces among them
    y = np.take_along_axis(y, np.argsort(np.argsort(x, axis=1), axis=1), axis=1)
    at = rng.uniform(x.min(1, keepdims=True), x.max(1, keepdims=True), size=(50, 30))
    found = quality_at(at, x, y)
    for row, costs, values, its in zip(found, x, y, at, strict=True):
        order = np.argsort(costs)
        assert row == pytest.approx(PchipInterpolator(costs[order], values[order])(its), abs=1e-12)


def test_curves_of_which_some_have_points_of_equal_cost_are_made_together():
    x, y = np.array([[0.2, 0.2, 1.0], [0.2, 0.6, 1.0]]), np.array([[0.1, 0.3, 1.0]] * 2)
    together = quality_at(GRID, x, y)
    alone = [quality_at(GRID, x[i : i + 1], y[i : i + 1])[0] for i in range(2)]
    assert (together == np.array(alone)).all() and together[0, 40] == pytest.approx(0.2)
