"""Load, deadline and backlog."""

import math
import random

import pytest

from policies import Conditions, Goals
from policies.queueing import lognormal, mean_wait
from policies.rungs import Where
from policies.throughput import Throughput
from subnets.errors import InputError


def subnet(policy, table, **conditions):
    return policy.decide(Conditions(time_s=0, **conditions), table, None).point.partition("@")[0]


def test_nothing_known_and_nothing_wished_gives_the_most_accurate(table):
    assert subnet(Throughput(Goals()), table) == "s100"


@pytest.mark.parametrize(("rate", "expected"), [(60, "s100"), (80, "s75"), (150, "s50"), (300, "s25"), (5000, "s25")])
def test_the_most_accurate_rung_below_seventy_percent_busy_is_chosen(table, rate, expected):
    # 10, 6.5, 4 and 2 ms: 70 % is reached near 70, 107, 175 and 350 per second
    assert subnet(Throughput(Goals()), table, arrival_rate_hz=float(rate)) == expected


def test_a_slowdown_counts_like_slower_engines(table):
    policy = Throughput(Goals())
    assert subnet(policy, table, arrival_rate_hz=60.0, slowdown=1.0) == "s100"
    assert subnet(policy, table, arrival_rate_hz=60.0, slowdown=1.5) == "s75"


@pytest.mark.parametrize(("deadline_ms", "expected"), [(13.1, "s100"), (12.9, "s75"), (8.0, "s50"), (3.0, "s25")])
def test_an_unknown_rate_leaves_the_p99_against_the_deadline(table, deadline_ms, expected):
    assert subnet(Throughput(Goals(deadline_ms=deadline_ms)), table) == expected


def test_waiting_for_others_counts_against_the_deadline(table):
    policy = Throughput(Goals(deadline_ms=14.0), rho_max=0.95)
    assert subnet(policy, table, arrival_rate_hz=1.0) == "s100"
    decision = policy.decide(Conditions(time_s=0, arrival_rate_hz=60.0), table, None)  # s100: 13 ms + over 7 ms wait
    assert decision.bound == "deadline"
    assert decision.point.startswith("s75")


def test_a_queue_longer_than_the_deadline_forces_down_urgently(table):
    policy = Throughput(Goals(deadline_ms=50.0))
    calm = policy.decide(Conditions(time_s=0, queue_depth=4), table, None)
    assert calm.point.startswith("s100")
    assert not calm.urgent
    full = policy.decide(Conditions(time_s=0, queue_depth=10), table, None)  # 10 times 6.5 ms and more is too long
    assert full.point.startswith("s50")
    assert full.urgent
    assert full.bound == "deadline"


def test_when_nothing_is_feasible_the_fastest_is_best_effort(table):
    decision = Throughput(Goals(deadline_ms=1.0)).decide(Conditions(time_s=0), table, None)
    assert decision.point.startswith("s25")
    assert "best effort" in decision.reason
    assert decision.urgent


def test_the_slack_plan_goes_from_the_fastest_up_to_the_ceiling_by_p99(table):
    decision = Throughput(Goals(deadline_ms=100.0)).decide(
        Conditions(time_s=0, arrival_rate_hz=80.0, slowdown=1.0), table, None
    )
    assert [(step.slack_ms, step.point.partition("@")[0]) for step in decision.slack_plan] == [
        (0.0, "s25"),
        (5.2, "s50"),
        (8.2, "s75"),
    ]


def test_without_a_deadline_there_is_no_plan(table):
    assert Throughput(Goals()).decide(Conditions(time_s=0), table, None).slack_plan == ()


def test_a_plan_leaves_out_a_rung_slower_at_p99_than_a_better_one(make_table, make_row):
    rows = [make_row("a", 1, 0.8, 1, 2, 5), make_row("b", 1, 0.85, 2, 30, 5), make_row("c", 1, 0.9, 3, 5, 5)]
    decision = Throughput(Goals(deadline_ms=100.0)).decide(Conditions(time_s=0), make_table(rows), None)
    assert [step.point[0] for step in decision.slack_plan] == ["a", "c"]


def test_batches_share_their_service_time(table):
    policy = Throughput(Goals(), where=Where(batch_size=8))  # 60 ms for 8 images: 70 % busy at 93 per second
    assert subnet(policy, table, arrival_rate_hz=90.0) == "s100"


def test_the_reason_has_numbers_and_units(table):
    decision = Throughput(Goals(deadline_ms=50.0)).decide(Conditions(time_s=0, arrival_rate_hz=80.0), table, None)
    assert "s100 would be 81 % busy at 80.0/s" in decision.reason


def test_a_share_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"rho_max is 1\.5"):
        Throughput(Goals(), rho_max=1.5)


def test_the_lognormal_of_two_quantiles_has_these_quantiles_and_moments():
    mean, squared = lognormal(2.0, 6.0)
    rng = random.Random(1)
    sigma = math.log(3.0) / 2.3263478740408408
    samples = sorted(2.0 * math.exp(sigma * rng.gauss(0, 1)) for _ in range(100_000))
    assert samples[99_000] == pytest.approx(6.0, rel=0.02)
    average = sum(samples) / len(samples)
    assert mean == pytest.approx(average, rel=0.01)
    spread = sum((value - average) ** 2 for value in samples) / len(samples) / average**2
    assert squared == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_mean_wait_is_that_of_a_simulated_queue(load):
    mean, squared = lognormal(1.0, 3.0)
    sigma = math.log(3.0) / 2.3263478740408408
    rng, waits, wait = random.Random(2), 0.0, 0.0
    for _ in range(200_000):  # Lindley's recursion
        waits += wait
        wait = max(0.0, wait + math.exp(sigma * rng.gauss(0, 1)) - rng.expovariate(load / mean))
    assert mean_wait(load / mean, mean, squared) == pytest.approx(waits / 200_000, rel=0.05)


def test_a_queue_at_capacity_waits_for_ever():
    assert mean_wait(1.0, 1.0, 0.0) == math.inf
