"""NVIDIA GPUs through NVML: one seam over the library, and the sensor.

* :class:`Nvml`: every call guarded; what a device does not support is None with the reason.
* :class:`NvmlSensor`.

On a Jetson NVML initialises and counts a device, and then supports no reading at all; so nothing here is believed
available before a reading succeeded. The library is imported when first opened, and only then.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from sensors.base import Reading, Sensor, known, unknown
from sensors.root import Number

# Slowdown by hardware, by software for heat, by hardware for heat, by the power brake. Running at the configured power
# cap (0x4) is how a healthy GPU behaves under full load, so it does not count as throttling.
_THROTTLING = 0x08 | 0x20 | 0x40 | 0x80
_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT, mW


class Nvml:
    """One GPU. Make it with :func:`open_nvml`; every method returns a number, or None and why."""

    def __init__(self, library: Any, handle: Any, name: str, index: int) -> None:
        self._library = library
        self._handle = handle
        self.name = name
        self.source = f"nvml:{index} ({name})"

    def energy_j(self) -> Number:
        """Energy since the driver was loaded; a counter (mJ), Volta and later."""
        return self._number(lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle) * 1e-3)

    def power_w(self) -> Number:
        """Power at this instant where the driver offers it, else its own average (over up to 1 s)."""
        instant = self._number(self._power_instant_w)
        if instant.value is not None:
            return instant
        return self._number(lambda: self._library.nvmlDeviceGetPowerUsage(self._handle) * 1e-3)

    def temperature_c(self) -> Number:
        """Temperature of the GPU core."""
        core = self._library.NVML_TEMPERATURE_GPU
        found = self._number(lambda: self._library.nvmlDeviceGetTemperatureV(self._handle, core))
        if found.value is not None:
            return found
        return self._number(lambda: self._library.nvmlDeviceGetTemperature(self._handle, core))  # older drivers

    def clock_reasons(self) -> Number:
        """The bit mask of reasons for the present clocks."""
        found = self._number(lambda: self._library.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        if found.value is not None:
            return found
        return self._number(lambda: self._library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))

    def _power_instant_w(self) -> float:
        value = self._library.nvmlDeviceGetFieldValues(self._handle, [_POWER_INSTANT])[0]
        if value.nvmlReturn != 0:
            raise ValueError(f"field {_POWER_INSTANT}: NVML error {value.nvmlReturn}")
        return float(value.value.uiVal) * 1e-3

    def _number(self, call: Callable[[], float]) -> Number:
        try:
            return Number(float(call()))
        except Exception as error:  # the binding raises its own classes, and AttributeError for what is too new
            return Number(None, f"{self.source}: {_plain(error)}")


def open_nvml(index: int = 0) -> tuple[Nvml | None, str]:
    """A GPU by its index; or None, and why."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None, "the Python module pynvml is not installed (pip install nvidia-ml-py)"
    try:
        library.nvmlInit()  # counted by the library; kept for the life of the process
        handle = library.nvmlDeviceGetHandleByIndex(index)
        name = library.nvmlDeviceGetName(handle)
    except Exception as error:  # no driver, no such device, a device that was lost
        return None, f"nvml:{index}: {_plain(error)}"
    return Nvml(library, handle, name.decode() if isinstance(name, bytes) else str(name), index), ""


class NvmlSensor(Sensor):
    """``gpu_temperature_c``, ``gpu_throttled`` and ``gpu_power_w``.

    With ``feeds_conditions`` also under the plain names that policies see: for engines that run on this GPU.
    """

    name = "nvml"
    plain_names = ("temperature_c", "throttled", "power_w")

    def __init__(self, nvml: Nvml, *, feeds_conditions: bool = False) -> None:
        self._nvml = nvml
        self._prefixes = ("", "gpu_") if feeds_conditions else ("gpu_",)
        self.names = tuple(prefix + name for prefix in self._prefixes for name in self.plain_names)

    def read(self) -> tuple[Reading, ...]:
        """Three readings, or six."""
        reasons = self._nvml.clock_reasons()
        values: tuple[tuple[float | bool | None, str], ...] = (
            (lambda found: (found.value, found.why))(self._nvml.temperature_c()),
            (None if reasons.value is None else bool(int(reasons.value) & _THROTTLING), reasons.why),
            (lambda found: (found.value, found.why))(self._nvml.power_w()),
        )
        return tuple(
            known(prefix + name, value, self._nvml.source)
            if value is not None
            else unknown(prefix + name, self._nvml.source, why)
            for prefix in self._prefixes
            for name, (value, why) in zip(self.plain_names, values, strict=True)
        )


def _plain(error: Exception) -> str:
    return str(error) or type(error).__name__
