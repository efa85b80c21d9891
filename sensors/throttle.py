"""Whether the processor says it has slowed itself down.

Three places say so, and any of them is believed: the firmware of a Raspberry Pi, Intel's counts of throttling events
(growth since the last reading), and cooling devices that act on clocks. A policy's own limits, fans and power caps
within the configured limit are no throttling.
"""

from __future__ import annotations

import re

from sensors.base import Reading, Sensor, known, unknown
from sensors.root import Root

FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
CPUS = "sys/devices/system/cpu"
COOLING = "sys/class/thermal"

# Bit 1: ARM frequency capped, 2: throttled, 3: soft temperature limit active; 16 and up are "has happened since boot".
_FIRMWARE_NOW = 0b1110
_ACTS_ON_CLOCKS = re.compile(r"processor|cpufreq|devfreq|powerclamp", re.I)


class ThrottleSensor(Sensor):
    """``throttled``: True when any source says so, False when at least one speaks and none does."""

    name = "throttle"
    names = ("throttled",)

    def __init__(self, root: Root) -> None:
        self._root = root
        self._counts = self._count_events()

    def read(self) -> tuple[Reading, ...]:
        """One reading."""
        votes = [vote for vote in (self._firmware(), self._events(), self._cooling()) if vote is not None]
        if not votes:
            return (unknown("throttled", "sysfs", "no firmware flag, throttle count or cooling device is readable"),)
        source, throttled = next((vote for vote in votes if vote[1]), votes[0])
        return (known("throttled", throttled, source),)

    def _firmware(self) -> tuple[str, bool] | None:
        flags = self._root.text(FIRMWARE).text
        if flags is None or not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", flags):
            return None
        return self._root.where(FIRMWARE), bool(int(flags, 16) & _FIRMWARE_NOW)

    def _count_events(self) -> dict[str, float]:
        counts: dict[str, float] = {}
        for cpu in self._root.names(CPUS, r"cpu\d+"):
            for what in ("core", "package"):
                path = f"{CPUS}/{cpu}/thermal_throttle/{what}_throttle_count"
                if (count := self._root.number(path).value) is not None:
                    counts[path] = count
        return counts

    def _events(self) -> tuple[str, bool] | None:
        before, self._counts = self._counts, self._count_events()
        common = before.keys() & self._counts.keys()
        grown = any(self._counts[path] > before[path] for path in common)
        return (self._root.where(f"{CPUS}/cpu*/thermal_throttle"), grown) if common else None

    def _cooling(self) -> tuple[str, bool] | None:
        states: list[tuple[str, bool]] = []
        for device in self._root.names(COOLING, r"cooling_device\d+"):
            if not _ACTS_ON_CLOCKS.search(self._root.text(f"{COOLING}/{device}/type").text or ""):
                continue
            path = f"{COOLING}/{device}/cur_state"
            if (state := self._root.number(path).value) is not None:
                states.append((self._root.where(path), state > 0))
        return next((state for state in states if state[1]), states[0] if states else None)
