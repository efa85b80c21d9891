"""Whether other work disturbed a measurement: pressure stalls, time stolen by a hypervisor, thermal throttling.

What is judged is the machine's own evidence, never the latency itself: leaving out slow samples because they are slow
would make every machine look better than it is. A source that is not there is unknown and discards nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

LIMIT = 0.05  # share of the time
EXCESS = 1.5  # times the median: on a machine that is always busy, only what stands out is left out


class Counters(NamedTuple):
    """Running totals at one instant; None is unknown."""

    stalled_s: float | None
    stolen_s: float | None
    throttled: int | None


class Disturbance(NamedTuple):
    """Shares of one measurement's time, and whether the processor slowed itself down in it."""

    pressure: float | None = None  # some task waited for a processor (PSI cpu "some")
    stolen: float | None = None  # of one processor's time, taken by the hypervisor
    throttled: bool = False


class Watch:
    """Reads the kernel's counters; ``root`` is ``/`` except in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._pressure = root / "proc/pressure/cpu"
        self._stat = root / "proc/stat"
        self._throttle = sorted(
            (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
        )
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")

    def read(self) -> Counters:
        """The totals now."""
        return Counters(self._stalled_s(), self._stolen_s(), self._throttled())

    def between(self, before: Counters, after: Counters, seconds: float) -> Disturbance:
        """What happened in ``seconds`` between two readings."""

        def share(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None or seconds <= 0 else max(0.0, b - a) / seconds

        throttled = before.throttled is not None and after.throttled is not None and after.throttled > before.throttled
        return Disturbance(share(before.stalled_s, after.stalled_s), share(before.stolen_s, after.stolen_s), throttled)

    def _stalled_s(self) -> float | None:
        for line in _lines(self._pressure):
            if line.startswith("some") and "total=" in line:
                return _number(line.rpartition("total=")[2], 1e6)
        return None

    def _stolen_s(self) -> float | None:
        for line in _lines(self._stat):
            fields = line.split()
            if fields[:1] == ["cpu"] and len(fields) > 8:
                return _number(fields[8], self._ticks_per_s * (os.cpu_count() or 1))
        return None

    def _throttled(self) -> int | None:
        counts = [_number(line, 1.0) for path in self._throttle for line in _lines(path)[:1]]
        known = [count for count in counts if count is not None]
        return int(sum(known)) if known else None


def reasons(disturbances: Sequence[Disturbance]) -> list[str | None]:
    """Per measurement why it is left out: ``throttled``, ``pressure`` or ``stolen``; None where it is kept.

    A share is too large above 5 %, or above 1.5 times the median of all measurements where that is more.
    """
    pressure_limit = _limit(d.pressure for d in disturbances)
    stolen_limit = _limit(d.stolen for d in disturbances)
    found: list[str | None] = []
    for d in disturbances:
        if d.throttled:
            found.append("throttled")
        elif d.pressure is not None and d.pressure > pressure_limit:
            found.append("pressure")
        elif d.stolen is not None and d.stolen > stolen_limit:
            found.append("stolen")
        else:
            found.append(None)
    return found


def median_pressure(disturbances: Iterable[Disturbance]) -> float | None:
    """The median share of time in which some task waited for a processor; None when the kernel does not tell."""
    known = [d.pressure for d in disturbances if d.pressure is not None]
    return float(np.median(known)) if known else None


def _limit(shares: Iterable[float | None]) -> float:
    known = [share for share in shares if share is not None]
    return max(LIMIT, EXCESS * float(np.median(known))) if known else LIMIT


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(text: str, over: float) -> float | None:
    try:
        return float(text) / over
    except ValueError:
        return None
