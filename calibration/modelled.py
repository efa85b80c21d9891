"""The energy model of last resort, fed with this process's own processor time.

On a machine without any counter ``sensors`` models energy from the load of the whole machine. For calibration that
would charge every operating point with whatever else is running; here the same curve is given the processor time that
the measured engines themselves used, so the figures are those of a machine that does nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from sensors import Energy, EnergyMeter, MeterSample
from sensors.spec_curve import SpecCurveModel, modelled_power_w


class OwnWorkModel(EnergyMeter):
    """Joules modelled from the processor time of this process, threads included.

    Args:
        wall: seconds of wall time.
        cpu: seconds of this process's processor time.
        processors: hardware threads of the machine.
    """

    source = SpecCurveModel.source
    device = "system"
    update_period_s = 0.0
    where = "processor time of this process"

    def __init__(
        self, wall: Callable[[], float], cpu: Callable[[], float], processors: int = os.cpu_count() or 1
    ) -> None:
        self._wall, self._cpu, self._processors = wall, cpu, processors

    def sample(self) -> MeterSample:
        """Wall and processor time now."""
        return MeterSample(self._wall(), self._cpu())

    def energy(self, before: MeterSample, after: MeterSample) -> Energy:
        """Modelled power at the mean utilisation by this process, times the window's length."""
        seconds, why = self._window(before, after)
        if why:
            return self._unknown(before, after, why)
        utilisation = (after.state - before.state) / (seconds * self._processors)
        low, value, high = modelled_power_w(utilisation, self._processors)
        return Energy(value * seconds, low * seconds, high * seconds, seconds, self.source)


def with_own_work(
    meters: Sequence[EnergyMeter], wall: Callable[[], float], cpu: Callable[[], float]
) -> list[EnergyMeter]:
    """The meters, with the whole machine's model replaced by that of this process's own work."""
    return [OwnWorkModel(wall, cpu) if isinstance(meter, SpecCurveModel) else meter for meter in meters]
