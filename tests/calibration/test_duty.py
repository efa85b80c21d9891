"""Answers after a rest: the plan, the fit, and what a row then says of a rate."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.disturbance import Disturbance, Watch
from calibration.duty import LEAST_ROUNDS, fit, plan
from calibration.measure import Settings, calibrate
from calibration.rounds import Visit
from calibration.table import Duty

RESTS_MS = Settings().rests_ms


def _visits(curve, rounds=4, joules=None):
    return [
        Visit(0, number, rest, 0.0, 1.0, 1.0, np.full(5, curve(rest)), {}, Disturbance())
        for number in range(rounds)
        for rest in RESTS_MS
    ]


def _duty(**changes):
    values = {
        "rests_ms": RESTS_MS,
        "latency_ms": (2.2, 2.5, 3.5, 5.0),
        "settle_ms": 25.0,
        "extra_ms": 3.0,
        "extra_low_ms": 2.5,
        "extra_high_ms": 3.5,
        "rounds": 4,
        "samples": 100,
    }
    return Duty(**{**values, **changes})


class TestFit:
    @given(p50=st.floats(0.1, 50), extra=st.floats(0.01, 50), settle=st.floats(0.5, 100))
    def test_a_curve_of_its_own_kind_is_found_again(self, p50, extra, settle):
        def curve(rest):
            return p50 + extra * (1 - math.exp(-rest / settle))

        found = fit(_visits(curve), p50, 1, None, [None] * 16)
        for rest in (0.0, 2.0, 10.0, 40.0, 80.0):
            assert p50 + found.extra_ms * found.rested(rest) == pytest.approx(curve(rest), rel=0.05)
        assert found.latency_ms == pytest.approx([curve(rest) for rest in RESTS_MS])

    def test_what_comes_within_a_fast_networks_own_rests_is_seen(self):
        found = fit(_visits(lambda rest: 0.6 + (0.3 if rest else 0.0)), 0.6, 1, None, [None] * 16)
        assert 0.6 + found.extra_ms * found.rested(0.7) == pytest.approx(0.9, rel=0.05)

    def test_an_engine_that_does_not_mind_resting_has_no_extra(self):
        found = fit(_visits(lambda rest: 2.0), 2.0, 1, None, [None] * 16)
        assert (found.extra_ms, found.extra_low_ms, found.extra_high_ms) == pytest.approx((0, 0, 0))

    def test_answers_faster_than_back_to_back_are_noise_and_never_a_bonus(self):
        assert fit(_visits(lambda rest: 1.9), 2.0, 1, None, [None] * 16).extra_ms == 0

    def test_energy_above_idle_rises_along_the_same_curve_per_image(self):
        def curve(rest):
            return 2.0 + 3.0 * (1 - math.exp(-rest / 20.0))

        visits = _visits(curve)
        joules = [4 * (0.01 + 0.02 * (1 - math.exp(-visit.rest_ms / 20.0))) for visit in visits]
        assert fit(visits, 2.0, 4, 0.01, joules).extra_net_energy_j == pytest.approx(0.02, rel=0.02)
        assert fit(visits, 2.0, 4, None, joules).extra_net_energy_j is None

    def test_rounds_that_differ_widen_its_interval(self):
        visits = _visits(lambda rest: 2.0 + 3.0 * (1 - math.exp(-rest / 20.0)))
        noisy = [visit._replace(latencies_ms=visit.latencies_ms * (1 + 0.05 * visit.round)) for visit in visits]
        found = fit(noisy, 2.0, 1, None, [None] * 16)
        assert found.extra_low_ms < found.extra_ms < found.extra_high_ms
        assert found.rounds == 4 and found.samples == 80


class TestPlan:
    @given(st.lists(st.floats(0.1, 200), min_size=1, max_size=40), st.floats(0.1, 100))
    def test_what_is_planned_fits_into_the_budget(self, latencies, budget_s):
        found = plan(RESTS_MS, latencies, budget_s)
        if found is not None:
            one_ms = sum(latency + rest for latency in latencies for rest in found.rests_ms)
            assert LEAST_ROUNDS * found.answers * one_ms <= 1e3 * budget_s
            assert len(found.rests_ms) >= 2 and found.rests_ms == RESTS_MS[: len(found.rests_ms)]

    def test_the_longest_rest_is_given_up_first_and_one_alone_is_not_worth_it(self):
        assert plan(RESTS_MS, [1.0] * 4, 60).rests_ms == RESTS_MS
        assert plan(RESTS_MS, [1.0] * 20, 12).rests_ms == RESTS_MS[:3]
        assert plan(RESTS_MS, [1.0] * 20, 2) is None


class TestRow:
    @pytest.fixture
    def row(self, make_row):
        joules = {"power_w": 5.0, "energy_j": 5.0 / 480, "net_energy_j": 3.0 / 480, "energy_source": "hwmon"}
        return make_row(latency_p50_ms=2.0, duty=_duty(extra_net_energy_j=0.002), **joules)

    def test_back_to_back_and_beyond_it_is_the_tables_median(self, row):
        for rate in (500.0, 501.0, 1e6, math.inf):
            assert row.latency_ms_at(rate) == pytest.approx(2.0)

    def test_seldom_asked_it_pays_the_whole_extra(self, row):
        assert row.latency_ms_at(0.0) == row.latency_ms_at(1e-6) == pytest.approx(5.0)

    def test_after_a_rest_the_curve_is_read_where_the_rest_is(self, row):
        assert row.latency_ms_after(0.0) == 2.0
        assert row.latency_ms_after(25.0 * math.log(2)) == pytest.approx(3.5)  # half of the extra
        assert row.latency_ms_after(math.inf) == 5.0

    def test_rests_between_random_arrivals_cost_their_mean(self, row):
        rests = np.random.default_rng(0).exponential(1e3 / 20.0, 20_000)
        mean = float(np.mean([row.latency_ms_after(rest) for rest in rests]))
        assert row.latency_ms_by_chance(20.0) == pytest.approx(mean, rel=0.01)
        assert row.latency_ms_by_chance(0.0) == 5.0
        assert row.latency_ms_by_chance(1e9) == pytest.approx(2.0)

    @given(st.floats(0.01, 499), st.floats(0, 20), st.floats(0.1, 200))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_rest_and_latency_fill_the_period(self, make_row, rate, extra, settle):
        row = make_row(latency_p50_ms=2.0, duty=_duty(extra_ms=extra, extra_low_ms=0.0, settle_ms=settle))
        rest = row._rest_ms(rate)
        assert rest >= 0
        assert rest + row.latency_ms_at(rate) == pytest.approx(1e3 / rate, rel=1e-6)

    @given(st.floats(0.01, 1000), st.floats(1.0, 3.0))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_more_requests_never_make_an_answer_slower_or_the_whole_cheaper(self, row, rate, factor):
        assert row.latency_ms_at(rate * factor) <= row.latency_ms_at(rate) * (1 + 1e-9)
        assert row.net_energy_j_at(rate * factor) <= row.net_energy_j_at(rate) * (1 + 1e-9)
        assert row.energy_j_at(rate * factor) <= row.energy_j_at(rate) * (1 + 1e-9)

    def test_power_runs_from_idle_to_back_to_back(self, row):
        assert row.power_w_at(0.0) == pytest.approx(2.0)  # gross less net, times images a second
        assert row.power_w_at(480.0) == pytest.approx(5.0)
        assert 2.0 < row.power_w_at(10.0) < 5.0
        assert row.power_w_at(10.0) == pytest.approx(2.0 + 10 * row.net_energy_j_at(10.0))
        assert row.energy_j_at(10.0) == pytest.approx(row.power_w_at(10.0) / 10)
        assert row.energy_j_at(0.0) == math.inf

    def test_without_a_fit_or_a_meter_it_says_what_it_knows(self, make_row):
        row = make_row()
        assert row.latency_ms_at(1.0) == row.latency_p50_ms
        assert row.energy_j_at(1.0) is row.power_w_at(1.0) is row.net_energy_j_at(1.0) is None


def test_a_calibration_finds_out_what_resting_costs(bundle, fakes, tmp_path):
    time = fakes.Time(extra_ms=3.0, settle_ms=15.0)
    table = calibrate(
        bundle,
        [fakes.Backend(time, precisions=("f32",))],
        settings=Settings(budget_s=60.0),
        meters=[fakes.Meter(time)],
        watch=Watch(tmp_path),
        clocks=time.clocks(),
        threads=1,
    )
    assert table.protocol.rests_ms == RESTS_MS
    for row in table.rows:
        steady = fakes.steady_ms[row.subnet]
        assert row.latency_p50_ms == pytest.approx(steady, rel=1e-3)
        assert row.latency_ms_at(0.1) == pytest.approx(steady + 3.0, rel=0.02)
        for rate in (10.0, 30.0):
            rest = 1e3 / rate - row.latency_ms_at(rate)
            assert row.latency_ms_at(rate) == pytest.approx(steady + 3.0 * (1 - math.exp(-rest / 15.0)), rel=0.02)
        # The fake machine draws 3 W more while it works, however seldom.
        assert row.net_energy_j_at(0.1) == pytest.approx(3e-3 * (steady + 3.0), rel=0.02)


def test_a_budget_too_short_for_rests_says_so_and_leaves_them_out(bundle, fakes, tmp_path):
    time = fakes.Time(extra_ms=3.0)
    settings_ = Settings(budget_s=1.0)
    table = calibrate(
        bundle, [fakes.Backend(time)], settings=settings_, watch=Watch(tmp_path), clocks=time.clocks(), threads=1
    )
    assert table.protocol.rests_ms == () and all(row.duty is None for row in table.rows)
