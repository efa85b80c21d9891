"""The strictest ceiling, and the default policy built on it."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Conditions, Goals
from policies.battery import Battery
from policies.composite import Composite
from policies.contract import all_goals, timelines
from policies.crowd import Crowd
from policies.power import Power
from policies.queueplan import QueuePlans
from policies.rungs import Where
from policies.strictest import Strictest
from policies.thermal import Thermal
from policies.throughput import Throughput
from subnets.errors import InputError

GOALS = Goals(
    deadline_ms=60.0,
    temperature_limit_c=85.0,
    last_until_s=36_000.0,
    reserve=0.0,
    battery_capacity_j=200_000.0,
    max_power_w=20.0,
)
FINE = Conditions(
    time_s=0.0,
    temperature_c=50.0,
    throttled=False,
    battery_charge=1.0,
    on_mains=False,
    arrival_rate_hz=5.0,
    queue_depth=0,
    slowdown=1.0,
    power_w=4.0,
)


def members(goals):
    return [Throughput(goals), Thermal(goals), Battery(goals), Power(goals)]


def slow_members(goals):
    """As the composite has them: where there is a deadline, load is left to the slack plan."""
    load = Throughput(goals) if goals.deadline_ms is None else Crowd(goals, QueuePlans(goals, Where()))
    return [load, Thermal(goals), Battery(goals, mix_s=600.0), Power(goals)]


def with_(conditions, **changes):
    return msgspec.structs.replace(conditions, **changes)


def test_when_all_is_well_the_most_accurate_is_used(table):
    decision = Composite(GOALS).decide(FINE, table, None)
    assert (decision.point, decision.bound) == ("s100@openvino:bf16:b1", "none")


@pytest.mark.parametrize(
    ("changes", "bound", "subnet"),
    [
        ({"arrival_rate_hz": 700.0, "battery_charge": None}, "throughput", "s50"),
        ({"temperature_c": 80.0}, "thermal", "s75"),
        ({"throttled": True}, "thermal", "s75"),
        ({"battery_charge": 0.55}, "battery", "s25"),  # 3.06 W allowed, s50 needs 3.1 W
        ({"power_w": 21.5}, "power", "s50"),  # 11.5 W of others beside s100, 8.5 W are left
    ],
)
def test_each_constraint_binds_with_its_own_reason(table, changes, bound, subnet):
    decision = Composite(GOALS).decide(with_(FINE, **changes), table, "s100@openvino:bf16:b1")
    assert (decision.bound, decision.point.partition("@")[0]) == (bound, subnet)
    assert decision.reason.startswith({"throughput": "load"}.get(bound, bound))


def test_it_goes_down_at_once_and_up_after_ten_votes_and_ten_seconds(table):
    policy, shown = Composite(GOALS), []
    for t in range(40):
        moment = with_(FINE, time_s=float(t), power_w=21.0 if 10 <= t < 15 else 4.0, battery_charge=None)
        shown.append(policy.decide(moment, table, shown[-1] if shown else None).point)
    subnets = [point.partition("@")[0] for point in shown]
    assert subnets[:10] == ["s100"] * 10
    assert subnets[10] != "s100"
    up = subnets.index("s100", 10)
    assert up >= 24  # calm from 15 on: votes 15 to 24
    assert subnets[up:] == ["s100"] * (40 - up)


def test_a_burst_changes_the_plan_and_not_the_ceiling(table):
    policy = Composite(Goals(deadline_ms=60.0))
    calm = policy.decide(with_(FINE, time_s=0.0), table, None)
    burst = policy.decide(with_(FINE, time_s=1.0, arrival_rate_hz=300.0), table, calm.point)
    assert burst.point == calm.point == "s100@openvino:bf16:b1"
    rows = {row.point: row for row in table.rows}

    def accuracy(decision, slack_ms):
        return rows[[step for step in decision.slack_plan if step.slack_ms <= slack_ms][-1].point].accuracy

    assert accuracy(calm, 55.0) == 0.945
    assert accuracy(burst, 55.0) < 0.945
    assert all(accuracy(burst, slack) <= accuracy(calm, slack) for slack in range(10, 60, 5))


def test_late_answers_make_the_plan_ready_for_more_and_their_absence_lets_go_again(table):
    """The share of late answers is held against what the percentile allows, 1 %."""
    policy = Composite(Goals(deadline_ms=60.0))

    def after(seconds, missed, begin):
        for t in range(begin, begin + seconds):
            conditions = with_(FINE, time_s=float(t), arrival_rate_hz=20.0, miss_rate=missed)
            decision = policy.decide(conditions, table, "s100@openvino:bf16:b1")
        return min((s.slack_ms for s in decision.slack_plan if s.point.startswith("s100")), default=float("inf"))

    calm = after(30, 0.0, 0)
    assert after(100, 0.01, 30) == calm, "as many as may be late"
    worried = after(40, 0.03, 130)
    assert calm < worried < float("inf")
    assert after(2000, 1.0, 170) >= worried
    assert after(1000, 0.0, 2170) == calm, "it had grown to four times and no more"


def test_caution_learnt_for_a_deadline_is_not_kept_for_another(table):
    """An agent whose goals change goes on from its policy's state: what no subnet could keep must not hold it down."""
    hurried, easy = (msgspec.structs.replace(GOALS, deadline_ms=deadline_ms) for deadline_ms in (12.0, 60.0))
    before = Composite(hurried)
    for t in range(200):
        before.decide(with_(FINE, time_s=float(t), arrival_rate_hz=20.0, miss_rate=0.3), table, None)

    def caution(goals):
        after = Composite(goals)
        after.restore(before.state())
        after.decide(with_(FINE, time_s=200.0, arrival_rate_hz=20.0, miss_rate=0.0), table, "s25@openvino:bf16:b1")
        return after.state()["own"]["more"]

    assert before.state()["own"]["more"] == pytest.approx(4.0)
    assert caution(hurried) == pytest.approx(4.0, rel=0.02), "the same goals go on with what was learnt"
    assert caution(easy) == 1.0


def test_switches_per_hour_of_the_goals_hold_it_down(table):
    goals = Goals(temperature_limit_c=85.0, switches_per_hour=4)
    policy, current, switches = Composite(goals), None, 0
    for t in range(3600):
        hot = (t // 120) % 2 == 1
        point = policy.decide(Conditions(time_s=float(t), temperature_c=86.0 if hot else 40.0), table, current).point
        switches += current is not None and point != current
        current = point
    assert switches <= 4


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_the_default_is_never_above_any_members_ceiling_and_invents_no_point(table, data):
    goals = data.draw(all_goals())
    composite, alone = Composite(goals), slow_members(goals)
    ranks = {row.point: row.accuracy for row in table.rows}
    named = set()
    for moment, current in data.draw(timelines(tuple(ranks))):
        ceilings = [member.decide(moment, table, current).point for member in alone]
        decision = composite.decide(moment, table, current)
        named |= {*ceilings, current}
        assert ranks[decision.point] <= min(ranks[point] for point in ceilings)
        assert decision.point in named


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_the_strictest_is_exactly_the_lowest_ceiling_and_urgent_when_any_is(table, data):
    goals = data.draw(all_goals())
    together, alone = Strictest(members(goals)), members(goals)
    ranks = {row.point: row.accuracy for row in table.rows}
    for moment, current in data.draw(timelines(tuple(ranks))):
        ceilings = [member.decide(moment, table, current) for member in alone]
        decision = together.decide(moment, table, current)
        assert ranks[decision.point] == min(ranks[ceiling.point] for ceiling in ceilings)
        assert decision.reason in {ceiling.reason for ceiling in ceilings if ceiling.point == decision.point}
        assert decision.urgent == any(ceiling.urgent for ceiling in ceilings)


def test_the_plan_of_the_deadline_ends_at_the_ceiling_of_the_heat(table):
    decision = Composite(GOALS).decide(with_(FINE, temperature_c=80.0), table, "s75@openvino:bf16:b1")
    assert {step.point.partition("@")[0] for step in decision.slack_plan} == {"s25", "s50"}


def test_options_reach_the_parts():
    with pytest.raises(InputError, match=r"rho_max is 2"):
        Composite(GOALS, rho_max=2.0)
    with pytest.raises(InputError, match=r"up_votes is 0"):
        Composite(GOALS, up_votes=0)


def test_members_must_be_some_and_different():
    with pytest.raises(InputError, match="at least one"):
        Strictest([])
    with pytest.raises(InputError, match="none of them twice"):
        Strictest([Power(GOALS), Power(GOALS)])


def test_a_state_of_other_members_is_refused():
    with pytest.raises(InputError, match="thermal"):
        Strictest([Power(GOALS)]).restore(Strictest([Thermal(GOALS)]).state())
