"""The last decisions, told once each: equal ones in a row become one with the latest conditions and their number.

Knows nothing of how decisions are made.
"""

from __future__ import annotations

import threading
from collections import deque

import msgspec

from agent.values import Explanation

_REMEMBERED = 256


class Explained:
    """Remembers explanations; safe to use from several threads."""

    def __init__(self) -> None:
        self._told: deque[Explanation] = deque(maxlen=_REMEMBERED)
        self._lock = threading.Lock()

    def add(self, made: Explanation) -> Explanation:
        """Takes one in; what is told of it, with those before that were the same."""
        with self._lock:
            if self._told and _gist(self._told[-1]) == _gist(made):
                last = self._told.pop()
                made = msgspec.structs.replace(made, since_unix_s=last.since_unix_s, ticks=last.ticks + made.ticks)
            self._told.append(made)
        return made

    def last(self, count: int) -> list[Explanation]:
        """The last ones that differed, oldest first."""
        with self._lock:
            return list(self._told)[-count:] if count > 0 else []


def _gist(told: Explanation) -> tuple[object, ...]:
    """What makes two decisions differ: not the figures in their wording, but which kinds of fault there were."""
    kinds = frozenset(fault.partition(":")[0] for fault in told.faults)
    return told.decided, told.applied, told.bound, told.applied_bound, kinds
