"""How far from each limit, on one scale."""

import pytest

from agent.headroom import headrooms
from policies.base import Conditions, Goals


def of(goals, latency_ms=None, **conditions):
    return {one.name: one for one in headrooms(goals, Conditions(time_s=100.0, **conditions), latency_ms)}


def test_there_are_always_four_and_what_is_unknown_says_why():
    found = headrooms(Goals(temperature_limit_c=70.0), None, None)
    assert [one.name for one in found] == ["battery", "thermal", "power", "latency"]
    assert all(one.headroom is None and one.value is None for one in found)
    assert found[1].says == "no thermometer here; the limit is 70 °C"


@pytest.mark.parametrize(("celsius", "expected"), [(25.0, 1.0), (47.5, 0.5), (70.0, 0.0), (79.0, -0.2), (10.0, 4 / 3)])
def test_heat_counts_from_25_degrees(celsius, expected):
    found = of(Goals(temperature_limit_c=70.0), temperature_c=celsius)["thermal"]
    assert found.headroom == pytest.approx(expected) and found.value == celsius


def test_power_and_latency_count_from_nothing():
    found = of(Goals(max_power_w=8.0, deadline_ms=50.0), latency_ms=40.0, power_w=2.0)
    assert (found["power"].headroom, found["power"].says) == (0.75, "2 of 8 W")
    assert found["latency"].headroom == pytest.approx(0.2) and found["latency"].says == "40 of 50 ms"
    free = of(Goals(), latency_ms=40.0, power_w=2.0)
    assert free["power"].headroom is None and free["power"].says == "2 W, no limit asked for"


def test_the_charge_counts_above_the_reserve():
    found = of(Goals(reserve=0.2), battery_charge=0.6)["battery"]
    assert found.headroom == pytest.approx(0.5) and found.says == "60 %, reserve 20 %"
    assert of(Goals(reserve=0.2), battery_charge=0.1)["battery"].headroom < 0
    assert of(Goals(), battery_charge=0.1, on_mains=True)["battery"].headroom == 1.0


def test_a_battery_that_has_to_last_compares_what_it_draws_with_what_it_may():
    """6,000 J of 10,000 J, of which 1,000 J are kept, have to last 1,000 s: 5 W."""
    goals = Goals(last_until_s=1100.0, reserve=0.1)
    found = of(goals, battery_charge=0.6, battery_energy_j=6000.0, battery_power_w=4.0)["battery"]
    assert found.limit == pytest.approx(5.0) and found.headroom == pytest.approx(0.2)
    assert found.says == "60 %, draws 4 W, 5 W would last 17 min"
    assert of(goals, battery_charge=0.6, battery_energy_j=6000.0, battery_power_w=6.0)["battery"].headroom < 0
    charging = of(goals, battery_charge=0.6, battery_energy_j=6000.0, battery_power_w=-4.0)["battery"]
    assert charging.headroom == 1.0
