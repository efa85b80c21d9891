"""Recorded trees: a laptop, a Jetson, a virtual machine; and a clock that moves only when told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sensors.contract import write_tree

PROC = {
    "proc/stat": "cpu  1000 0 500 8000 500 0 0 0 0 0\n"
    "cpu0 500 0 250 4000 250 0 0 0 0 0\n"
    "cpu1 500 0 250 4000 250 0 0 0 0 0\n",
    "proc/meminfo": "MemTotal:       16318480 kB\nMemFree:        1000000 kB\n",
    "proc/pressure/cpu": "some avg10=12.50 avg60=2.00 avg300=0.80 total=1\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "proc/pressure/io": "some avg10=1.00 avg60=0.00 avg300=0.00 total=0\n",
}

LAPTOP = {
    **PROC,
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) Ultra 7 155U\ncpu MHz\t\t: 1700.000\n\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2000000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "7\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/present": "1\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT0/capacity": "60\n",
    "sys/class/power_supply/BAT0/energy_now": "30300000\n",
    "sys/class/power_supply/BAT0/energy_full": "50000000\n",
    "sys/class/power_supply/BAT0/power_now": "8500000\n",
    "sys/class/power_supply/BAT0/voltage_now": "11800000\n",
    "sys/class/power_supply/hid-mouse-battery/type": "Battery\n",
    "sys/class/power_supply/hid-mouse-battery/scope": "Device\n",
    "sys/class/power_supply/hid-mouse-battery/capacity": "5\n",
    "sys/class/power_supply/hid-mouse-battery/status": "Discharging\n",
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "27800\n",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone1/temp": "61000\n",
    "sys/class/thermal/cooling_device0/type": "Processor\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/hwmon/hwmon0/name": "nvme\n",
    "sys/class/hwmon/hwmon0/temp1_label": "Composite\n",
    "sys/class/hwmon/hwmon0/temp1_input": "74850\n",
    "sys/class/hwmon/hwmon4/name": "coretemp\n",
    "sys/class/hwmon/hwmon4/temp1_label": "Package id 0\n",
    "sys/class/hwmon/hwmon4/temp1_input": "63000\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw": "15000000\n",
    "sys/class/powercap/intel-rapl:0/constraint_1_power_limit_uw": "57000000\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "900000\n",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:1/name": "uncore\n",
    "sys/class/powercap/intel-rapl:0:1/energy_uj": "1000\n",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "5000000\n",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "1000000\n",
    "sys/class/powercap/intel-rapl-mmio:0/max_energy_range_uj": "262143328850\n",
}

_INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
JETSON = {
    **PROC,
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51406\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "52500\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-274000\n",
    "sys/class/thermal/thermal_zone3/type": "PMIC-Die\n",
    "sys/class/thermal/thermal_zone3/temp": "100000\n",
    "sys/class/thermal/thermal_zone4/type": "soc2-thermal\n",
    "sys/class/thermal/thermal_zone4/temp": "0\n",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "2\n",
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    f"{_INA}/in1_label": "VDD_IN\n",
    f"{_INA}/in1_input": "5016\n",
    f"{_INA}/curr1_input": "1200\n",
    f"{_INA}/in2_label": "VDD_CPU_GPU_CV\n",
    f"{_INA}/in2_input": "5000\n",
    f"{_INA}/curr2_input": "400\n",
    f"{_INA}/in3_label": "NC\n",
    f"{_INA}/in3_input": "5000\n",
    f"{_INA}/curr3_input": "9000\n",
    f"{_INA}/in7_label": "sum of shunt voltages\n",
    f"{_INA}/in7_input": "1\n",
    f"{_INA}/curr7_input": "9000\n",
}

VIRTUAL_MACHINE = {**PROC, "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2596.128\n\n"}


class Clock:
    """Seconds that pass only by :meth:`wait`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "laptop", LAPTOP)


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "jetson", JETSON)


@pytest.fixture
def virtual_machine(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "vm", VIRTUAL_MACHINE)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes files into one tree, to be called again when the machine's state changes."""
    return lambda files: write_tree(tmp_path / "tree", files)
