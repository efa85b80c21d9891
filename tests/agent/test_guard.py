"""What fails is told and counted, and the answers go on."""

import threading

import numpy as np
import pytest

from policies.base import Goals
from subnets.errors import EngineError, InputError


@pytest.fixture
def events(make_agent):
    """Makes an agent whose events are kept."""
    seen: list = []

    def make(**changes):
        agent = make_agent(start=False, **changes)
        agent.on_event(seen.append)
        return agent.start(), seen

    return make


def names(seen) -> list[str]:
    return [event.name for event in seen]


@pytest.mark.parametrize(("broken", "answers"), [("s100", "s75"), ("s50", "s25"), ("s25", "s50")])
def test_a_failing_engines_request_is_answered_by_the_next_smaller_else_larger(
    events, backend, policy, images, helpers, broken, answers
):
    policy.point = helpers.point(broken)
    agent, seen = events()
    for name in helpers.LADDER:
        agent.infer(images, subnet=name)
    backend.broken.add(broken)
    answer = agent.infer(images)
    assert answer.subnet == answers and f"{broken} is broken" in answer.reason
    np.testing.assert_array_equal(answer.logits, helpers.expected(answers, images))
    assert agent.infer(images).subnet == answers  # the next request does not meet the broken one
    status = agent.status()
    assert (status.counters.rescued, status.counters.engine_failures, status.counters.failed) == (1, 1, 0)
    assert "engine_failed" in names(seen)
    told = next(engine for engine in status.engines if engine.subnet == broken)
    assert told.failures == 1 and told.quarantined_s > 0 and "is broken" in told.last_error
    assert "quarantined" in agent.tick().applied_why


def test_an_engine_that_is_not_resident_is_loaded_for_the_rescue(events, backend, images, helpers, bundle):
    backend.memory = dict.fromkeys(helpers.LADDER, 100)
    agent, _ = events(memory_budget_bytes=100, table=helpers.make_table(bundle, memory_bytes=100))
    assert [engine.subnet for engine in agent.status().engines] == ["s100"]
    backend.broken.add("s100")
    assert agent.infer(images).subnet == "s75"
    assert [engine.subnet for engine in agent.status().engines if engine.resident] == ["s75"]
    assert agent.infer(images).subnet == "s75"


def test_a_quarantined_engine_comes_back_after_its_back_off_and_stays_away_longer_each_time(
    events, backend, images, clock
):
    agent, seen = events(clock=clock)
    for name in ("s25", "s50", "s75"):
        agent.infer(images, subnet=name)
    backend.broken.add("s100")
    waits = []
    for _ in range(4):
        agent.infer(images)
        failed = [event for event in seen if event.name == "engine_failed"]
        waits.append(failed[-1].detail["backoff_s"])
        clock.now_s += waits[-1] - 0.5
        agent.tick()
        assert agent.infer(images).subnet == "s75"
        clock.now_s += 0.5
        reloaded = threading.Event()
        agent.on_event(lambda event, done=reloaded: done.set() if event.name in ("switch", "engine_failed") else None)
        agent.tick()
        assert reloaded.wait(10)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_an_engine_that_fails_once_is_back_after_a_second(events, backend, images, clock):
    agent, seen = events(clock=clock)
    agent.infer(images, subnet="s75")
    backend.broken_once.add("s100")
    assert agent.infer(images).subnet == "s75"
    clock.now_s += 1.0
    back = threading.Event()
    agent.on_event(lambda event: back.set() if event.name == "switch" else None)
    agent.tick()
    assert back.wait(10)
    assert agent.infer(images).subnet == "s100"
    assert names(seen).count("engine_failed") == 1


@pytest.mark.parametrize(("value", "quarantined"), [(1e7, 0), (1.0, 1)])
def test_an_engine_that_huge_values_may_have_overflowed_goes_on_answering(events, backend, images, value, quarantined):
    agent, _ = events()
    agent.infer(images, subnet="s75")
    backend.broken_once.add("s100")
    answer = agent.infer(images[:1] * np.float32(value))
    assert answer.subnet != "s100" and "answered instead" in answer.reason
    assert sum(engine.quarantined_s > 0 for engine in agent.status().engines) == quarantined


def test_a_poisonous_batch_is_blamed_on_its_sender_and_quarantines_nobody(events, images):
    agent, _ = events()
    for name in ("s25", "s50", "s75"):
        agent.infer(images, subnet=name)
    poison = np.full((1, 1, 4, 4), 1e35, np.float32)
    with pytest.raises(InputError, match="check its values"):
        agent.infer(poison)
    with pytest.raises(InputError, match="the engine fails on this batch and on no other"):
        agent.infer(poison, subnet="s50")  # no other engine may be asked
    assert agent.infer(images).subnet == "s100"
    assert all(engine.quarantined_s == 0 for engine in agent.status().engines)


def test_when_every_engine_is_broken_the_caller_is_told_and_repair_is_noticed(events, backend, images, clock):
    agent, _ = events(clock=clock)
    backend.broken.update(("s25", "s50", "s75", "s100"))
    with pytest.raises(EngineError, match="no engine could answer"):
        agent.infer(images)
    assert agent.status().state == "degraded" and agent.status().counters.failed == 1
    for _ in range(20):  # asking in vain does not lengthen the quarantine
        with pytest.raises(EngineError):
            agent.infer(images)
    backend.broken.clear()
    clock.now_s += 1.0
    back = threading.Event()
    agent.on_event(lambda event: back.set() if event.name == "engine_loaded" else None)
    agent.tick()
    assert back.wait(10)
    agent.tick()
    assert agent.infer(images).logits.shape == (5, 3)
    assert agent.status().state == "running"


def test_a_pinned_subnet_that_fails_is_not_answered_by_another(events, backend, images):
    agent, _ = events()
    agent.infer(images, subnet="s50")
    backend.broken.add("s50")
    with pytest.raises(EngineError, match="s50 is broken"):
        agent.infer(images, subnet="s50")
    with pytest.raises(EngineError, match="try again in"):
        agent.infer(images, subnet="s50")
    assert agent.infer(images).subnet == "s100"


def test_an_engine_that_cannot_be_loaded_at_the_start_is_passed_over(events, backend, images, clock):
    backend.unloadable.add("s100")
    backend.broken.add("s75")  # loads, but fails its first answer
    agent, seen = events(clock=clock)
    assert agent.infer(images).subnet == "s50"
    assert names(seen).count("engine_failed") == 2


def test_a_start_without_any_engine_says_why(events, backend, helpers):
    backend.unloadable.update(helpers.LADDER)
    with pytest.raises(EngineError, match=r"s25 cannot be loaded.*s75 cannot be loaded"):
        events()


def test_sensors_that_raise_are_unknown_counted_and_told_once(events, policy, helpers):
    sensors = helpers.Readings({"temperature_c": 50.0})
    agent, seen = events(sensors=sensors)
    assert policy.seen[-1][0].temperature_c == 50.0
    sensors.told = OSError("bus error")
    for _ in range(3):
        told = agent.tick()
    assert policy.seen[-1][0].temperature_c is None
    assert told.faults == ("sensors unreadable: bus error",)
    assert agent.status().counters.sensor_failures == 3
    assert names(seen).count("sensor_failed") == 1


@pytest.mark.parametrize(
    "values",
    [
        {"battery_charge": float("nan")},
        {"battery_charge": 1.5},
        {"temperature_c": "hot"},
        {"on_mains": 1},
        {"power_w": -1.0},
        {"cpu_load": True},
    ],
)
def test_a_senseless_reading_is_unknown(events, policy, helpers, values):
    agent, seen = events(sensors=helpers.Readings({**values, "pressure": 0.25, "not_a_condition": 1}))
    conditions = policy.seen[-1][0]
    assert getattr(conditions, next(iter(values))) is None and conditions.pressure == 0.25
    assert agent.status().counters.sensor_failures == 1 and "sensor_failed" in names(seen)


def test_a_quantity_that_gets_lost_is_told(events, helpers):
    sensors = helpers.Readings({"temperature_c": 50.0, "cpu_load": 0.5})
    agent, seen = events(sensors=sensors)
    sensors.told = {"temperature_c": None, "cpu_load": 0.5}
    agent.tick()
    agent.tick()
    lost = [event.detail["quantity"] for event in seen if event.name == "sensor_lost"]
    assert lost == ["temperature_c"]


@pytest.mark.parametrize(
    ("goals", "safe"),
    [
        (Goals(), "s25"),
        (Goals(min_accuracy=0.88), "s75"),
        (Goals(min_accuracy=0.88, deadline_ms=3.5), "s75"),
        (Goals(min_accuracy=0.88, deadline_ms=2.0), "s75"),  # cannot keep both: the deadline yields
        (Goals(min_accuracy=0.99), "s25"),
    ],
)
def test_a_policy_that_raises_yields_to_the_cheapest_point_that_keeps_the_goals(events, policy, images, goals, safe):
    policy.point = ZeroDivisionError("division by zero")
    agent, seen = events(goals=goals)
    answer = agent.infer(images)
    assert answer.subnet == safe and "division by zero" in answer.reason
    assert agent.status().bound == "fallback"
    assert agent.status().counters.policy_failures == 1
    assert names(seen).count("policy_failed") == 1
    assert "policy 'scripted' failed" in agent.explain()[0].faults[0]


def test_a_policy_that_names_an_unknown_point_yields_too(events, policy, images, helpers):
    agent, _ = events()
    policy.point = "s60@fake:f32:b1"
    told = agent.tick()
    assert told.bound == "fallback" and told.decided == helpers.point("s25")
    policy.point = helpers.point("s75")
    assert agent.tick().decided == helpers.point("s75")


def test_a_listener_that_raises_harms_nobody(make_agent, images):
    agent = make_agent(start=False)
    agent.on_event(lambda event: 1 / 0)
    agent.start()
    assert agent.infer(images).subnet == "s100"
