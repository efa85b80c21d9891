"""NVML as drivers answer it: the real binding with its real errors, its calls answered by a script."""

from types import SimpleNamespace

import pynvml
import pytest

from sensors.base import Snapshot
from sensors.discovery import candidates, discover
from sensors.integrate import IntegratingMeter
from sensors.nvml import NvmlSensor, open_nvml
from sensors.nvml_meter import NvmlCounterMeter, NvmlGauge

READINGS = (
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)


def raises(code):
    def call(*_):
        raise pynvml.NVMLError(code)

    return call


@pytest.fixture
def driver(monkeypatch):
    """A driver that initialises and has one device, on which no reading is supported (a Jetson's); set what it can."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: f"handle {index}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: b"Orin (nvgpu)")
    for name in READINGS:
        monkeypatch.setattr(pynvml, name, raises(pynvml.NVML_ERROR_NOT_SUPPORTED))
    return lambda **calls: [monkeypatch.setattr(pynvml, name, call) for name, call in calls.items()]


def gpu():
    nvml, why = open_nvml()
    assert nvml is not None, why
    return nvml


def field(milliwatts, code=0):
    return lambda handle, fields: [SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(uiVal=milliwatts))]


def test_a_device_on_which_nothing_is_supported_reads_as_unknown_and_gives_no_meter(driver):
    readings = NvmlSensor(gpu()).read()
    assert [reading.name for reading in readings] == ["gpu_temperature_c", "gpu_throttled", "gpu_power_w"]
    assert all(reading.value is None and "Not Supported" in reading.why for reading in readings)
    rungs = {rung.source: rung for rung in candidates()}
    assert "Not Supported" in rungs["nvml-counter"].why
    assert "Not Supported" in rungs["nvml-power-integrated"].why


def test_a_device_that_answers_gives_readings_in_si_units(driver):
    driver(
        nvmlDeviceGetTemperatureV=lambda handle, kind: 67,
        nvmlDeviceGetFieldValues=field(123_456),
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: pynvml.nvmlClocksEventReasonSwPowerCap,
    )
    assert Snapshot(NvmlSensor(gpu()).read()).values() == {
        "gpu_temperature_c": 67.0,
        "gpu_power_w": pytest.approx(123.456),
        "gpu_throttled": False,  # at its configured power cap, as under any full load
    }


def test_older_drivers_are_asked_by_their_older_calls(driver):
    driver(
        nvmlDeviceGetTemperature=lambda handle, kind: 55,
        nvmlDeviceGetFieldValues=field(0, pynvml.NVML_ERROR_NOT_SUPPORTED),
        nvmlDeviceGetPowerUsage=lambda handle: 40_000,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    )
    assert Snapshot(NvmlSensor(gpu()).read()).values() == {
        "gpu_temperature_c": 55.0,
        "gpu_power_w": 40.0,
        "gpu_throttled": True,
    }


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_UNKNOWN, 12345])
def test_a_gpu_that_is_lost_while_running_is_unknown(driver, code):
    sensor = NvmlSensor(gpu())
    driver(**{name: raises(code) for name in READINGS})
    assert all(reading.value is None for reading in sensor.read())


def test_an_absurd_temperature_is_unknown(driver):
    driver(nvmlDeviceGetTemperatureV=lambda handle, kind: 4_294_967_295)
    assert NvmlSensor(gpu()).read()[0].value is None


def test_without_the_binding_or_the_driver_there_is_a_reason(monkeypatch):
    import sys

    monkeypatch.setattr(pynvml, "nvmlInit", raises(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert "Not Found" in open_nvml()[1]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in open_nvml()[1]


def test_the_gpu_feeds_conditions_only_when_engines_run_there(driver):
    driver(nvmlDeviceGetTemperatureV=lambda handle, kind: 77)
    on_gpu = discover(device="GPU").read()
    assert on_gpu.values()["temperature_c"] == 77.0
    on_cpu = discover().read()
    assert on_cpu.values()["gpu_temperature_c"] == 77.0
    assert not [r for r in on_cpu.readings if r.name == "temperature_c" and r.source.startswith("nvml")]


def test_the_counter_gives_joules_within_2_percent_of_the_truth(driver, clock):
    """A board at 250 W whose counter is refreshed every 100 ms."""

    def counter_mj(_):
        return int(1e6 + 250e3 * (clock() // 0.1) * 0.1)

    driver(nvmlDeviceGetTotalEnergyConsumption=counter_mj)
    meter = NvmlCounterMeter(gpu(), clock)
    clock.wait(0.07)
    before = meter.sample()
    clock.wait(6.02)
    energy = meter.energy(before, meter.sample())
    assert energy.joules == pytest.approx(250 * 6.02, rel=0.02)
    assert energy.low_j <= 250 * 6.02 <= energy.high_j


def test_a_counter_at_zero_or_reset_gives_no_energy(driver, clock):
    driver(nvmlDeviceGetTotalEnergyConsumption=lambda handle: 0)
    assert "reads 0" in NvmlCounterMeter(gpu(), clock).sample().why
    values = iter([9000, 10])
    driver(nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(values))
    meter = NvmlCounterMeter(gpu(), clock)
    before = meter.sample()
    clock.wait(1.0)
    assert "reset" in meter.energy(before, meter.sample()).why


def test_power_is_integrated_where_there_is_no_counter(driver, clock):
    driver(nvmlDeviceGetPowerUsage=lambda handle: 60_000)
    meter = IntegratingMeter(NvmlGauge(gpu()), clock=clock)
    before = meter.sample()
    for _ in range(20):
        clock.wait(0.1)
        after = meter.sample()
    energy = meter.energy(before, after)
    assert energy.joules == pytest.approx(120.0)
    assert energy.source == "nvml-power-integrated"
