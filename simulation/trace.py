"""A trace: when requests arrive and how the environment changes meanwhile.

* :class:`Trace`: arrivals and step functions of the environment, validated.
* :func:`overlay`: several traces as one (arrivals from one file, sunshine from another).
* :func:`load`: a trace from a specification: a generator's name with options, or a file with options.
* :func:`summary`: what a trace holds, in a few numbers.
* :func:`to_json`: the project's own JSON form, which holds all of it.

Readers of file formats live in :mod:`simulation.readers`, generators in :mod:`simulation.generate`. Knows nothing of
policies or tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from subnets.errors import InputError

MAX_ARRIVALS = 20_000_000
MAX_STEPS = 1_000_000
ENVIRONMENT = ("ambient_c", "harvest_w", "slowdown", "on_mains", "sensors_lost")
_SWITCHES = ("on_mains", "sensors_lost")
SCHEMA = 1

Floats = NDArray[np.float64]


class Trace(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Arrivals and environment over ``duration_s`` seconds from time 0.

    ``arrivals_s`` ascends. ``times_s`` ascends strictly; each environment array, where there is one, holds the value
    from its time until the next (before the first time and after the last, the nearest value holds). None = the trace
    does not say.

    Raises:
        InputError: a time goes backwards, a number is not finite, or a value is impossible.
    """

    name: str
    duration_s: float
    arrivals_s: Floats
    deadlines_s: Floats | None = None  # from arrival to answer, one per arrival; infinite = none. Else the goals' holds
    times_s: Floats | None = None
    ambient_c: Floats | None = None
    harvest_w: Floats | None = None  # electrical power fed into the battery
    slowdown: Floats | None = None  # latency over calibrated latency, from other load on the machine
    on_mains: Floats | None = None  # 1 or 0
    sensors_lost: Floats | None = None  # 1: temperature, battery, mains and power cannot be read; 0: as ever

    def __post_init__(self) -> None:
        if not (self.duration_s > 0 and math.isfinite(self.duration_s)):
            raise InputError(f"{self.name}: the trace lasts {self.duration_s} s; it needs to last longer than 0 s")
        if len(self.arrivals_s) > MAX_ARRIVALS:
            raise InputError(f"{self.name}: {len(self.arrivals_s)} arrivals, at most {MAX_ARRIVALS}; cut the trace")
        _check_times(self.name, "arrivals_s", self.arrivals_s, strict=False)
        if len(self.arrivals_s) and self.arrivals_s[-1] > self.duration_s:
            raise InputError(
                f"{self.name}: an arrival at {self.arrivals_s[-1]} s, after the end at {self.duration_s} s"
            )
        if self.deadlines_s is not None:
            if len(self.deadlines_s) != len(self.arrivals_s):
                raise InputError(
                    f"{self.name}: deadlines_s has {len(self.deadlines_s)} values for {len(self.arrivals_s)} arrivals"
                )
            wrong = np.flatnonzero(~(self.deadlines_s > 0))
            if len(wrong):
                raise InputError(
                    f"{self.name}: deadlines_s holds {self.deadlines_s[wrong[0]]} at entry {wrong[0]}; expected above 0"
                )
        given = [name for name in ENVIRONMENT if getattr(self, name) is not None]
        if self.times_s is None:
            if given:
                raise InputError(f"{self.name}: {given[0]} is given without times_s; give both")
            return
        if not 0 < len(self.times_s) <= MAX_STEPS:
            raise InputError(f"{self.name}: times_s has {len(self.times_s)} entries; expected 1 to {MAX_STEPS}")
        _check_times(self.name, "times_s", self.times_s, strict=True)
        for name in given:
            values = getattr(self, name)
            if len(values) != len(self.times_s):
                raise InputError(f"{self.name}: {name} has {len(values)} values for {len(self.times_s)} times")
            if not np.isfinite(values).all():
                raise InputError(f"{self.name}: {name} holds a value that is not finite")
            _check_values(self.name, name, values)

    def environment(self, name: str, at_s: Floats) -> Floats | None:
        """One environment value at many times, or None where the trace does not say."""
        values = getattr(self, name)
        if values is None or self.times_s is None:
            return None
        found: Floats = values[np.maximum(np.searchsorted(self.times_s, at_s, side="right") - 1, 0)]
        return found

    def faster(self, factor: float) -> Trace:
        """The same shape in 1/``factor`` of the time: the arrival rate grows by ``factor``.

        Raises:
            InputError: the factor is not above 0.
        """
        if not (factor > 0 and math.isfinite(factor)):
            raise InputError(f"{self.name}: speed is {factor}; give a number above 0 (2 = twice as fast)")
        return msgspec.structs.replace(
            self,
            duration_s=self.duration_s / factor,
            arrivals_s=np.minimum(self.arrivals_s / factor, self.duration_s / factor),
            times_s=None if self.times_s is None else self.times_s / factor,
        )

    def cut(self, start_s: float, length_s: float) -> Trace:
        """The part from ``start_s`` on, at most ``length_s`` long, starting at time 0.

        Raises:
            InputError: nothing of the trace lies there.
        """
        end_s = min(self.duration_s, start_s + length_s)
        if not 0 <= start_s < end_s:
            raise InputError(f"{self.name}: nothing lies from {start_s} s to {end_s} s; it lasts {self.duration_s} s")
        inside = (self.arrivals_s >= start_s) & (self.arrivals_s <= end_s)
        changes: dict[str, object] = {"duration_s": end_s - start_s, "arrivals_s": self.arrivals_s[inside] - start_s}
        if self.deadlines_s is not None:
            changes["deadlines_s"] = self.deadlines_s[inside]
        if self.times_s is not None:
            steps = np.unique([start_s, *self.times_s[(self.times_s > start_s) & (self.times_s < end_s)]])
            changes["times_s"] = steps - start_s
            changes.update({name: self.environment(name, steps) for name in ENVIRONMENT})
        return msgspec.structs.replace(self, **changes)


def _check_times(name: str, field: str, times: Floats, *, strict: bool) -> None:
    if not len(times):
        return
    if not np.isfinite(times).all() or times[0] < 0:
        raise InputError(f"{name}: {field} holds a time that is negative or not finite; times count seconds from 0")
    steps = np.diff(times)
    wrong = np.flatnonzero(steps <= 0 if strict else steps < 0)
    if len(wrong):
        at = int(wrong[0])
        raise InputError(
            f"{name}: {field} goes from {times[at]} s to {times[at + 1]} s at entry {at + 1}; sort by time"
        )


def _check_values(name: str, field: str, values: Floats) -> None:
    lowest = -100.0 if field == "ambient_c" else 0.0
    low = float(values.min())
    if low < lowest or (field == "slowdown" and low <= 0):
        raise InputError(
            f"{name}: {field} falls to {low}; expected {'above' if field == 'slowdown' else 'at least'} {lowest}"
        )
    if field in _SWITCHES and not np.isin(values, (0.0, 1.0)).all():
        raise InputError(f"{name}: {field} holds something other than 0 and 1")


def overlay(traces: Sequence[Trace]) -> Trace:
    """Several traces as one: each later trace supplies what it has (arrivals, or an environment value).

    The first trace that has arrivals sets the duration, so that a year of weather does not lengthen an hour of load;
    without any arrivals the longest does.
    """
    first, *others = traces
    if not others:
        return first
    loaded = [trace for trace in traces if len(trace.arrivals_s)]
    duration = loaded[0].duration_s if loaded else max(trace.duration_s for trace in traces)
    bringer = loaded[-1] if loaded else first
    inside = bringer.arrivals_s <= duration
    timed = [trace.times_s for trace in traces if trace.times_s is not None]
    values: dict[str, Floats | None] = {}
    steps: Floats | None = None
    if timed:
        steps = np.unique(np.concatenate([[0.0], *timed]))
        steps = steps[steps <= duration]
        for name in ENVIRONMENT:
            owners = [trace for trace in traces if getattr(trace, name) is not None]
            values[name] = owners[-1].environment(name, steps) if owners else None
    return Trace(
        name=" + ".join(trace.name for trace in traces),
        duration_s=duration,
        arrivals_s=bringer.arrivals_s[inside],
        deadlines_s=None if bringer.deadlines_s is None else bringer.deadlines_s[inside],
        times_s=steps,
        **values,
    )


def load(spec: str) -> Trace:
    """The trace that a specification names.

    ``poisson:rate=1,hours=24`` generates one (see :data:`simulation.generate.KINDS`); anything else is a file's path,
    with options after a colon (see :func:`simulation.readers.read`).

    Raises:
        InputError: no such generator or file, or something in it is wrong.
    """
    from simulation import generate, readers

    kind = spec.partition(":")[0]
    if kind in generate.KINDS:
        return generate.generated(spec)
    path, _ = readers.split_spec(spec)
    if not path.exists() and "/" not in kind and "." not in kind:
        return generate.generated(spec)  # raises, with the names it knows
    return readers.read(spec)


def load_all(specs: Sequence[str]) -> Trace:
    """Several specifications laid over each other, see :func:`overlay`."""
    return overlay([load(spec) for spec in specs])


def summary(trace: Trace) -> dict[str, Any]:
    """What a trace holds, as JSON types: counts, mean rate, burstiness (squared coefficient of variation), ranges."""
    gaps = np.diff(trace.arrivals_s)
    mean = float(gaps.mean()) if len(gaps) else 0.0
    ranges = {
        name: {"low": float(values.min()), "high": float(values.max())}
        for name in ENVIRONMENT
        if (values := getattr(trace, name)) is not None
    }
    return {
        "name": trace.name,
        "duration_s": trace.duration_s,
        "arrivals": len(trace.arrivals_s),
        "rate_hz": len(trace.arrivals_s) / trace.duration_s,
        "interarrival_cv2": float(gaps.var()) / mean**2 if len(gaps) > 1 and mean > 0 else None,
        "environment": ranges,
    }


def to_json(trace: Trace) -> bytes:
    """The project's own JSON form; :func:`load` reads it back exactly."""
    content: dict[str, object] = {"schema": SCHEMA, "name": trace.name, "duration_s": trace.duration_s}
    for name in ("arrivals_s", "times_s", *ENVIRONMENT):
        values = getattr(trace, name)
        if values is not None:
            content[name] = values.tolist()
    if trace.deadlines_s is not None:  # JSON has no infinity
        content["deadlines_s"] = [None if math.isinf(value) else value for value in trace.deadlines_s.tolist()]
    return msgspec.json.encode(content) + b"\n"
