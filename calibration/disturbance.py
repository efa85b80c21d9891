"""Whether something disturbed a measurement: other work, time stolen by a hypervisor, heat.

* :class:`Watch`: the kernel's counters and thermometers. :func:`reasons`: which measurements are left out, and why.
* :class:`Warmth`: lets a round begin only near the temperature at which the first one began.

What is judged is the machine's own evidence, never the latency itself: leaving out slow samples because they are slow
would make every machine look better than it is. A source that is not there is unknown and discards nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sensors.root import Root
from sensors.thermal import ThermalSensor

if TYPE_CHECKING:
    from sensors import Sensor

LIMIT = 0.05  # share of the time
EXCESS = 1.5  # times the median: on a machine that is always busy, only what stands out is left out
_STEP_S = 0.1  # between two looks at a thermometer


class Counters(NamedTuple):
    """Running totals at one instant; None is unknown."""

    stalled_s: float | None
    stolen_s: float | None
    throttled: int | None
    gpu_throttled: bool | None = None  # at this instant


class Disturbance(NamedTuple):
    """Shares of one measurement's time, whether the processor slowed itself down in it, and whether it began in a round
    that was too warm or too cold."""

    pressure: float | None = None  # some task waited for a processor (PSI cpu "some")
    stolen: float | None = None  # of one processor's time, taken by the hypervisor
    throttled: bool = False
    off_temperature: bool = False


class Watch:
    """Reads the kernel's counters and the thermometers.

    Args:
        root: where ``proc`` and ``sys`` are found; ``/`` except in tests.
        gpu: tells ``gpu_temperature_c`` and ``gpu_throttled`` (:class:`sensors.nvml.NvmlSensor`), where engines run on
            one.
    """

    def __init__(self, root: Path = Path("/"), gpu: Sensor | None = None) -> None:
        self._thermometer, self._gpu = ThermalSensor(Root(root)), gpu
        self._pressure = root / "proc/pressure/cpu"
        self._stat = root / "proc/stat"
        self._throttle = sorted(
            (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
        )
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")

    def read(self) -> Counters:
        """The totals now."""
        return Counters(self._stalled_s(), self._stolen_s(), self._throttled(), self._gpu_throttled())

    def between(self, before: Counters, after: Counters, seconds: float) -> Disturbance:
        """What happened in ``seconds`` between two readings."""

        def share(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None or seconds <= 0 else max(0.0, b - a) / seconds

        throttled = before.throttled is not None and after.throttled is not None and after.throttled > before.throttled
        throttled = throttled or bool(after.gpu_throttled)
        return Disturbance(share(before.stalled_s, after.stalled_s), share(before.stolen_s, after.stolen_s), throttled)

    def temperatures(self) -> dict[str, float]:
        """Degrees Celsius by thermometer, of those that can be read: the processor's, and the GPU's under its name."""
        readings = [*self._thermometer.read()[:1], *(self._gpu.read() if self._gpu else ())]
        wanted = ("temperature_c", "gpu_temperature_c")
        return {r.name: float(r.value) for r in readings if r.name in wanted and r.value is not None}

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

    def _gpu_throttled(self) -> bool | None:
        readings = {r.name: r.value for r in (self._gpu.read() if self._gpu else ())}
        value = readings.get("gpu_throttled")
        return None if value is None else bool(value)

    def _throttled(self) -> int | None:
        counts = [_number(line, 1.0) for path in self._throttle for line in _lines(path)[:1]]
        known = [count for count in counts if count is not None]
        return int(sum(known)) if known else None


class Warmth:
    """Brings the machine back to the temperature at which the first round began: by rest if too warm, by work if cold.

    Without a thermometer every temperature will do.

    Args:
        watch: tells temperatures.
        band_c: how far off is near enough.
        wait_s: after so long the round begins all the same, and its cells are left out.
        wall, sleep: time.
        work: some work, to warm up by.
        reference: temperatures of the first round, where that was measured before; taken at the first call otherwise.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        band_c: float,
        wait_s: float,
        wall: Callable[[], float],
        sleep: Callable[[float], None],
        work: Callable[[], object],
        reference: dict[str, float] | None = None,
    ) -> None:
        self._watch, self._band_c, self._wait_s = watch, band_c, wait_s
        self._wall, self._sleep, self._work = wall, sleep, work
        self.reference = reference or {}
        self.waited_s = 0.0

    def settle(self) -> bool:
        """Waits, at most ``wait_s``, until all thermometers are near their reference; whether they are."""
        now = self._watch.temperatures()
        if not self.reference:
            self.reference = now
            return True
        began = self._wall()
        while True:
            off = [now[name] - self.reference[name] for name in now.keys() & self.reference.keys()]
            matched = all(abs(difference) <= self._band_c for difference in off)
            if matched or self._wall() - began >= self._wait_s:
                self.waited_s += self._wall() - began
                return matched
            if max(off) > self._band_c:
                self._sleep(_STEP_S)
            else:
                self._work()
            now = self._watch.temperatures()


def reasons(disturbances: Sequence[Disturbance]) -> list[str | None]:
    """Per measurement why it is left out: ``throttled``, ``temperature``, ``pressure`` or ``stolen``; None if kept.

    A share is too large above 5 %, or above 1.5 times the median of all measurements where that is more.
    """
    pressure_limit = _limit(d.pressure for d in disturbances)
    stolen_limit = _limit(d.stolen for d in disturbances)
    found: list[str | None] = []
    for d in disturbances:
        if d.throttled:
            found.append("throttled")
        elif d.off_temperature:
            found.append("temperature")
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
