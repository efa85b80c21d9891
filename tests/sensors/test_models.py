"""The battery's gauge as a meter, and the modelled energy of a machine without any counter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.battery import SUPPLIES
from sensors.battery_meter import BatteryMeter
from sensors.load import STAT
from sensors.root import Root
from sensors.spec_curve import CURVE, SpecCurveModel, dynamic_share, modelled_power_w

BAT = f"{SUPPLIES}/gauge"
CHARGE = {
    f"{BAT}/type": "Battery",
    f"{BAT}/status": "Discharging",
    f"{BAT}/charge_now": "2000000",
    f"{BAT}/voltage_now": "8000000",
}


def test_charge_times_the_mean_voltage_left_the_battery(tree, clock):
    meter = BatteryMeter(Root(tree(CHARGE)), clock)
    before = meter.sample()
    clock.wait(600)
    tree({f"{BAT}/charge_now": "1900000", f"{BAT}/voltage_now": "7600000"})
    energy = meter.energy(before, meter.sample())
    assert energy.joules == pytest.approx(0.1 * 3600 * 7.8)  # not 2.0 * 8.0 - 1.9 * 7.6 Ah V, which is twice that
    assert energy.low_j < energy.joules < energy.high_j
    assert energy.power_w == pytest.approx(4.68)


def test_a_gauge_of_energy_gives_the_difference(laptop, clock):
    meter = BatteryMeter(Root(laptop), clock)
    before = meter.sample()
    clock.wait(600)
    (laptop / SUPPLIES / "BAT0/energy_now").write_text("28300000")
    assert meter.energy(before, meter.sample()).joules == pytest.approx(2.0 * 3600)


@pytest.mark.parametrize("status", ["Charging", "Full", "Unknown"])
def test_a_gauge_that_does_not_discharge_measures_nothing(tree, clock, status):
    assert "not discharging" in BatteryMeter(Root(tree({**CHARGE, f"{BAT}/status": status})), clock).sample().why


def test_a_gauge_that_corrects_itself_upwards_is_unknown(tree, clock):
    meter = BatteryMeter(Root(tree(CHARGE)), clock)
    before = meter.sample()
    clock.wait(60)
    tree({f"{BAT}/charge_now": "2010000"})
    assert meter.energy(before, meter.sample()).joules is None


def test_a_battery_that_was_swapped_is_unknown(laptop, clock):
    meter = BatteryMeter(Root(laptop), clock)
    before = meter.sample()
    clock.wait(60)
    (laptop / SUPPLIES / "BAT0/present").write_text("0")
    assert meter.energy(before, meter.sample()).joules is None


def test_the_model_at_idle_half_and_full_load_gives_the_published_watts():
    assert modelled_power_w(0.0, 1) == pytest.approx((0.23, 0.69, 1.43))
    assert modelled_power_w(1.0, 4) == pytest.approx((4.92, 11.24, 19.56))
    assert modelled_power_w(0.5, 2)[1] == pytest.approx(2 * (0.69 + 0.452 * (2.81 - 0.69)))


@given(st.floats(-1, 2), st.floats(-1, 2))
def test_more_utilisation_never_means_less_power(a, b):
    low, high = sorted((a, b))
    assert 0 <= dynamic_share(low) <= dynamic_share(high) <= 1
    assert all(x <= y for x, y in zip(modelled_power_w(low, 3), modelled_power_w(high, 3), strict=True))


def test_between_the_published_points_the_curve_is_straight():
    for tenth in range(10):
        middle = dynamic_share((tenth + 0.5) / 10)
        assert middle == pytest.approx((CURVE[tenth] + CURVE[tenth + 1]) / 2)


def stat(busy, idle, steal=0):
    cpus = "".join(f"cpu{number} 0 0 0 0\n" for number in range(4))
    return {STAT: f"cpu  {busy} 0 0 {idle} 0 0 0 {steal} 0 0\n{cpus}"}


def test_modelled_joules_are_watts_at_the_windows_utilisation_times_its_length(tree, clock):
    meter = SpecCurveModel(Root(tree(stat(1000, 1000))), clock)
    before = meter.sample()
    clock.wait(5.0)
    tree(stat(2000, 2000, steal=500))  # half busy; what the host gave to others is neither
    energy = meter.energy(before, meter.sample())
    assert energy.source == "modelled:spec-curve"
    assert energy.joules == pytest.approx(5 * 4 * (0.69 + 0.452 * 2.12))
    assert energy.low_j == pytest.approx(5 * 4 * (0.23 + 0.452 * 1.00))
    assert energy.high_j == pytest.approx(5 * 4 * (1.43 + 0.452 * 3.46))
    assert energy.power_w == pytest.approx(4 * (0.69 + 0.452 * 2.12))
    assert (energy.power_low_w, energy.power_high_w) == pytest.approx((energy.low_j / 5, energy.high_j / 5))


def test_without_cpu_time_the_model_knows_nothing(tree, clock):
    meter = SpecCurveModel(Root(tree(stat(1, 1))), clock)
    before = meter.sample()
    clock.wait(1.0)
    assert meter.energy(before, meter.sample()).joules is None
    tree({STAT: "garbage"})
    assert "first line" in meter.sample().why
