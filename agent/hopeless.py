"""Admission: whether a request can still be answered in time.

A deadline is hopeless if even the fastest engine that may answer the request, given what is under way and who is due
earlier, would be late. Such a request is refused at once, so that its sender can ask elsewhere or do without, and the
time goes to those who can still be helped.

This is off unless asked for (``admission`` in the configuration). Most callers of an agent on a device have nobody else
to ask: a late answer is worth more to them than none, a policy that sees lateness steps down, and the simulator answers
late requests too. It is for servers whose clients try again elsewhere.

The estimate is a lower bound: medians of the table times the slowdown measured lately, whole batches for all others,
nobody due earlier to come. So while slowdown and choice of engines stay as they are, nobody is refused who would have
been in time, and some get in who will be late.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from agent.choosing import Chooser
from agent.figures import LoadFigures
from agent.waiting import Request, Waiting

_ROUNDING_MS = 1e-3


class Hopeless:
    """Finds requests that cannot be answered in time.

    Args:
        chooser: says which engines may answer.
        figures: how slow engines are just now.
        busy_ms: called for what is left of the batch under way, by the table.
        clock: monotonic seconds.
    """

    def __init__(
        self, chooser: Chooser, figures: LoadFigures, busy_ms: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self._chooser, self._figures, self._busy_ms, self._clock = chooser, figures, busy_ms, clock

    def why(self, request: Request, waiting: Waiting) -> str:
        """Why a newcomer is to be refused, or nothing."""
        if request.due_s == math.inf:
            return ""
        engines = self._chooser.candidates(request)
        if not engines:
            return ""  # its engine has to be loaded first; how long that takes nobody knows
        request.least_ms = min(request.images * resident.least_ms for resident in engines)
        older, ahead_ms = waiting.older(request.stream), self._busy_ms()
        for other in waiting:
            if other.due_s > request.due_s:
                break
            if other is not older:  # which will make room for this one
                ahead_ms += other.least_ms
        now_s = self._clock()
        slowdown = self._figures.slowdown(now_s, None) or 1.0
        own_ms = min(resident.plan(request.images).expected_ms for resident in engines)
        left_ms = (request.due_s - now_s) * 1000
        if (ahead_ms + own_ms) * slowdown <= left_ms + _ROUNDING_MS:
            return ""
        return (
            f"the deadline cannot be kept: {left_ms:.1f} ms are left, the fastest engine that may answer takes "
            f"{own_ms * slowdown:.1f} ms after {ahead_ms * slowdown:.1f} ms for others; allow more time, or switch off "
            "admission"
        )
