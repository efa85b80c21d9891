"""What an energy meter is: samples at two instants, and the energy between them with its bounds.

* :class:`MeterSample`, :class:`Energy`, :class:`EnergyMeter`.
* :class:`PowerGauge`: watts at an instant, which :mod:`sensors.integrate` makes into a meter.
* :func:`counted`: the bounds of a counter's difference; :func:`staleness`: how old its readings may be.

Bounds cover resolution and timing, or the spread of a model; they do not cover a gauge's own calibration. Joules that
cannot be told are None with a reason: never a silent zero.
"""

from __future__ import annotations

import abc
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from sensors.root import Number

Device = Literal["CPU", "GPU", "system"]


class MeterSample(msgspec.Struct, frozen=True):
    """A meter's state at one instant (monotonic seconds); what ``state`` holds is the meter's own affair.

    ``stale_s`` is set by who caught the counter moving: at most so long ago; else it may be one update period old.
    """

    time_s: float
    state: Any
    why: str = ""
    stale_s: float | None = None


class Energy(msgspec.Struct, frozen=True):
    """Energy in a window, with its bounds and provenance; joules is None where unknown, and ``why`` says why."""

    joules: float | None
    low_j: float | None
    high_j: float | None
    seconds: float
    source: str
    why: str = ""

    @property
    def power_w(self) -> float | None:
        """Mean power in the window."""
        return self._per_second(self.joules)

    @property
    def power_low_w(self) -> float | None:
        """Lower bound of the mean power."""
        return self._per_second(self.low_j)

    @property
    def power_high_w(self) -> float | None:
        """Upper bound of the mean power."""
        return self._per_second(self.high_j)

    def _per_second(self, joules: float | None) -> float | None:
        return None if joules is None or self.seconds <= 0 else joules / self.seconds


class EnergyMeter(abc.ABC):
    """Measures energy between two samples. Neither method raises for what the machine lacks.

    ``source`` is the provenance that travels with every figure. ``device`` is the domain: "CPU" (package and its
    memory), "GPU" (board) or "system". Use it as a context manager: meters that integrate power sample only within.
    """

    source: str
    device: Device
    update_period_s: float
    where: str  # the path or device it reads, for a person

    @abc.abstractmethod
    def sample(self) -> MeterSample:
        """The state now."""

    @abc.abstractmethod
    def energy(self, before: MeterSample, after: MeterSample) -> Energy:
        """Energy between two samples of this meter, the earlier first."""

    def __enter__(self) -> Self:
        """Starts what the meter needs between samples; a counter needs nothing."""
        return self

    def __exit__(  # noqa: B027 -- only meters with a thread have something to stop
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops it."""

    def _unknown(self, before: MeterSample, after: MeterSample, why: str) -> Energy:
        return Energy(None, None, None, max(0.0, after.time_s - before.time_s), self.source, why)

    def _window(self, before: MeterSample, after: MeterSample) -> tuple[float, str]:
        """Seconds between, and why the window is no good if it is not."""
        seconds = after.time_s - before.time_s
        why = before.why or after.why or ("" if seconds > 0 else "the window has no length")
        return seconds, why


class PowerGauge(abc.ABC):
    """Reads power at an instant; has no memory."""

    source: str
    device: Device
    update_period_s: float
    where: str

    @abc.abstractmethod
    def power_w(self) -> Number:
        """Watts now; or None, and why. Never raises for what the machine lacks."""


def staleness(before: MeterSample, after: MeterSample, update_period_s: float) -> float:
    """How old, in seconds, either of two readings of a counter may be."""
    known = [update_period_s if sample.stale_s is None else sample.stale_s for sample in (before, after)]
    return min(update_period_s, max(known))


def counted(joules: float, seconds: float, source: str, *, resolution_j: float, update_period_s: float) -> Energy:
    """Energy from a counter's difference.

    At either end the counter may be stale by one update (``update_period_s``, or less by :func:`staleness`), worth mean
    power × that time, and rounded by one step.
    """
    slack = resolution_j + joules * min(1.0, update_period_s / seconds)
    return Energy(joules, max(0.0, joules - slack), joules + slack, seconds, source)
