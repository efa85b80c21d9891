"""Policies that put a price on limits: drift plus penalty, and the bandit with a knapsack."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Conditions, Goals
from policies.bandit import Bandit
from policies.lyapunov import Lyapunov
from subnets.errors import InputError

WATTS = {"s25": 3.4, "s50": 4.0, "s75": 4.95, "s100": 6.5}  # at 50/s, idle 3 W
HOUR = Goals(last_until_s=3600, reserve=0.0)


def drain(policy, table, watts):
    """An hour at 50/s on an ideal battery of so many watts: joules left, rungs by second."""
    energy, current, used = watts * 3600.0, None, []
    for t in range(3600):
        moment = Conditions(time_s=float(t), battery_energy_j=energy, arrival_rate_hz=50.0, miss_rate=0.0)
        current = policy.decide(moment, table, current).point
        used.append(current.partition("@")[0])
        energy -= WATTS[used[-1]]
    return energy, used


@pytest.mark.parametrize("watts", [4.2, 5.3])
def test_drift_plus_penalty_keeps_the_budget_on_average(table, watts):
    left, used = drain(Lyapunov(HOUR), table, watts)
    assert abs(left) < 0.05 * watts * 3600
    assert len(set(used)) >= 2


@given(steps=st.lists(st.floats(0, 120), min_size=2, max_size=40))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_a_price_is_never_negative_and_rises_only_while_its_limit_is_broken(table, steps):
    policy, goals = Lyapunov(Goals()), []
    current = "s100@openvino:bf16:b1"
    for t, rate in enumerate(steps):
        policy.decide(Conditions(time_s=float(t), arrival_rate_hz=rate), table, current)
        goals.append((rate, policy.state()["prices"].get("throughput", 0.0)))
    assert all(price >= 0 for _, price in goals)
    for (_, before), (rate, after) in pairwise(goals):
        if rate * 0.0100 < 0.95:  # s100 answers 100 a second
            assert after <= before


def test_a_larger_v_spends_longer_above_the_limit_before_it_gives_way(table):
    first = []
    for v in (1.0, 4.0):
        policy, current = Lyapunov(Goals(), v=v), "s100@openvino:bf16:b1"
        for t in range(400):
            current = policy.decide(Conditions(time_s=float(t), arrival_rate_hz=120.0), table, current).point
            if not current.startswith("s100"):
                break
        first.append(t)
    assert 0 < first[0] < first[1] < 399


def test_a_limit_that_is_being_broken_does_not_wait_for_its_price(table):
    decision = Lyapunov(Goals(temperature_limit_c=80)).decide(Conditions(time_s=0, temperature_c=81.0), table, None)
    assert decision.point.startswith("s25")
    assert decision.urgent


def test_the_bandits_price_makes_the_battery_last(table):
    left, used = drain(Bandit(HOUR), table, 4.6)
    assert left > -0.05 * 4.6 * 3600
    assert len(set(used)) >= 2


def test_the_bandit_learns_that_a_rung_is_late_where_the_table_says_it_is_not(table):
    # the table promises that s100 is on time at 30/s; in truth half its answers are late, and none of the others'
    policy, current, used = Bandit(Goals(deadline_ms=60.0)), None, []
    for t in range(300):
        late = 0.5 if current is not None and current.startswith("s100") else 0.0
        moment = Conditions(time_s=float(t), arrival_rate_hz=30.0, miss_rate=None if current is None else late)
        current = policy.decide(moment, table, current).point
        used.append(current.partition("@")[0])
    assert used[0] == "s100"
    assert used[100:].count("s75") > 0.9 * len(used[100:])


@given(
    rate=st.floats(0, 400),
    slowdown=st.floats(0.5, 4),
    temperature=st.floats(20, 100),
    seen=st.lists(st.floats(0, 1), max_size=10),
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_exploring_never_leaves_the_mask(table, rate, slowdown, temperature, seen):
    goals = Goals(deadline_ms=30.0, temperature_limit_c=85.0, max_power_w=9.5)
    policy, current = Bandit(goals, alpha=1.0), None
    for t, miss in enumerate(seen):
        current = policy.decide(Conditions(time_s=float(t), miss_rate=miss, arrival_rate_hz=5.0), table, current).point
    moment = Conditions(time_s=100.0, arrival_rate_hz=rate, slowdown=slowdown, temperature_c=temperature)
    row = table.row(policy.decide(moment, table, current).point)
    if row.subnet != "s25":
        assert row.latency_p99_ms * slowdown <= 30.0
        assert row.power_w <= 9.5
        assert temperature < 85.0
        assert rate * row.latency_p50_ms / 1000 * slowdown < 1.0


def test_a_state_with_other_features_is_refused():
    state = {**Bandit(Goals()).state(), "arms": {"s25": {"gram": [1.0], "moment": [1.0]}}}
    with pytest.raises(InputError, match="other features"):
        Bandit(Goals()).restore(state)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Lyapunov(Goals(), v=0.0), r"v is 0\.0"),
        (lambda: Lyapunov(Goals(), switching=-1.0), "switching is -1"),
        (lambda: Bandit(Goals(), gamma=0.0), r"gamma is 0\.0"),
        (lambda: Bandit(Goals(), alpha=float("nan")), "alpha is nan"),
    ],
)
def test_impossible_options_are_refused(build, word):
    with pytest.raises(InputError, match=word):
        build()
