"""Energy modelled from CPU utilisation, for machines without any counter: a virtual machine, mostly.

::

    P = n_vcpu · (p_idle + g(u) · (p_max - p_idle))

u is the utilisation over the window, from CPU times; p_idle and p_max are watts per hardware thread of published
servers; g is their mean normalised curve. The result is an *interval* (10th to 90th percentile of the servers) and is
always labelled as modelled. It ranks subnets by processor time, which is measured; its watts are those of a whole
server at the wall, memory, fans and power supply included, and must not be compared with RAPL's.

Source: SPECpower_ssj2008 results as collected by Cloud Carbon Footprint (github.com/cloud-carbon-footprint/
ccf-coefficients, data/SPECpower-2026-03-09.csv) and Green Coding Solutions (github.com/green-coding-solutions/
spec-power-model, data/spec_data_cleaned_unmelted.csv): quantiles over the 393 systems published 2021 to 2026, the curve
over the 184 systems published since 2018.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from sensors.load import STAT, cpu_times
from sensors.meter import Energy, EnergyMeter, MeterSample
from sensors.root import Root

# Watts per hardware thread: 10th, 50th and 90th percentile.
IDLE_W = (0.23, 0.69, 1.43)
MAX_W = (1.23, 2.81, 4.89)
# Share of the dynamic power at 0, 10, ... 100 % utilisation.
CURVE = (0.0, 0.184, 0.252, 0.318, 0.383, 0.452, 0.529, 0.618, 0.727, 0.856, 1.0)


def dynamic_share(utilisation: float) -> float:
    """g(u): the share 0..1 of dynamic power at a utilisation 0..1, linear between the published points."""
    position = min(1.0, max(0.0, utilisation)) * (len(CURVE) - 1)
    below = min(len(CURVE) - 2, math.floor(position))
    return CURVE[below] + (position - below) * (CURVE[below + 1] - CURVE[below])


def modelled_power_w(utilisation: float, cpus: int) -> tuple[float, float, float]:
    """Watts of ``cpus`` hardware threads at a utilisation 0..1: (10th percentile, median, 90th percentile)."""
    share = dynamic_share(utilisation)
    low, median, high = (cpus * (idle + share * (full - idle)) for idle, full in zip(IDLE_W, MAX_W, strict=True))
    return low, median, high


class SpecCurveModel(EnergyMeter):
    """Joules modelled from the whole machine's CPU times in the window."""

    source = "modelled:spec-curve"
    device = "CPU"  # follows the processor alone: what a GPU draws moves nothing here
    update_period_s = 0.01  # the kernel's tick

    def __init__(self, root: Root, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self.where = root.where(STAT)

    def sample(self) -> MeterSample:
        """CPU times now."""
        times, why = cpu_times(self._root)
        return MeterSample(self._clock(), times, why)

    def energy(self, before: MeterSample, after: MeterSample) -> Energy:
        """Modelled power at the window's mean utilisation, times its length."""
        seconds, why = self._window(before, after)
        if why:
            return self._unknown(before, after, why)
        busy = after.state.busy - before.state.busy
        idle = after.state.idle - before.state.idle
        if busy < 0 or busy + idle <= 0:
            return self._unknown(before, after, f"{self.where}: no processor time was counted in the window")
        low, median, high = modelled_power_w(busy / (busy + idle), after.state.cpus)
        return Energy(median * seconds, low * seconds, high * seconds, seconds, self.source)
