"""CPU clock frequency: the mean over cores, from cpufreq, else from ``/proc/cpuinfo``."""

from __future__ import annotations

import re

from sensors.base import Reading, Sensor, known, unknown
from sensors.root import Root

CPUS = "sys/devices/system/cpu"
CPUINFO = "proc/cpuinfo"


class FrequencySensor(Sensor):
    """``cpu_frequency_hz``: a falling mean clock under load shows throttling that no driver reports."""

    name = "frequency"
    names = ("cpu_frequency_hz",)

    def __init__(self, root: Root) -> None:
        self._root = root

    def read(self) -> tuple[Reading, ...]:
        """One reading."""
        return (self._from_cpufreq() or self._from_cpuinfo(),)

    def _from_cpufreq(self) -> Reading | None:
        clocks: list[float] = []
        for cpu in self._root.names(CPUS, r"cpu\d+"):
            clock = self._root.number(f"{CPUS}/{cpu}/cpufreq/scaling_cur_freq", 1e3)  # kHz
            if clock.value is not None:
                clocks.append(clock.value)
        source = self._root.where(f"{CPUS}/cpu*/cpufreq/scaling_cur_freq")
        return known("cpu_frequency_hz", sum(clocks) / len(clocks), source) if clocks else None

    def _from_cpuinfo(self) -> Reading:
        source = self._root.where(CPUINFO)
        found = self._root.head(CPUINFO)
        if found.text is None:
            return unknown("cpu_frequency_hz", source, found.why)
        clocks = [float(mhz) * 1e6 for mhz in re.findall(r"^cpu MHz\s*:\s*(\d{1,9}(?:\.\d{1,9})?)$", found.text, re.M)]
        if not clocks:
            return unknown("cpu_frequency_hz", source, f"{source}: states no clock, and there is no cpufreq")
        return known("cpu_frequency_hz", sum(clocks) / len(clocks), source)
