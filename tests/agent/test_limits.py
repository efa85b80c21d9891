"""Hard limits: before any policy, hold or request, left with hysteresis, and in the journal without harm to replays."""

import json

import pytest

from agent import Journal
from agent.limits import HardLimits, LimitWatch
from policies.base import Conditions, Goals
from policies.registry import create
from simulation.journal import read
from simulation.verify import verify_recorded
from subnets.errors import Busy, InputError


def run(limits, **values):
    """(second, limit) at every change; values are functions of the second."""
    watch, changes, before = LimitWatch(), [], None
    for second in range(3000):
        told = {name: value(second) for name, value in values.items()}
        reached = watch.check(Conditions(time_s=float(second), **told), limits)
        if (reached.limit if reached else None) != before:
            before = reached.limit if reached else None
            changes.append((second, before))
    return changes


def test_a_critical_temperature_holds_until_it_is_five_degrees_cooler_for_half_a_minute():
    def temperature(second):
        return 95.0 if second == 100 else 91.0 if second < 200 else 89.9

    changes = run(HardLimits(critical_temperature_c=95.0), temperature_c=temperature)
    assert changes == [(100, "critical_temperature"), (229, None)]


def test_a_limit_that_comes_back_soon_stays_longer_each_time_up_to_ten_minutes():
    watch, limits, now_s, stays = LimitWatch(), HardLimits(brownout_power_w=10.0), 0.0, []
    for _ in range(7):
        assert watch.check(Conditions(time_s=now_s, power_w=11.0), limits).bound == "power"
        began_s = now_s
        while watch.check(Conditions(time_s=now_s, power_w=3.0), limits):
            now_s += 1.0
        stays.append(now_s - began_s)
    assert stays == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    now_s += 10_000.0
    watch.check(Conditions(time_s=now_s, power_w=11.0), limits)
    assert watch.check(Conditions(time_s=now_s + 29.0, power_w=3.0), limits)
    assert not watch.check(Conditions(time_s=now_s + 30.0, power_w=3.0), limits)


def test_a_sensor_lost_at_the_limit_ends_it_only_after_the_longest_stay_and_never_begins_it():
    limits = HardLimits(critical_temperature_c=95.0)
    changes = run(limits, temperature_c=lambda second: 96.0 if second < 10 else None)
    assert changes == [(0, "critical_temperature"), (609, None)]
    assert run(limits, temperature_c=lambda second: None) == []


def test_the_reserve_binds_on_battery_and_is_left_two_points_above_or_on_mains():
    def charge(second):
        return 0.05 if 100 <= second < 200 else 0.06 if second < 300 else 0.08

    assert run(HardLimits(reserve=0.05), battery_charge=charge) == [(100, "reserve"), (300, None)]
    low = {"battery_charge": lambda second: 0.01}
    assert run(HardLimits(), on_mains=lambda second: second < 50, **low) == [(50, "reserve")]


def test_power_comes_before_heat_and_heat_before_charge():
    limits = HardLimits(critical_temperature_c=95.0, brownout_power_w=10.0)
    worst = {"temperature_c": 99.0, "power_w": 12.0, "battery_charge": 0.0}
    for without, limit in ((None, "brownout"), ("power_w", "critical_temperature"), ("temperature_c", "reserve")):
        worst.pop(without, None)
        assert LimitWatch().check(Conditions(time_s=0.0, **worst), limits).limit == limit


def test_what_is_not_said_follows_from_the_goals_where_they_say_anything():
    assert HardLimits.of(Goals()) == HardLimits(reserve=0.05)
    goals = Goals(temperature_limit_c=80.0, max_power_w=8.0, reserve=0.2)
    assert HardLimits.of(goals) == HardLimits(critical_temperature_c=90.0, brownout_power_w=10.0, reserve=0.2)
    assert HardLimits.of(goals, 84.0, 9.0) == HardLimits(critical_temperature_c=84.0, brownout_power_w=9.0, reserve=0.2)


@pytest.mark.parametrize(
    "wrong", [{"critical_temperature_c": 0.0}, {"brownout_power_w": float("nan")}, {"brownout_power_w": 7.0}]
)
def test_a_limit_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        HardLimits.of(Goals(max_power_w=8.0), **wrong)


@pytest.fixture
def hot(make_agent, helpers, clock):
    """An agent with a policy that knows nothing of heat, and its sensors."""
    sensors = helpers.Readings({"temperature_c": 50.0})
    seen = []

    def make(**changes):
        agent = make_agent(
            start=False,
            sensors=sensors,
            clock=clock,
            limits=HardLimits(critical_temperature_c=95.0),
            **{"policy": create("largest", Goals()), **changes},
        )
        agent.on_event(seen.append)
        return agent.start(), sensors, seen

    return make


def test_at_a_hard_limit_the_safe_choice_answers_whatever_policy_and_operator_want(hot, images, clock):
    agent, sensors, seen = hot()
    for subnet in ("s25", "s75"):
        agent.infer(images, subnet=subnet)
    agent.hold("s75", 1e6, "a test")
    assert agent.infer(images).subnet == "s75"
    sensors.told = {"temperature_c": 96.0}
    told = agent.tick()
    answer = agent.infer(images)
    assert (answer.subnet, answer.bound) == ("s25", "thermal")
    assert "critical is 95 °C" in answer.reason
    assert told.faults == ("hard limit: temperature 96.0 °C, critical is 95 °C",)
    assert (told.applied_why, told.applied_bound) == (told.faults[0], "thermal")
    assert agent.status().bound == "thermal" and agent.status().counters.limits_reached == 1
    assert [event.name for event in seen].count("hard_limit") == 1
    sensors.told = {"temperature_c": 60.0}
    clock.now_s += 31.0
    agent.tick()
    assert agent.infer(images).subnet == "s75"  # the hold goes on
    names = [event.name for event in seen if event.name != "engine_loaded"]
    assert names[-2:] == ["hard_limit_left", "switch"]


def test_at_a_hard_limit_requests_that_want_more_are_refused_and_told_why(hot, images):
    agent, sensors, _ = hot()
    for subnet in ("s25", "s75"):
        agent.infer(images, subnet=subnet)
    sensors.told = {"temperature_c": 96.0}
    agent.tick()
    for wish in ({"subnet": "s75"}, {"min_accuracy": 0.88}):
        with pytest.raises(Busy, match="critical is 95 °C"):
            agent.infer(images, **wish)
        with pytest.raises(Busy, match="critical is 95 °C"):
            agent.submit(images, **wish).result(10)
    assert agent.infer(images, subnet="s25").subnet == agent.infer(images, min_accuracy=0.7).subnet == "s25"


def test_minimum_accuracy_is_kept_at_a_hard_limit(hot, images):
    agent, sensors, _ = hot(goals=Goals(min_accuracy=0.88))
    agent.infer(images, subnet="s75")
    sensors.told = {"temperature_c": 96.0}
    agent.tick()
    assert agent.infer(images).subnet == "s75"


def test_a_journal_with_hard_limits_replays_exactly_and_says_what_was_applied(hot, clock, table, tmp_path):
    agent, sensors, _ = hot(journal=Journal(tmp_path), policy=create("composite", Goals()))
    for second in range(120):
        clock.now_s += 1.0
        sensors.told = {"temperature_c": 50.0 + second}
        agent.tick()
    agent.close()
    path = tmp_path / "journal.jsonl"
    compared, mismatches = verify_recorded(read([path]), table)
    assert compared == 121 and not mismatches
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    overruled = [line for line in lines if line["kind"] == "decision" and "applied" in line]
    assert {line["applied_bound"] for line in overruled} == {"thermal"}
    assert "critical is 95 °C" in overruled[0]["applied_why"]
