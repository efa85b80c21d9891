"""CPU load, frequency and pressure."""

from typing import ClassVar

import pytest

from sensors.contract import SensorContract
from sensors.frequency import FrequencySensor
from sensors.load import STAT, LoadSensor, cpu_times
from sensors.pressure import PressureSensor
from sensors.root import Root


class TestFrequencyContract(SensorContract):
    files: ClassVar = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        "proc/cpuinfo": "cpu MHz\t\t: 1700.000\n",
    }

    def make(self, root):
        return FrequencySensor(root)


class TestPressureContract(SensorContract):
    files: ClassVar = {
        f"proc/pressure/{what}": "some avg10=5.72 avg60=2.95 avg300=0.87 total=1\n" for what in ("cpu", "memory", "io")
    }

    def make(self, root):
        return PressureSensor(root)


class MovingStat(Root):
    """A root on which every reading of a sound /proc/stat finds 20 more ticks at work and 80 idle."""

    ticks = 0

    def read_bytes(self, relative, limit):
        data = super().read_bytes(relative, limit)
        if data.startswith(b"cpu  1 "):
            self.ticks += 1
            return f"cpu  {20 * self.ticks} 0 0 {80 * self.ticks} 0 0 0 0 0 0\n".encode()
        return data


class TestLoadContract(SensorContract):
    files: ClassVar = {STAT: "cpu  1 0 0 1 0 0 0 0 0 0\n"}

    def make(self, root):
        return LoadSensor(MovingStat(root.path) if type(root) is Root else root)


def test_load_is_the_share_that_was_not_idle_since_the_last_reading(tree):
    sensor = LoadSensor(Root(tree({STAT: "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1\n"})))
    tree({STAT: "cpu  120 10 110 840 10 5 5 20 7 0\ncpu0 1 1 1 1\n"})
    (reading,) = sensor.read()
    # At work: 20 user + 10 nice + 10 system + 5 irq + 5 softirq, and 20 steal; idle 40 + 10 iowait. Guest is in user.
    assert reading.value == pytest.approx(70 / 120)
    (again,) = sensor.read()
    assert again.value is None
    assert "no processor time" in again.why


def test_a_later_reading_uses_what_came_after_the_earlier(tree):
    sensor = LoadSensor(Root(tree({STAT: "cpu  0 0 0 0 0\n"})))
    tree({STAT: "cpu  50 0 0 50 0\n"})
    assert sensor.read()[0].value == pytest.approx(0.5)
    tree({STAT: "cpu  50 0 0 150 0\n"})
    assert sensor.read()[0].value == pytest.approx(0.0)


def test_the_first_reading_after_a_missing_file_says_that_it_needs_two(tree):
    sensor = LoadSensor(Root(tree({"other": ""})))
    tree({STAT: "cpu  50 0 0 50 0\n"})
    assert "needs two" in sensor.read()[0].why


def test_cpu_times_count_the_cpus(laptop):
    times, why = cpu_times(Root(laptop))
    assert not why
    assert times is not None
    assert (times.cpus, times.busy, times.idle) == (2, 1500, 8500)


def test_frequency_is_the_mean_of_cores_and_falls_back_to_cpuinfo(laptop, virtual_machine):
    assert FrequencySensor(Root(laptop)).read()[0].value == pytest.approx(1.6e9)
    assert FrequencySensor(Root(virtual_machine)).read()[0].value == pytest.approx(2.596128e9)


def test_pressure_is_a_share(laptop):
    readings = {reading.name: reading.value for reading in PressureSensor(Root(laptop)).read()}
    assert readings == {"pressure": 0.125, "memory_pressure": 0.0, "io_pressure": 0.01}


def test_pressure_is_unknown_on_a_kernel_without_it(tree):
    (cpu, *_) = PressureSensor(Root(tree({"proc/stat": ""}))).read()
    assert cpu.value is None
    assert "not there" in cpu.why
