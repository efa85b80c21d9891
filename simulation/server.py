"""The queue and the one engine that answers: earliest deadline first, advanced from one control tick to the next.

A point with batch size b takes up to b waiting requests at once and always costs a whole batch; it does not wait for a
batch to fill, and where the table has the same engine with a smaller batch that holds all that wait, that one is used.
Service times use one standard normal draw per request, the same for every policy (common random numbers). The work is
done by :func:`simulation.kernel.advance`, in plain Python or compiled; :class:`Server` keeps its arrays and reads its
counters. Knows nothing of policies, sensors or the plant.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from policies.base import SlackStep
from simulation import kernel
from simulation.compiled import CompiledTable
from simulation.figures import Figures
from simulation.trace import Floats


class Server:
    """Queue and engine over a whole run; counters only grow.

    Args:
        table: what each operating point takes.
        arrivals_s: ascending arrival times.
        draws: one standard normal number per arrival.
        deadlines_s: from arrival to answer, for all or one per arrival; infinite or None = every answer is on time.
        drop_late: a request whose deadline passed before its turn is dropped, not answered.
        drop_oldest: what arrives at a full queue replaces the earliest deadline in it, as a camera's frames do.
        queue_limit: how many may wait; what arrives beyond is dropped.
        compiled: run the machine code; slower to start, and a hundred times as fast.

    Raises:
        UnavailableError: ``compiled``, and numba is not installed.
    """

    def __init__(
        self,
        table: CompiledTable,
        arrivals_s: Sequence[float] | Floats,
        draws: Sequence[float] | Floats,
        *,
        deadlines_s: float | Floats | None = None,
        drop_late: bool = False,
        drop_oldest: bool = False,
        queue_limit: int = 1_000,
        compiled: bool = False,
    ) -> None:
        count, points = len(arrivals_s), len(table.points)
        self._table = table
        self._advance: Callable[..., float] = kernel.compiled() if compiled else kernel.advance
        self._drop_late, self._drop_oldest = bool(drop_late), bool(drop_oldest)
        deadlines = np.atleast_1d(np.asarray(math.inf if deadlines_s is None else deadlines_s, np.float64))

        def reals(values: Any) -> Any:
            array = np.ascontiguousarray(values, np.float64)
            return array if compiled else array.tolist()

        def wholes(values: Any) -> Any:
            array = np.ascontiguousarray(values, np.int64)
            return array if compiled else array.tolist()

        self._arrivals = reals(arrivals_s)
        self._real, self._whole = reals(np.zeros(kernel.REALS)), wholes(np.zeros(kernel.WHOLES))
        self._real[kernel.SLOWDOWN], self._real[kernel.MISS_S] = 1.0, -math.inf
        self._whole[kernel.LAST] = -1
        self._log_ratio, self._log_ratio_s = reals(np.zeros(points)), reals(np.full(points, -math.inf))
        self._batches, self._on_time = wholes(np.zeros(points)), wholes(np.zeros(points))
        self._latencies = reals(np.zeros(count))
        self._plan_slack_s, self._plan_point = reals(np.zeros(points)), wholes(np.zeros(points))
        self._plan: tuple[SlackStep, ...] = ()
        self._arrays = (
            self._arrivals,
            reals(draws),
            reals(deadlines),
            reals(table.median_s),
            reals(table.sigma),
            reals(table.batch_j),
            reals(table.rest_s),
            reals(table.rest_j),
            reals(table.settle_s),
            wholes(table.batch),
            wholes(table.smaller),
            reals(np.ravel(table.switch_s)),
        )
        self._memory = (
            wholes(np.zeros(max(1, min(queue_limit, count)))),
            reals(np.zeros(max(table.batch))),
            self._batches,
            self._on_time,
            self._latencies,
            self._log_ratio,
            self._log_ratio_s,
            self._real,
            self._whole,
            self._drop_late,
            self._drop_oldest,
        )
        self.dropped_off = 0
        self.figures = Figures(self._real, self._whole, self._log_ratio, self._log_ratio_s)

    def advance(self, begin_s: float, end_s: float) -> float:
        """Everything that begins before ``end_s``, see :func:`simulation.kernel.advance`.

        Returns:
            Energy in joules drawn above base between ``begin_s`` and ``end_s``.
        """
        return self._advance(*self._arrays, self._plan_slack_s, self._plan_point, *self._memory, begin_s, end_s)

    def use(self, ceiling: int, plan: tuple[SlackStep, ...] = ()) -> None:
        """From now on this operating point, or what the slack plan says below it."""
        changed = ceiling != self._whole[kernel.CEILING]
        self._whole[kernel.CEILING] = ceiling
        if not changed and plan == self._plan:
            return
        self._plan = plan
        steps = self._table.plan(plan, ceiling) if plan else []
        if len(steps) > len(self._plan_slack_s):
            more = len(steps) - len(self._plan_slack_s)
            self._plan_slack_s, self._plan_point = _longer(self._plan_slack_s, more), _longer(self._plan_point, more)
        for k, (slack_s, point) in enumerate(steps):
            self._plan_slack_s[k], self._plan_point[k] = slack_s, point
        self._whole[kernel.PLANNED] = len(steps)

    def slow_down(self, factor: float) -> None:
        """Batches that begin from now on take so many times as long."""
        self._real[kernel.SLOWDOWN] = factor

    def refuse(self, end_s: float) -> None:
        """Without power: what waits and what arrives before ``end_s`` is dropped."""
        whole, real = self._whole, self._real
        came = bisect.bisect_left(self._arrivals, end_s, lo=self.arrived)
        self.dropped_off += self.waiting + came - self.arrived
        whole[kernel.ARRIVED], whole[kernel.WAITING] = came, 0
        real[kernel.DRAWING_W] = 0.0
        real[kernel.FREE_S] = min(real[kernel.FREE_S], end_s)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return int(self._whole[kernel.WAITING])

    @property
    def arrived(self) -> int:
        """Requests that came so far."""
        return int(self._whole[kernel.ARRIVED])

    @property
    def answered(self) -> int:
        """Requests whose batch has begun."""
        return int(self._whole[kernel.ANSWERED])

    @property
    def on_time(self) -> int:
        """Of those, answered within their deadline."""
        return int(sum(self._on_time))

    @property
    def dropped_queue(self) -> int:
        """Requests dropped because the queue was full."""
        return int(self._whole[kernel.DROPPED_QUEUE])

    @property
    def dropped_late(self) -> int:
        """Requests dropped because their deadline had passed."""
        return int(self._whole[kernel.DROPPED_LATE])

    @property
    def slack_choices(self) -> int:
        """Batches for which the slack plan chose another point than the ceiling."""
        return int(self._whole[kernel.SLACK_CHOICES])

    @property
    def latencies_s(self) -> Floats:
        """Of all answers, in order of their batches."""
        return np.asarray(self._latencies[: self.answered], np.float64)

    @property
    def used(self) -> tuple[int, ...]:
        """The operating points that answered anything."""
        return tuple(k for k, batches in enumerate(self._batches) if batches)

    @property
    def drawn_j(self) -> float:
        """Energy above base of all batches begun so far."""
        steady_j = math.fsum(int(n) * joules for n, joules in zip(self._batches, self._table.batch_j, strict=True))
        return steady_j + float(self._real[kernel.RESTED_J])

    @property
    def accuracy_sum(self) -> float:
        """Over on-time answers, of their operating point's accuracy."""
        return math.fsum(int(n) * share for n, share in zip(self._on_time, self._table.accuracy, strict=True))


def _longer(values: Any, more: int) -> Any:
    if isinstance(values, list):
        return values + values[:1] * more
    return np.concatenate([values, np.zeros(more, values.dtype)])
