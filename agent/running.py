"""Running a turn: the engine computes, the next one helps out if it fails, everybody gets an answer or an error.

Requests that go together are copied into one array, each gets its own logits. If a batch fails, each of its requests is
asked for alone, so that nobody suffers for another's values. Counting and the journal's queue are fed before anybody is
told. No disk, JSON or logging lies on this way.

* :class:`UnderWay`: what is being computed now, for whoever watches that it ends.
* :class:`Runner`: does it; only the thread that has the engine may ask it to.

Knows nothing of queues or policies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from agent.choosing import ASKED_FOR, Choice, Chooser
from agent.figures import LoadFigures
from agent.forming import Turn
from agent.journal import BatchLine, Journal
from agent.pool import Active, EnginePool
from agent.rescue import Rescue
from agent.resident import Retired
from agent.tallies import Tallies
from agent.values import Answer
from agent.waiting import Request
from backends.base import Batch
from subnets.errors import EngineError, InputError


class UnderWay:
    """One inference that has begun.

    Attributes:
        active: the engine.
        requests: whom it answers; none while an engine is only touched.
        images: how many they hold.
        began_s: on the agent's clock.
        expected_ms: by the table.
        abandoned: nobody waits for its result any more.
    """

    __slots__ = ("abandoned", "active", "began_s", "expected_ms", "images", "requests")

    def __init__(
        self, active: Active, requests: Sequence[Request], images: int, began_s: float, expected_ms: float
    ) -> None:
        self.active, self.requests, self.images = active, requests, images
        self.began_s, self.expected_ms = began_s, expected_ms
        self.abandoned = False


class Runner:
    """Answers turns.

    Args:
        pool: where engines are.
        chooser: who answers when an engine has just left.
        rescue: who answers when one fails.
        figures: fed with every inference and answer.
        journal: or None.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pool: EnginePool,
        chooser: Chooser,
        rescue: Rescue,
        figures: LoadFigures,
        *,
        journal: Journal | None,
        clock: Callable[[], float],
    ) -> None:
        self.failed = 0
        self.tallies = Tallies()
        self._pool, self._chooser, self._rescue = pool, chooser, rescue
        self._figures, self._journal, self._clock = figures, journal, clock
        self._under_way: UnderWay | None = None
        self._ending = threading.Lock()
        self._staging: dict[int, Batch] = {}  # by batch size: where requests are put together

    @property
    def under_way(self) -> UnderWay | None:
        """What is being computed now."""
        return self._under_way

    def run(self, turn: Turn) -> bool:
        """Answers every request of a turn; False when it hung meanwhile and was abandoned."""
        assert turn.active is not None
        if len(turn.requests) == 1:
            return self._alone(turn.active, turn.requests[0])
        try:
            return self._computed(turn.active, turn.requests, turn.images, self._clock())
        except Exception:  # whose fault it is shows when each is asked for alone
            return all(
                self._alone(self._chooser.sized(turn.active, request.images), request) for request in turn.requests
            )

    def rescue(self, requests: Sequence[Request], failed: Active, error: Exception) -> None:
        """Answers requests whose engine has failed, each by the next engine that can."""
        for request in requests:
            self._rescued(request, failed, error, self._clock())

    def give_up(self, request: Request) -> None:
        """Journals a request that will not be answered; the replay of a journal must know that it came."""
        active, now_s = self._pool.current, self._clock()
        if active is not None:
            self._write(active, request, now_s, now_s, ok=False)

    def touch(self, active: Active) -> None:
        """One blank inference, so that the engine's next answer finds its weights in the caches."""
        under_way = self._begin(active, (), 0, self._clock(), active.row.latency_p50_ms)
        active.resident.probe()
        self._end(under_way)

    def abandon(self, under_way: UnderWay) -> bool:
        """Gives up an inference that does not end; False when it has ended."""
        with self._ending:
            if self._under_way is not under_way:
                return False
            self._under_way = None
            under_way.abandoned = True
            self._staging = {}  # the arrays may still be read
        return True

    def _begin(
        self, active: Active, requests: Sequence[Request], images: int, began_s: float, expected_ms: float
    ) -> UnderWay:
        under_way = self._under_way = UnderWay(active, requests, images, began_s, expected_ms)
        return under_way

    def _end(self, under_way: UnderWay) -> bool:
        """Whether it was still waited for."""
        with self._ending:
            if under_way.abandoned:
                return False
            self._under_way = None
            return True

    def _alone(self, active: Active, request: Request) -> bool:
        began_s = self._clock()
        try:
            try:
                return self._computed(active, (request,), request.images, began_s)
            except Retired:  # between choosing and asking; whoever took its place is current by now
                active = self._again(active, request)
                return self._computed(active, (request,), request.images, began_s)
        except InputError as error:  # the caller's fault, not a failure of ours
            request.finish(None, error)
        except Exception as error:
            self._rescued(request, active, error, began_s)
        return True

    def _again(self, gone: Active, request: Request) -> Active:
        choice = self._chooser.choose(request, self._clock())
        if not isinstance(choice, Choice):
            self._pool.request(choice).result()
            choice = self._chooser.choose(request, self._clock())
        if not isinstance(choice, Choice) or choice.active.resident is gone.resident:
            raise Retired
        return self._chooser.sized(choice.active, request.images)

    def _computed(self, active: Active, requests: Sequence[Request], images: int, began_s: float) -> bool:
        """Runs the engine and answers; False when that was abandoned. What the engine raises is raised."""
        chunks, expected_ms, energy_j = self._chooser.chunks(active, images)
        under_way = self._begin(active, requests, images, began_s, expected_ms)
        try:
            batch = requests[0].batch if chunks == (images,) and len(requests) == 1 else None
            if batch is None:
                batch = self._together(requests, chunks[0]) if len(chunks) == 1 else requests[0].batch
            logits = active.resident.infer(batch, chunks)
        except Exception as error:
            if self._end(under_way):
                raise
            _tell_own(requests, error)
            return False
        if not self._end(under_way):
            _tell_own(requests, EngineError(f"{active.point} hung and was given up; ask again"))
            return False
        done_s = self._clock()
        active.resident.used_at_s = done_s
        self._figures.ran(done_s, active.point, images, (done_s - began_s) * 1000, expected_ms)
        per_image_j = None if energy_j is None else energy_j / images
        if len(requests) == 1:
            self._answer(active, requests[0], logits[:images], began_s, done_s, per_image_j)
            return True
        first = 0
        for request in requests:
            own = logits[first : first + request.images]
            first += request.images
            self._answer(active, request, own, began_s, done_s, per_image_j)
        return True

    def _together(self, requests: Sequence[Request], size: int) -> Batch:
        """One array of ``size`` images: those of all requests, and blank ones."""
        array = self._staging.get(size)
        if array is None:
            array = self._staging[size] = np.zeros((size, *requests[0].batch.shape[1:]), np.float32)
        first = 0
        for request in requests:
            array[first : first + request.images] = request.batch
            first += request.images
        array[first:] = 0.0
        return array

    def _answer(
        self,
        active: Active,
        request: Request,
        logits: Batch,
        began_s: float,
        done_s: float,
        per_image_j: float | None,
    ) -> None:
        queue_ms, infer_ms = (began_s - request.arrived_s) * 1000, (done_s - began_s) * 1000
        deadline_ms, row = request.deadline_ms, active.row
        on_time = None if deadline_ms is None else (done_s - request.arrived_s) * 1000 <= deadline_ms
        self._figures.answered(done_s, request.images, on_time)
        self.tallies.answered(active.point, request.images, queue_ms, infer_ms)
        if self._journal is not None:
            self._write(active, request, began_s, done_s, ok=True)
        asked_for = request.key is not None and active.bound != "fallback"
        request.finish(
            Answer(
                logits=logits,
                subnet=row.subnet,
                point=active.point,
                queue_ms=queue_ms,
                infer_ms=infer_ms,
                reason=ASKED_FOR if asked_for else active.reason,
                bound="none" if asked_for else active.bound,
                accuracy=row.accuracy,
                energy_j=None if per_image_j is None else per_image_j * request.images,
                energy_source=row.energy_source,
            )
        )

    def _rescued(self, request: Request, failed: Active, error: Exception, began_s: float) -> None:
        """Another engine's answer; where there is none, the failure is counted and journaled."""
        try:
            active, logits = self._rescue.answer(
                request.batch, failed, error, pinned=request.key is not None, floor=request.floor
            )
        except InputError as ours:
            request.finish(None, ours)
        except Exception as ours:
            self.failed += 1
            self._write(failed, request, began_s, self._clock(), ok=False)
            request.finish(None, ours)
        else:
            # Its time holds the failed attempt: it says nothing of the engine that answered.
            energy_j = self._chooser.chunks(active, request.images)[2]
            per_image_j = None if energy_j is None else energy_j / request.images
            self._answer(active, request, logits, began_s, self._clock(), per_image_j)

    def _write(self, active: Active, request: Request, began_s: float, done_s: float, *, ok: bool) -> None:
        if self._journal is not None:
            line = BatchLine(
                arrived_ns=int(request.arrived_s * 1e9),
                n=request.images,
                point=active.point,
                queue_ms=(began_s - request.arrived_s) * 1000,
                infer_ms=(done_s - began_s) * 1000,
                deadline_ms=request.deadline_ms,
                ok=ok,
            )
            self._journal.write(line)


def _tell_own(requests: Sequence[Request], error: Exception) -> None:
    """After an inference was abandoned: an error for the caller whose own thread was in it; others were answered."""
    for request in requests:
        if request.own:
            request.finish(None, error)
