"""Laws of the colours: who sees fewer of them still tells methods apart, by colour or by signs."""

import re
from itertools import combinations

import numpy as np
import pytest
from shipped import SHIPPED, shipped_plan
from small_colours import APART, VISION, distance, lab, least

from d2dmoe.explorer.page import WEB
from d2dmoe.figures import style
from d2dmoe.figures.tradeoff import DENSE
from d2dmoe.plan import publishing


def test_distances_are_those_of_known_colours():
    assert lab("#ffffff", "normal") == pytest.approx([100, 0, 0], abs=1e-3)
    assert lab("#ff0000", "normal") == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    for vision, matrix in VISION.items():
        assert matrix.sum(1) == pytest.approx(np.ones(3), abs=1e-5), vision  # grey stays grey
    confused = distance("#ff0000", "#8a7a00", "deuteranopia")  # a red, and a brown like it
    assert confused < 0.5 * distance("#ff0000", "#8a7a00", "normal")


def shown_together() -> list[tuple[str, list[style.Look]]]:
    """Of the shipped configurations' figures: the looks in each panel, the dense model's too."""
    found = []
    for name in SHIPPED:
        plan = shipped_plan(name)
        for figure, suite, task, request in publishing.requests(plan):
            arguments = request.arguments
            for panel in arguments.get("panels", arguments.get("rows", [arguments])):
                if "looks" not in panel:
                    continue
                hollow = panel.get("training_free", [])
                looks = [style.look(panel["looks"][x], x in hollow) for x in panel["variants"]]
                dense = [style.Look(style.INK, str(x["marker"]), "-") for x in DENSE.values()][:1]
                place = f"{name} {suite} {panel.get('task', task)} {figure.name}"
                found.append((place, looks + dense))
    return found


def signs(look: style.Look) -> tuple[str, str, bool]:
    """All that is not colour."""
    return look.marker, str(look.line), look.hollow


def test_methods_of_a_figure_differ_by_colour_for_every_vision_or_else_by_marker_or_dashes():
    pairs = alike = 0
    for place, looks in shown_together():
        for one, other in combinations(looks, 2):
            pairs += 1
            if least(one.colour, other.colour) < APART:
                alike += 1
                assert signs(one) != signs(other), (place, one, other)
    assert pairs > 1000 and 0 < alike < pairs / 8


def test_methods_of_the_main_results_differ_by_marker_or_dashes_without_any_colour():
    for place, looks in shown_together():
        if " main " in place:
            assert len({*map(signs, looks)}) == len(looks), place


def test_the_first_colours_are_told_apart_by_every_vision():
    """Those of the methods that most figures compare, and of the dense model."""
    for one, other in combinations((*style.COLOURS[:6], style.INK), 2):
        assert least(one, other) >= APART, (one, other)


def test_parts_of_a_cost_that_touch_are_told_apart_by_every_vision():
    text = (WEB / "budgets.js").read_text()
    listed = re.search(r"PART_COLOURS = \[(.*?)\]", text)
    colours = re.findall(r"#\w{6}", listed.group(1)) if listed else []
    assert len(colours) == 7
    for one, other in combinations(dict.fromkeys(colours), 2):
        assert least(one, other) >= APART, (one, other)
