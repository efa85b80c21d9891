import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.resampling import estimate, holm

SHARES = st.floats(-1, 1, allow_subnormal=False)


def test_the_mean_is_over_scenarios_not_over_runs():
    assert estimate([[0.0] * 9, [1.0]]).mean == 0.5


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    """Ten scenarios with effects of their own, five seeds each: coverage of the mean over all there could be."""
    random = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        effects = random.normal(0.3, 0.2, 10)
        found = estimate([list(effect + random.normal(0, 0.05, 5)) for effect in effects], seed=trial, draws=500)
        held += found.low <= 0.3 <= found.high
    assert 0.85 <= held / 200 <= 0.99  # a bootstrap of ten clusters is known to be a little narrow


def test_no_difference_is_not_significant_and_a_clear_one_is():
    random = np.random.default_rng(1)
    nothing = estimate([list(random.normal(0, 1, 5)) for _ in range(10)])
    clear = estimate([list(random.normal(1, 0.1, 5)) for _ in range(10)])
    assert nothing.p > 0.05 and nothing.low < 0 < nothing.high
    assert clear.p < 0.001 and clear.low > 0
    assert estimate([[0.0, 0.0], [0.0]]).p == 1.0


@settings(max_examples=50)
@given(st.lists(st.lists(SHARES, min_size=1, max_size=4), min_size=1, max_size=5))
def test_the_same_values_give_the_same_estimate_within_their_range(groups):
    found = estimate(groups, draws=200)
    assert found == estimate(groups, draws=200)
    values = [value for group in groups for value in group]
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert 0 < found.p <= 1


def test_holm_corrects_the_smallest_most_and_keeps_the_order():
    """The example with 0.01, 0.04, 0.03, 0.005 computed by hand."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_corrected_values_are_never_smaller_and_never_above_one(ps):
    corrected = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, corrected, strict=True))
    order = sorted(range(len(ps)), key=lambda k: ps[k])
    assert [corrected[k] for k in order] == sorted(corrected)
