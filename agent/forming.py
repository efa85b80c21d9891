"""Forming: whose turn it is, and who goes along.

Whenever the engine is free the request due first is taken. Its slack says which operating point answers
(:mod:`agent.choosing`); that point's batch size is how many images go together at most, in order of their deadlines,
and nobody waits for a batch to fill. Where fewer wait, the same engine's smallest batch that holds them is used. This
is what :func:`simulation.kernel.advance` simulates. Beyond it, requests may hold several images, be pinned to a subnet
or ask for accuracy; then only those go together whom one engine may answer.

Knows nothing of threads: whoever asks brings the lock, the time, and does what :class:`Turn` says.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.choosing import Choice, Chooser
from agent.pool import Active
from agent.resident import EngineKey
from agent.waiting import Request, Waiting
from subnets.errors import EngineError, Expired

_MOST_TRIES = 8


class Turn:
    """What is to be done now.

    Attributes:
        active: the engine, at the batch size to run; None = nobody is to be answered.
        requests: whom it answers together.
        images: how many these are.
        failed: who gets an error instead.
        missing: who has stepped aside until this engine is loaded.
    """

    __slots__ = ("active", "failed", "images", "missing", "requests")

    def __init__(self) -> None:
        self.active: Active | None = None
        self.requests: list[Request] = []
        self.images = 0
        self.failed: list[tuple[Request, BaseException]] = []
        self.missing: list[tuple[Request, EngineKey]] = []


class Former:
    """Forms turns.

    Args:
        chooser: who answers.
        drop_late: a request whose deadline passes before its turn is given up, not answered.
        clock: monotonic seconds.
    """

    def __init__(self, chooser: Chooser, *, drop_late: bool, clock: Callable[[], float]) -> None:
        self._chooser, self._drop_late, self._clock = chooser, drop_late, clock

    def next(self, waiting: Waiting) -> Turn:
        """Takes the next ones out of the waiting room."""
        turn = Turn()
        now_s = self._clock()
        while (head := waiting.pop()) is not None:
            if head.future is not None and not head.begun and head.future.cancelled():
                head.begin()
                continue
            if self._drop_late and head.due_s <= now_s:
                late = f"the deadline of {head.deadline_ms:g} ms passed before this request's turn (drop_late)"
                turn.failed.append((head, Expired(late)))
                continue
            try:
                choice = self._chooser.choose(head, now_s)
                if not isinstance(choice, Choice) and head.tries >= _MOST_TRIES:
                    raise EngineError(f"engine of {choice.subnet} does not stay in memory; raise memory_budget")
            except Exception as error:
                turn.failed.append((head, error))
                continue
            if not isinstance(choice, Choice):
                waiting.step_aside(head)
                turn.missing.append((head, choice))
                continue
            if head.begin():
                self._fill(turn, head, choice, waiting)
                break
        return turn

    def alone(self, request: Request) -> Active | None:
        """Who answers a request that need not wait, at which batch size; None when its engine has to be loaded."""
        choice = self._chooser.choose(request, request.arrived_s)
        return self._chooser.sized(choice.active, request.images) if isinstance(choice, Choice) else None

    def _fill(self, turn: Turn, head: Request, choice: Choice, waiting: Waiting) -> None:
        turn.requests, turn.images = [head], head.images
        room = choice.active.row.batch_size - head.images
        if room > 0 and len(waiting):
            joining = waiting.join(lambda request: self._chooser.may_join(request, head, choice), room)
            for request in joining:
                if request.begin():
                    turn.requests.append(request)
                    turn.images += request.images
        turn.active = self._chooser.sized(choice.active, turn.images)
