"""Power rails (INA3221, hwmon) and the meter that integrates them."""

import errno
import threading
from typing import ClassVar

import pytest

from sensors.contract import FaultyRoot, SensorContract, write_tree
from sensors.hwmon import HWMON, HwmonGauge
from sensors.ina3221 import DRIVERS, Ina3221Gauge
from sensors.integrate import IntegratingMeter
from sensors.meter import PowerGauge
from sensors.power import PowerSensor
from sensors.root import Number, Root

INA = f"{DRIVERS[0]}/1-0040/hwmon/hwmon3"
IIO = f"{DRIVERS[1]}/6-0040/iio:device0"


def channel(number, label, millivolts, milliamperes, chip=INA):
    return {
        f"{chip}/in{number}_label": label,
        f"{chip}/in{number}_input": str(millivolts),
        f"{chip}/curr{number}_input": str(milliamperes),
    }


class TestInaContract(SensorContract):
    files: ClassVar = channel(1, "VDD_IN", 5016, 1200)

    def make(self, root):
        return PowerSensor(gauges=[Ina3221Gauge(root)])


class TestHwmonContract(SensorContract):
    files: ClassVar = {f"{HWMON}/hwmon0/name": "power_meter", f"{HWMON}/hwmon0/power1_average": "95000000"}

    def make(self, root):
        return PowerSensor(gauges=[HwmonGauge(root)])


def test_the_total_rail_is_the_boards_power(jetson):
    gauge = Ina3221Gauge(Root(jetson))
    assert gauge.power_w().value == pytest.approx(5.016 * 1.2)
    assert "VDD_IN" in gauge.where


def test_without_a_total_the_rails_are_summed_over_chips_but_not_the_unconnected(tree):
    files = {
        **channel(1, "VDD_GPU_SOC", 20000, 500),
        **channel(2, "VDD_CPU_CV", 20000, 250),
        **channel(3, "NC", 20000, 900),
        **channel(1, "VIN_SYS_5V0", 5000, 1000, f"{DRIVERS[0]}/1-0041/hwmon/hwmon4"),
        f"{INA}/in7_label": "sum of shunt voltages",
        f"{INA}/in7_input": "123",
        f"{INA}/curr7_input": "5000",
    }
    assert Ina3221Gauge(Root(tree(files))).power_w().value == pytest.approx(10.0 + 5.0 + 5.0)


def test_the_older_iio_driver_gives_milliwatts(tree):
    files = {f"{IIO}/rail_name_0": "POM_5V_IN", f"{IIO}/in_power0_input": "3456",
             f"{IIO}/rail_name_1": "POM_5V_GPU", f"{IIO}/in_power1_input": "600"}  # fmt: skip
    assert Ina3221Gauge(Root(tree(files))).power_w().value == pytest.approx(3.456)


def test_a_sum_without_one_of_its_rails_is_unknown(tree):
    files = {**channel(1, "VDD_GPU_SOC", 20000, 500), **channel(2, "VDD_CPU_CV", 20000, 250)}
    gauge = Ina3221Gauge(FaultyRoot(tree(files), errno.EIO, "curr2_input"))
    assert gauge.power_w().value is None
    assert "curr2_input" in gauge.power_w().why


def test_hwmon_power_is_believed_only_where_it_is_the_systems(tree, tmp_path):
    def power(name, files):
        return HwmonGauge(Root(write_tree(tmp_path / name, files))).power_w()

    monitor = {f"{HWMON}/hwmon0/name": "ina219", f"{HWMON}/hwmon0/power1_input": "4200000"}
    second = {f"{HWMON}/hwmon1/name": "ina226", f"{HWMON}/hwmon1/power1_input": "3900000"}
    graphics = {f"{HWMON}/hwmon2/name": "amdgpu", f"{HWMON}/hwmon2/power1_average": "30000000"}
    total = {f"{HWMON}/hwmon3/name": "macsmc", f"{HWMON}/hwmon3/power2_input": "7000000",
             f"{HWMON}/hwmon3/power2_label": "Total System Power"}  # fmt: skip
    assert power("one", monitor | graphics).value == pytest.approx(4.2)
    assert "none says which is the total" in power("two", monitor | second).why
    assert power("labelled", monitor | second | total).value == pytest.approx(7.0)
    assert power("graphics", graphics).value is None


class Scripted(PowerGauge):
    """Watts as a function of a clock."""

    source = "hwmon"
    device = "system"
    update_period_s = 0.05
    where = "scripted"

    def __init__(self, watts):
        self.watts = watts
        self.reads = 0
        self.read_often = threading.Event()

    def power_w(self):
        self.reads += 1
        if self.reads > 5:
            self.read_often.set()
        return self.watts()


def test_a_ramp_is_integrated_and_its_bounds_hold(clock):
    meter = IntegratingMeter(Scripted(lambda: Number(5 + 2 * (clock() - 100))), clock=clock)
    before = meter.sample()
    for _ in range(100):
        clock.wait(0.05)
        after = meter.sample()
    energy = meter.energy(before, after)
    assert energy.seconds == pytest.approx(5.0)
    assert energy.joules == pytest.approx(5 * 5 + 5**2)  # of 5 + 2 t from 0 to 5
    assert energy.low_j < 50 < energy.high_j
    assert energy.high_j - energy.low_j == pytest.approx(10 * 0.05)  # the rise of 10 W times the step


def test_a_window_that_was_not_followed_is_unknown(clock):
    meter = IntegratingMeter(Scripted(lambda: Number(10.0)), clock=clock)
    before = meter.sample()
    clock.wait(30.0)
    energy = meter.energy(before, meter.sample())
    assert energy.joules is None
    assert "with meter" in energy.why


def test_a_reading_that_fails_now_and_then_is_bridged(clock):
    answers = iter([Number(10.0), Number(None, "busy"), Number(10.0)])
    meter = IntegratingMeter(Scripted(lambda: next(answers)), clock=clock)
    before = meter.sample()
    clock.wait(0.05)
    middle = meter.sample()
    clock.wait(0.05)
    after = meter.sample()
    assert meter.energy(before, after).joules == pytest.approx(1.0)
    assert meter.energy(before, middle).joules is None
    assert meter.energy(before, middle).why == "busy"


@pytest.mark.parametrize("watts", [-5.0, 1e30, float("inf"), float("nan")])
def test_an_absurd_power_is_not_integrated(clock, watts):
    sample = IntegratingMeter(Scripted(lambda: Number(watts)), clock=clock).sample()
    assert "implausible" in sample.why
    assert sample.state.joules == 0


def test_a_gauge_that_raises_is_a_reason(clock):
    def broken():
        raise OSError("bus error")

    assert "bus error" in IntegratingMeter(Scripted(broken), clock=clock).sample().why


def test_the_thread_follows_only_inside_the_context():
    gauge = Scripted(lambda: Number(10.0))
    meter = IntegratingMeter(gauge, period_s=0.001)
    with meter:
        before = meter.sample()
        assert gauge.read_often.wait(30)
        energy = meter.energy(before, meter.sample())
    assert energy.power_w == pytest.approx(10.0)
    reads = gauge.reads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meter")]
    assert gauge.reads == reads
    with meter:  # and again
        pass
