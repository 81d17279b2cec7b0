"""Laws of curves: they pass through points that rise, do not fall, and lie between neighbours."""

import numpy as np
import pytest

from d2dmoe.curve import curve_of

COSTS = np.array([0.8, 0.4, 1.0, 0.5])
RISING = np.array([0.98, 0.7, 1.0, 0.9])
GRID = np.linspace(0, 1.2, 241)


def test_a_curve_passes_through_points_that_rise_whatever_their_order():
    curve = curve_of(COSTS, RISING)
    assert curve.quality(COSTS) == pytest.approx(RISING)
    found = curve.quality(GRID)
    assert (np.diff(found) >= 0).all()
    between = found[(GRID > 0.5) & (GRID < 0.8)]
    assert 0.9 < between.min() and between.max() < 0.98


def test_outside_of_the_points_the_nearest_one_counts():
    assert list(curve_of(COSTS, RISING).quality(np.array([0.1, 2.0]))) == [0.7, 1.0]


def test_noise_makes_no_curve_fall_and_keeps_its_mean():
    noisy = np.array([0.98, 0.7, 0.96, 0.9])  # the dearest is worse than the one before
    curve = curve_of(COSTS, noisy)
    assert curve.qualities == pytest.approx([0.7, 0.9, 0.97, 0.97])


def test_points_of_equal_cost_count_as_one_of_their_mean():
    curve = curve_of(np.array([0.5, 0.5, 1.0]), np.array([0.8, 0.9, 1.0]))
    assert list(curve.costs) == [0.5, 1.0] and curve.qualities == pytest.approx([0.85, 1.0])


def test_one_point_is_a_curve():
    curve = curve_of(np.array([0.6]), np.array([0.99]))
    assert list(curve.quality(np.array([0.1, 0.6, 1.0]))) == [0.99] * 3
