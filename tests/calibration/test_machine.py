"""What is read of the machine, from files laid out as the kernel's: its fingerprint, and what disturbs measurements."""

import os

import pytest

from calibration.disturbance import Disturbance, Watch, median_pressure, reasons
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
        assert watch.between(before, middle, 2.0) == pytest.approx((0.25, 0.25, False))
        machine(1_500_000, ticks // 2, 4)
        assert watch.between(middle, watch.read(), 2.0) == (0.0, 0.0, True)

    def test_garbage_is_unknown(self, tmp_path):
        _write(tmp_path, {"proc/pressure/cpu": "some total=abc\n", "proc/stat": "cpu  1 2 3 4 5 6 7 x\n"})
        assert Watch(tmp_path).read() == (None, None, None)


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
