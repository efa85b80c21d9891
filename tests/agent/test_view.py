"""The agent at a glance: samples, recent latency, switches and faults."""

import json
import time

import msgspec
import pytest

from agent.view import HISTORY, Viewer
from policies.base import Goals


@pytest.fixture
def watched(make_agent, clock, helpers):
    """A maker of (agent, viewer) on one clock that moves when told, with the sensors' values."""

    def make(**changes):
        sensors = helpers.Readings({"temperature_c": 50.0, "battery_charge": 0.5})
        agent = make_agent(clock=clock, sensors=sensors, start=False, **changes)
        viewer = Viewer(agent, "1.2.3", clock=clock)
        return agent.start(), viewer, sensors

    return make


def test_a_view_is_json_and_holds_status_points_and_headrooms(watched, helpers):
    _, viewer, _ = watched(goals=Goals(temperature_limit_c=75.0))
    view = json.loads(msgspec.json.encode(viewer.view()))
    assert view["version"] == "1.2.3" and view["status"]["subnet"] == "s100"
    assert [point["subnet"] for point in view["points"]] == list(helpers.LADDER)
    assert [point["current"] for point in view["points"]] == [False, False, False, True]
    assert all(point["useful"] for point in view["points"])
    assert {one["name"]: one["headroom"] for one in view["headrooms"]}["thermal"] == 0.5


def test_a_sample_is_taken_once_a_second_at_most_and_old_ones_go(watched, clock, images):
    agent, viewer, sensors = watched()
    viewer.sample()
    clock.now_s += 0.5
    viewer.sample()
    assert len(viewer.view().history) == 1
    clock.now_s += 0.5
    sensors.told = {"temperature_c": 60.0}
    agent.infer(images[:1])
    agent.tick()
    viewer.sample()
    last = viewer.view().history[-1]
    assert last.temperature_c == 60.0 and last.charge is None and last.point == "s100@fake:f32:b1"
    assert last.p50_ms is not None
    for _ in range(HISTORY + 5):
        clock.now_s += 1.0
        viewer.sample()
    found = viewer.view().history
    assert len(found) == HISTORY and found[-1].p50_ms is None  # nobody asked any more


def test_recent_latency_forgets_what_is_older_than_its_window(watched, clock):
    agent, viewer, _ = watched(goals=Goals(deadline_ms=50.0, deadline_percentile=0.9))
    for _ in range(10):
        agent.tallies.answered("s100@fake:f32:b1", 1, 0.0, 40.0)
    clock.now_s += 1.0
    viewer.sample()
    latency = viewer.view().latency
    assert (latency.answers, latency.percentile, latency.deadline_ms) == (10, 0.9, 50.0)
    assert latency.p50_ms == pytest.approx(40.0, rel=0.13) and latency.tail_ms == pytest.approx(40.0, rel=0.13)
    for _ in range(12):
        clock.now_s += 1.0
        viewer.sample()
    agent.tallies.answered("s100@fake:f32:b1", 1, 0.0, 4.0)
    latency = viewer.view().latency
    assert latency.answers == 1 and latency.p50_ms == pytest.approx(4.0, rel=0.13)


def test_switches_are_told_newest_first_and_counted_by_what_bound(watched, policy, helpers, images):
    agent, viewer, _ = watched()
    for subnet in helpers.LADDER:  # so that all engines are in memory
        agent.infer(images[:1], subnet=subnet)
    policy.point = helpers.point("s50")
    agent.tick()
    agent.hold("s25", 60.0, "because")
    view = viewer.view()
    assert [(one.origin and one.origin[:3], one.to[:3]) for one in view.switches] == [
        ("s50", "s25"),
        ("s10", "s50"),
        (None, "s10"),
    ]
    assert view.switches[0].bound == "hold" and view.switches[0].reason == "hold: because"
    assert viewer.switches_by_bound == {"none": 1, "hold": 1}  # the first engine is no switch


def test_faults_are_told_and_equal_ones_in_a_row_counted(watched, backend, images, clock):
    agent, viewer, _ = watched()
    assert viewer.view().faults == ()
    backend.broken.add("s100")
    agent.infer(images[:1])
    (fault,) = viewer.view().faults
    assert fault.name == "engine_failed" and "s100 is broken" in fault.words and fault.times == 1
    for _ in range(2):
        agent._emit("sensor_failed", {"error": "no bus"})
    newest, _ = viewer.view().faults
    assert (newest.words, newest.times) == ("sensor failed: no bus", 2)


def test_two_viewers_are_two_instances(watched):
    agent, viewer, _ = watched()
    assert viewer.view().instance == viewer.view().instance
    assert Viewer(agent).view().instance != viewer.view().instance


def test_every_control_period_feeds_the_history(make_agent, helpers):
    agent = make_agent(start=False, control_period_s=0.01)
    viewer = Viewer(agent)
    ticks = []
    agent.on_tick(lambda: ticks.append(len(viewer.view().history)))
    agent.start()
    deadline = time.monotonic() + 20
    while not ticks and time.monotonic() < deadline:
        time.sleep(0.005)
    assert ticks and ticks[0] == 1
