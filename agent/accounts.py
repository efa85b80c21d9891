"""Accounts: what was answered, put down at once and reckoned up later.

An engine leaves the processor's caches full of weights, so all that is done between its answer and the caller's costs
several times what it otherwise would. Hence the way of a request only appends a :data:`Note`. The notes become figures,
tallies and lines of the journal when somebody asks for those, once a control period, or when :data:`MOST` of them have
come together: at once and in warm caches.

Knows nothing of engines.
"""

from __future__ import annotations

import threading
from collections import deque

from agent.figures import LoadFigures
from agent.journal import BatchLine, Journal
from agent.tallies import Tallies

MOST = 64


Note = tuple[str, int, float, float, float, float | None, tuple[int, float] | None, str]
"""One request that has ended: operating point, images, when it arrived, began and ended, deadline in ms, what its
engine ran, and :data:`ANSWERED`, :data:`FAILED` or :data:`EXPIRED`.

What ran is (images, milliseconds by the table) of the whole batch on the first request of one; None on the others, and
where the time says nothing of the engine. A plain tuple: anything else costs microseconds.
"""
ANSWERED, FAILED, EXPIRED = "answered", "failed", "expired"


class Accounts:
    """Reckons up.

    Args:
        figures: what the control loop sees.
        journal: or None.

    Attributes:
        notes: to be appended to by the thread that has the engine, who settles when there are :data:`MOST`.
    """

    def __init__(self, figures: LoadFigures, journal: Journal | None) -> None:
        self.tallies = Tallies()
        self.failed = 0
        self._figures, self._journal = figures, journal
        self.notes: deque[Note] = deque()
        self._settling = threading.Lock()

    def settle(self) -> None:
        """Reckons up what was put down so far."""
        with self._settling:
            while self.notes:
                self._reckon(self.notes.popleft())

    def _reckon(self, note: Note) -> None:
        point, images, arrived_s, began_s, done_s, deadline_ms, ran, outcome = note
        queue_ms, infer_ms = (began_s - arrived_s) * 1000, (done_s - began_s) * 1000
        if ran is not None:
            self._figures.ran(done_s, point, ran[0], infer_ms, ran[1])
        if outcome is ANSWERED:
            on_time = None if deadline_ms is None else (done_s - arrived_s) * 1000 <= deadline_ms
            self._figures.answered(done_s, images, on_time)
            self.tallies.answered(point, images, queue_ms, infer_ms)
        elif outcome is EXPIRED:
            self._figures.expired(done_s)
        else:
            self.failed += 1
        if self._journal is not None:
            line = BatchLine(
                arrived_ns=int(arrived_s * 1e9),
                n=images,
                point=point,
                queue_ms=queue_ms,
                infer_ms=infer_ms,
                deadline_ms=deadline_ms,
                ok=outcome is ANSWERED,
            )
            self._journal.write(line)
