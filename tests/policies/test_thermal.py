"""Headroom, throttling and the model check, alone and against a thermal plant."""

import math

import pytest

from policies import Conditions, Goals
from policies.thermal import Thermal
from subnets.errors import InputError

LIMIT = Goals(temperature_limit_c=85)


def run(policy, table, moments):
    current, points = None, []
    for moment in moments:
        current = policy.decide(moment, table, current).point
        points.append(current.partition("@")[0])
    return points


def steady(temperature_c, seconds, *, start=0, **more):
    return [Conditions(time_s=float(start + t), temperature_c=temperature_c, **more) for t in range(seconds)]


@pytest.mark.parametrize("goals", [LIMIT, Goals()])
def test_an_unknown_temperature_does_not_bind(table, goals):
    decision = Thermal(goals).decide(Conditions(time_s=0), table, None)
    assert (decision.point.partition("@")[0], decision.bound) == ("s100", "none")


def test_without_a_limit_heat_does_not_bind(table):
    assert run(Thermal(Goals()), table, steady(120.0, 50)) == ["s100"] * 50


def test_low_headroom_steps_down_once_a_settling_time(table):
    points = run(Thermal(LIMIT), table, steady(80.0, 25))  # headroom 5/60, below 0.15
    assert points == ["s75"] * 10 + ["s50"] * 10 + ["s25"] * 5


def test_between_the_thresholds_nothing_moves(table):
    assert run(Thermal(LIMIT), table, steady(70.0, 60)) == ["s100"] * 60  # headroom 0.25


def test_a_rising_temperature_is_acted_on_before_it_arrives(table):
    rising = [Conditions(time_s=float(t), temperature_c=55 + 0.4 * t) for t in range(60)]
    points = run(Thermal(LIMIT), table, rising)
    first = points.index("s75")
    assert rising[first].temperature_c < 85 - 0.15 * 60  # the threshold itself, 76 degrees, is not reached yet


def test_at_the_limit_the_smallest_is_used_at_once(table):
    decision = Thermal(LIMIT).decide(Conditions(time_s=0, temperature_c=85.0), table, None)
    assert decision.point.startswith("s25")
    assert decision.urgent


def test_throttling_steps_down_even_without_a_temperature_and_is_given_back_slowly(table):
    policy = Thermal(Goals())
    moments = [Conditions(time_s=float(t), throttled=t < 5) for t in range(200)]
    points = run(policy, table, moments)
    assert points[0] == "s75"
    assert points[:64] == ["s75"] * 64  # one minute after the last throttling
    assert points[64:] == ["s100"] * 136


def test_a_step_down_starts_below_what_is_in_use(table):
    decision = Thermal(LIMIT).decide(Conditions(time_s=0, temperature_c=80.0), table, "s50@openvino:bf16:b1")
    assert decision.point.startswith("s25")


def test_a_sensor_that_falls_silent_gives_the_ceiling_back_step_by_step(table):
    policy = Thermal(LIMIT)
    run(policy, table, steady(80.0, 15))
    points = run(policy, table, [Conditions(time_s=15.0 + t) for t in range(200)])
    assert points[0] == "s50"
    assert points.index("s75") < points.index("s100")


def test_no_step_up_when_the_better_rung_would_bring_the_heat_back(table):
    moments = steady(60.0, 120, power_w=5.0, arrival_rate_hz=90.0)  # headroom 0.42, above h_hi
    # s25 -> s50 at 90/s: 90 * (4 ms * 5 W - 2 ms * 4 W) = 1.08 W more
    for degrees_per_watt, expected in ((5.0, "s50"), (20.0, "s25")):  # 65.4 or 81.6 degrees; h_lo is at 76
        policy = Thermal(LIMIT, degrees_per_watt=degrees_per_watt)
        policy.restore({"steps_down": 3, "stepped_s": 0.0})
        decisions = [policy.decide(moment, table, "s25@openvino:bf16:b1") for moment in moments[:12]]
        assert decisions[-1].point.startswith(expected)


def test_no_step_up_soon_after_throttling_however_cool_it_is(table):
    moments = [Conditions(time_s=float(t), temperature_c=50.0, throttled=t < 5) for t in range(100)]
    points = run(Thermal(LIMIT), table, moments)
    assert points == ["s75"] * 64 + ["s100"] * 36


def test_cooling_alone_is_no_room_for_a_step_up(table):
    policy = Thermal(LIMIT)
    policy.restore({"steps_down": 3, "slope_c_per_s": {"value": -0.5, "time_s": 0.0}, "temperature_c": 70.5})
    cooling = [Conditions(time_s=1.0 + t, temperature_c=70.0 - 0.5 * t) for t in range(20)]  # h_hi is at 64 degrees
    points = run(policy, table, cooling)
    assert points[:13] == ["s25"] * 13  # 15 degrees cooler ahead, but not below 64 now
    assert points[13] == "s50"


def test_degrees_per_watt_are_identified_from_what_is_measured(table):
    policy = Thermal(LIMIT)
    moments = steady(65.0, 300, power_w=5.0, arrival_rate_hz=90.0)  # 40 degrees over the reference at 5 W: 8 per watt
    for moment in moments:
        policy.decide(moment, table, None)
    memory = policy.state()
    assert memory["rise_times_power"]["value"] / memory["power_squared"]["value"] == pytest.approx(8.0)


def plant(policy, table, *, degrees_per_watt, quantum_c, seconds=7200):
    """One heat store of 90 s in a room of 25 degrees, always busy: hottest temperature, switches, subnet at the end."""
    rows = {row.point: row for row in table.rows}
    temperature, current, hottest, switches = 25.0, None, 0.0, []
    for t in range(seconds):
        power = rows[current].power_w if current else 3.0
        shown = round(temperature / quantum_c) * quantum_c
        point = policy.decide(Conditions(time_s=float(t), temperature_c=shown, power_w=power), table, current).point
        if current is not None and point != current:
            switches.append(t)
        current = point
        target = 25.0 + degrees_per_watt * rows[current].power_w
        temperature = target + (temperature - target) * math.exp(-1 / 90)
        hottest = max(hottest, temperature)
    return hottest, switches, current.partition("@")[0]


@pytest.mark.parametrize("quantum_c", [0.01, 1.0])
def test_in_a_closed_loop_the_limit_is_kept_and_nothing_flaps(table, quantum_c):
    # 6.5 degrees per watt: in the long run s25 ends at 70, s50 at 77, s75 at 83.5 and s100 at 90 degrees
    hottest, switches, _ = plant(Thermal(LIMIT), table, degrees_per_watt=6.5, quantum_c=quantum_c)
    assert hottest < 85
    assert len([t for t in switches if t > 1800]) <= 2


def test_when_even_the_smallest_is_too_hot_it_stays_there(table):
    _, switches, last = plant(Thermal(LIMIT), table, degrees_per_watt=9.0, quantum_c=0.01)  # s25 ends at 88 degrees
    assert last == "s25"
    assert switches[-1] < 600


def test_the_reason_has_numbers_and_units(table):
    reason = Thermal(LIMIT).decide(Conditions(time_s=0, temperature_c=80.0), table, None).reason
    assert "80.0 °C" in reason
    assert "85 °C" in reason
    assert "0.08" in reason


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"h_lo": -0.1}, "h_lo is -0.1"),
        ({"h_lo": 0.5, "h_hi": 0.4}, "h_hi is 0.4"),
        ({"forecast_s": float("nan")}, "forecast_s is nan"),
        ({"settle_s": -1.0}, "settle_s is -1.0"),
        ({"degrees_per_watt": 0.0}, "degrees_per_watt is 0.0"),
        ({"reference_c": 90.0}, "temperature_limit_c is 85"),
    ],
)
def test_impossible_options_are_refused_with_their_value(options, word):
    with pytest.raises(InputError, match=word):
        Thermal(LIMIT, **options)
