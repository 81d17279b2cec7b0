"""Laws of the rules that select experts from scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import values_of

from d2dmoe.errors import UnknownName
from d2dmoe.lookup import resolve
from d2dmoe.selection import Selection, coverage, dynamic_k, top_k
from d2dmoe.selection_rules import RULES

few = settings(max_examples=60, deadline=None, derandomize=True)
# Whole numbers, so that sums are exact; many ties and zeros.
rows = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(lambda r: torch.tensor(r).float())
distinct = st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True).map(
    lambda r: torch.tensor(r).float()
)
shares = st.integers(0, 16).map(lambda i: i / 16)  # exact in binary


@few
@given(scores=rows)
def test_tau_0_runs_all_and_tau_1_only_the_best(scores):
    assert dynamic_k(scores, 0.0).all()
    best = (scores == scores.max()) & (scores > 0)
    assert torch.equal(dynamic_k(scores, 1.0), best)


@few
@given(scores=rows, taus=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_a_higher_tau_runs_a_subset_that_still_holds_the_best(scores, taus):
    more, fewer = (dynamic_k(scores, tau) for tau in taus)
    assert (more | ~fewer).all()
    assert scores.max() == 0 or fewer[scores.argmax()]


def test_dynamic_k_by_hand():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 0.0, 8.0, 4.0]])
    expected = [[True, True, True, False], [False, False, True, True]]
    assert dynamic_k(scores, 0.5).tolist() == expected


@few
@given(scores=rows, exponent=st.integers(-20, 20), share=shares)
def test_dynamic_k_and_coverage_are_scale_free(scores, exponent, share):
    scaled = scores * 2.0**exponent
    assert torch.equal(dynamic_k(scaled, share), dynamic_k(scores, share))
    assert torch.equal(coverage(scaled, share), coverage(scores, share))


def test_scores_of_zero_run_nothing_unless_tau_is_0():
    scores = torch.zeros(3, 5)
    scores[1, 2] = 1
    for tau in (0.01, 0.5, 1.0):
        assert dynamic_k(scores, tau).sum(-1).tolist() == [0, 1, 0]
    assert dynamic_k(scores, 0.0).all()
    assert coverage(scores, 1.0).sum(-1).tolist() == [0, 1, 0]


@few
@given(scores=rows, data=st.data())
def test_top_k_runs_exactly_k_of_the_best_even_with_ties(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    mask = top_k(scores, k)
    assert mask.sum() == k
    assert mask.all() or scores[mask].min() >= scores[~mask].max()


def test_coverage_of_4_3_2_1_at_90_percent_runs_3():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [2.0, 1.0, 4.0, 3.0]])
    expected = [[True, True, True, False], [True, False, True, True]]
    assert coverage(scores, 0.9).tolist() == expected


@few
@given(scores=rows)
def test_coverage_1_runs_all_that_score_and_coverage_0_none(scores):
    assert torch.equal(coverage(scores, 1.0), scores > 0)
    assert not coverage(scores, 0.0).any()


@pytest.mark.parametrize("spread", [1, 4])
def test_coverage_1_runs_all_that_score_also_where_single_precision_sums_lose_them(spread):
    scores = torch.rand(100, 512, generator=torch.Generator().manual_seed(0)) ** spread + 1e-30
    scores[:, ::3] = 0
    assert torch.equal(coverage(scores, 1.0), scores > 0)


@few
@given(scores=rows, p=shares)
def test_coverage_reaches_its_share_with_the_fewest_experts(scores, p):
    mask = coverage(scores, p)
    needed, count = p * scores.sum(), int(mask.sum())
    assert scores[mask].sum() >= needed
    if count:
        assert scores.sort(descending=True).values[: count - 1].sum() < needed


@few
@given(scores=rows, ps=st.tuples(shares, shares).map(sorted))
def test_a_higher_coverage_runs_a_superset(scores, ps):
    fewer, more = (coverage(scores, p) for p in ps)
    assert (more | ~fewer).all()


@few
@given(scores=distinct, share=shares, data=st.data())
def test_the_order_of_the_experts_does_not_matter(scores, share, data):
    order = torch.tensor(data.draw(st.permutations(range(len(scores)))))
    k = data.draw(st.integers(1, len(scores)))
    for rule, value in ((dynamic_k, share), (coverage, share), (top_k, k)):
        assert torch.equal(rule(scores[order], value), rule(scores, value)[order])


@pytest.mark.parametrize(("rule", "value"), [("dynamic_k", 0.4), ("top_k", 2), ("coverage", 0.7)])
def test_tokens_are_selected_for_independently_in_any_shape(rule, value):
    scores = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0))
    mask = Selection(rule, value)(scores)
    assert mask.shape == scores.shape and mask.dtype == torch.bool
    for i in range(2):
        for j in range(3):
            assert torch.equal(mask[i, j], Selection(rule, value)(scores[i, j]))


@pytest.mark.parametrize(("rule", "value"), [(r, v) for r in RULES for v in values_of(r)])
def test_a_token_whose_scores_are_no_numbers_runs_experts(rule, value):
    scores = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    expected = Selection(rule, value)(scores)
    scores[1], scores[3, 5] = torch.nan, torch.nan
    mask = Selection(rule, value)(scores)
    assert mask[1].any() and mask[3, 5]
    assert torch.equal(mask[[0, 2]], expected[[0, 2]])


def test_all_experts_run_at_tau_0_even_of_infinite_scores():
    assert Selection("dynamic_k", 0.0)(torch.tensor([1.0, torch.inf, 0.0])).all()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_selects_as_its_record_says(name):
    rule, scores = RULES[name], torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    value = 2 if rule.whole else 0.5
    mask = Selection(name, value)(scores)
    assert torch.equal(mask, resolve(rule.select)(scores, value))
    assert (len(mask.sum(-1).unique()) > 1) == rule.adaptive
    assert Selection(name, value).fused == rule.fused


def test_an_unknown_rule_is_refused_and_the_allowed_ones_listed():
    with pytest.raises(UnknownName, match="rule 'best'; allowed: dynamic_k, top_k, coverage"):
        Selection("best", 1)
    selection = Selection("top_k", 2)
    with pytest.raises(UnknownName, match="rule 'best'; allowed: dynamic_k, top_k, coverage"):
        selection.rule = "best"
    assert selection.rule == "top_k" and (selection(torch.rand(3, 5)).sum(-1) == 2).all()
