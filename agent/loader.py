"""The loader: one background thread for slow work on engines, what is wanted before what may be useful.

Loading must not slow the answers down, so once :meth:`Loader.step_back` was called the thread runs at a lower priority
(nice +10: about a tenth of a processor where all are busy, all of an idle one). Linux has that per thread; elsewhere it
is left alone. A thread inherits the priority of the one that starts it, and what a library starts stays as it was
started; so the first engine is loaded at normal priority, which is when OpenVINO makes the threads that all its engines
compute with.

Knows nothing of engines.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
NICER = 10
WANTED, USEFUL = 0, 1


class _Job(Generic[T]):
    def __init__(self, urgency: int, work: Callable[[], T]) -> None:
        self.urgency, self.work = urgency, work
        self.outcome: Future[T] = Future()


class Loader:
    """Does jobs one after another; the thread starts with the first."""

    def __init__(self) -> None:
        self._jobs: list[_Job[Any]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = self._lower = False

    def submit(self, work: Callable[[], T], *, urgency: int = WANTED) -> Future[T]:
        """Queues a job; what it returns or raises is in the future, whose callbacks run before the next job.

        Raises:
            RuntimeError: closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("closed")
            job = _Job(urgency, work)
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gearshift-loader", daemon=True)
                self._thread.start()
            self._changed.notify()
        return job.outcome

    def hurry(self, outcome: Future[Any]) -> None:
        """Makes a job that still waits a wanted one."""
        with self._changed:
            for job in self._jobs:
                if job.outcome is outcome:
                    job.urgency = WANTED

    def step_back(self) -> None:
        """From the next job on, lower priority."""
        self._lower = True

    def close(self) -> None:
        """Finishes the job under way and cancels the others."""
        with self._changed:
            self._closed = True
            left, self._jobs = self._jobs, []
            self._changed.notify()
        for job in left:
            job.outcome.cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        lowered = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                job = min(self._jobs, key=lambda job: job.urgency)
                self._jobs.remove(job)
            if self._lower and not lowered:
                lowered = True
                _lower_priority()
            if not job.outcome.set_running_or_notify_cancel():
                continue
            try:
                found = job.work()
            except BaseException as error:
                job.outcome.set_exception(error)
            else:
                job.outcome.set_result(found)
            del job  # or it would keep what it loaded alive until the next one


def _lower_priority() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            mine = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, mine, min(19, os.getpriority(os.PRIO_PROCESS, mine) + NICER))
