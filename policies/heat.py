"""How the device warms: one thermal node, identified while it runs, and forecasts with it.

The node obeys ``C dT/dt = P - (T - Ta) / R``, which is linear in three unknowns::

    dT/dt = b0 + b1 (T - 50) + b2 P,    b1 = -1 / (R C),  b2 = 1 / C,  b0 = (Ta - 50) / (R C)

They are found by recursive least squares with forgetting (Ljung, System Identification, 2nd ed. 1999, chapter 11) on
means over windows, since a sensor in whole degrees says little from one second to the next. What the model misses (a
lid was closed, the sun came out) is smoothed separately and added to ``b0``, so that a forecast has no lasting offset.
At constant power the temperature then moves exactly as::

    T(s) = T_end + (T - T_end) exp(b1 s),    T_end = 50 - (b0 + b2 P) / b1

Knows nothing of rungs or limits.
"""

from __future__ import annotations

import math

import msgspec

_FORGET = 0.998  # weight of a window once the next has come
_PRIOR = (100.0, 1.0, 10.0)  # variances of b0, b1 and b2 before anything was seen, in those of a window
_MOST_VARIANCE = 1000.0  # forgetting without news must not let the variances grow for ever
_AROUND_C = 50.0  # temperatures enter relative to this, so that b0 and b1 are better told apart
_LEAST_WINDOWS = 12
_LEAST_SPAN_C = 3.0  # between the coldest and the hottest window seen
_TIME_CONSTANT_S = (10.0, 20_000.0)  # what a device may have
_DEGREES_PER_WATT = (0.01, 200.0)
_BIAS_WEIGHT = 0.1  # of the newest window's error
_NOISE_FLOOR = 1e-8  # (degrees per second) squared


class HeatMemory(msgspec.Struct, forbid_unknown_fields=True):
    """The estimate and the window under way; part of a policy's state."""

    estimate: tuple[float, float, float] = (0.0, 0.0, 0.0)
    covariance: tuple[float, float, float, float, float, float] = (_PRIOR[0], 0.0, 0.0, _PRIOR[1], 0.0, _PRIOR[2])
    sound: tuple[float, float, float] | None = None  # the last estimate that a device can have
    windows: int = 0
    noise: float = 0.0  # mean square error of a window, (degrees per second) squared
    bias: float = 0.0  # degrees per second that the model has missed of late
    span_c: tuple[float, float] | None = None  # coldest and hottest window
    began_s: float | None = None  # the window under way
    seen_s: float = 0.0
    samples: int = 0
    sum_c: float = 0.0
    sum_w: float = 0.0
    before: tuple[float, float, float] | None = None  # the window before: its middle in s, its means in degrees and W


class HeatModel(msgspec.Struct, frozen=True):
    """An identified node.

    Attributes:
        rates: b0 (with what the model misses), b1, b2.
        covariance: of the three, upper triangle by rows, in (degrees per second) squared.
    """

    rates: tuple[float, float, float]
    covariance: tuple[float, float, float, float, float, float]

    @property
    def time_constant_s(self) -> float:
        """R C."""
        return -1.0 / self.rates[1]

    @property
    def degrees_per_watt(self) -> float:
        """R."""
        return -self.rates[2] / self.rates[1]

    def forecast_c(self, temperature_c: float, power_w: float, ahead_s: float) -> float:
        """The temperature after so many seconds at this power."""
        offset, decay, gain = self.rates
        end_c = _AROUND_C - (offset + gain * power_w) / decay
        return end_c + (temperature_c - end_c) * math.exp(decay * ahead_s)

    def sustainable_w(self, temperature_c: float) -> float:
        """The power that holds this temperature."""
        offset, decay, gain = self.rates
        return max(0.0, -(offset + decay * (temperature_c - _AROUND_C)) / gain)

    def doubt_c(self, temperature_c: float, power_w: float, ahead_s: float) -> float:
        """Standard deviation of the forecast that comes from the estimate itself."""
        variance = _quadratic(self.covariance, (1.0, temperature_c - _AROUND_C, power_w))
        return math.sqrt(max(0.0, variance)) * min(ahead_s, self.time_constant_s)


def observe(memory: HeatMemory, time_s: float, temperature_c: float, power_w: float, window_s: float) -> None:
    """Takes one sample in; a full window moves the estimate. A gap or time run backwards starts a new window."""
    elapsed = time_s - memory.seen_s
    if memory.began_s is None or not 0 <= elapsed < 3 * window_s:
        memory.began_s, memory.samples, memory.sum_c, memory.sum_w, memory.before = time_s, 0, 0.0, 0.0, None
    memory.seen_s = time_s
    if time_s - memory.began_s >= window_s and memory.samples:
        middle = (memory.began_s + time_s) / 2
        window = (middle, memory.sum_c / memory.samples, memory.sum_w / memory.samples)
        if memory.before is not None and middle > memory.before[0]:
            _learn(memory, memory.before, window)
        memory.before, memory.began_s = window, time_s
        memory.samples, memory.sum_c, memory.sum_w = 0, 0.0, 0.0
    memory.samples += 1
    memory.sum_c += temperature_c
    memory.sum_w += power_w


def identified(memory: HeatMemory) -> HeatModel | None:
    """The node, once enough was seen; None before.

    An estimate that no device can have is noise: the last that one can have stands.
    """
    if memory.windows < _LEAST_WINDOWS or memory.span_c is None or memory.sound is None:
        return None
    if memory.span_c[1] - memory.span_c[0] < _LEAST_SPAN_C:
        return None
    offset, decay, gain = memory.sound
    noise = max(memory.noise, _NOISE_FLOOR)
    a, b, c, d, e, f = memory.covariance
    scaled = (noise * a, noise * b, noise * c, noise * d, noise * e, noise * f)
    return HeatModel((offset + memory.bias, decay, gain), scaled)


def _sound(estimate: tuple[float, float, float]) -> bool:
    """Whether a device can be like that."""
    _, decay, gain = estimate
    return (
        decay < 0 < gain
        and _TIME_CONSTANT_S[0] <= -1 / decay <= _TIME_CONSTANT_S[1]
        and _DEGREES_PER_WATT[0] <= -gain / decay <= _DEGREES_PER_WATT[1]
    )


def _learn(memory: HeatMemory, before: tuple[float, float, float], window: tuple[float, float, float]) -> None:
    """One step of recursive least squares: the slope between two windows against their mean temperature and power."""
    (then, cold, weak), (now, warm, strong) = before, window
    slope = (warm - cold) / (now - then)
    x = (1.0, (cold + warm) / 2 - _AROUND_C, (weak + strong) / 2)
    a, b, c, d, e, f = memory.covariance
    px = (
        a * x[0] + b * x[1] + c * x[2],
        b * x[0] + d * x[1] + e * x[2],
        c * x[0] + e * x[1] + f * x[2],
    )
    scale = _FORGET + px[0] * x[0] + px[1] * x[1] + px[2] * x[2]
    offset, decay, gain = memory.estimate
    error = slope - (offset * x[0] + decay * x[1] + gain * x[2])
    step = error / scale
    memory.estimate = (offset + px[0] * step, decay + px[1] * step, gain + px[2] * step)
    if _sound(memory.estimate):
        memory.sound = memory.estimate
    # forgetting is paused where it would only let the variance of what is not excited grow without bound
    grow = 1.0 / _FORGET if max(a, d, f) < _MOST_VARIANCE else 1.0
    memory.covariance = (
        (a - px[0] * px[0] / scale) * grow,
        (b - px[0] * px[1] / scale) * grow,
        (c - px[0] * px[2] / scale) * grow,
        (d - px[1] * px[1] / scale) * grow,
        (e - px[1] * px[2] / scale) * grow,
        (f - px[2] * px[2] / scale) * grow,
    )
    memory.windows += 1
    missed = error * _FORGET / scale  # what is left of the error after the step
    weight = max(1.0 / memory.windows, 0.05)
    memory.noise += weight * (missed * missed - memory.noise)
    memory.bias += _BIAS_WEIGHT * (missed - memory.bias)
    low, high = memory.span_c or (warm, warm)
    memory.span_c = (min(low, warm), max(high, warm))


def _quadratic(matrix: tuple[float, float, float, float, float, float], x: tuple[float, float, float]) -> float:
    a, b, c, d, e, f = matrix
    return (
        a * x[0] * x[0] + d * x[1] * x[1] + f * x[2] * x[2] + 2 * (b * x[0] * x[1] + c * x[0] * x[2] + e * x[1] * x[2])
    )
