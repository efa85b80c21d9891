"""Policies that weigh accuracy by the chance of being on time: effective accuracy, ALERT, and the slowdown wrapper."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Conditions, Goals
from policies.alert import Alert
from policies.effective import Effective
from policies.kalman import SlowdownFilter
from policies.slowdown import Slowdown
from policies.throughput import Throughput
from subnets.errors import InputError

GOALS = Goals(deadline_ms=40.0)


def subnet(decision):
    return decision.point.partition("@")[0]


@given(rates=st.lists(st.floats(0, 600), min_size=2, max_size=6))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_effective_accuracy_never_answers_more_load_with_a_better_rung(table, rates):
    chosen = [
        table.row(Effective(GOALS).decide(Conditions(time_s=0, arrival_rate_hz=rate), table, None).point).accuracy
        for rate in sorted(rates)
    ]
    assert chosen == sorted(chosen, reverse=True)


def test_the_best_product_wins_and_not_the_best_accuracy(table):
    # s100 is 81 % busy at 80/s: one in six is late at 40 ms; s75 answers all but a few
    policy = Effective(GOALS)
    assert subnet(policy.decide(Conditions(time_s=0, arrival_rate_hz=5.0), table, None)) == "s100"
    assert subnet(Effective(GOALS).decide(Conditions(time_s=0, arrival_rate_hz=80.0), table, None)) == "s75"
    assert subnet(Effective(GOALS).decide(Conditions(time_s=0, arrival_rate_hz=400.0), table, None)) == "s25"


def test_a_load_that_nothing_keeps_up_with_is_best_effort(table):
    decision = Effective(GOALS).decide(Conditions(time_s=0, arrival_rate_hz=600.0), table, None)
    assert subnet(decision) == "s25"
    assert decision.urgent
    assert "best effort" in decision.reason


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.7])
def test_the_filter_finds_a_factor_and_how_much_it_varies(factor):
    noise, seen = random.Random(3), SlowdownFilter()
    for _ in range(300):
        seen.update(factor * noise.gauss(1, 0.02))
    assert seen.mean == pytest.approx(factor, rel=0.06)
    assert 0.02 < seen.deviation < 0.12


def test_the_filter_follows_a_jump_within_a_few_answers_and_doubts_meanwhile():
    seen = SlowdownFilter()
    for _ in range(50):
        seen.update(1.0)
    calm = seen.deviation
    seen.update(2.0)
    seen.update(2.0)
    assert seen.deviation > 2 * calm
    seen.update(2.0)
    assert seen.mean == pytest.approx(2.0, abs=0.05)


def test_alert_gives_way_when_the_machine_slows_and_comes_back(table):
    policy, shown = Alert(Goals(deadline_ms=16.0)), []
    for t in range(60):
        slow = 2.0 if 20 <= t < 40 else 1.0
        shown.append(subnet(policy.decide(Conditions(time_s=float(t), slowdown=slow), table, None)))
    assert shown[19] == "s100"  # 10 ms of 16
    assert shown[39] in {"s50", "s75"}  # s75 takes 13 ms, s50 8 ms
    assert shown[59] == "s100"


def test_alert_minimises_energy_above_an_accuracy_when_asked_for_answers_per_joule(table):
    goals = Goals(deadline_ms=40.0, maximise="answers_per_joule", min_accuracy=0.91)
    assert subnet(Alert(goals).decide(Conditions(time_s=0, slowdown=1.0, arrival_rate_hz=5.0), table, None)) == "s50"


def test_alert_keeps_a_mean_power_where_some_rung_can(table):
    # at 60/s: 3 W idle and 60 % busy at 10 W is 7.2 W for s100; s75 39 % busy at 9 W is 5.3 W
    moment = Conditions(time_s=0, slowdown=1.0, arrival_rate_hz=60.0)
    assert subnet(Alert(Goals(deadline_ms=60.0, max_power_w=6.0)).decide(moment, table, None)) == "s75"
    none = Alert(Goals(deadline_ms=60.0, max_power_w=2.0)).decide(moment, table, None)
    assert "given up" in none.reason


def test_the_wrapper_shows_the_filtered_factor_to_any_policy(table):
    noisy, inner = random.Random(5), Throughput(Goals(deadline_ms=20.0))
    wrapped, alone = Slowdown(Throughput(Goals(deadline_ms=20.0))), []
    held = []
    for t in range(200):
        # now and then a wild ratio: 10 ms * 1.3 fit in 20 ms, twice that does not
        moment = Conditions(time_s=float(t), arrival_rate_hz=1.0, slowdown=1.0 * noisy.gauss(1.0, 0.05))
        alone.append(subnet(inner.decide(moment, table, None)))
        held.append(subnet(wrapped.decide(moment, table, None)))
    assert held.count("s100") >= alone.count("s100") - 5
    blind = wrapped.decide(Conditions(time_s=300.0, arrival_rate_hz=1.0), table, None)
    assert subnet(blind) == "s100"  # what was learnt stays


def test_caution_makes_the_wrapper_plan_for_slower_answers(table):
    ratios = [1.0, 1.3, 0.8, 1.2, 0.9, 1.1]
    chosen = []
    for caution in (0.0, 3.0):
        policy = Slowdown(Throughput(Goals(deadline_ms=14.0)), caution=caution)
        for t, ratio in enumerate(ratios * 5):
            decision = policy.decide(Conditions(time_s=float(t), slowdown=ratio), table, None)
        chosen.append(table.row(decision.point).accuracy)
    assert chosen[1] < chosen[0]


def test_impossible_options_are_refused():
    with pytest.raises(InputError, match="caution is -1"):
        Slowdown(Throughput(GOALS), caution=-1.0)
    with pytest.raises(InputError, match="late_worth is 2"):
        Alert(GOALS, late_worth=2.0)
    with pytest.raises(InputError, match="smooth_s is 0"):
        Effective(GOALS, smooth_s=0.0)
