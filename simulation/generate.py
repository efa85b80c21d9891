"""Generated traces: load curves with a seed, written as ``kind:key=value,key=value``.

A load is an arrival-rate curve over time and a burstiness (squared coefficient of variation of the times between
arrivals; 0 is even, 1 is Poisson). Arrivals come from one renewal process of unit rate, stretched by the curve: the
time change theorem for inhomogeneous processes. An environment has no arrivals and is laid over a load. Same
specification, same trace, on every machine.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from simulation.trace import MAX_ARRIVALS, MAX_STEPS, Floats, Trace
from subnets.errors import InputError

_COMMON = {"seed": 0.0, "hours": 1.0}


class Kind(msgspec.Struct, frozen=True):
    """One generator: what it draws, its options with defaults, and the function."""

    summary: str
    options: Mapping[str, float]
    make: Callable[[Mapping[str, float]], tuple[Floats, Floats, float, dict[str, Floats]]]


def generated(spec: str) -> Trace:
    """The trace of a specification such as ``poisson:rate=1,hours=24,seed=0``.

    Raises:
        InputError: an unknown kind or option (the nearest is suggested), or an impossible value.
    """
    name, _, rest = spec.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise InputError(f"trace '{spec}': no file and no generator of that name{_nearest(name, KINDS)}")
    options = {**_COMMON, **kind.options}
    for item in filter(None, rest.split(",")):
        key, _, text = item.partition("=")
        if key not in options:
            raise InputError(f"trace '{spec}': '{name}' has no option '{key}'{_nearest(key, options)}")
        try:
            options[key] = float(text)
        except ValueError:
            options[key] = math.nan
        if not (math.isfinite(options[key]) and options[key] >= 0):
            raise InputError(f"trace '{spec}': option '{key}' is '{text}'; give a number of at least 0")
    if not 0 < options["hours"] <= 24 * 366:
        raise InputError(f"trace '{spec}': hours is {options['hours']:g}; give more than 0 and at most a year")
    grid, rates, cv2, environment = kind.make(options)
    random = np.random.Generator(np.random.PCG64(int(options["seed"])))
    duration = options["hours"] * 3600.0
    return Trace(name=spec, duration_s=duration, arrivals_s=_arrivals(spec, random, grid, rates, cv2), **environment)


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(known)}"


def _arrivals(spec: str, random: np.random.Generator, grid: Floats, rates: Floats, cv2: float) -> Floats:
    """Arrivals of a renewal process whose rate is piecewise linear between ``grid`` times (seconds, from 0)."""
    # Cumulative intensity on a grid fine enough to follow the curve between its corners.
    fine = np.unique(np.concatenate([grid, np.linspace(0.0, grid[-1], 20_001)]))
    rate = np.interp(fine, grid, rates)
    intensity = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2.0 * np.diff(fine))])
    expected = float(intensity[-1])
    if expected > MAX_ARRIVALS:
        raise InputError(f"trace '{spec}': {expected:.0f} arrivals expected, at most {MAX_ARRIVALS}; lower the rate")
    parts: list[Floats] = []
    reached = 0.0
    while reached < expected:
        size = int((expected - reached) * 1.05 + 4.0 * math.sqrt(expected * max(1.0, cv2)) + 64)
        gaps = _gaps(random, cv2, size)
        parts.append(reached + np.cumsum(gaps))
        reached = float(parts[-1][-1])
    ticks = np.concatenate(parts) if parts else np.zeros(0)
    ticks = ticks[ticks < expected]
    rising = np.concatenate([[True], np.diff(intensity) > 0])  # interp needs it; a rate of 0 makes flat stretches
    arrivals: Floats = np.interp(ticks, intensity[rising], fine[rising])
    return arrivals


def _gaps(random: np.random.Generator, cv2: float, size: int) -> Floats:
    """Times between arrivals at rate 1; without variation the first comes at a random phase."""
    if cv2 == 0.0:
        return np.concatenate([[random.uniform()], np.ones(size)])
    return random.standard_exponential(size) if cv2 == 1.0 else random.gamma(1.0 / cv2, cv2, size)


Made = tuple[Floats, Floats, float, dict[str, Floats]]


def _constant(o: Mapping[str, float]) -> Made:
    end = o["hours"] * 3600.0
    return np.array([0.0, end]), np.array([o["rate"], o["rate"]]), o.get("cv2", 1.0), {}


def _camera(o: Mapping[str, float]) -> Made:
    return _constant({**o, "cv2": 0.0})


def _between(name: str) -> Callable[[Mapping[str, float]], Made]:
    """No arrivals; ``name`` is ``first`` for ``first_s`` seconds, then ``then`` for ``then_s``, and so on.

    Each stretch is up to ``jitter`` shorter or longer, drawn from the seed.
    """

    def make(o: Mapping[str, float]) -> Made:
        end = o["hours"] * 3600.0
        lengths = np.array([o["first_s"], o["then_s"]])
        if not ((lengths > 0).all() and o["jitter"] < 1):
            raise InputError(
                f"trace of {name}: first_s is {lengths[0]:g}, then_s {lengths[1]:g} and jitter {o['jitter']:g}; "
                "give times above 0 and a share below 1"
            )
        random = np.random.Generator(np.random.PCG64([int(o["seed"]), 2]))
        pairs = min(MAX_STEPS // 2, math.ceil(end / lengths.sum() / (1.0 - o["jitter"])) + 1)
        stretches = np.tile(lengths, pairs) * (1.0 + o["jitter"] * random.uniform(-1.0, 1.0, 2 * pairs))
        times = np.concatenate([[0.0], np.cumsum(stretches)[:-1]])
        values = np.tile([o["first"], o["then"]], pairs)
        keep = times < end
        return np.array([0.0, end]), np.zeros(2), 1.0, {"times_s": times[keep], name: values[keep]}

    return make


def _ramp(o: Mapping[str, float]) -> Made:
    return np.array([0.0, o["hours"] * 3600.0]), np.array([o["low"], o["high"]]), o["cv2"], {}


def _day_curve(hour: Floats) -> Floats:
    """Relative load over the hours of a day, mean 1: least at 3 o'clock, most at 15 o'clock."""
    curve: Floats = 1.0 - 0.8 * np.cos((hour - 3.0) / 24.0 * 2.0 * np.pi)
    return curve


def _bursts(o: Mapping[str, float], grid: Floats, rates: Floats) -> Floats:
    """Multiplies the rate by ``burst`` during randomly placed bursts of ``burst_s`` seconds."""
    random = np.random.Generator(np.random.PCG64([int(o["seed"]), 1]))
    end = float(grid[-1])
    starts = random.uniform(0.0, end, random.poisson(o["bursts_per_hour"] * end / 3600.0))
    rates = rates.copy()
    for start in starts:
        rates[(grid >= start) & (grid < start + o["burst_s"])] *= o["burst"]
    return rates


def _diurnal(o: Mapping[str, float]) -> Made:
    end = o["hours"] * 3600.0
    grid = np.linspace(0.0, end, _points(end, o["burst_s"]))
    rates = o["rate"] * _day_curve(grid / 3600.0 % 24.0)
    return grid, _bursts(o, grid, rates), o["cv2"], {}


def _points(end_s: float, burst_s: float) -> int:
    return int(min(200_000, max(2_000, 4 * end_s / max(burst_s, 1e-3))))


def _onoff(o: Mapping[str, float]) -> Made:
    end, on, off = o["hours"] * 3600.0, o["on_s"], o["off_s"]
    if on <= 0 or off <= 0:
        raise InputError(f"trace 'onoff': on_s is {on:g} and off_s is {off:g}; give numbers above 0")
    edge = min(on, off) * 1e-6
    corners, rates, at = [0.0], [o["rate"]], 0.0
    while at < end:
        for length, before, after in ((on, o["rate"], o["low"]), (off, o["low"], o["rate"])):
            at += length
            corners += [at - edge, at]
            rates += [before, after]
    grid, rate = np.array(corners), np.array(rates)
    keep = grid < end
    last = float(np.interp(end, grid, rate))
    return np.append(grid[keep], end), np.append(rate[keep], last), o["cv2"], {}


def _day(o: Mapping[str, float]) -> Made:
    """A whole day, squeezed into ``hours``: load with bursts, a hot afternoon, sun, a busy neighbour in the evening."""
    end = o["hours"] * 3600.0
    grid = np.linspace(0.0, end, _points(end, o["burst_s"]))
    rates = _bursts(o, grid, o["rate"] * _day_curve(grid / end * 24.0))
    times = np.linspace(0.0, end, 24 * 12 + 1)
    hour = times / end * 24.0
    environment = {
        "times_s": times,
        "ambient_c": o["ambient_c"] - o["heat_c"] * np.cos((hour - 3.0) / 24.0 * 2.0 * np.pi) / 2.0,
        "harvest_w": o["sun_w"] * np.maximum(0.0, np.sin((hour - 6.0) / 12.0 * np.pi)),
        "slowdown": np.where((hour >= 18.0) & (hour < 20.0), max(o["neighbour"], 1e-3), 1.0),
        "on_mains": np.zeros(len(times)),
    }
    return grid, rates, o["cv2"], environment


def _environment(summary: str, name: str, first: float, then: float, first_s: float, then_s: float) -> Kind:
    options = {"first": first, "then": then, "first_s": first_s, "then_s": then_s, "jitter": 0.2}
    return Kind(f"no arrivals: {summary} ({name})", options, _between(name))


_BURSTS = {"bursts_per_hour": 2.0, "burst": 5.0, "burst_s": 30.0}
KINDS: dict[str, Kind] = {
    "poisson": Kind("independent arrivals at a constant rate", {"rate": 1.0}, _constant),
    "gamma": Kind("constant rate, bursty: cv2 above 1 clusters arrivals", {"rate": 1.0, "cv2": 4.0}, _constant),
    "diurnal": Kind("day and night around a mean rate, with bursts", {"rate": 1.0, "cv2": 1.0, **_BURSTS}, _diurnal),
    "ramp": Kind("rate rising evenly from low to high", {"low": 0.0, "high": 10.0, "cv2": 1.0}, _ramp),
    "onoff": Kind(
        "rate for on_s seconds, then low for off_s seconds",
        {"rate": 10.0, "low": 0.0, "on_s": 30.0, "off_s": 30.0, "cv2": 1.0},
        _onoff,
    ),
    "camera": Kind("evenly spaced frames", {"rate": 30.0}, _camera),
    "heat": _environment("the air's temperature jumps", "ambient_c", 20.0, 40.0, 600.0, 600.0),
    "plug": _environment("plugged in, then not", "on_mains", 1.0, 0.0, 600.0, 600.0),
    "neighbour": _environment("another program slows the machine down", "slowdown", 1.0, 2.0, 300.0, 60.0),
    "sun": _environment("harvest behind passing clouds", "harvest_w", 10.0, 2.0, 600.0, 300.0),
    "blind": _environment("the sensors are lost", "sensors_lost", 0.0, 1.0, 600.0, 60.0),
    "day": Kind(
        "a whole day squeezed into 'hours': bursts, hot afternoon, sun, a busy neighbour from 18 to 20 o'clock",
        {
            "rate": 5.0,
            "cv2": 1.0,
            "bursts_per_hour": 30.0,
            "burst": 4.0,
            "burst_s": 10.0,
            "ambient_c": 27.0,
            "heat_c": 16.0,
            "sun_w": 0.0,
            "neighbour": 1.5,
        },
        _day,
    ),
}


def help_text() -> str:
    """One line a kind, with its options and their defaults."""
    lines = []
    for name, kind in KINDS.items():
        options = ",".join(f"{key}={value:g}" for key, value in {**kind.options, **_COMMON}.items())
        lines.append(f"{name}:{options}\n    {kind.summary}")
    return "\n".join(lines)
