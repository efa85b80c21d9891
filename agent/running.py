"""Running a turn: the engine computes, the next one helps out if it fails, everybody gets an answer or an error.

Requests that go together are copied into one array, each gets its own logits. If a batch fails, each of its requests
is asked for alone, so that nobody suffers for another's values. What was answered is put down in :mod:`agent.accounts`
before anybody is told. No disk, JSON or logging lies on this way.

* :class:`UnderWay`: what is being computed now, for whoever watches that it ends.
* :class:`Runner`: does it; only the thread that has the engine may ask it to.

Knows nothing of queues or policies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from agent.accounts import ANSWERED, EXPIRED, FAILED, MOST, Accounts
from agent.choosing import ASKED_FOR, Choice, Chooser
from agent.forming import Turn
from agent.pool import Active, EnginePool
from agent.rescue import Abandoned, Rescue
from agent.resident import Retired
from agent.values import Answer
from agent.waiting import Request
from backends.base import Batch
from subnets.errors import EngineError, Expired, InputError

T = TypeVar("T")


class UnderWay:
    """One inference that has begun.

    Attributes:
        active: the engine.
        requests: whom it answers, and who waits for its thread; none where that is the caller's alone, or while an
            engine is only touched.
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
        accounts: told of every request that has ended.
        mutex: under which an inference ends or is abandoned.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pool: EnginePool,
        chooser: Chooser,
        rescue: Rescue,
        accounts: Accounts,
        *,
        mutex: threading.Lock,
        clock: Callable[[], float],
    ) -> None:
        self.under_way: UnderWay | None = None
        self._pool, self._chooser, self._rescue = pool, chooser, rescue
        self._accounts, self._mutex, self._clock = accounts, mutex, clock
        self._staging: dict[int, Batch] = {}  # by batch size: where requests are put together

    def quick(
        self, active: Active, batch: Batch, arrived_s: float, deadline_ms: float | None
    ) -> tuple[UnderWay, Answer]:
        """The short way for a batch of exactly the engine's size, in the thread of a caller who did not wait.

        What the engine raises is raised, and for :meth:`failed`; :class:`agent.rescue.Abandoned` is for the caller.
        """
        row = active.row
        expected_ms, images = row.latency_p50_ms, row.batch_size
        under_way = self.under_way = UnderWay(active, (), images, arrived_s, expected_ms)
        try:
            logits = active.resident.infer(batch, (images,))
        except Exception:
            if self._end(under_way):
                raise
            raise Abandoned from None
        self.under_way = None
        done_s = self._clock()
        ran = images, expected_ms
        notes = self._accounts.notes
        notes.append((active.point, images, arrived_s, arrived_s, done_s, deadline_ms, ran, ANSWERED))
        if not len(notes) % MOST:
            self._accounts.many()
        active.resident.used_at_s = done_s
        return under_way, Answer(
            logits=logits,
            subnet=row.subnet,
            point=active.point,
            queue_ms=0.0,
            infer_ms=(done_s - arrived_s) * 1000,
            reason=active.reason,
            bound=active.bound,
            accuracy=row.accuracy,
            energy_j=None if row.energy_j is None else row.energy_j * images,
            energy_source=row.energy_source,
        )

    def run(self, turn: Turn) -> bool:
        """Answers every request of a turn; False when it hung meanwhile and was abandoned."""
        assert turn.active is not None
        if len(turn.requests) == 1:
            return self.alone(turn.active, turn.requests[0])
        try:
            return self._computed(turn.active, turn.requests, turn.images, self._clock())
        except Exception:  # whose fault it is shows when each is asked for alone
            return all(
                self.alone(self._chooser.sized(turn.active, request.images), request, turn.requests[place:])
                for place, request in enumerate(turn.requests, 1)
            )

    def alone(self, active: Active, request: Request, rest: Sequence[Request] = ()) -> bool:
        """Answers one request; False when it hung meanwhile and was abandoned, with the ``rest`` that waits for it."""
        began_s = self._clock()
        try:
            return self._computed(active, (request,), request.images, began_s, rest)
        except Exception as error:
            return self.failed(active, request, error, began_s, rest)

    def failed(
        self, active: Active, request: Request, error: Exception, began_s: float, rest: Sequence[Request] = ()
    ) -> bool:
        """Answers one request on which an engine has failed; False as in :meth:`alone`."""
        try:
            if not isinstance(error, Retired):
                raise error
            # Between choosing and asking; whoever took its place is current by now.
            active = self._again(active, request)
            return self._computed(active, (request,), request.images, began_s, rest)
        except InputError as theirs:  # the caller's fault, not a failure of ours
            request.finish(None, theirs)
        except Exception as ours:
            return self._rescued(request, active, ours, began_s, rest)
        return True

    def rescue(self, requests: Sequence[Request], failed: Active, error: Exception) -> bool:
        """Answers requests whose engine has failed, each by the next engine that can; False as in :meth:`alone`."""
        return all(
            self._rescued(request, failed, error, self._clock(), requests[place:])
            for place, request in enumerate(requests, 1)
        )

    def expire(self, request: Request, error: Expired) -> None:
        """Gives up a request whose deadline has passed; the replay of a journal must know that it came."""
        active, now_s = self._pool.current, self._clock()
        self._note(active.point if active is not None else "", request, now_s, now_s, None, EXPIRED)
        request.finish(None, error)

    def touch(self, active: Active) -> bool:
        """One blank inference, so that the engine's next answer finds its weights in the caches; False as above."""
        under_way = self.under_way = UnderWay(active, (), 0, self._clock(), active.row.latency_p50_ms)
        active.resident.probe()
        return self._end(under_way)

    def timed(self, active: Active, batch: Batch, count: int, wanted: Callable[[], bool]) -> list[float]:
        """Runs a batch of the point's own size ``count`` times, back to back; ends early once the engine is wanted.

        Returns:
            The milliseconds of each that ended; what the engine raises ends it too.
        """
        latencies: list[float] = []
        while len(latencies) < count and not wanted():
            began_s = self._clock()
            under_way = self.under_way = UnderWay(active, (), len(batch), began_s, active.row.latency_p50_ms)
            try:
                active.resident.infer(batch, (len(batch),))
            except Exception:  # it is found out when a request meets it
                count = 0
            done_s = self._clock()
            if not self._end(under_way):
                break
            latencies.append((done_s - began_s) * 1000)
        return latencies if count else []

    def abandon(self, under_way: UnderWay) -> bool:
        """Gives up an inference that does not end; False when it has ended."""
        with self._mutex:
            if self.under_way is not under_way:
                return False
            self.under_way = None
            under_way.abandoned = True
            self._staging = {}  # the arrays may still be read
        return True

    def _end(self, under_way: UnderWay) -> bool:
        """Whether it was still waited for."""
        self.under_way = None
        with self._mutex:
            return not under_way.abandoned

    def _again(self, gone: Active, request: Request) -> Active:
        choice = self._chooser.choose(request, self._clock())
        if not isinstance(choice, Choice):
            self._pool.request(choice).result()
            choice = self._chooser.choose(request, self._clock())
        if not isinstance(choice, Choice) or choice.active.resident is gone.resident:
            raise Retired
        return self._chooser.sized(choice.active, request.images)

    def _computed(
        self,
        active: Active,
        requests: Sequence[Request],
        images: int,
        began_s: float,
        rest: Sequence[Request] = (),
    ) -> bool:
        """Runs the engine and answers; False when that was abandoned. What the engine raises is raised."""
        chunks, expected_ms, energy_j = self._chooser.chunks(active, images)
        under_way = self.under_way = UnderWay(active, (*requests, *rest), images, began_s, expected_ms)
        try:
            batch = requests[0].batch
            if len(chunks) == 1 and chunks[0] != len(batch):
                batch = self._together(requests, chunks[0])
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
        ran: tuple[int, float] | None = (images, expected_ms)
        per_image_j = None if energy_j is None else energy_j / images
        first = 0
        for request in requests:
            own = logits if request.images == len(logits) else logits[first : first + request.images]
            first += request.images
            self._answer(active, request, own, began_s, done_s, per_image_j, ran)
            ran = None
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
        ran: tuple[int, float] | None,
    ) -> None:
        row = active.row
        self._note(active.point, request, began_s, done_s, ran)
        asked_for = request.key is not None and active.bound != "fallback"
        request.finish(
            Answer(
                logits=logits,
                subnet=row.subnet,
                point=active.point,
                queue_ms=(began_s - request.arrived_s) * 1000,
                infer_ms=(done_s - began_s) * 1000,
                reason=ASKED_FOR if asked_for else active.reason,
                bound="none" if asked_for else active.bound,
                accuracy=row.accuracy,
                energy_j=None if per_image_j is None else per_image_j * request.images,
                energy_source=row.energy_source,
            )
        )

    def _rescued(
        self, request: Request, failed: Active, error: Exception, began_s: float, rest: Sequence[Request]
    ) -> bool:
        """Another engine's answer; where there is none, the failure is counted and journaled. False as above."""

        def watched(active: Active, call: Callable[[], T]) -> T:
            images = request.images
            expected_ms = active.resident.plan(images).expected_ms
            under_way = self.under_way = UnderWay(active, (request, *rest), images, self._clock(), expected_ms)
            try:
                found = call()
            except Exception:
                if self._end(under_way):
                    raise
                raise Abandoned from None
            if not self._end(under_way):
                raise Abandoned
            return found

        try:
            active, logits = self._rescue.answer(request, failed, error, watched)
        except Abandoned:
            _tell_own((request,), EngineError(f"{failed.point} failed ({error}), and the next engine hangs"))
            return False
        except InputError as ours:
            request.finish(None, ours)
        except Exception as ours:
            self._note(failed.point, request, began_s, self._clock(), None, FAILED)
            request.finish(None, ours)
        else:
            # Its time holds the failed attempt: it says nothing of the engine that answered.
            energy_j = self._chooser.chunks(active, request.images)[2]
            per_image_j = None if energy_j is None else energy_j / request.images
            self._answer(active, request, logits, began_s, self._clock(), per_image_j, None)
        return True

    def _note(
        self,
        point: str,
        request: Request,
        began_s: float,
        done_s: float,
        ran: tuple[int, float] | None,
        outcome: str = ANSWERED,
    ) -> None:
        notes = self._accounts.notes
        notes.append((point, request.images, request.arrived_s, began_s, done_s, request.deadline_ms, ran, outcome))
        if not len(notes) % MOST:
            self._accounts.many()


def _tell_own(requests: Sequence[Request], error: Exception) -> None:
    """After an inference was abandoned: an error for the caller whose own thread was in it; others were answered."""
    for request in requests:
        if request.own:
            request.finish(None, error)
