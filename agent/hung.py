"""Inferences that do not end: found by the control loop, given up, and answered by the next engine.

A thread that is inside a library cannot be ended. So its engine is quarantined, thread and engine are left to
themselves, and another worker goes on. Each costs a thread and an engine's memory, so one that hangs stays away much
longer than one that fails. When every engine hangs, or none is to be had after one did (loading may hang as well),
there is nothing left to go on with: the agent is :attr:`HangWatch.hopeless`, the watchdog is not fed any more, and
whoever started the process has to start it again.

Knows nothing of queues: what is under way, and how to give it up, it is told.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.figures import LoadFigures
from agent.guard import Guard
from agent.pool import EnginePool
from agent.running import UnderWay
from subnets.errors import EngineError

LEAST_S = 2.0
TIMES_P99 = 50.0
NOBODY_S = 60.0  # without any engine, after one hung


class HangWatch:
    """Looks at what is under way, one call a control period.

    Args:
        under_way: what is being computed now, or None.
        abandon: gives it up; False when it has ended meanwhile.
        apply: makes another engine current, once this one is quarantined.
        guard: quarantines the engine.
        pool: which engines there are.
        figures: how slow the machine is now.
        clock: of ``UnderWay.began_s``, seconds.
    """

    def __init__(
        self,
        under_way: Callable[[], UnderWay | None],
        abandon: Callable[[UnderWay, Exception], bool],
        apply: Callable[[], object],
        guard: Guard,
        pool: EnginePool,
        figures: LoadFigures,
        clock: Callable[[], float],
    ) -> None:
        self.hopeless = ""  # why there is nothing left to go on with
        self._nobody_since_s: float | None = None
        self._under_way, self._abandon, self._apply = under_way, abandon, apply
        self._guard, self._pool, self._figures, self._clock = guard, pool, figures, clock

    def watch(self, now_s: float, faults: list[str]) -> None:
        """Gives up what takes too long.

        Raises:
            EngineError: there is nothing left to go on with.
        """
        found = self._under_way()
        if found is not None and self._clock() - found.began_s > (bound_s := self.bound_s(found)):
            key = found.active.resident.key
            error = EngineError(f"no answer within {bound_s:.1f} s; it hangs and is given up")
            undo = self._guard.hung(key, error)
            self._apply()  # before whoever waits is answered: not by this one
            if not self._abandon(found, error):
                undo()
                self._apply()
            elif not self._pool.answering and all(self._guard.hangs(other) for other in self._pool.keys):
                self.hopeless = f"every engine hangs, {key.subnet} as the last one"
        if not self._guard.engine_hangs or self._pool.answering:
            self._nobody_since_s = None
        elif self._nobody_since_s is None:
            self._nobody_since_s = now_s
        elif now_s - self._nobody_since_s > NOBODY_S and not self.hopeless:
            self.hopeless = f"an engine hung, and no other is to be had within {NOBODY_S:g} s"
        if self.hopeless:
            faults.append(f"hopeless: {self.hopeless}")
            raise EngineError(self.hopeless)

    def bound_s(self, found: UnderWay) -> float:
        """How long an inference may take: so much longer than any in the table that it will not end."""
        row = found.active.row
        p99_s = found.expected_ms / 1000 * row.latency_p99_ms / row.latency_p50_ms
        slowdown = self._figures.slowdown(self._clock(), found.active.point) or 1.0
        return max(LEAST_S, TIMES_P99 * p99_s * max(1.0, slowdown))
