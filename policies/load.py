"""What each rung does under load: how busy it is, how long answers take, how many are on time.

Knows the table's latencies and nothing of conditions: rate and slowdown are given. Latencies are those of the rate: an
engine that rests between answers is slower (:mod:`policies.rested`).
"""

from __future__ import annotations

import msgspec

from policies.base import Goals
from policies.queueing import lognormal, mean_wait, on_time, quantile, spread
from policies.rested import Rested
from policies.rungs import Rungs

_SLICES = 5  # service times that stand for the whole distribution


class LoadModel(msgspec.Struct, frozen=True, kw_only=True):
    """Per rung, back to back, in seconds; ``tail_s`` is the quantile that the goals ask to be in time."""

    mean_s: tuple[float, ...]
    squared_variation: tuple[float, ...]
    tail_s: tuple[float, ...]
    service_s: tuple[tuple[float, ...], ...]  # equally likely times of a batch
    batch_size: int
    rested: Rested

    def mean_ms(self, index: int, rate_hz: float | None, slowdown: float) -> float:
        """Mean latency of a batch, without waiting."""
        return 1000 * self.mean_s[index] * self._slower(index, rate_hz, slowdown)

    def busy(self, index: int, rate_hz: float, slowdown: float) -> float:
        """Share of the time that the rung works at this arrival rate; above 1 = it cannot keep up."""
        return rate_hz / self.batch_size * self.mean_s[index] * self._slower(index, rate_hz, slowdown)

    def wait_ms(self, index: int, rate_hz: float, slowdown: float) -> float:
        """Mean wait for the engine."""
        mean_s = self.mean_s[index] * self._slower(index, rate_hz, slowdown)
        return 1000 * mean_wait(rate_hz / self.batch_size, mean_s, self.squared_variation[index])

    def tail_ms(self, index: int, rate_hz: float | None, slowdown: float) -> float:
        """The wished quantile of the latency, without waiting; back to back where the rate is unknown."""
        return 1000 * self.tail_s[index] * self._slower(index, rate_hz, slowdown)

    def on_time(self, index: int, rate_hz: float, slowdown: float, deadline_ms: float) -> float:
        """Share of answers within the deadline, waiting included."""
        slowdown = self._slower(index, rate_hz, slowdown)
        # time in units of the calibrated machine: a slower one sees more arrivals and a shorter deadline
        return on_time(
            rate_hz / self.batch_size * slowdown,
            self.service_s[index],
            self.squared_variation[index],
            deadline_ms / 1000 / slowdown,
        )

    def _slower(self, index: int, rate_hz: float | None, slowdown: float) -> float:
        return slowdown * self.rested.slower(rate_hz)[index]


def load_model(rungs: Rungs, goals: Goals) -> LoadModel:
    """The columns of a ladder."""
    fits = [lognormal(row.latency_p50_ms / 1000, row.latency_p99_ms / 1000) for row in rungs.rows]
    share = goals.deadline_percentile
    return LoadModel(
        mean_s=tuple(mean for mean, _ in fits),
        squared_variation=tuple(variation for _, variation in fits),
        tail_s=tuple(quantile(row.latency_p50_ms, row.latency_p99_ms, share) / 1000 for row in rungs.rows),
        service_s=tuple(spread(row.latency_p50_ms / 1000, row.latency_p99_ms / 1000, _SLICES) for row in rungs.rows),
        batch_size=rungs.rows[0].batch_size,
        rested=Rested(rungs.rows),
    )
