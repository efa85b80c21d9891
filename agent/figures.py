"""The agent's own figures: how fast requests arrive, how slow the engines are, how many answers are late.

Everything is smoothed exponentially; a figure nobody has fed for :data:`STALE_S` is unknown again, so that an idle
agent does not act on old news. Knows nothing of engines or policies.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from calibration.table import Row, Table

STALE_S = 30.0
_RATE_TIME_CONSTANT_S = 5.0
_SLOWDOWN_WEIGHT = 0.1  # of the newest answer
_MISS_WEIGHT = 0.05


class LoadFigures:
    """Fed by every request, read by the control loop.

    :meth:`ran`, :meth:`answered` and :meth:`expired` are called by one thread at a time, :meth:`refused` by any.

    Attributes:
        arrived: called for how many images have arrived so far.
    """

    def __init__(self) -> None:
        self.arrived: Callable[[], int] = lambda: 0
        self._lock = threading.Lock()
        self._counted = 0  # of the images that have arrived
        self._counted_at_s: float | None = None
        self._rate_hz: float | None = None
        self.on_ran: Callable[[float, str, float, float], None] = lambda now_s, point, infer_ms, expected_ms: None
        self._resting: dict[str, Row] = {}  # points that the table knows to be slower after a rest
        self._ended_s: float | None = None  # the batch before
        self._log_slowdown: dict[str, tuple[float, float]] = {}  # point -> (smoothed log ratio, when)
        self._miss: tuple[float, float] | None = None  # (smoothed share, when)
        self.requests = self.images = self.late = self.refused_requests = self.expired_requests = 0

    def retable(self, table: Table) -> None:
        """Measures against this table from now on."""
        self._resting = {row.point: row for row in table.rows if row.duty is not None}

    def refused(self) -> None:
        """A request was turned away when it came."""
        with self._lock:
            self.refused_requests += 1

    def ran(self, now_s: float, point: str, images: int, infer_ms: float, expected_ms: float) -> None:
        """An engine has computed a batch, perhaps for several requests.

        Args:
            now_s: on the agent's clock.
            point: which operating point.
            images: how many.
            infer_ms: how long it took.
            expected_ms: what the table says it takes, back to back; a slowdown is what is beyond the row's own rests.
        """
        self.on_ran(now_s, point, infer_ms, expected_ms)
        ended_s, self._ended_s = self._ended_s, now_s
        row = self._resting.get(point)
        if row is not None and expected_ms == row.latency_p50_ms:
            rest_ms = math.inf if ended_s is None else max(0.0, (now_s - ended_s) * 1000 - infer_ms)
            expected_ms = row.latency_ms_after(rest_ms)
        if expected_ms > 0 and infer_ms > 0:
            # Logarithms: the table's figure is a median, and the mean of logarithms is little moved by rare stalls.
            ratio = math.log(infer_ms / expected_ms)
            before = self._log_slowdown.get(point)
            if before is not None and now_s - before[1] < STALE_S:
                ratio = before[0] + _SLOWDOWN_WEIGHT * (ratio - before[0])
            self._log_slowdown[point] = (ratio, now_s)

    def answered(self, now_s: float, images: int, on_time: bool | None) -> None:
        """A request was answered.

        Args:
            now_s: on the agent's clock.
            images: how many it held.
            on_time: whether the deadline was met; None without one.
        """
        self.requests += 1
        self.images += images
        if on_time is not None:
            self.late += not on_time
            self._missed(now_s, 0.0 if on_time else 1.0)

    def expired(self, now_s: float) -> None:
        """A request was given up because its deadline had passed."""
        self.expired_requests += 1
        self._missed(now_s, 1.0)

    def _missed(self, now_s: float, missed: float) -> None:
        if self._miss is not None and now_s - self._miss[1] < STALE_S:
            missed = self._miss[0] + _MISS_WEIGHT * (missed - self._miss[0])
        self._miss = (missed, now_s)

    @property
    def rate_hz(self) -> float | None:
        """Images per second as of the last period."""
        return self._rate_hz

    def arrival_rate_hz(self, now_s: float) -> float | None:
        """Images per second, smoothed over about five seconds; None until two readings. Call once per period."""
        arrived = self.arrived()
        images, self._counted = arrived - self._counted, arrived
        before, self._counted_at_s = self._counted_at_s, now_s
        if before is None or now_s <= before:
            return self._rate_hz
        rate = images / (now_s - before)
        if self._rate_hz is None:
            self._rate_hz = rate
        else:
            self._rate_hz += (1 - math.exp((before - now_s) / _RATE_TIME_CONSTANT_S)) * (rate - self._rate_hz)
        return self._rate_hz

    def slowdown(self, now_s: float, point: str | None) -> float | None:
        """Measured latency over the table's at ``point``, or at the point that answered last until that one has."""
        fresh = {name: value for name, value in self._log_slowdown.copy().items() if now_s - value[1] < STALE_S}
        if point in fresh:
            return math.exp(fresh[point][0])
        if fresh:
            return math.exp(max(fresh.values(), key=lambda value: value[1])[0])
        return None

    def slowdowns(self, now_s: float) -> dict[str, float]:
        """Slowdown of every operating point that answered lately."""
        seen = self._log_slowdown.copy()
        return {name: math.exp(value) for name, (value, when) in seen.items() if now_s - when < STALE_S}

    def miss_rate(self, now_s: float) -> float | None:
        """Share of recent answers that came after their deadline; None when none had one lately."""
        miss = self._miss
        return miss[0] if miss is not None and now_s - miss[1] < STALE_S else None
