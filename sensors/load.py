"""CPU load from ``/proc/stat``: how busy all cores were since the last reading.

* :class:`CpuTimes`, :func:`cpu_times`: cumulated processor time, also what the modelled energy is computed from.
* :class:`LoadSensor`.

Ticks are the kernel's USER_HZ, 100 per second on every architecture supported here; shares need no unit anyway.
"""

from __future__ import annotations

import re

import msgspec

from sensors.base import Reading, Sensor, known, unknown
from sensors.root import Root

STAT = "proc/stat"


class CpuTimes(msgspec.Struct, frozen=True):
    """Cumulated ticks over all cores: at work, at work for other guests of the host (steal), and idle."""

    cpus: int
    busy: int
    steal: int
    idle: int


def cpu_times(root: Root) -> tuple[CpuTimes | None, str]:
    """The machine's processor time so far; or None, and why."""
    found = root.head(STAT)
    if found.text is None:
        return None, found.why
    lines = found.text.splitlines()
    fields = lines[0].split() if lines else []
    numbers = fields[1:]
    if not fields or fields[0] != "cpu" or len(numbers) < 4 or not all(re.fullmatch(r"\d{1,19}", n) for n in numbers):
        return None, f"{root.where(STAT)}: first line is not 'cpu' and counts of ticks"
    # user, nice, system, idle, iowait, irq, softirq, steal; guest time is already within user and nice.
    user, nice, system, idle, iowait, irq, softirq, steal = ([int(n) for n in numbers] + [0] * 8)[:8]
    cpus = sum(1 for line in lines if re.match(r"cpu\d+ ", line))
    return CpuTimes(max(1, cpus), user + nice + system + irq + softirq, steal, idle + iowait), ""


class LoadSensor(Sensor):
    """``cpu_load``: share of all cores' time that was not idle since the reading before (steal is not ours to use)."""

    name = "load"
    names = ("cpu_load",)

    def __init__(self, root: Root) -> None:
        self._root = root
        self._before, _ = cpu_times(root)

    def read(self) -> tuple[Reading, ...]:
        """One reading; unknown when no tick has passed since the last."""
        source = self._root.where(STAT)
        now, why = cpu_times(self._root)
        before, self._before = self._before, now
        if now is None:
            return (unknown("cpu_load", source, why),)
        if before is None:
            return (unknown("cpu_load", source, f"{source}: the first reading; load needs two"),)
        taken = (now.busy + now.steal) - (before.busy + before.steal)
        idle = now.idle - before.idle
        if taken < 0 or taken + idle <= 0:
            self._before = max(before, now, key=lambda times: times.busy + times.steal + times.idle)
            return (unknown("cpu_load", source, f"{source}: no processor time has passed since the last reading"),)
        # iowait may run backwards on some kernels, which would put the share slightly above 1.
        return (known("cpu_load", min(1.0, taken / (taken + idle)), source),)
