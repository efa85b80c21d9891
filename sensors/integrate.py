"""A meter made of a power gauge: samples it in a thread and integrates.

The trapezoid rule gives the energy; the smaller and the larger end of each step give its bounds. A window in which the
gauge was not followed (no context manager, or a starved thread) is unknown rather than guessed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from sensors.meter import Energy, EnergyMeter, MeterSample, PowerGauge

_GAP_S = 1.0  # a longer step says nothing about the power within it
_MOST_WATTS = 10_000.0
_MISSED_SHARE = 0.05  # of a window that may be missed and still be bridged


class _Integral(msgspec.Struct, frozen=True):
    """Cumulated since the meter was made: joules with bounds, and seconds that were not followed."""

    joules: float = 0.0
    low_j: float = 0.0
    high_j: float = 0.0
    missed_s: float = 0.0

    def plus(self, seconds: float, first_w: float, last_w: float) -> _Integral:
        """With one more step."""
        return _Integral(
            self.joules + seconds * (first_w + last_w) / 2,
            self.low_j + seconds * min(first_w, last_w),
            self.high_j + seconds * max(first_w, last_w),
            self.missed_s + (seconds if seconds > _GAP_S else 0.0),
        )


class IntegratingMeter(EnergyMeter):
    """Integrates a gauge's power while entered: ``with meter: before = meter.sample() ...``.

    Args:
        gauge: what to read.
        period_s: time between readings; by default the gauge's own update period, 0.02 to 0.1 s.
        clock: monotonic seconds.
    """

    def __init__(
        self, gauge: PowerGauge, period_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.source = gauge.source
        self.device = gauge.device
        self.where = gauge.where
        self.update_period_s = period_s if period_s is not None else min(0.1, max(0.02, gauge.update_period_s))
        self._gauge = gauge
        self._clock = clock
        self._lock = threading.Lock()
        self._integral = _Integral()
        self._last: tuple[float, float] | None = None  # (time_s, watts)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def sample(self) -> MeterSample:
        """Reads the gauge at this instant too, so that windows end where they should."""
        time_s, why = self._step()
        with self._lock:
            return MeterSample(time_s, self._integral, why)

    def energy(self, before: MeterSample, after: MeterSample) -> Energy:
        """The integral between two samples."""
        seconds, why = self._window(before, after)
        if why:
            return self._unknown(before, after, why)
        first, last = before.state, after.state
        if last.missed_s - first.missed_s > _MISSED_SHARE * seconds:
            return self._unknown(before, after, f"{self.where}: not followed throughout; sample inside 'with meter:'")
        joules = last.joules - first.joules
        return Energy(joules, last.low_j - first.low_j, last.high_j - first.high_j, seconds, self.source)

    def __enter__(self) -> Self:
        """Starts the sampling thread."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name=f"meter {self.source}", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops the sampling thread."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stop.wait(self.update_period_s):
            self._step()

    def _step(self) -> tuple[float, str]:
        """Reads once and integrates up to here; (time_s, why not)."""
        with self._lock:
            try:
                watts = self._gauge.power_w()
                value, why = watts.value, watts.why
            except Exception as error:  # a faulty gauge must not end the thread
                value, why = None, f"{self.where}: {type(error).__name__}: {error}"
            time_s = self._clock()
            if value is not None and not 0 <= value <= _MOST_WATTS:
                value, why = None, f"{self.where}: implausible value {value:g} W"
            if value is None:
                return time_s, why
            if self._last is not None:
                self._integral = self._integral.plus(time_s - self._last[0], self._last[1], value)
            self._last = (time_s, value)
            return time_s, ""
