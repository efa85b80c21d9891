"""SlackFit: buckets of latency, in each the largest batch that fits."""

from __future__ import annotations

from collections.abc import Sequence

from calibration.table import Row
from policies.base import Goals
from policies.fitting import Fitting, Need
from policies.rungs import Where, require


class SlackFit(Fitting):
    """The largest batch that fits a bucket of slack, at the best accuracy for that batch.

    Beforehand, ``buckets`` upper edges are spread evenly from the quickest row's latency to the slowest's. Bucket k
    with edge ``e_k`` holds::

        (subnet, b) = argmax b over rows with l(subnet, b) <= e_k, then argmax accuracy

    and the dispatcher takes the bucket whose row is the slowest that the oldest request still has time for. Latency
    grows with batch and with accuracy, so that one number orders all choices and slack itself tells of bursts: little
    slack means a queue, and small subnets in large batches work it off. Latencies are the deadline's percentile, not
    the median, scaled by the slowdown; rows that never fit in the deadline are left out.

    Source: Khare et al., SuperServe, NSDI 2025 (arXiv:2312.16733).

    Args:
        buckets: how many, from 2.
    """

    name = "slackfit"

    def __init__(self, goals: Goals, *, buckets: int = 16, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        require(buckets >= 2, self.name, "buckets", buckets, "a whole number from 2")
        self.buckets = buckets

    def _choices(self, rows: Sequence[Row], need: Need, deadline_ms: float) -> list[tuple[float, Row]]:
        low, high = min(map(need, rows)), max(map(need, rows))
        found: dict[str, tuple[float, Row]] = {}
        for bucket in range(self.buckets):
            edge = high if bucket == self.buckets - 1 else low + (high - low) * bucket / (self.buckets - 1)
            inside = [row for row in rows if need(row) <= edge]
            row = max(inside, key=lambda row: (row.batch_size, row.accuracy, -need(row)))
            found[row.point] = (need(row), row)
        return sorted(found.values(), key=lambda choice: (choice[0], choice[1].point))
