"""The queue and the one engine that answers: first come, first served, advanced from one control tick to the next.

Requests have the same relative deadline, so first come first served is earliest deadline first. A point with batch
size b takes up to b waiting requests at once and always costs a whole batch; it does not wait for a batch to fill.
Service times use one standard normal draw per request, the same for every policy (common random numbers). Knows
nothing of policies, sensors or the plant.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence

from simulation.compiled import CompiledTable
from simulation.figures import Figures


class Server:
    """Queue and engine over a whole run; counters only grow.

    Args:
        table: what each operating point takes.
        arrivals_s: ascending arrival times.
        draws: one standard normal number per arrival.
        deadline_s: from arrival to answer; None = every answer is on time.
        drop_late: a request whose deadline passed before its turn is dropped, not answered.
        queue_limit: how many may wait; what arrives beyond is dropped.
    """

    def __init__(
        self,
        table: CompiledTable,
        arrivals_s: Sequence[float],
        draws: Sequence[float],
        *,
        deadline_s: float | None,
        drop_late: bool,
        queue_limit: int,
    ) -> None:
        self._table, self._arrivals, self._draws = table, arrivals_s, draws
        self._deadline_s = math.inf if deadline_s is None else deadline_s
        self._drop_late, self._queue_limit = drop_late, queue_limit
        self.queue: deque[int] = deque()  # indices of waiting requests
        self.ceiling = 0
        self.plan: list[tuple[float, int]] = []  # (least slack, point), most slack first
        self.slowdown = 1.0
        self.arrived = self.answered = self.on_time = 0
        self.dropped_queue = self.dropped_late = self.dropped_off = 0
        self.slack_choices = 0
        self._batches = [0] * len(table.points)  # by operating point, so that sums over it are exact
        self._on_time = [0] * len(table.points)
        self.latencies_s = array("d")
        self.figures = Figures(len(table.points))
        self._untold: tuple[float, int, float, list[float]] | None = None  # the running batch, told when it is done
        self._last: int | None = None  # the point that answered last
        self._free_s = 0.0  # when the engine is free
        self._drawing_w = 0.0  # above base while it is not

    @property
    def drawn_j(self) -> float:
        """Energy above base of all batches begun so far."""
        return math.fsum(n * joules for n, joules in zip(self._batches, self._table.batch_j, strict=True))

    @property
    def accuracy_sum(self) -> float:
        """Over on-time answers, of their operating point's accuracy."""
        return math.fsum(n * share for n, share in zip(self._on_time, self._table.accuracy, strict=True))

    def advance(self, begin_s: float, end_s: float) -> float:
        """Everything that begins before ``end_s``.

        Returns:
            Energy in joules drawn above base between ``begin_s`` and ``end_s``; a batch draws evenly while it runs.
        """
        table, arrivals, queue = self._table, self._arrivals, self.queue
        count, next_one, limit, deadline = len(arrivals), self.arrived, self._queue_limit, self._deadline_s
        free, watts = self._free_s, self._drawing_w
        drawn_j = watts * (min(free, end_s) - begin_s) if free > begin_s else 0.0
        if free <= begin_s:
            self._tell()
        while True:
            if queue:
                start = free
            elif next_one < count:
                start = max(free, arrivals[next_one])
            else:
                break
            if start >= end_s:
                break
            while next_one < count and arrivals[next_one] <= start:
                if len(queue) < limit:
                    queue.append(next_one)
                else:
                    self.dropped_queue += 1
                next_one += 1
            head = queue.popleft()
            slack = arrivals[head] + deadline - start
            if self._drop_late and slack <= 0.0:
                self.dropped_late += 1
                self.figures.answered(start, 1.0)
                continue
            if self._untold is not None:
                self._tell()
            point = self.ceiling
            if self.plan and slack < math.inf:
                for least, choice in self.plan:
                    point = choice
                    if slack >= least:
                        break
                self.slack_choices += point != self.ceiling
            median = table.median_s[point]
            service = median * math.exp(table.sigma[point] * self._draws[head]) * self.slowdown
            if self._last is not None and self._last != point:
                service += table.switch_s[self._last][point]
            self._last = point
            free = start + service
            watts = table.batch_j[point] / service
            drawn_j += watts * (min(free, end_s) - start)
            self._batches[point] += 1
            batch = [head]
            while len(batch) < table.batch[point] and queue:
                batch.append(queue.popleft())
            missed: list[float] = []
            for request in batch:
                latency = free - arrivals[request]
                self.latencies_s.append(latency)
                self.answered += 1
                if latency <= deadline:
                    self.on_time += 1
                    self._on_time[point] += 1
                    missed.append(0.0)
                else:
                    missed.append(1.0)
            self._untold = free, point, math.log(service / median), missed
        while next_one < count and arrivals[next_one] < end_s:
            if len(queue) < limit:
                queue.append(next_one)
            else:
                self.dropped_queue += 1
            next_one += 1
        self.arrived, self._free_s, self._drawing_w = next_one, free, watts
        return drawn_j

    def _tell(self) -> None:
        """Feeds the figures with the batch that is done: nobody can know how long it takes before that."""
        if self._untold is None:
            return
        done_s, point, log_ratio, missed = self._untold
        self._untold = None
        self.figures.served(done_s, point, log_ratio)
        if self._deadline_s < math.inf:
            for miss in missed:
                self.figures.answered(done_s, miss)

    def refuse(self, end_s: float) -> None:
        """Without power: what waits and what arrives before ``end_s`` is dropped."""
        self.dropped_off += len(self.queue)
        self.queue.clear()
        while self.arrived < len(self._arrivals) and self._arrivals[self.arrived] < end_s:
            self.arrived += 1
            self.dropped_off += 1
        self._drawing_w = 0.0
        self._free_s = min(self._free_s, end_s)
