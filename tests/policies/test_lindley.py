"""The solved queue against an independent simulation of the same queue."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Conditions, Goals
from policies.lindley import Action, Size, solve
from policies.mdp import Mdp
from policies.queueing import on_time, quantile, spread

SMALL, LARGE = Action(0.80, 1, 0.002, 0.0026), Action(0.95, 1, 0.010, 0.013)
BATCH = Action(0.80, 8, 0.006, 0.0078)


def play(actions, choose, rate_hz, deadline_s, requests=20_000, seed=0):
    """Right answers on time per request: one server, first come first served, ``choose(wait)`` gives the action."""
    draw = random.Random(seed)
    arrivals, now = [], 0.0
    for _ in range(requests):
        now += draw.expovariate(rate_hz)
        arrivals.append(now)
    free = earned = 0.0
    head = 0
    while head < requests:
        start = max(free, arrivals[head])
        action = actions[choose(start - arrivals[head])]
        waiting = sum(arrivals[k] <= start for k in range(head, min(head + action.batch_size, requests)))
        size = next((size for size in action.sizes if size.batch_size >= waiting), action.sizes[-1])
        sigma = math.log(size.p99_s / size.p50_s) / 2.3263478740408408
        free = start + size.p50_s * math.exp(sigma * draw.gauss(0, 1))
        taken = 0
        while taken < action.batch_size and head < requests and arrivals[head] <= start:
            earned += action.accuracy * (free - arrivals[head] <= deadline_s)
            head, taken = head + 1, taken + 1
    return earned / requests


def lookup(solution):
    step = solution.waits_s[1]
    return lambda wait: solution.actions[min(round(wait / step), len(solution.actions) - 1)]


@pytest.mark.parametrize("rate_hz", [10.0, 60.0, 120.0, 300.0])
def test_what_it_promises_is_what_a_simulation_earns(rate_hz):
    solution = solve([LARGE, SMALL], rate_hz, 0.05)
    assert play([LARGE, SMALL], lookup(solution), rate_hz, 0.05) == pytest.approx(solution.gain, abs=0.012)


@pytest.mark.parametrize("rate_hz", [60.0, 120.0, 200.0, 300.0])
def test_it_earns_more_than_any_single_choice_and_than_any_single_threshold(rate_hz):
    actions = [LARGE, SMALL]
    mine = play(actions, lookup(solve(actions, rate_hz, 0.05)), rate_hz, 0.05)
    thresholds = [0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 1.0]
    best = max(play(actions, lambda wait, most=most: int(wait >= most), rate_hz, 0.05) for most in thresholds)
    assert mine >= best - 0.004  # the noise of the simulation, and a grid of a fiftieth of the deadline


def test_batches_appear_when_single_answers_cannot_keep_up():
    alone, both = solve([SMALL], 900.0, 0.05), solve([SMALL, BATCH], 900.0, 0.05)
    assert alone.gain < 0.4
    assert both.gain > 0.75
    assert 1 in both.actions
    assert play([SMALL, BATCH], lookup(both), 900.0, 0.05) == pytest.approx(both.gain, abs=0.02)


@pytest.mark.parametrize("rate_hz", [60.0, 300.0, 900.0])
def test_a_batch_that_few_wait_for_runs_on_the_smaller_engine(rate_hz):
    family = Action(0.80, 8, 0.006, 0.0078, smaller=(Size(1, 0.002, 0.0026), Size(4, 0.004, 0.0052)))
    solution = solve([family], rate_hz, 0.02)
    assert play([family], lambda wait: 0, rate_hz, 0.02) == pytest.approx(solution.gain, abs=0.012)
    assert solution.gain >= solve([BATCH], rate_hz, 0.02).gain - 1e-9


def test_of_equals_the_one_that_is_ready_for_a_crowd():
    large = Action(0.95, 4, 0.012, 0.0156, smaller=(Size(1, 0.004, 0.0052),))
    alone = Action(0.95, 1, 0.004, 0.0052)
    late = Action(0.95, 8, 0.060, 0.078, smaller=(Size(1, 0.004, 0.0052),))  # a whole batch would be too late
    assert set(solve([alone, large, late], 0.5, 0.05).actions[:20]) == {1}


def test_with_time_to_spare_the_most_accurate_is_taken_and_when_late_the_quickest():
    solution = solve([LARGE, SMALL], 60.0, 0.05)
    assert solution.actions[0] == 0
    assert solution.actions[45] == 1


@given(rate_hz=st.floats(1, 400), share=st.floats(0.55, 0.999))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_waits_and_quantiles_are_those_of_the_formulas(rate_hz, share):
    # M/M/1 has P(sojourn <= t) = 1 - exp(-(mu - r) t); with exponential service as its slices it must come out
    assert quantile(2.0, 3.0, 0.99) == 3.0
    assert quantile(2.0, 3.0, 0.5) == pytest.approx(2.0)
    assert 2.0 <= quantile(2.0, 3.0, share) <= 3.0 * 1.2
    slices = spread(0.002, 0.0026, 5)
    assert slices[2] == pytest.approx(0.002)
    early, late = (on_time(rate_hz, slices, 0.01, deadline) for deadline in (0.01, 0.05))
    assert 0.0 <= early <= late <= 1.0


def test_the_exponential_wait_is_exact_for_exponential_service():
    mean_s, rate_hz, deadline_s, slices = 0.01, 60.0, 0.05, 400
    service = tuple(-mean_s * math.log(1 - (k + 0.5) / slices) for k in range(slices))
    expected = 1 - math.exp(-(1 / mean_s - rate_hz) * deadline_s)
    assert on_time(rate_hz, service, 1.0, deadline_s) == pytest.approx(expected, abs=0.005)


def test_the_plan_asks_for_more_slack_the_higher_the_load(table):
    def slack_for_best(rate_hz):
        decision = Mdp(Goals(deadline_ms=60.0)).decide(Conditions(time_s=0, arrival_rate_hz=rate_hz), table, None)
        steps = [step.slack_ms for step in decision.slack_plan if step.point.startswith("s100")]
        return min(steps, default=math.inf)

    needed = [slack_for_best(rate_hz) for rate_hz in (10.0, 60.0, 90.0, 120.0, 400.0)]
    assert needed == sorted(needed)
    assert needed[0] < 20.0
    assert needed[-1] == math.inf


def test_solutions_are_kept_and_the_bins_stick(table):
    policy = Mdp(Goals(deadline_ms=60.0))
    first = policy.decide(Conditions(time_s=0, arrival_rate_hz=100.0), table, None)
    bins = policy.state()["bins"]
    for t in range(1, 20):
        decision = policy.decide(Conditions(time_s=t, arrival_rate_hz=100.0 + (-1) ** t), table, None)
        assert policy.state()["bins"] == bins
        assert decision.slack_plan is first.slack_plan
