"""What the sensors say, believed as far as it makes sense; none can stop or delay the control loop for long.

* a sensor that raises, or takes too long, is unknown; a thread that hangs in its driver is left behind, the other
  sensors are read by another, and it is asked again once it has come back;
* a value that cannot be what its name says, or that is frozen (:mod:`agent.frozen`), is unknown;
* each is told once, and again when it changes, and is a fault as long as it lasts; every failed reading counts.

Knows nothing of policies or engines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from agent.errand import Errand, Late
from agent.frozen import Frozen
from policies.base import Conditions
from sensors.base import SensorSet

LIMIT_S = 0.5  # for all sensors together, or for the first that hangs
FIRST_LIMIT_S = 10.0  # a driver may have to be opened
_FIELDS = frozenset(field.name for field in msgspec.structs.fields(Conditions))
_SHARES = frozenset({"battery_charge", "cpu_load", "pressure"})


class Readings(Protocol):
    """One reading of all sensors."""

    def values(self) -> Mapping[str, Any]:
        """{field of Conditions: value or None}; other keys are ignored."""


class Sensors(Protocol):
    """Anything that can be read, e.g. ``sensors.SensorSet``."""

    def read(self) -> Readings:
        """Reads all sensors now."""


class _Part:
    """What is read in one go: one sensor of a set, or all of something that is no set."""

    def __init__(self, name: str, read: Callable[[], Readings]) -> None:
        self.name, self.read = name, read
        self.hangs: Errand[None] | None = None  # whose thread is still in it

    def free(self) -> bool:
        """Whether no thread hangs in it."""
        if self.hangs is not None and not self.hangs.busy:
            self.hangs.dismiss()
            self.hangs = None
        return self.hangs is None


class _Round:
    """One reading of several parts, one after the other, in whichever thread."""

    def __init__(self, parts: tuple[_Part, ...]) -> None:
        self.parts = parts
        self.done: dict[_Part, Readings | Exception] = {}
        self.over = False  # nobody waits any more, and another thread may be at the next part

    def read(self) -> None:
        for part in self.parts:
            if self.over:
                return
            try:
                self.done[part] = part.read()
            except Exception as error:  # told by whoever asked
                self.done[part] = error


class Sensing:
    """Reads sensors.

    Args:
        sensors: read one by one where they are a ``SensorSet``; None = there are none.
        on_event: called with (name, detail) for ``sensor_failed``, ``sensor_lost`` and ``sensor_back``.
        limit_s: how long a reading may take.
    """

    def __init__(
        self,
        sensors: Sensors | None,
        *,
        on_event: Callable[[str, dict[str, Any]], None],
        limit_s: float = LIMIT_S,
    ) -> None:
        self.failures = 0
        self._parts = _parts(sensors)
        self._errand: Errand[None] = Errand("gearshift-sensors")
        self._on_event, self._limit_s = on_event, limit_s
        self._first = True
        self._frozen = Frozen()
        self._known: set[str] = set()  # quantities the last reading had
        self._lost: dict[str, str] = {}  # quantities that were known once, and why they are not now
        self._told: dict[str, str] = {}  # what is wrong now, by sensor or quantity

    def read(self, now_s: float, faults: list[str]) -> dict[str, Any]:
        """What the sensors say, by field of Conditions.

        Args:
            now_s: on a monotonic clock.
            faults: what is wrong is appended here.
        """
        if not self._parts:
            return {}
        values, whys, wrong = self._asked()
        clean = {name: value for name, value in values.items() if name in _FIELDS and _sensible(name, value)}
        for name in sorted(values.keys() - clean.keys()):
            if name in _FIELDS:
                wrong[name] = f"not sensible, taken as unknown: {name}={values[name]!r}"
        for name, why in self._frozen.check(now_s, clean).items():
            wrong[name] = f"frozen, taken as unknown: {name} {why}"
            clean[name] = None
        self._tell_wrong(wrong)
        self._tell_lost({name for name, value in clean.items() if value is not None}, whys, wrong)
        faults += wrong.values()
        faults += [f"lost: {name}: {why}" for name, why in self._lost.items() if why and name not in wrong]
        return clean

    def close(self) -> None:
        """Ends the threads that do not hang."""
        self._errand.dismiss()

    def _asked(self) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
        """(values, why a quantity is unknown, what is wrong), the first available reading of each name."""
        done = self._done()
        values: dict[str, Any] = {}
        whys: dict[str, str] = {}
        wrong: dict[str, str] = {}
        for part in self._parts:
            told = done.get(part)
            try:
                if told is None:
                    wrong[part.name] = f"{part.name} silent: no answer within {self._limit_s:g} s"
                    continue
                if isinstance(told, Exception):
                    raise told
                read = dict(told.values())
            except Exception as error:  # whatever it is, it must not stop the answers
                wrong[part.name] = f"{part.name} unreadable: {str(error) or type(error).__name__}"
                continue
            for name, value in read.items():
                if values.get(name) is None:
                    values[name] = value
            for reading in getattr(told, "readings", ()):
                if reading.why:
                    whys[reading.name] = "; ".join(filter(None, (whys.get(reading.name), reading.why)))
        return values, whys, wrong

    def _done(self) -> dict[_Part, Readings | Exception]:
        """What each part gave in time."""
        done: dict[_Part, Readings | Exception] = {}
        limit_s, self._first = (FIRST_LIMIT_S if self._first else self._limit_s), False
        waiting = [part for part in self._parts if part.free()]
        while waiting:
            going = _Round(tuple(waiting))
            try:
                self._errand.run(going.read, limit_s)
                waiting = []
            except Late:
                going.over = True
                hanging = next((part for part in waiting if part not in going.done), waiting[-1])
                hanging.hangs, self._errand = self._errand, Errand("gearshift-sensors")
                waiting = waiting[waiting.index(hanging) + 1 :]
            done |= going.done.copy()
        return {part: told for part, told in done.items() if part.hangs is None}

    def _tell_wrong(self, wrong: Mapping[str, str]) -> None:
        """Counts what is wrong, and tells what was not so the last time; a reading in it may change."""
        self.failures += len(wrong)
        for about, why in wrong.items():
            before = self._told.get(about)
            if before is None or before.partition(":")[0] != why.partition(":")[0]:
                self._on_event("sensor_failed", {"error": why})
        self._told = dict(wrong)

    def _tell_lost(self, known: set[str], whys: Mapping[str, str], wrong: Mapping[str, str]) -> None:
        """Tells when a quantity that was known no longer is, with the sensor's reason where it gives one."""
        for name in sorted(self._known - known):
            self._lost[name] = whys.get(name, "")
            self.failures += not wrong
            why = wrong.get(name) or whys.get(name) or "; ".join(wrong.values()) or "no longer reported"
            self._on_event("sensor_lost", {"quantity": name, "why": why})
        for name in sorted(known & self._lost.keys()):
            del self._lost[name]
            self._on_event("sensor_back", {"quantity": name})
        self._known = known


def _parts(sensors: Sensors | None) -> tuple[_Part, ...]:
    if sensors is None:
        return ()
    if isinstance(sensors, SensorSet):
        return tuple(_Part(sensor.name, SensorSet((sensor,)).read) for sensor in sensors.sensors)
    return (_Part("sensors", sensors.read),)


def _sensible(name: str, value: object) -> bool:
    """Whether a reading can be what the field says: None, a bool where one belongs, else a finite number."""
    if value is None:
        return True
    if name in ("on_mains", "throttled"):
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    if name in _SHARES:
        return 0 <= value <= 1
    return not (name in ("battery_energy_j", "power_w") and value < 0)
