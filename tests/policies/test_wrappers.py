"""Votes, stays and switches per hour, round scripted policies and round real ones."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Conditions, Decision, Goals, Policy
from policies.dwell import Dwell
from policies.hysteresis import Hysteresis
from policies.throughput import Throughput
from subnets.errors import InputError

POINTS = [f"s{n}@openvino:bf16:b1" for n in (25, 50, 75, 100)]


class Scripted(Policy):
    """Says what it is told, one decision after the other; a negative number is an urgent one."""

    name = "scripted"

    def __init__(self, script: Iterable[int]) -> None:
        self.script = list(script)

    def decide(self, conditions, table, current):
        index = self.script.pop(0)
        return Decision(point=POINTS[abs(index)], reason="told so", bound="deadline", urgent=index < 0)


def run(policy, table, count, *, step_s=1.0, start=None):
    current, decisions = start, []
    for tick in range(count):
        decisions.append(policy.decide(Conditions(time_s=tick * step_s), table, current))
        current = decisions[-1].point
    return decisions


def rungs(decisions):
    return [POINTS.index(decision.point) for decision in decisions]


scripts = st.lists(st.integers(-3, 3), min_size=1, max_size=60)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def test_it_takes_votes_in_a_row_to_go_up(table):
    script = [1, 2, 2, 1, 2, 2, 2, 2]
    assert rungs(run(Hysteresis(Scripted(script), up_votes=3), table, 8)) == [1, 1, 1, 1, 1, 1, 2, 2]


def test_votes_up_that_differ_take_the_lowest_of_them(table):
    decisions = run(Hysteresis(Scripted([0, 3, 1, 3]), up_votes=3), table, 4)
    assert rungs(decisions) == [0, 0, 0, 1]
    assert "lowest" in decisions[-1].reason


def test_down_takes_one_vote_or_as_many_as_wished(table):
    assert rungs(run(Hysteresis(Scripted([3, 1, 1])), table, 3)) == [3, 1, 1]
    assert rungs(run(Hysteresis(Scripted([3, 1, 1, 1]), down_votes=3), table, 4)) == [3, 3, 3, 1]


def test_an_urgent_decision_goes_down_at_once_but_not_up(table):
    assert rungs(run(Hysteresis(Scripted([3, -1, -2, -2]), down_votes=3, up_votes=3), table, 4)) == [3, 1, 1, 1]
    assert rungs(run(Dwell(Scripted([3, -1, -2]), down_s=100, up_s=100), table, 3)) == [3, 1, 1]


def test_the_reason_counts_the_votes_and_keeps_the_inner_reason(table):
    decision = run(Hysteresis(Scripted([1, 2]), up_votes=10), table, 2)[-1]
    assert decision.reason == f"hysteresis: {POINTS[1]}, vote 1 of 10 for {POINTS[2]}; told so"
    assert decision.bound == "dwell"


def test_a_new_wrapper_starts_from_the_point_in_use(table):
    assert rungs(run(Hysteresis(Scripted([3, 3]), up_votes=3), table, 2, start=POINTS[1])) == [1, 1]
    assert rungs(run(Dwell(Scripted([3, 3]), up_s=5), table, 2, start=POINTS[1])) == [1, 1]


def test_a_stay_is_waited_for_before_going_up(table):
    decisions = run(Dwell(Scripted([0] + [2] * 12), up_s=10), table, 13)
    assert rungs(decisions) == [0] * 10 + [2] * 3
    assert decisions[5].reason.startswith(f"dwell: {POINTS[0]} for 5 s of at least 10 s")


def test_going_down_may_have_a_stay_too(table):
    assert rungs(run(Dwell(Scripted([3] + [1] * 6), down_s=4), table, 7)) == [3] * 4 + [1] * 3


def test_the_switches_of_an_hour_are_limited_for_going_up_only(table):
    script = [0, 1, 0, 1, 0, 0, 1]
    decisions = run(Dwell(Scripted(script), up_s=0, switches_per_hour=3), table, 7, step_s=60)
    assert rungs(decisions) == [0, 1, 0, 1, 0, 0, 0]
    assert "4 switches in the last hour, up again below 3" in decisions[-1].reason


def test_an_hour_later_it_may_go_up_again(table):
    policy = Dwell(Scripted([0, 1, 0, 1, 1]), up_s=0, switches_per_hour=2)
    times = [0.0, 10.0, 20.0, 3609.0, 3611.0]
    assert [POINTS.index(policy.decide(Conditions(time_s=t), table, None).point) for t in times] == [0, 1, 0, 0, 1]


def test_a_clock_that_starts_anew_does_not_hold_for_ever(table):
    policy = Dwell(Scripted([0, 1, 1, 1]), up_s=10)
    times = [1e6, 5.0, 6.0, 15.0]
    assert [POINTS.index(policy.decide(Conditions(time_s=t), table, None).point) for t in times] == [0, 0, 0, 1]


def test_a_held_points_plan_ends_at_that_point(table):
    policy = Hysteresis(Throughput(Goals(deadline_ms=100.0)), up_votes=5)
    held = policy.decide(Conditions(time_s=0), table, POINTS[1])
    assert held.point == POINTS[1]
    assert [step.point for step in held.slack_plan] == POINTS[:2]
    slow = Hysteresis(Throughput(Goals(deadline_ms=100.0)), down_votes=5)
    held = slow.decide(Conditions(time_s=0, arrival_rate_hz=150.0), table, POINTS[3])
    assert held.point == POINTS[3]
    assert [step.point for step in held.slack_plan] == [POINTS[0], POINTS[1], POINTS[3]]


def test_a_held_points_plan_has_no_step_that_asks_for_more_than_the_point_itself(make_table, make_row):
    rows = [make_row("a", 1, 0.8, 1, 2, 5), make_row("b", 1, 0.85, 2, 30, 5), make_row("c", 1, 0.9, 40, 50, 5)]
    rows.append(make_row("d", 1, 0.95, 50, 20, 5))  # quick at p99, although slow in the median
    points = [row.point for row in rows]
    policy = Hysteresis(Throughput(Goals(deadline_ms=100.0), rho_max=0.9), down_votes=5)
    held = policy.decide(Conditions(time_s=0, arrival_rate_hz=20.0), make_table(rows), points[3])
    assert held.point == points[3]
    assert [(step.point, step.slack_ms) for step in held.slack_plan] == [(points[0], 0.0), (points[3], 20.0)]


def test_a_reset_reaches_the_inner_policy(table):
    policy = Dwell(Hysteresis(Throughput(Goals()), up_votes=5))
    run(policy, table, 3, start=POINTS[0])
    assert policy.state()["inner"]["own"]["votes"] == 3
    policy.reset()
    assert policy.state()["inner"]["own"]["votes"] == 0


@given(script=scripts, up=st.integers(1, 5), down=st.integers(1, 5))
@quick
def test_votes_never_invent_a_point(table, script, up, down):
    shown = rungs(run(Hysteresis(Scripted(script), up_votes=up, down_votes=down), table, len(script)))
    for tick, rung in enumerate(shown):
        assert rung in {abs(told) for told in script[: tick + 1]}


@given(script=scripts, up=st.integers(1, 5))
@quick
def test_votes_hold_no_higher_than_asked_and_rise_only_on_a_full_row(table, script, up):
    told = [abs(number) for number in script]
    shown = rungs(run(Hysteresis(Scripted(script), up_votes=up), table, len(script)))
    assert all(rung <= asked for rung, asked in zip(shown, told, strict=True))  # down takes one vote
    for tick in range(1, len(shown)):
        if shown[tick] > shown[tick - 1]:
            assert tick >= up
            assert all(asked > shown[tick - 1] for asked in told[tick - up + 1 : tick + 1])


@given(script=scripts, up_s=st.integers(0, 12), limit=st.none() | st.integers(1, 6))
@quick
def test_no_rise_comes_sooner_than_the_stay_and_a_fall_never_waits(table, script, up_s, limit):
    told = [abs(number) for number in script]
    shown = rungs(run(Dwell(Scripted(script), up_s=up_s, switches_per_hour=limit), table, len(script)))
    assert all(rung <= asked for rung, asked in zip(shown, told, strict=True))
    changes = [tick for tick in range(1, len(shown)) if shown[tick] != shown[tick - 1]]
    for count, tick in enumerate(changes):
        since = changes[count - 1] if count else 0
        if shown[tick] > shown[tick - 1]:
            assert tick - since >= up_s
            assert limit is None or count < limit  # all within one hour


@given(script=scripts, down_s=st.integers(0, 12))
@quick
def test_an_urgent_fall_never_waits_for_the_stay(table, script, down_s):
    shown = rungs(run(Dwell(Scripted(script), up_s=0, down_s=down_s), table, len(script)))
    assert all(rung <= -told for rung, told in zip(shown, script, strict=True) if told < 0)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda inner: Hysteresis(inner, up_votes=0), "up_votes is 0"),
        (lambda inner: Hysteresis(inner, down_votes=-2), "down_votes is -2"),
        (lambda inner: Dwell(inner, up_s=float("nan")), "up_s is nan"),
        (lambda inner: Dwell(inner, switches_per_hour=0), "switches_per_hour is 0"),
    ],
)
def test_impossible_options_are_refused_with_their_value(build, word):
    with pytest.raises(InputError, match=word):
        build(Scripted([]))
