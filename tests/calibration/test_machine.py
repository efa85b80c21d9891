"""What is read of the machine, from files laid out as the kernel's: its fingerprint, and what disturbs measurements."""

import os
from types import SimpleNamespace

import msgspec
import pytest

from calibration.disturbance import Disturbance, Warmth, Watch, median_pressure, reasons
from calibration.host import fingerprint


def _write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


class TestFingerprint:
    def test_an_x86_processor_is_known_by_its_model(self, tmp_path):
        _write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Made CPU @ 2 GHz\n\nmodel name\t: second\n"})
        assert fingerprint(root=tmp_path).cpu == "Made CPU @ 2 GHz"

    def test_a_board_is_known_by_its_name(self, tmp_path):
        cpu = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
        _write(tmp_path, {"proc/cpuinfo": cpu, "proc/device-tree/model": "Raspberry Pi 4 Model B\0"})
        assert fingerprint(root=tmp_path).cpu == "Raspberry Pi 4 Model B"
        (tmp_path / "proc/device-tree/model").unlink()
        assert fingerprint(root=tmp_path).cpu == "0x41 0xd08"

    def test_accelerators_are_those_whose_driver_is_loaded(self, tmp_path):
        assert fingerprint(root=tmp_path).accelerator == ""
        information = "Model: \t\t NVIDIA T4\nIRQ: 7\n"
        _write(tmp_path, {"proc/driver/nvidia/gpus/0000:00:04.0/information": information})
        assert fingerprint(root=tmp_path).accelerator == "NVIDIA T4"

    def test_only_the_libraries_that_the_rows_need_are_listed(self):
        assert set(fingerprint(["openvino"]).libraries) == {"openvino"}
        assert fingerprint(["elsewhere"]).libraries == {}

    def test_the_driver_of_a_gpu_counts_where_engines_run_on_one(self, tmp_path):
        version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\nGCC version: 12.2\n"
        _write(tmp_path, {"proc/driver/nvidia/version": version})
        assert fingerprint(["torch-cuda"], root=tmp_path).libraries["nvidia-driver"] == "535.104.05"
        assert "nvidia-driver" not in fingerprint(["openvino"], root=tmp_path).libraries

    def test_machines_of_one_kind_share_a_key(self, tmp_path):
        here = fingerprint()
        same = msgspec.structs.replace(here, python="9", system="other", memory_bytes=1)
        assert same.key == here.key and len(here.key) == 12
        for changes in ({"cpu": "x"}, {"cores": 99}, {"accelerator": "x"}, {"libraries": {"openvino": "0"}}):
            assert msgspec.structs.replace(here, **changes).key != here.key

    def test_this_machine_matches_itself(self):
        here = fingerprint()
        assert here.differences(fingerprint()) == []
        assert here.cores == len(os.sched_getaffinity(0)) and here.memory_bytes > 2**26


class TestWatch:
    def test_nothing_to_read_is_unknown_and_disturbs_nothing(self, tmp_path):
        watch = Watch(tmp_path)
        assert watch.between(watch.read(), watch.read(), 1.0) == Disturbance(None, None, False)

    def test_shares_are_of_the_time_between_two_readings(self, tmp_path):
        ticks = os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
        throttle = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"

        def machine(stalled_us, stolen, throttled):
            _write(
                tmp_path,
                {
                    "proc/pressure/cpu": f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled_us}\nfull total=9\n",
                    "proc/stat": f"cpu  1 2 3 4 5 6 7 {stolen} 0 0\ncpu0 1 2 3 4 5 6 7 99 0 0\n",
                    throttle: f"{throttled}\n",
                },
            )

        machine(1_000_000, 0, 3)
        watch = Watch(tmp_path)
        before = watch.read()
        machine(1_500_000, ticks // 2, 3)
        middle = watch.read()
        assert watch.between(before, middle, 2.0) == Disturbance(0.25, 0.25, False)
        machine(1_500_000, ticks // 2, 4)
        assert watch.between(middle, watch.read(), 2.0) == Disturbance(0.0, 0.0, True)

    def test_garbage_is_unknown(self, tmp_path):
        _write(tmp_path, {"proc/pressure/cpu": "some total=abc\n", "proc/stat": "cpu  1 2 3 4 5 6 7 x\n"})
        assert Watch(tmp_path).read() == (None, None, None, None)


class TestReasons:
    def test_on_a_quiet_machine_five_percent_is_too_much(self):
        shares = [0.0, 0.0, 0.01, 0.049, 0.051, 0.5]
        assert reasons([Disturbance(share) for share in shares]) == [None, None, None, None, "pressure", "pressure"]

    def test_on_a_machine_that_is_always_busy_only_what_stands_out_is_left_out(self):
        found = reasons([Disturbance(share) for share in (0.4, 0.4, 0.4, 0.59, 0.61)])
        assert found == [None, None, None, None, "pressure"]

    def test_throttling_counts_first_and_the_unknown_never(self):
        found = reasons([Disturbance(0.9, 0.9, True), Disturbance(None, None), Disturbance(0.0, 0.0)])
        assert found == ["throttled", None, None]

    def test_stolen_time_is_judged_like_pressure(self):
        assert reasons([Disturbance(None, share) for share in (0.0, 0.0, 0.2)]) == [None, None, "stolen"]

    def test_the_median_ignores_what_is_unknown(self):
        assert median_pressure([Disturbance(None), Disturbance(0.2), Disturbance(0.4)]) == pytest.approx(0.3)
        assert median_pressure([Disturbance()]) is None

    def test_a_round_off_temperature_is_left_out_under_that_name(self):
        assert reasons([Disturbance(0.0, 0.0, False, True), Disturbance(0.0)]) == ["temperature", None]


class TestThermometers:
    def test_the_processors_and_the_gpus_are_told_apart(self, tmp_path):
        _write(tmp_path, {f"{ZONE}/type": "x86_pkg_temp\n", f"{ZONE}/temp": "61000\n"})
        readings = [
            SimpleNamespace(name="gpu_temperature_c", value=55.0),
            SimpleNamespace(name="gpu_throttled", value=True),
        ]
        watch = Watch(tmp_path, gpu=SimpleNamespace(read=lambda: readings))
        assert watch.temperatures() == {"temperature_c": 61.0, "gpu_temperature_c": 55.0}
        assert watch.between(watch.read(), watch.read(), 1.0).throttled

    def test_without_one_there_is_nothing_to_match(self, tmp_path):
        assert Watch(tmp_path).temperatures() == {}


ZONE = "sys/class/thermal/thermal_zone0"


class Room:
    """A processor that cools towards 40 °C by 5 °C a second at rest, and warms by 1 °C with each piece of work."""

    def __init__(self, celsius, cools=5.0):
        self.celsius, self.cools, self.now_s, self.worked = celsius, cools, 0.0, 0

    def temperatures(self):
        return {"temperature_c": self.celsius}

    def sleep(self, seconds):
        self.now_s += seconds
        self.celsius = max(40.0, self.celsius - self.cools * seconds)

    def work(self):
        self.now_s += 0.01
        self.worked += 1
        self.celsius += 1.0

    def warmth(self, **changes):
        values = {"band_c": 3.0, "wait_s": 10.0, "reference": {"temperature_c": 60.0}}
        clocks = {"wall": lambda: self.now_s, "sleep": self.sleep, "work": self.work}
        return Warmth(self, **clocks, **{**values, **changes})


class TestWarmth:
    def test_the_first_round_sets_the_reference(self):
        room = Room(55.0)
        warmth = room.warmth(reference=None)
        assert warmth.settle() and warmth.reference == {"temperature_c": 55.0} and room.now_s == 0

    def test_near_enough_begins_at_once(self):
        room = Room(62.9)
        assert room.warmth().settle() and room.now_s == 0

    def test_too_warm_it_rests_until_it_is_near(self):
        room = Room(80.0)
        warmth = room.warmth()
        assert warmth.settle() and 62.0 <= room.celsius <= 63.0
        assert warmth.waited_s == pytest.approx(3.4, abs=0.2) and room.worked == 0

    def test_too_cold_it_works(self):
        room = Room(45.0)
        assert room.warmth().settle() and room.worked == 12

    def test_the_wait_is_bounded_and_says_that_it_failed(self):
        room = Room(80.0, cools=0.1)
        warmth = room.warmth()
        assert not warmth.settle() and warmth.waited_s == pytest.approx(10.0, abs=0.2)

    def test_a_thermometer_that_vanishes_does_not_hold_anything_up(self):
        room = Room(80.0)
        warmth = room.warmth()
        room.temperatures = dict
        assert warmth.settle() and room.now_s == 0
