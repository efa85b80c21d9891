"""Accounts: what was answered, put down at once and reckoned up later.

An engine leaves the processor's caches full of weights, so all that is done between its answer and the caller's costs
several times what it otherwise would. Hence the way of a request only appends a :data:`Note`. The notes become figures,
tallies and lines of the journal when somebody asks for those, once a control period, and whenever :data:`MOST` more of
them have come, by a thread that has nothing else to do: at once and in warm caches, while the engine computes.

Knows nothing of engines.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue

from agent.figures import LoadFigures
from agent.journal import BatchLine, Journal
from agent.tallies import Tallies

MOST = 64
_TOO_MANY = 4096


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
        notes: to be appended to by the thread that has the engine, who calls :meth:`many` at every multiple of
            :data:`MOST`.
    """

    def __init__(self, figures: LoadFigures, journal: Journal | None) -> None:
        self.tallies = Tallies()
        self.failed = 0
        self._figures, self._journal = figures, journal
        self.notes: deque[Note] = deque()
        self._settling = threading.Lock()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def many(self) -> None:
        """Many notes have come together: they will be reckoned up soon; at once where that does not keep up."""
        if len(self.notes) >= _TOO_MANY:
            self.settle()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gearshift-accounts", daemon=True)
            self._thread.start()
        self._wake.put(True)

    def close(self) -> None:
        """Reckons up the last ones."""
        self._wake.put(False)
        self.settle()

    def _run(self) -> None:
        while self._wake.get():
            self.settle()

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
