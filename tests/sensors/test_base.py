"""Readings, snapshots and the guarded set."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sensors
from sensors.base import QUANTITIES, NullSensor, Reading, Sensor, SensorSet, Snapshot, known

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.none() | st.booleans() | st.floats(allow_nan=False)


class Broken(Sensor):
    name = "broken"
    names = ("temperature_c", "power_w")

    def read(self):
        raise OSError("bus error")


class Fixed(Sensor):
    name = "fixed"

    def read(self):
        return (known("temperature_c", 50.0, "here"),)


@given(st.lists(st.tuples(NAMES, VALUES)))
def test_the_first_available_reading_of_each_name_counts(pairs):
    values = Snapshot(tuple(Reading(name, value, "", "s", "w") for name, value in pairs)).values()
    assert values.keys() == {name for name, _ in pairs}
    for name, value in values.items():
        available = [v for n, v in pairs if n == name and v is not None]
        assert value == (available[0] if available else None)


def test_false_and_zero_are_available_readings():
    snapshot = Snapshot(
        (Reading("a", False, "bool", "1"), Reading("a", True, "bool", "2"), Reading("b", 0.0, "W", "1"))
    )
    assert snapshot.values() == {"a": False, "b": 0.0}


def test_a_sensor_that_raises_becomes_unknown_and_takes_no_other_down():
    snapshot = SensorSet([Broken(), Fixed()]).read()
    assert snapshot.values() == {"temperature_c": 50.0, "power_w": None}
    failed = [reading for reading in snapshot.readings if reading.value is None]
    assert [reading.unit for reading in failed] == ["°C", "W"]
    assert all("OSError: bus error" in reading.why for reading in failed)


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300])
def test_a_value_outside_its_range_is_unknown(name, value):
    reading = known(name, value, "here")
    assert reading.value is None
    assert "implausible" in reading.why


def test_a_null_sensor_gives_its_names_as_unknown():
    readings = NullSensor("nvml", ["power_w"], "no driver").read()
    assert readings == (Reading("power_w", None, "W", "nvml", "no driver"),)


def test_sensors_import_nothing_else_of_the_project():
    code = (
        "import sensors, sensors.contract, sys;"
        "ours={'agent','backends','calibration','cli','policies','simulation','subnets','torch','openvino','numpy','pynvml'};"
        "print(sorted(ours & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert all(hasattr(sensors, name) for name in sensors.__all__)


def test_a_counter_caught_moving_is_no_older_than_the_look_before(clock):
    from sensors.meter import MeterSample, counted, staleness

    caught, blind = MeterSample(0.0, 1.0, stale_s=0.004), MeterSample(1.0, 2.0)
    assert staleness(caught, caught, 0.1) == 0.004
    assert staleness(caught, blind, 0.1) == staleness(blind, blind, 0.1) == 0.1
    assert staleness(MeterSample(0.0, 1.0, stale_s=5.0), caught, 0.1) == 0.1  # never worse than its period
    wide, narrow = (counted(10.0, 1.0, "made", resolution_j=0.0, update_period_s=s) for s in (0.1, 0.004))
    assert (wide.low_j, wide.high_j) == pytest.approx((9.0, 11.0))
    assert (narrow.low_j, narrow.high_j) == pytest.approx((9.96, 10.04))
