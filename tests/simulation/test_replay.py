import math

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from policies.base import Goals, SlackStep
from simulation.battery import Battery
from simulation.compiled import CompiledTable
from simulation.plant import Plant
from simulation.replay import simulate
from simulation.sensors import SensorModel
from simulation.server import Server
from simulation.trace import load
from subnets.errors import InputError

SMALL, LARGE = "s50@toy:f32:b1", "s100@toy:f32:b1"
NOTHING = Plant()


def _server(table, arrivals, **changes):
    options = {"queue_limit": 10, **changes}
    return Server(CompiledTable(table), arrivals, [0.0] * len(arrivals), **options)


def test_latencies_of_a_queue_are_those_computed_by_hand(table):
    # 100 ms each: 0.00 -> 0.10, 0.05 waits until 0.10 -> 0.20, 0.06 until 0.20 -> 0.30, 1.00 finds nobody
    server = _server(table, [0.0, 0.05, 0.06, 1.0], deadlines_s=0.2)
    server.advance(0.0, 2.0)
    assert list(server.latencies_s) == pytest.approx([0.1, 0.15, 0.24, 0.1])
    assert (server.answered, server.on_time) == (4, 3)
    assert server.accuracy_sum == pytest.approx(3 * 0.8)


def test_the_way_time_is_cut_into_ticks_changes_no_latency(table):
    arrivals = [0.0, 0.05, 0.06, 0.3, 1.0, 1.01, 1.02, 1.9]
    whole, cut = _server(table, arrivals), _server(table, arrivals)
    joules = whole.advance(0.0, 3.0)
    parts = [cut.advance(k * 0.03, (k + 1) * 0.03) for k in range(100)]
    assert list(cut.latencies_s) == pytest.approx(list(whole.latencies_s))
    assert math.fsum(parts) == pytest.approx(joules) == pytest.approx(0.8)  # 8 answers of 0.1 J


def test_a_full_queue_drops_the_newest(table):
    server = _server(table, [0.0, 0.01, 0.02, 0.03], queue_limit=2)
    server.advance(0.0, 1.0)
    assert (server.answered, server.dropped_queue) == (3, 1)


def test_drop_late_leaves_out_what_could_only_be_late(table):
    arrivals = [0.0, 0.01, 0.02, 0.03]  # turns at 0, 0.1, 0.2: with 150 ms the last two are too late by then
    server = _server(table, arrivals, deadlines_s=0.15, drop_late=True)
    server.advance(0.0, 1.0)
    assert (server.answered, server.dropped_late) == (2, 2)


def test_a_batch_takes_what_waits_and_costs_the_whole_batch(make_table, row):
    server = _server(make_table(row("s50", 100.0, 0.8, 0.1, batch_size=4)), [0.0, 0.01, 0.02, 0.03])
    joules = server.advance(0.0, 1.0)
    assert list(server.latencies_s) == pytest.approx([0.1, 0.19, 0.18, 0.17])  # alone, then three at once
    assert joules == pytest.approx(2 * 4 * 0.1)


def test_a_switch_costs_its_measured_time_once(table, scripted, make_trace):
    trace = make_trace([0.2, 1.2, 2.2], 3.0)
    outcome = simulate(table, trace, scripted({0.0: SMALL, 1.0: LARGE}), Goals(deadline_ms=420.0), NOTHING)
    assert outcome.switches == 1
    (event,) = outcome.switch_events
    assert (event.time_s, event.from_point, event.to_point, event.reason) == (1.0, SMALL, LARGE, "call 2")
    # 100 ms, then 400 + 50 ms (late), then 400 ms
    assert (outcome.answered, outcome.on_time, outcome.late) == (3, 2, 1)
    assert outcome.mean_accuracy == pytest.approx((0.8 + 0.9) / 2)


def test_energy_is_idle_power_over_time_plus_net_energy_of_the_answers(table, always, make_trace):
    outcome = simulate(table, make_trace([0.1, 0.7, 2.5], 4.0), always(LARGE), Goals(), NOTHING)
    assert outcome.net_energy_j == pytest.approx(3 * 0.8)
    assert outcome.energy_j == pytest.approx(2.0 * 4.0 + 3 * 0.8)
    power = outcome.timeline.power_w
    assert power[1] == pytest.approx(2.0 + 2.0 * 0.1)  # the second answer begins at 0.7 and ends at 1.1, at 2 W net


def test_unknown_energy_stays_unknown_and_is_said(make_table, row, always, make_trace):
    blind = make_table(row("s50", 100.0, 0.8, None), idle_power_w=None)
    plant = Plant.for_table(blind, Battery.of_energy(100.0))
    outcome = simulate(blind, make_trace([0.1], 4.0), always(SMALL), Goals(), plant)
    assert outcome.energy_j is None and outcome.net_energy_j is None and outcome.peak_temperature_c is None
    assert outcome.timeline.power_w is None
    assert len(outcome.notes) == 2 and "no energy for 1 of 1" in outcome.notes[0]


@pytest.mark.parametrize("source", ["modelled:spec-curve", "rapl-package"])
def test_energies_from_a_modelled_table_are_called_so(make_table, row, always, make_trace, source):
    table = make_table(msgspec.structs.replace(row("s50", 100.0, 0.8, 0.1), energy_source=source))
    outcome = simulate(table, make_trace([0.1], 4.0), always(SMALL), Goals(), Plant.for_table(table, None))
    assert outcome.energy_j > 0
    assert any("modelled:spec-curve" in note for note in outcome.notes) == source.startswith("modelled")


def test_without_idle_power_the_battery_drains_by_what_answering_draws(make_table, row, always, make_trace):
    partly = make_table(row("s50", 100.0, 0.8, 0.1), idle_power_w=None)
    plant = Plant(battery=Battery.of_energy(36_000.0))
    outcome = simulate(partly, make_trace([0.1 * k for k in range(100)], 10.0), always(SMALL), Goals(), plant)
    assert outcome.energy_j is None and outcome.net_energy_j == pytest.approx(10.0)
    assert plant.battery.energy_j - outcome.battery_left_j == pytest.approx(10.0, rel=0.03)
    assert "drains only" in outcome.notes[0]


def test_the_slack_plan_goes_below_the_ceiling_for_late_requests_and_never_above(table, always, make_trace):
    plan = (SlackStep(0.0, SMALL), SlackStep(400.0, LARGE))
    trace = make_trace([0.0, 0.3], 2.0)  # the second waits until 0.4, has 350 of its 450 ms left
    goals = Goals(deadline_ms=450.0)
    outcome = simulate(table, trace, always(LARGE, plan), goals, NOTHING)
    assert (outcome.on_time, outcome.slack_choices) == (2, 1)
    assert outcome.mean_accuracy == pytest.approx((0.9 + 0.8) / 2)
    below = simulate(table, trace, always(SMALL, plan), goals, NOTHING)
    assert below.slack_choices == 0 and below.mean_accuracy == pytest.approx(0.8)


def test_an_empty_battery_stops_answering_and_says_when(table, always, make_trace):
    plant = Plant(battery=Battery.of_energy(7200.0))  # at 2.1 W for less than 7200 / 2.1 = 3429 s: some is lost in R0
    trace = make_trace([float(k) for k in range(4000)], 4000.0)
    outcome = simulate(table, trace, always(SMALL), Goals(), plant)
    assert 2700.0 < outcome.time_to_empty_s < 3429.0
    assert outcome.answered == outcome.time_to_empty_s
    assert outcome.dropped_off == 4000 - outcome.answered
    assert outcome.off_s == pytest.approx(4000.0 - outcome.time_to_empty_s)
    assert outcome.energy_j == pytest.approx(2.1 * outcome.time_to_empty_s)


def test_mains_keep_it_answering(table, always, make_trace):
    plant = Plant(battery=Battery.of_energy(30.0))  # at 2 W it would brown out at once
    trace = make_trace([float(k) for k in range(30)], 30.0, times_s=[0.0], on_mains=[1.0])
    outcome = simulate(table, trace, always(SMALL), Goals(), plant)
    assert (outcome.answered, outcome.time_to_empty_s, outcome.battery_left) == (30, None, 1.0)


def test_a_slow_machine_answers_slower_and_the_policy_is_told(table, always, make_trace):
    policy = always(SMALL)
    trace = make_trace([0.5, 1.5, 2.5], 4.0, times_s=[0.0], slowdown=[3.0])
    outcome = simulate(table, trace, policy, Goals(), NOTHING)
    assert outcome.latency_ms(0.5) == pytest.approx(300.0, rel=0.006)
    assert policy.seen[0].slowdown is None
    assert policy.seen[-1].slowdown == pytest.approx(3.0)


def test_the_figures_a_policy_sees_follow_the_agents_smoothing(table, always, make_trace):
    policy = always(SMALL)
    simulate(table, make_trace([0.0, 0.1, 1.5, 2.0, 2.1, 2.2], 4.0), policy, Goals(deadline_ms=150.0), NOTHING)
    rates = [conditions.arrival_rate_hz for conditions in policy.seen]
    weight = 1.0 - math.exp(-1.0 / 5.0)
    expected = [None, 2.0, 2.0 + weight * (1.0 - 2.0)]
    expected.append(expected[-1] + weight * (3.0 - expected[-1]))
    assert rates == pytest.approx(expected)
    # all on time until the last second: 2.0 -> 100 ms, 2.1 -> 100 ms, 2.2 -> 100 ms
    assert policy.seen[-1].miss_rate == 0.0


def test_heat_throttles_and_is_counted(table, always, make_trace):
    trace = make_trace([0.4 * k for k in range(1000)], 400.0, times_s=[0.0], ambient_c=[60.0])
    plant = Plant.for_table(table).with_thermal(capacity_j_per_c=5.0, trip_c=70.0)
    outcome = simulate(table, trace, always(LARGE), Goals(temperature_limit_c=65.0), plant)
    assert outcome.throttled_s > 50.0 and outcome.over_temperature_s > outcome.throttled_s / 2
    assert 70.0 < outcome.peak_temperature_c < 60.0 + 45.0


def test_the_policy_sees_whole_percents_with_a_delay(table, always, make_trace):
    policy = always(SMALL)
    plant = Plant(battery=Battery.of_energy(7200.0))
    trace = make_trace([0.5], 600.0)
    simulate(table, trace, policy, Goals(), plant, sensors=SensorModel(delay_s=60.0))
    charges = [conditions.battery_charge for conditions in policy.seen]
    fresh = always(SMALL)
    simulate(table, trace, fresh, Goals(), plant, sensors=SensorModel(delay_s=0.0))
    assert charges[60:] == [conditions.battery_charge for conditions in fresh.seen][:-60]
    assert charges[-1] < 0.9 and all(round(charge * 100) / 100 == charge for charge in charges)
    assert policy.seen[5].battery_energy_j == pytest.approx(charges[5] * plant.battery.energy_j)


def test_unknown_sensors_are_none_and_a_misspelt_one_is_refused(table, always, make_trace):
    policy = always(SMALL)
    model = SensorModel(unknown=frozenset({"battery_charge", "slowdown"}))
    simulate(table, make_trace([0.1], 3.0), policy, Goals(), Plant(battery=Battery()), sensors=model)
    assert {conditions.battery_charge for conditions in policy.seen} == {None}
    with pytest.raises(InputError, match="no sensor 'temprature_c'"):
        SensorModel(unknown=frozenset({"temprature_c"}))


def test_lost_sensors_tell_nothing_while_the_agents_own_figures_go_on(table, always, make_trace):
    policy = always(SMALL)
    lost = {"times_s": [0.0, 5.0, 8.0], "sensors_lost": [0.0, 1.0, 0.0]}
    plant = Plant.for_table(table, Battery.of_energy(7200.0))
    simulate(table, make_trace([0.1, 6.1], 12.0, **lost), policy, Goals(), plant)
    unknown = [c.temperature_c is c.battery_charge is c.battery_energy_j is c.power_w is None for c in policy.seen]
    assert unknown == [5 <= second < 8 for second in range(12)]
    assert policy.seen[6].arrival_rate_hz is not None and policy.seen[6].queue_depth == 0


def test_a_trace_without_requests_is_refused(table, always, make_trace):
    with pytest.raises(InputError, match="the trace is empty"):
        simulate(table, make_trace([], 10.0), always(SMALL), Goals(), NOTHING)


def test_deadlines_of_the_trace_go_before_those_of_the_goals(table, always, make_trace):
    trace = make_trace([0.0, 1.0, 2.0], 4.0, deadlines_s=[0.05, 0.15, math.inf])
    outcome = simulate(table, trace, always(SMALL), Goals(deadline_ms=1000.0), NOTHING)
    assert (outcome.answered, outcome.on_time) == (3, 2)


def test_the_charge_when_the_battery_was_to_last_is_told_beside_the_one_at_the_end(table, always, make_trace):
    plant = Plant(battery=Battery.of_energy(7200.0))
    outcome = simulate(table, make_trace([0.1], 1200.0), always(SMALL), Goals(last_until_s=600.0), plant)
    assert outcome.battery_left < outcome.battery_at_goal < 1.0
    assert 1.0 - outcome.battery_at_goal == pytest.approx((1.0 - outcome.battery_left) / 2.0, rel=0.1)


def test_a_point_outside_the_table_is_refused(table, always, make_trace):
    with pytest.raises(InputError, match=r"'s99'.*not in the table"):
        simulate(table, make_trace([0.1], 1.0), always("s99"), Goals(), NOTHING)


@pytest.fixture
def spread(make_table, row):
    """The toy table with service times that vary."""
    return make_table(
        row("s50", 100.0, 0.8, 0.1, latency_p99_ms=250.0), row("s100", 400.0, 0.9, 0.8, latency_p99_ms=900.0)
    )


def test_the_same_seed_gives_the_same_outcome_and_another_seed_another(spread, always):
    trace = load("poisson:rate=2,hours=0.05,seed=4")
    runs = [simulate(spread, trace, always(LARGE), Goals(), Plant.for_table(spread), seed=seed) for seed in (7, 7, 8)]
    assert runs[0] == runs[1]
    assert runs[0].latencies != runs[2].latencies


def test_drawn_service_times_have_the_rows_median_and_99th_percentile(spread, always, make_trace):
    arrivals = [10.0 * k for k in range(4000)]
    outcome = simulate(spread, make_trace(arrivals, 40_000.0), always(SMALL), Goals(), NOTHING, control_period_s=10.0)
    assert outcome.latency_ms(0.5) == pytest.approx(100.0, rel=0.03)
    assert outcome.latency_ms(0.99) == pytest.approx(250.0, rel=0.08)


# The fixtures are values that no example changes.
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    rate=st.floats(0.1, 12.0),
    limit=st.integers(1, 20),
    drop_late=st.booleans(),
    battery_j=st.sampled_from([None, 40.0, 400.0, 40_000.0]),
)
def test_every_request_ends_exactly_once(spread, always, seed, rate, limit, drop_late, battery_j):
    trace = load(f"gamma:rate={rate},hours=0.01,seed={seed}")
    assume(len(trace.arrivals_s))
    plant = Plant.for_table(spread, None if battery_j is None else Battery.of_energy(battery_j))
    goals = Goals(deadline_ms=500.0)
    outcome = simulate(spread, trace, always(LARGE), goals, plant, seed=seed, queue_limit=limit, drop_late=drop_late)
    assert outcome.requests == len(trace.arrivals_s) == outcome.answered + outcome.dropped
    assert sum(outcome.latencies.counts.values()) == outcome.answered
    assert sum(outcome.time_share.values()) == pytest.approx(1.0)
    assert sum(outcome.seconds_in.values()) + outcome.off_s == pytest.approx(trace.duration_s)


def test_the_timeline_is_bounded_and_loses_no_arrival(table, always):
    trace = load("poisson:rate=0.2,hours=5,seed=1")
    line = simulate(table, trace, always(SMALL), Goals(), Plant.for_table(table)).timeline
    assert len(line.time_s) <= 1440
    assert len(line.time_s) == len(line.point) == len(line.temperature_c) == len(line.power_w)
    spans = np.diff([*line.time_s, trace.duration_s])
    assert float(np.dot(spans, line.arrival_rate_hz)) == pytest.approx(len(trace.arrivals_s))
