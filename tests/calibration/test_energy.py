"""Joules in the table against a machine whose true energy is known, through the real meters on recorded counters.

The machine draws 2 W at rest and 5 W while an engine works. Its counters are read where a driver puts them, wrap around
and move in steps; the truth is worked out from the fake clock alone.
"""

import bisect
import errno
from types import SimpleNamespace

import msgspec
import pynvml
import pytest
from click.testing import CliRunner

from calibration import wording, write
from calibration.disturbance import Watch
from calibration.measure import Settings, calibrate
from calibration.report import report
from sensors.battery_meter import BatteryMeter
from sensors.contract import FaultyRoot, write_tree
from sensors.nvml import open_nvml
from sensors.nvml_meter import NvmlCounterMeter
from sensors.rapl import POWERCAP, RaplMeter
from sensors.root import Root
from sensors.spec_curve import SpecCurveModel

PACKAGE = f"{POWERCAP}/intel-rapl:0"
RANGE_UJ = 20_000_000  # 20 J: wraps every few seconds
SETTINGS = Settings(budget_s=40.0, rests_ms=(), max_rounds=8)


class Recording:
    """The true energy at any past instant: linear between the moments at which the machine's work changed."""

    def __init__(self, fakes):
        recording = self

        class Time(fakes.Time):
            def sleep(self, seconds):
                super().sleep(seconds)
                recording.note(self)

            def work(self, ms):
                super().work(ms)
                recording.note(self)

        self.times_s, self.joules = [0.0], [0.0]
        self.idle_w, self.busy_w = fakes.idle_w, fakes.busy_w
        self.time = Time()

    def note(self, time):
        joules = self.idle_w * time.now_s + (self.busy_w - self.idle_w) * time.busy_s
        self.times_s.append(time.now_s)
        self.joules.append(joules)

    def at(self, time_s):
        place = min(len(self.times_s) - 1, bisect.bisect_left(self.times_s, time_s))
        if place == 0:
            return 0.0
        (t0, t1), (e0, e1) = self.times_s[place - 1 : place + 1], self.joules[place - 1 : place + 1]
        return e1 if t1 == t0 else e0 + (e1 - e0) * (min(time_s, t1) - t0) / (t1 - t0)

    def counter_j(self, period_s):
        """What a counter shows that is refreshed every ``period_s``."""
        return self.at(self.time.now_s // period_s * period_s)


@pytest.fixture
def recording(fakes):
    return Recording(fakes)


@pytest.fixture
def measured(bundle, fakes, tmp_path, recording):
    def run(found, device="CPU"):
        backend = fakes.Backend(recording.time, precisions=("f32",))
        backend.device = device
        return calibrate(
            bundle,
            [backend],
            settings=SETTINGS,
            meters=found,
            clocks=recording.time.clocks(),
            watch=Watch(tmp_path / "nothing"),
            threads=1,
        )

    return run


def _right_within_2_percent(table, fakes):
    for row in table.rows:
        seconds = fakes.steady_ms[row.subnet] / 1e3
        assert row.energy_j == pytest.approx(fakes.busy_w * seconds, rel=0.02)
        assert row.net_energy_j == pytest.approx((fakes.busy_w - fakes.idle_w) * seconds, rel=0.04)
        assert row.power_w == pytest.approx(fakes.busy_w, rel=0.02)
        assert row.energy_low_j <= fakes.busy_w * seconds <= row.energy_high_j
    assert table.idle_power_w == pytest.approx(fakes.idle_w, rel=0.02)


def test_a_sysfs_counter_that_wraps_around_during_the_run(measured, recording, fakes, tmp_path):
    class Live(Root):
        wraps = 0

        def read_bytes(self, relative, limit):
            if relative == f"{PACKAGE}/energy_uj":
                whole = int(recording.counter_j(0.001) * 1e6) + 19_000_000
                self.wraps = whole // RANGE_UJ
                return str(whole % RANGE_UJ).encode()
            return super().read_bytes(relative, limit)

    files = {
        f"{PACKAGE}/name": "package-0",
        f"{PACKAGE}/energy_uj": "1",
        f"{PACKAGE}/max_energy_range_uj": str(RANGE_UJ),
        f"{PACKAGE}/constraint_0_power_limit_uw": "6000000",
    }
    root = Live(write_tree(tmp_path / "tree", files))
    table = measured([RaplMeter(root, clock=recording.time.clocks().wall)])
    assert root.wraps >= 3
    assert {row.energy_source for row in table.rows} == {"rapl-package"}
    _right_within_2_percent(table, fakes)


@pytest.fixture
def board(monkeypatch, recording):
    """An NVIDIA board whose energy counter is refreshed every 100 ms; ``gain`` is how wrong it counts."""
    state = SimpleNamespace(gain=1.0)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: "handle")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "Board")
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetTotalEnergyConsumption",
        lambda handle: int(1e6 + 1e3 * state.gain * recording.counter_j(0.1)),
    )
    nvml, why = open_nvml()
    assert nvml is not None, why
    state.meter = NvmlCounterMeter(nvml, recording.time.clocks().wall)
    return state


def test_an_nvml_counter_that_moves_every_100_ms(measured, board, fakes):
    table = measured([board.meter], device="GPU")
    assert {row.energy_source for row in table.rows} == {"nvml-counter"}
    assert table.protocol.seconds_per_cell < 2  # twenty steps of the counter at most: without care off by 5 % a cell
    _right_within_2_percent(table, fakes)


def _second(fakes, recording, gain):
    """Another meter of the board, that integrates its power."""

    class Second(fakes.Meter):
        device = "GPU"

        def energy(self, before, after):
            energy = super().energy(before, after)
            return type(energy)(*(gain * energy.joules for _ in range(3)), energy.seconds, energy.source)

    return Second(recording.time, "nvml-power-integrated")


def test_of_two_counters_that_disagree_the_better_one_is_right_and_the_doubt_is_told(measured, board, recording, fakes):
    table = measured([board.meter, _second(fakes, recording, 1.74)], device="GPU")
    _right_within_2_percent(table, fakes)
    for row in table.rows:
        assert row.energy_suspect and row.energy_check_source == "nvml-power-integrated"
        assert row.energy_check_j == pytest.approx(1.74 * row.energy_j, rel=0.03)
        assert row.energy_high_j >= row.energy_check_j
    assert any("nvml-counter against nvml-power-integrated" in remark for remark in wording.remarks(table))


def test_where_the_better_one_is_wrong_the_interval_still_holds_the_truth(measured, board, recording, fakes):
    board.gain = 0.6
    table = measured([board.meter, _second(fakes, recording, 1.0)], device="GPU")
    for row in table.rows:
        truth = fakes.busy_w * fakes.steady_ms[row.subnet] / 1e3
        assert row.energy_suspect and row.energy_low_j <= truth <= row.energy_high_j
        assert row.net_energy_low_j <= truth * (1 - fakes.idle_w / fakes.busy_w) <= row.net_energy_high_j


def test_two_that_agree_are_no_suspects(measured, board, recording, fakes):
    table = measured([board.meter, _second(fakes, recording, 1.01)], device="GPU")
    assert not any(row.energy_suspect for row in table.rows)
    assert all(row.energy_check_j == pytest.approx(row.energy_j, rel=0.03) for row in table.rows)
    assert not any("contradict" in remark for remark in wording.remarks(table))


def test_a_second_meter_too_coarse_to_tell_contradicts_nobody(measured, board, recording, fakes):
    second = _second(fakes, recording, 1.08)
    exact = second.energy

    def vague(before, after):
        energy = exact(before, after)
        return msgspec.structs.replace(energy, low_j=0.5 * energy.joules, high_j=2 * energy.joules)

    second.energy = vague
    table = measured([board.meter, second], device="GPU")
    assert not any(row.energy_suspect for row in table.rows)
    assert all(row.energy_check_j == pytest.approx(1.08 * row.energy_j, rel=0.03) for row in table.rows)


def test_a_meter_of_another_domain_is_no_check(measured, recording, fakes):
    package, whole_board = fakes.Meter(recording.time), fakes.Meter(recording.time, "tegra-ina3221")
    whole_board.device = "system"
    table = measured([package, whole_board])
    assert {row.energy_check_source for row in table.rows} == {""}


@pytest.mark.parametrize("kind", ["energy_now", "charge_now"])
def test_a_batterys_gauge_over_minutes(recording, tmp_path, kind):
    """A gauge in steps of 10 mWh that refreshes every 10 s, while the machine works a third of the time."""
    battery, volts = "sys/class/power_supply/BAT0", 7.4

    class Live(Root):
        def read_bytes(self, relative, limit):
            if relative.endswith(kind):
                joules = 60_000 - recording.counter_j(10.0)
                return str(
                    round(joules / 3600 / 0.01) * 10_000 if kind == "energy_now" else round(joules / volts / 3600 * 1e6)
                ).encode()
            return super().read_bytes(relative, limit)

    files = {
        f"{battery}/type": "Battery",
        f"{battery}/present": "1",
        f"{battery}/status": "Discharging",
        f"{battery}/capacity": "60",
        f"{battery}/voltage_now": str(int(volts * 1e6)),
        f"{battery}/{kind}": "1",
    }
    meter = BatteryMeter(Live(write_tree(tmp_path / "tree", files)), clock=recording.time.clocks().wall)
    before = meter.sample()
    start_j = recording.at(recording.time.now_s)
    for _ in range(1200):
        recording.time.work(500.0)
        recording.time.sleep(1.0)
    energy = meter.energy(before, meter.sample())
    truth_j = recording.at(recording.time.now_s) - start_j
    assert energy.joules == pytest.approx(truth_j, rel=0.02)
    assert energy.low_j <= truth_j <= energy.high_j


def test_without_permission_the_table_says_modelled_wherever_a_joule_stands(measured, recording, tmp_path):
    files = {
        f"{PACKAGE}/name": "package-0",
        f"{PACKAGE}/energy_uj": "5",
        f"{PACKAGE}/max_energy_range_uj": str(RANGE_UJ),
        "proc/stat": "cpu  1000 0 500 8000 500 0 0 0 0 0\ncpu0 500 0 250 4000 250 0 0 0 0 0\n",
    }
    root = FaultyRoot(write_tree(tmp_path / "tree", files), errno.EACCES, "energy_uj")
    ladder = [RaplMeter(root), SpecCurveModel(root)]
    assert "permission denied" in ladder[0].sample().why
    table = measured([meter for meter in ladder if not meter.sample().why])
    for row in table.rows:
        assert row.energy_source.startswith("modelled") and row.energy_low_j < row.energy_j < row.energy_high_j
    page = report(table)
    assert page.count("modelled:spec-curve") >= len(table.rows) and "a model, not a measurement" in page
    assert any("modelled" in remark for remark in wording.remarks(table))


@pytest.mark.parametrize("asked", ["show", "show --json -", "diff", "diff --json -", "export", "report"])
def test_modelled_joules_are_called_so_wherever_they_are_told(make_table, make_row, tmp_path, asked):
    """On the screen, in JSON, as CSV, on the page: whoever sees a joule sees the word, and no joule goes without."""
    from cli.table import command

    joules = {"power_w": 4.0, "energy_j": 0.008, "energy_low_j": 0.003, "energy_high_j": 0.015}
    table = make_table([make_row(**joules, energy_source="modelled:spec-curve")], idle_power_w=1.4)
    table = msgspec.structs.replace(table, power_source="modelled:spec-curve")
    path = tmp_path / "t.json"
    write(table, path)
    page = tmp_path / "r.html"
    arguments = {
        "diff": ["diff", str(path), str(path)],
        "export": ["export", str(path), "-"],
        "report": ["show", str(path), "--report", str(page)],
    }.get(asked.split()[0], ["show", str(path)])
    done = CliRunner().invoke(command, [*arguments, *asked.split()[1:]], catch_exceptions=False)
    said = page.read_text() if asked == "report" else done.output
    assert done.exit_code == 0 and "modelled:spec-curve" in said


def test_a_counter_that_may_not_be_read_is_no_zero(measured, recording, tmp_path):
    tree = write_tree(tmp_path / "tree", {f"{PACKAGE}/name": "package-0", f"{PACKAGE}/energy_uj": "5"})
    denied = RaplMeter(FaultyRoot(tree, errno.EACCES, "energy_uj"), recording.time.clocks().wall)
    table = measured([denied])
    assert all(row.energy_j is None and row.energy_source == "unmeasurable" for row in table.rows)
