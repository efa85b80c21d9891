"""What was answered, per operating point: counts, sums and two histograms of latency.

Fed with every answer, so an answer costs two bisections and a few additions here; whoever looks (metrics, the live
view) does the rest. The buckets are fine enough for quantiles within 6 %, and hold the coarse steps 1, 2.5, 5 that
Prometheus is given. Knows nothing of goals, sensors or HTTP.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence


def _bounds(first_ms: float, last_ms: float) -> tuple[float, ...]:
    """Upper bounds that pass through 1, 2.5 and 5 of every decade, each about 1.12 times the one before."""
    found, decade = [], first_ms
    while decade < last_ms * 0.999:
        for low, high, steps in ((1.0, 2.5, 8), (2.5, 5.0, 6), (5.0, 10.0, 6)):
            found += [decade * low * (high / low) ** (step / steps) for step in range(steps)]
        decade *= 10
    return (*(float(f"{bound:.6g}") for bound in found), last_ms)


BOUNDS_MS = _bounds(0.01, 100_000.0)
"""Upper bounds of the buckets, in ms; one more bucket holds what is longer than the last."""


class Tally:
    """Of one operating point, since the start; ``infer`` is the engine's part, ``total`` counts from arrival."""

    __slots__ = ("images", "infer", "infer_ms", "queue_ms", "requests", "total")

    def __init__(self) -> None:
        self.requests = self.images = 0
        self.queue_ms = self.infer_ms = 0.0  # sums
        self.infer = [0] * (len(BOUNDS_MS) + 1)
        self.total = [0] * (len(BOUNDS_MS) + 1)


class Tallies:
    """Fed by one thread at a time, read by any."""

    def __init__(self) -> None:
        self._of: dict[str, Tally] = {}

    def answered(self, point: str, images: int, queue_ms: float, infer_ms: float) -> None:
        """A request was answered.

        Args:
            point: which operating point answered.
            images: how many.
            queue_ms: how long it waited.
            infer_ms: from there to the logits.
        """
        tally = self._of.get(point)
        if tally is None:
            tally = self._of[point] = Tally()
        tally.requests += 1
        tally.images += images
        tally.queue_ms += queue_ms
        tally.infer_ms += infer_ms
        tally.infer[bisect_left(BOUNDS_MS, infer_ms)] += 1
        tally.total[bisect_left(BOUNDS_MS, queue_ms + infer_ms)] += 1

    def by_point(self) -> dict[str, Tally]:
        """The tallies; they go on counting."""
        return self._of.copy()

    def totals(self) -> list[int]:
        """The histogram of the times from arrival to answer, all operating points together."""
        found = [0] * (len(BOUNDS_MS) + 1)
        for tally in self._of.copy().values():
            found = [mine + theirs for mine, theirs in zip(found, tally.total, strict=True)]
        return found


def quantile_ms(counts: Sequence[int], share: float) -> float | None:
    """The latency that ``share`` of the answers kept, interpolated within its bucket; None without answers.

    Args:
        counts: a histogram as in :meth:`Tallies.totals`, or the difference of two.
        share: 0..1.
    """
    answers = sum(counts)
    if answers <= 0:
        return None
    rank, seen = share * answers, 0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            if index >= len(BOUNDS_MS):
                break
            high = BOUNDS_MS[index]
            low = BOUNDS_MS[index - 1] if index else high / 1.12
            return low * math.pow(high / low, max(0.0, rank - seen) / count)
        seen += count
    return BOUNDS_MS[-1]
