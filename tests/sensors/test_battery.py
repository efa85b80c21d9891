"""Batteries as drivers really report them. Expected joules are computed by hand: 1 Wh = 3600 J."""

from typing import ClassVar

import pytest

from sensors.base import Snapshot
from sensors.battery import SUPPLIES, BatterySensor
from sensors.contract import SensorContract
from sensors.root import Root


def pack(name, **attributes):
    return {f"{SUPPLIES}/{name}/{key}": f"{value}\n" for key, value in {"type": "Battery", **attributes}.items()}


def values(path):
    return Snapshot(BatterySensor(Root(path)).read()).values()


GAUGE = pack("bq27500-0", status="Discharging", capacity=80, charge_now=2_000_000, charge_full=2_500_000,
             current_now=-1_500_000, voltage_now=3_800_000)  # fmt: skip


class TestContract(SensorContract):
    files: ClassVar = {**pack("BAT0", status="Discharging", capacity=60, energy_now=30_300_000, energy_full=50_000_000,
                    power_now=8_500_000), **GAUGE,
             f"{SUPPLIES}/AC/type": "Mains\n", f"{SUPPLIES}/AC/online": "0\n"}  # fmt: skip

    def make(self, root):
        return BatterySensor(root)


def test_a_laptop_on_battery(laptop):
    assert values(laptop) == {
        "battery_charge": pytest.approx(0.606),  # finer than the 60 % of capacity
        "battery_energy_j": pytest.approx(30.3 * 3600),
        "battery_power_w": pytest.approx(8.5),
        "on_mains": False,
    }


def test_a_gauge_not_named_bat_that_counts_charge_and_current(tree):
    found = values(tree(GAUGE))
    assert found["battery_charge"] == pytest.approx(0.8)
    assert found["battery_energy_j"] == pytest.approx(2.0 * 3.8 * 3600)
    assert found["battery_power_w"] == pytest.approx(1.5 * 3.8)  # positive although this driver's current is negative
    assert found["on_mains"] is False


@pytest.mark.parametrize("current", [-1_500_000, 1_500_000])
def test_charging_is_negative_whatever_the_sign_of_the_current(tree, current):
    files = {**GAUGE, **pack("bq27500-0", status="Charging", current_now=current)}
    assert values(tree(files))["battery_power_w"] == pytest.approx(-5.7)


def test_batteries_of_mice_and_empty_bays_do_not_count(tree):
    files = {
        **pack("mouse", scope="Device", capacity=5, status="Discharging"),
        **pack("BAT1", present=0, capacity=0, status="Unknown"),
    }
    assert values(tree(files)) == dict.fromkeys(("battery_charge", "battery_energy_j", "battery_power_w", "on_mains"))
    found = values(tree(pack("BAT0", capacity=70, status="Discharging")))
    assert found["battery_charge"] == pytest.approx(0.7)


def test_two_packs_are_summed_and_their_charge_weighted(tree):
    files = {
        **pack("BAT0", status="Unknown", energy_now=20_000_000, energy_full=20_000_000, power_now=0),
        **pack("BAT1", status="Discharging", energy_now=10_000_000, energy_full=40_000_000, power_now=12_000_000),
    }
    found = values(tree(files))
    assert found["battery_energy_j"] == pytest.approx(30 * 3600)
    assert found["battery_charge"] == pytest.approx(30 / 60)
    assert found["battery_power_w"] == pytest.approx(12.0)
    assert found["on_mains"] is False


def test_a_sum_with_an_unknown_part_is_unknown(tree):
    files = {
        **pack("BAT0", status="Discharging", energy_now=20_000_000, energy_full=20_000_000, power_now=3_000_000),
        **pack("BAT1", status="Discharging", capacity=50),
    }
    readings = {reading.name: reading for reading in BatterySensor(Root(tree(files))).read()}
    assert readings["battery_energy_j"].value is None
    assert "BAT1" in readings["battery_energy_j"].why
    assert readings["battery_power_w"].value is None
    assert readings["battery_charge"].value == pytest.approx(0.75)  # the plain mean, since one size is unknown


def test_percent_alone_gives_a_charge_but_no_energy(tree):
    found = values(tree(pack("sbs-1-000b", capacity=42, status="Full")))
    assert found["battery_charge"] == pytest.approx(0.42)
    assert found["battery_energy_j"] is None
    assert found["on_mains"] is True


def test_an_impossible_ratio_falls_back_to_percent(tree):
    files = pack("BAT0", capacity=42, energy_now=90_000_000, energy_full=50_000_000, status="Discharging")
    assert values(tree(files))["battery_charge"] == pytest.approx(0.42)


def test_a_gauge_slightly_above_full_is_full(tree):
    files = pack("BAT0", energy_now=51_000_000, energy_full=50_000_000, status="Full")
    assert values(tree(files))["battery_charge"] == 1.0


def test_any_charger_that_is_online_means_mains(tree):
    files = {
        **pack("BAT0", status="Discharging", capacity=50),
        f"{SUPPLIES}/AC/type": "Mains", f"{SUPPLIES}/AC/online": "0",
        f"{SUPPLIES}/ucsi-source-psy-1/type": "USB", f"{SUPPLIES}/ucsi-source-psy-1/online": "1",
    }  # fmt: skip
    assert values(tree(files))["on_mains"] is True


def test_the_unused_usb_port_of_a_desktop_does_not_mean_battery(tree):
    files = {f"{SUPPLIES}/ucsi-source-psy-1/type": "USB", f"{SUPPLIES}/ucsi-source-psy-1/online": "0"}
    assert values(tree(files))["on_mains"] is None


def test_power_without_a_direction_is_unknown(tree):
    files = pack("BAT0", status="Unknown", power_now=5_000_000)
    readings = {reading.name: reading for reading in BatterySensor(Root(tree(files))).read()}
    assert readings["battery_power_w"].value is None
    assert "status" in readings["battery_power_w"].why


def test_the_charger_settles_the_direction_where_the_status_does_not(tree):
    files = {
        **pack("BAT0", status="Unknown", power_now=5_000_000),
        f"{SUPPLIES}/AC/type": "Mains",
        f"{SUPPLIES}/AC/online": "0",
    }
    assert values(tree(files))["battery_power_w"] == pytest.approx(5.0)
