"""Temperatures and throttling on odd boards."""

import errno
from typing import ClassVar

import pytest

from sensors.base import Snapshot
from sensors.contract import FaultyRoot, SensorContract, write_tree
from sensors.root import Root
from sensors.thermal import HWMON, ZONES, ThermalSensor
from sensors.throttle import CPUS, FIRMWARE, ThrottleSensor


def zone(number, kind, temp):
    return {f"{ZONES}/thermal_zone{number}/type": f"{kind}\n", f"{ZONES}/thermal_zone{number}/temp": f"{temp}\n"}


def chip(number, name, **attributes):
    files = {f"{HWMON}/hwmon{number}/name": f"{name}\n"}
    return files | {f"{HWMON}/hwmon{number}/{key}": f"{value}\n" for key, value in attributes.items()}


def values(root):
    return Snapshot(ThermalSensor(root).read()).values()


class TestThermalContract(SensorContract):
    files: ClassVar = {
        **zone(0, "cpu-thermal", 51406),
        **chip(0, "k10temp", temp1_input=60000, temp1_label="Tctl", temp1_fault=0),
    }

    def make(self, root):
        return ThermalSensor(root)


class TestThrottleContract(SensorContract):
    files: ClassVar = {
        FIRMWARE: "0\n",
        f"{CPUS}/cpu0/thermal_throttle/core_throttle_count": "3\n",
        f"{CPUS}/cpu0/thermal_throttle/package_throttle_count": "3\n",
        f"{ZONES}/cooling_device0/type": "Processor\n",
        f"{ZONES}/cooling_device0/cur_state": "0\n",
    }

    def make(self, root):
        return ThrottleSensor(root)


def test_a_hot_disk_hides_neither_zones_nor_package(laptop):
    found = values(Root(laptop))
    assert found["temperature_c"] == pytest.approx(63.0)  # the package, not the 74.85 °C of the disk
    assert found["zone_temperature_c:nvme/Composite"] == pytest.approx(74.85)
    assert found["zone_temperature_c:x86_pkg_temp"] == pytest.approx(61.0)


def test_absurd_and_constant_zones_of_a_jetson_do_not_count(jetson):
    found = values(Root(jetson))
    assert found["temperature_c"] == pytest.approx(52.5)
    assert found["zone_temperature_c:cv0-thermal"] is None
    assert found["zone_temperature_c:soc2-thermal"] is None


def test_a_gated_zone_is_unknown_and_the_others_still_count(jetson):
    root = FaultyRoot(jetson, errno.EAGAIN, "thermal_zone1/temp")
    readings = {reading.name: reading for reading in ThermalSensor(root).read()}
    assert readings["temperature_c"].value == pytest.approx(51.406)
    assert "EAGAIN" in readings["zone_temperature_c:gpu-thermal"].why


def test_a_new_order_of_indices_changes_no_value(tree, tmp_path):
    first = {**chip(0, "nvme", temp1_input=70000), **chip(1, "coretemp", temp1_input=50000, temp1_label="Core 0")}
    again = {**chip(1, "nvme", temp1_input=70000), **chip(0, "coretemp", temp1_input=50000, temp1_label="Core 0")}
    assert values(Root(write_tree(tmp_path / "a", first))) == values(Root(write_tree(tmp_path / "b", again)))


def test_zones_of_the_same_name_are_all_kept(tree):
    found = values(Root(tree({**zone(0, "cpu", 40000), **zone(1, "cpu", 45000)})))
    assert found["zone_temperature_c:cpu"] == pytest.approx(40.0)
    assert found["zone_temperature_c:cpu#2"] == pytest.approx(45.0)
    assert found["temperature_c"] == pytest.approx(45.0)


def test_a_board_that_names_no_processor_zone_uses_the_others(tree):
    found = values(Root(tree({**zone(0, "acpitz", 41000), **zone(1, "iwlwifi_1", 60000)})))
    assert found["temperature_c"] == pytest.approx(41.0)


def test_a_chip_that_reports_a_fault_or_its_marker_for_none_does_not_count(tree):
    files = {
        **chip(0, "coretemp", temp1_input=99000, temp1_fault=1, temp2_input=127500, temp3_input=44000),
    }
    assert values(Root(tree(files)))["temperature_c"] == pytest.approx(44.0)


def test_below_freezing_is_a_temperature(tree):
    assert values(Root(tree(zone(0, "cpu-thermal", -12500))))["temperature_c"] == pytest.approx(-12.5)


def throttled(sensor):
    (reading,) = sensor.read()
    return reading.value


@pytest.mark.parametrize(
    ("flags", "expected"), [("0", False), ("50000", False), ("50004", True), ("2", True), ("1", False)]
)
def test_the_firmware_of_a_raspberry_pi_tells_now_from_once(tree, flags, expected):
    assert throttled(ThrottleSensor(Root(tree({FIRMWARE: flags})))) is expected


def test_growing_counts_mean_throttling_and_standing_ones_do_not(tree):
    path = f"{CPUS}/cpu3/thermal_throttle/package_throttle_count"
    sensor = ThrottleSensor(Root(tree({path: "10"})))
    assert throttled(sensor) is False
    tree({path: "11"})
    assert throttled(sensor) is True
    assert throttled(sensor) is False


def test_cooling_by_clocks_counts_and_a_fan_does_not(tree, jetson):
    assert throttled(ThrottleSensor(Root(jetson))) is False  # its fan runs
    (jetson / ZONES / "cooling_device0/cur_state").write_text("4\n")
    assert throttled(ThrottleSensor(Root(jetson))) is True


def test_one_source_that_says_so_outvotes_the_others(tree):
    files = {FIRMWARE: "0", f"{ZONES}/cooling_device0/type": "Processor", f"{ZONES}/cooling_device0/cur_state": "1"}
    assert throttled(ThrottleSensor(Root(tree(files)))) is True
