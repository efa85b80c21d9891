"""Energy of an NVIDIA GPU: its own counter where there is one, else its power as a gauge to integrate."""

from __future__ import annotations

import time
from collections.abc import Callable

from sensors.meter import Energy, EnergyMeter, MeterSample, PowerGauge, counted, staleness
from sensors.nvml import Nvml
from sensors.root import Number

_UPDATE_PERIOD_S = 0.1  # counters and power are refreshed every 10 to 100 ms, depending on the part


class NvmlCounterMeter(EnergyMeter):
    """Joules of the board by its counter (mJ)."""

    source = "nvml-counter"
    device = "GPU"
    update_period_s = _UPDATE_PERIOD_S

    def __init__(self, nvml: Nvml, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._clock = clock
        self.where = nvml.source

    def sample(self) -> MeterSample:
        """The counter; one that stands at 0 was never counting."""
        found = self._nvml.energy_j()
        why = found.why or ("" if found.value else f"{self.where}: the energy counter reads 0")
        return MeterSample(self._clock(), found.value, why)

    def energy(self, before: MeterSample, after: MeterSample) -> Energy:
        """The counter's difference."""
        seconds, why = self._window(before, after)
        if not why and after.state < before.state:
            why = f"{self.where}: the energy counter was reset within the window"
        if why:
            return self._unknown(before, after, why)
        joules, stale_s = after.state - before.state, staleness(before, after, _UPDATE_PERIOD_S)
        return counted(joules, seconds, self.source, resolution_j=1e-3, update_period_s=stale_s)


class NvmlGauge(PowerGauge):
    """Watts of the board; for GPUs older than Volta, which have no counter."""

    source = "nvml-power-integrated"
    device = "GPU"
    update_period_s = _UPDATE_PERIOD_S

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self.where = nvml.source

    def power_w(self) -> Number:
        """Power now."""
        return self._nvml.power_w()
