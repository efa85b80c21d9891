"""RAPL counters against a machine whose power is known."""

import errno
import math
from typing import ClassVar

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sensors.contract import FaultyRoot, SensorContract, write_tree
from sensors.meter import MeterSample
from sensors.power import PowerSensor
from sensors.rapl import POWERCAP, RaplMeter, zones
from sensors.root import Root

RANGE_UJ = 262_143_328_850


def package(number, energy_uj, range_uj=RANGE_UJ, name=""):
    path = f"{POWERCAP}/intel-rapl:{number}"
    return {
        f"{path}/name": name or f"package-{number}",
        f"{path}/energy_uj": str(energy_uj),
        f"{path}/max_energy_range_uj": str(range_uj),
    }


def dram(package_number, energy_uj):
    return {f"{POWERCAP}/intel-rapl:{package_number}:0/{key}": value for key, value in (
        ("name", "dram"), ("energy_uj", str(energy_uj)), ("max_energy_range_uj", str(RANGE_UJ)))}  # fmt: skip


class CountingRoot(Root):
    """A root whose counters gain 100 µJ with each reading of a sound one, so that power is never zero."""

    gained = 0

    def read_bytes(self, relative, limit):
        data = super().read_bytes(relative, limit)
        if relative.endswith("energy_uj") and data == b"1000000":
            self.gained += 100
            return str(1_000_000 + self.gained).encode()
        return data


class TestPowerContract(SensorContract):
    files: ClassVar = package(0, 1_000_000)

    def make(self, root):
        seconds = iter(range(10_000))
        root = CountingRoot(root.path) if type(root) is Root else root
        return PowerSensor([RaplMeter(root, clock=lambda: float(next(seconds)))])


def test_packages_and_memory_are_added_and_parts_are_not(laptop, tree):
    assert [zone.name for zone in zones(Root(laptop))] == ["package-0"]
    two = {**package(0, 1), **package(1, 1), **dram(0, 1), **dram(1, 1)}
    assert [zone.name for zone in zones(Root(tree(two)))] == [
        "package-0",
        "package-0 dram",
        "package-1",
        "package-1 dram",
    ]


def test_dies_beside_the_package_that_contains_them_do_not_count(tree):
    files = {**package(0, 1), **package(1, 1, name="package-0-die-1"), **package(2, 1, name="package-1-die-0")}
    assert [zone.name for zone in zones(Root(tree(files)))] == ["package-0", "package-1-die-0"]


def test_joules_are_within_2_percent_of_the_truth_across_a_wrap_around(tree, clock):
    """Power 20 + 10 sin(t) W; the counter updates every millisecond and wraps in the middle of the run."""

    def truth_j(time_s):
        return 20 * time_s + 10 * (1 - math.cos(time_s))

    range_uj = 100_000_000  # 100 J
    start_uj = 60_000_000

    def counter(time_s):
        updated = math.floor(time_s * 1000) / 1000
        return str(int(start_uj + truth_j(updated) * 1e6) % range_uj)

    files = package(0, counter(0.0), range_uj)
    limit = {f"{POWERCAP}/intel-rapl:0/constraint_0_power_limit_uw": "15000000"}
    meter = RaplMeter(Root(tree(files | limit)), clock)
    wraps = 0
    time_s = 0.0
    for window_s in (0.5, 1.7, 2.9, 0.25, 3.1):
        before = meter.sample()
        first_uj = int(counter(time_s))
        clock.wait(window_s)
        tree(package(0, counter(time_s + window_s), range_uj))
        energy = meter.energy(before, meter.sample())
        wraps += int(counter(time_s + window_s)) < first_uj
        expected = truth_j(time_s + window_s) - truth_j(time_s)
        assert energy.joules == pytest.approx(expected, rel=0.02)
        assert energy.low_j <= expected <= energy.high_j
        assert energy.power_w == pytest.approx(expected / window_s, rel=0.02)
        time_s += window_s
    assert wraps >= 1


@settings(max_examples=50, deadline=None)
@given(
    start=st.integers(0, RANGE_UJ - 1),
    spent=st.integers(0, 262_000_000_000),
    dram_start=st.integers(0, RANGE_UJ - 1),
    dram_spent=st.integers(0, 262_000_000_000),
)
def test_any_energy_below_one_range_is_recovered(tmp_path_factory, start, spent, dram_start, dram_spent):
    ends = ((start + spent) % RANGE_UJ, (dram_start + dram_spent) % RANGE_UJ)
    assume(any((start, dram_start)) and any(ends))  # all at 0 is a counter that never counted
    files = {**package(0, start), **dram(0, dram_start)}
    path = tmp_path_factory.getbasetemp() / "rapl"
    time_s = [0.0]
    meter = RaplMeter(Root(write_tree(path, files)), lambda: time_s[0])
    before = meter.sample()
    time_s[0] = 262.0  # the longest window without a second wrap, at 1000 W
    write_tree(path, {**package(0, ends[0]), **dram(0, ends[1])})
    energy = meter.energy(before, meter.sample())
    assert energy.joules == pytest.approx((spent + dram_spent) * 1e-6, rel=1e-9, abs=1e-9)


def test_a_window_that_may_hold_two_wraps_is_unknown(tree, clock):
    meter = RaplMeter(Root(tree(package(0, 5_000_000, 65_712_999_613))), clock)
    before = meter.sample()
    clock.wait(600.0)
    energy = meter.energy(before, meter.sample())
    assert energy.joules is None
    assert energy.power_w is None
    assert "more than once" in energy.why


def test_a_stated_power_limit_allows_longer_windows(laptop, clock):
    meter = RaplMeter(Root(laptop), clock)
    before = meter.sample()
    clock.wait(600.0)  # at most 114 W for 600 s = 68 kJ of 262 kJ
    (laptop / POWERCAP / "intel-rapl:0/energy_uj").write_text(str(1_000_000 + 6_000_000_000))
    assert meter.energy(before, meter.sample()).joules == pytest.approx(6000.0)


def test_permission_denied_is_a_reason_and_never_a_part_of_the_whole(tree, clock):
    path = tree({**package(0, 5), **package(1, 5)})
    meter = RaplMeter(FaultyRoot(path, errno.EACCES, "intel-rapl:1/energy_uj"), clock)
    before = meter.sample()
    clock.wait(1.0)
    energy = meter.energy(before, meter.sample())
    assert energy.joules is None
    assert "intel-rapl:1/energy_uj: permission denied" in energy.why


def test_a_wrap_without_a_known_range_is_unknown(tree, clock):
    files = package(0, 900)
    del files[f"{POWERCAP}/intel-rapl:0/max_energy_range_uj"]
    meter = RaplMeter(Root(tree(files)), clock)
    before = meter.sample()
    clock.wait(1.0)
    tree({f"{POWERCAP}/intel-rapl:0/energy_uj": "100"})
    assert "max_energy_range_uj" in meter.energy(before, meter.sample()).why


@pytest.mark.parametrize("jump", ["9" * 30, "200000000000", "10"])
def test_a_counter_that_jumps_gives_no_energy(tree, clock, jump):
    meter = RaplMeter(Root(tree(package(0, 1_000_000, range_uj=5_000_000_000))), clock)
    before = meter.sample()
    clock.wait(1.0)
    tree({f"{POWERCAP}/intel-rapl:0/energy_uj": jump})
    assert "jumped" in meter.energy(before, meter.sample()).why


def test_counters_that_stand_at_zero_were_never_counting(tree, clock):
    assert "0" in RaplMeter(Root(tree(package(0, 0))), clock).sample().why


def test_a_window_without_length_is_unknown(laptop, clock):
    meter = RaplMeter(Root(laptop), clock)
    sample = meter.sample()
    assert meter.energy(sample, sample).joules is None
    assert meter.energy(sample, MeterSample(sample.time_s - 1, sample.state)).joules is None


def test_the_power_sensor_gives_mean_watts_since_the_last_reading(laptop, clock):
    sensor = PowerSensor([RaplMeter(Root(laptop), clock)])
    clock.wait(2.0)
    (laptop / POWERCAP / "intel-rapl:0/energy_uj").write_text("31000000")  # 30 J later
    (reading,) = sensor.read()
    assert reading.value == pytest.approx(15.0)
    assert reading.source.startswith("rapl-package")
