"""Intervals against published tables, closed forms and the coverage they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.statistics import (
    Interval,
    half_width,
    metered_interval,
    positive_interval,
    student_quantile,
    student_share,
    widening,
)


@pytest.mark.parametrize(
    ("df", "published"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (4, 2.7764),
        (5, 2.5706),
        (9, 2.2622),
        (10, 2.2281),
        (29, 2.0452),
        (120, 1.9799),
    ],
)
def test_the_quantile_is_the_published_one(df, published):
    assert student_quantile(df) == pytest.approx(published, abs=6e-5)


@given(t=st.floats(0.01, 30), df=st.integers(1, 40))
def test_the_share_is_the_integral_of_the_density(t, df):
    nodes, weights = np.polynomial.legendre.leggauss(200)
    theta = (nodes + 1) / 2 * math.atan(t / math.sqrt(df))  # x = sqrt(df) tan(theta)
    density = np.cos(theta) ** (df - 1) * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    integral = 2 * float(weights @ density) / 2 * math.atan(t / math.sqrt(df))
    assert student_share(t, df) == pytest.approx(integral, abs=1e-9)


def test_the_half_width_is_t_s_over_root_r():
    rounds = [2.0, 2.4, 1.9, 2.2, 2.5, 2.0]
    expected = 2.570582 * np.std(rounds, ddof=1) / math.sqrt(6)
    assert half_width(rounds) == pytest.approx(expected, rel=1e-6)


def test_one_round_says_nothing_of_the_spread():
    assert half_width([3.0]) == math.inf
    assert positive_interval(2.0, [2.0]).low == 0.0


def test_intervals_over_rounds_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(3)
    covered = trials = 0
    for _ in range(2000):
        rounds = 5.0 * np.exp(0.1 * random.standard_normal(6))  # medians of a shared machine, true median 5
        interval = positive_interval(float(np.exp(np.mean(np.log(rounds)))), list(rounds))
        covered += interval.low <= 5.0 <= interval.high
        trials += 1
    assert covered / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


def test_pooling_all_samples_would_have_claimed_too_much():
    random = np.random.default_rng(4)
    naive = honest = 0
    for _ in range(300):
        level = 5.0 + 0.3 * random.standard_normal(8)  # each round has its own level
        samples = level[:, None] + 0.1 * random.standard_normal((8, 100))
        pooled = float(np.median(samples))
        error = 1.2533 * samples.std() / math.sqrt(samples.size)  # of a median of independent samples
        naive += abs(pooled - 5.0) <= 1.96 * error
        interval = positive_interval(pooled, [float(np.median(one)) for one in samples])
        honest += interval.low <= 5.0 <= interval.high
    assert naive / 300 < 0.5 < 0.9 < honest / 300


def test_a_meters_own_doubt_does_not_average_out():
    certain = metered_interval([(10.0, 10.0, 10.0)] * 6)
    doubtful = metered_interval([(10.0, 4.0, 17.0)] * 6)
    assert certain == pytest.approx((10.0, 10.0, 10.0))
    assert doubtful == pytest.approx((10.0, 4.0, 17.0))


VALUES = [9.0, 11.0, 10.0, 10.5, 9.5, 10.0]


def test_the_spread_over_rounds_widens_a_meters_doubt_by_a_factor():
    interval = metered_interval([(value, value - 1, value + 2) for value in VALUES])
    factor = math.exp(2.570582 * np.std(np.log(VALUES), ddof=1) / math.sqrt(6))
    assert interval == pytest.approx((10.0, 9.0 / factor, 12.0 * factor), rel=1e-6)


def test_for_what_may_be_negative_it_widens_by_an_amount():
    shifted = [(value - 10, value - 11, value - 8) for value in VALUES]
    spread = 2.570582 * np.std(VALUES, ddof=1) / math.sqrt(6)
    expected = pytest.approx((0.0, -1 - spread, 2 + spread), rel=1e-6)
    assert metered_interval(shifted) == metered_interval(shifted, positive=False) == expected


@given(st.lists(st.floats(0.01, 1e4), min_size=2, max_size=30))
def test_bounds_of_a_latency_stay_positive_and_hold_the_value(rounds):
    pooled = float(np.median(rounds))
    interval = positive_interval(pooled, rounds)
    assert 0 <= interval.low <= pooled <= interval.high


def test_the_relative_half_width_is_that_of_the_interval():
    assert Interval(10.0, 9.5, 10.7).relative_half_width == pytest.approx(0.06)
    assert Interval(0.0, 0.0, 1.0).relative_half_width == math.inf


class TestWidening:
    def rounds(self, random, alike, count=12, series=8):
        """AR(1) noise on a logarithmic scale; ``alike`` is the correlation of neighbouring rounds."""
        steps = random.standard_normal((series, count))
        noise = steps.copy()
        for k in range(1, count):
            noise[:, k] = alike * noise[:, k - 1] + math.sqrt(1 - alike**2) * steps[:, k]
        return np.exp(0.05 * noise)

    def test_rounds_of_no_memory_are_hardly_widened(self):
        random = np.random.default_rng(0)
        factors = [widening(self.rounds(random, 0.0)) for _ in range(200)]
        assert min(factors) == 1.0 and np.mean(factors) < 1.12

    def test_rounds_that_resemble_their_neighbours_are(self):
        random = np.random.default_rng(0)
        factors = [widening(self.rounds(random, 0.6, count=20)) for _ in range(200)]
        assert np.median(factors) == pytest.approx(2.0, rel=0.25)  # sqrt(1.6 / 0.4)

    def test_it_mends_most_of_the_coverage_that_drift_costs(self):
        random = np.random.default_rng(1)
        held = {"plain": 0, "mended": 0}
        for _ in range(300):
            series = self.rounds(random, 0.6)
            for name, wider in (("plain", 1.0), ("mended", widening(series))):
                for one in series:
                    interval = positive_interval(float(np.exp(np.log(one).mean())), list(one), wider)
                    held[name] += interval.low <= 1.0 <= interval.high
        trials = 300 * 8
        plain, mended = held["plain"], held["mended"]
        assert plain / trials < 0.78 < 0.88 < mended / trials

    def test_without_spread_or_with_few_rounds_nothing_can_be_told(self):
        assert widening([[2.0] * 8]) == widening([[1.0, 5.0, 2.0]]) == widening([]) == 1.0

    @given(st.lists(st.lists(st.floats(0.1, 10), min_size=6, max_size=20), max_size=5))
    def test_it_never_narrows_and_stays_within_three(self, many):
        assert 1.0 <= widening(many) <= 3.0 + 1e-9
