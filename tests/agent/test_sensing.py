"""Sensors that fail, lie, freeze or hang are unknown, told, and stop nothing."""

import threading

import pytest

from agent.frozen import Frozen
from agent.sensing import Sensing
from sensors import Sensor, SensorSet
from sensors.base import known, unknown


class Told(Sensor):
    """Says what it is told; hangs while ``hold`` is not set."""

    def __init__(self, name, quantity, value):
        self.name, self.names, self.value = name, (quantity,), value
        self.hold = threading.Event()
        self.hold.set()
        self.asked = 0

    def read(self):
        self.asked += 1
        assert self.hold.wait(20)
        if isinstance(self.value, Exception):
            raise self.value
        if self.value is None:
            return (unknown(self.names[0], self.name, "the bus is gone"),)
        return (known(self.names[0], self.value, self.name),)


@pytest.fixture
def told():
    return []


@pytest.fixture
def sensing(told):
    made = []

    def make(sensors, limit_s=5.0):
        made.append(Sensing(sensors, on_event=lambda name, detail: told.append((name, detail)), limit_s=limit_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_sensor_that_hangs_is_unknown_and_takes_no_other_with_it_until_it_comes_back(sensing, told):
    sensors = [Told("a", "temperature_c", 50.0), Told("b", "power_w", 5.0), Told("c", "cpu_load", 0.5)]
    watched = sensing(SensorSet(sensors), limit_s=0.05)
    assert watched.read(0.0, []) == {"temperature_c": 50.0, "power_w": 5.0, "cpu_load": 0.5}
    sensors[1].hold.clear()
    for second in (1.0, 2.0, 3.0):
        faults = []
        assert watched.read(second, faults) == {"temperature_c": 50.0, "cpu_load": 0.5}
        assert faults == ["b silent: no answer within 0.05 s"]
    assert sensors[1].asked == 2 and watched.failures == 3  # nobody else is sent after the thread that hangs
    assert [name for name, _ in told] == ["sensor_failed", "sensor_lost"]
    assert told[1][1] == {"quantity": "power_w", "why": "b silent: no answer within 0.05 s"}
    hanging = watched._parts[1].hangs
    sensors[1].hold.set()
    while hanging.busy:
        pass
    faults = []
    assert watched.read(4.0, faults)["power_w"] == 5.0 and not faults
    assert told[-1] == ("sensor_back", {"quantity": "power_w"})
    assert sensors[2].asked == 5  # never by the thread that came back late


def test_two_sensors_that_hang_leave_the_third(sensing):
    sensors = [Told("a", "temperature_c", 50.0), Told("b", "power_w", 5.0), Told("c", "cpu_load", 0.5)]
    watched = sensing(SensorSet(sensors), limit_s=0.05)
    watched.read(0.0, [])
    for sensor in sensors[:2]:
        sensor.hold.clear()
    faults = []
    assert watched.read(1.0, faults) == {"cpu_load": 0.5} and len(faults) == 2
    for sensor in sensors[:2]:
        sensor.hold.set()


def test_a_sensor_of_a_set_that_raises_is_lost_with_its_reason_and_a_fault_as_long_as_it_lasts(sensing, told):
    sensor = Told("thermometer", "temperature_c", 50.0)
    watched = sensing(SensorSet([sensor, Told("c", "cpu_load", 0.5)]))
    watched.read(0.0, [])
    sensor.value = OSError("no ack")
    for second in (1.0, 2.0):
        faults = []
        assert watched.read(second, faults) == {"temperature_c": None, "cpu_load": 0.5}
        assert faults == ["lost: temperature_c: thermometer failed: OSError: no ack"]
    assert told == [("sensor_lost", {"quantity": "temperature_c", "why": "thermometer failed: OSError: no ack"})]
    assert watched.failures == 1


def test_an_absurd_value_is_told_once_per_quantity_and_again_after_it_was_well(sensing, told, helpers):
    sensors = helpers.Readings({"power_w": -1.0, "cpu_load": 2.0})
    watched = sensing(sensors)
    for _ in range(3):
        faults = []
        assert watched.read(0.0, faults) == {}
    assert [name for name, _ in told] == ["sensor_failed"] * 2 and watched.failures == 6
    assert faults == [
        "not sensible, taken as unknown: cpu_load=2.0",
        "not sensible, taken as unknown: power_w=-1.0",
    ]
    sensors.told = {"power_w": 1.0, "cpu_load": 0.2}
    assert watched.read(1.0, []) == {"power_w": 1.0, "cpu_load": 0.2}
    sensors.told = {"power_w": -1.0, "cpu_load": 0.2}
    watched.read(2.0, [])
    assert [name for name, _ in told[2:]] == ["sensor_failed", "sensor_lost"]


def test_the_first_sensor_that_knows_a_quantity_counts(sensing):
    sensors = SensorSet([Told("a", "power_w", None), Told("b", "power_w", 7.0), Told("c", "power_w", 8.0)])
    assert sensing(sensors).read(0.0, []) == {"power_w": 7.0}


def test_without_sensors_nothing_is_known(sensing):
    assert sensing(None).read(0.0, []) == {}


def frozen(seconds, **values):
    """{second: quantities found frozen}; values are functions of the second."""
    watch, found = Frozen(), {}
    for second in range(seconds):
        told = watch.check(float(second), {name: value(second) for name, value in values.items()})
        if told:
            found[second] = set(told)
    return found


def minutes(*levels):
    """A level a minute, the last one for good."""
    return lambda second: levels[min(second // 60, len(levels) - 1)]


def test_a_temperature_that_stands_still_while_the_power_doubles_is_frozen_after_five_minutes():
    found = frozen(900, temperature_c=lambda s: 50.0, power_w=minutes(5.0, 5.0, 10.0))
    assert min(found) == 300 and found[300] == {"temperature_c"} and max(found) == 899


@pytest.mark.parametrize(
    ("temperature", "power"),
    [
        (lambda s: 50.0, minutes(5.0)),  # nothing changes
        (lambda s: 50.0, minutes(5.0, 6.9)),  # by less than half
        (lambda s: 50.0, minutes(1.0, 2.5)),  # by less than 2 W
        (lambda s: 50.0, lambda s: (2.0, 12.0)[s % 2]),  # faster than heat: the minutes are the same
        (lambda s: 50.0 + (s // 299) % 2, minutes(5.0, 10.0)),  # a coarse thermometer that does move
        (lambda s: 50.0 if s % 200 else None, minutes(5.0, 10.0)),  # unknown now and then: told otherwise
    ],
)
def test_a_temperature_that_has_a_reason_to_stand_still_is_believed(temperature, power):
    assert not frozen(1200, temperature_c=temperature, power_w=power)


def test_a_power_gauge_that_stands_still_while_the_load_changes_is_frozen_until_it_moves():
    found = frozen(800, power_w=lambda s: 5.0 if s < 600 else 6.0, cpu_load=minutes(0.1, 0.9))
    assert (min(found), max(found)) == (300, 599) and found[300] == {"power_w"}


def test_a_gauge_of_charge_that_stands_still_while_the_battery_is_emptied_is_frozen():
    # 3600 J full; 10 W for 18 s are 5 %.
    found = frozen(
        60, battery_charge=lambda s: 0.5, battery_energy_j=lambda s: 1800.0, battery_power_w=lambda s: 10.0 + s / 1e9
    )
    assert min(found) == 18 and found[18] == {"battery_charge", "battery_energy_j"}
    assert not frozen(
        600,
        battery_charge=lambda s: 1.0,
        battery_energy_j=lambda s: 3600.0,
        battery_power_w=lambda s: -10.0,  # full, and charged on and on
    )


def test_a_night_asleep_is_no_minute_of_work():
    watch = Frozen()
    for second in range(200):
        watch.check(float(second), {"temperature_c": 50.0, "power_w": 5.0})
    assert not watch.check(30_000.0, {"temperature_c": 50.0, "power_w": 500.0})


def test_a_frozen_reading_reaches_no_policy_and_is_told(sensing, told, helpers):
    watched = sensing(sensors := helpers.Readings())
    for second in range(301):
        sensors.told = {"temperature_c": 50.0, "power_w": minutes(5.0, 10.0)(second)}
        faults = []
        values = watched.read(float(second), faults)
    assert values["temperature_c"] is None and values["power_w"] == 10.0
    assert faults[0].startswith(
        "frozen, taken as unknown: temperature_c exactly 50 for 300 s, while power_w was between 5"
    )
    assert [name for name, _ in told] == ["sensor_failed", "sensor_lost"]
    sensors.told = {"temperature_c": 50.1, "power_w": 10.0}
    assert watched.read(302.0, [])["temperature_c"] == 50.1 and told[-1][0] == "sensor_back"
