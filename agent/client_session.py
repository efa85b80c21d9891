"""What one connection of the client asks and gets: requests under way, answers in any order, regions that are shared.

Ends with its connection; :class:`agent.client.Client` makes the next one. Not for several threads at once.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from agent import wire
from agent.client_link import Gone, Link
from agent.client_memory import Arena, Buffers, Place, as_batch
from agent.wire import Failure, Kind, WireError
from subnets.errors import Busy, EngineError, GearshiftError, InputError, Superseded, UnavailableError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Wishes = tuple[float | None, str | None, float | None, str | None]  # deadline ms, subnet, minimum accuracy, stream
_LONGEST_LOOKED_FOR_MS = 5.0  # a longer answer comes too irregularly, and waking up is little beside it
_ANSWER = int(Kind.ANSWER)
_INLINE_BYTES = wire.FRAME_BYTES - wire.REQUEST_BYTES
_FAILURES: dict[int, type[GearshiftError]] = {
    Failure.INPUT: InputError,
    Failure.BUSY: Busy,
    Failure.SUPERSEDED: Superseded,
    Failure.ENGINE: EngineError,
    Failure.INTERNAL: EngineError,
}


class Answer(NamedTuple):
    """Logits and who gave them; the fields are those of :class:`agent.values.Answer`."""

    logits: NDArray[np.float32]  # [N, classes]
    subnet: str
    point: str
    queue_ms: float
    infer_ms: float
    reason: str
    bound: str
    accuracy: float  # expected, share 0..1
    energy_j: float | None  # for the whole request; None = unmeasurable here
    energy_source: str


class Slip:
    """What is still owed for one frame that was sent.

    Args:
        batch: kept until the answer has come, so that its memory is not handed out again before.
        place: where it lies in shared memory.
    """

    __slots__ = ("answer", "batch", "done", "error", "place")

    def __init__(self, batch: NDArray[np.float32] | None, place: Place | None) -> None:
        self.batch, self.place = batch, place
        self.done = False
        self.answer: Answer | None = None
        self.error: GearshiftError | None = None

    def settle(self, answer: Answer | None, error: GearshiftError | None) -> None:
        """Nothing is owed any more."""
        self.answer, self.error, self.done, self.batch = answer, error, True, None

    def given(self) -> Answer:
        """The answer; raises what came instead of it."""
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer


class Prepared:
    """A request that was checked and can be sent any number of times.

    Args:
        batch: what it asks for.
        wishes: deadline, subnet, minimum accuracy, stream.
        place: where the batch lies in shared memory, or None.
        head: its frame but for the tensor.
    """

    __slots__ = ("_batch", "_shape", "_wishes", "head", "place")

    def __init__(self, batch: NDArray[np.float32], wishes: Wishes, place: Place | None, head: bytearray) -> None:
        self._batch = weakref.ref(batch)  # weak: a buffer goes back when its user lets it go
        self._shape: tuple[int, ...] = batch.shape
        self._wishes = wishes
        self.place, self.head = place, head

    def fits(self, batch: Any, wishes: Wishes) -> bool:
        """Whether it is the request for this very array and these wishes."""
        kept = self._batch()
        return kept is not None and kept is batch and kept.shape == self._shape and self._wishes == wishes


class Session:
    """One connection.

    Args:
        link: connected.
        before: the session before it, whose shared memory is taken over if the model is the same.
    """

    def __init__(self, link: Link, before: Session | None) -> None:
        import numpy as np

        told = link.told
        channels, height, width = told["input"]
        self.link, self.model, self.places = link, str(told["model"]), dict(told["subnets"])
        self.shape: tuple[int, int, int] = (channels, height, width)
        self.classes, self.max_images = int(told["classes"]), int(told["max_images"])
        self._in_flight, regions = int(told["in_flight"]), int(told["regions"])
        if before is not None and (before.shape, before.classes) == (self.shape, self.classes):
            self.buffers: Buffers = before.buffers
        else:
            self.buffers = Buffers(self.shape, self.classes, regions)
        self._floats = np.frombuffer(link.frame, np.float32)[wire.ANSWER_BYTES // 4 :]
        self._inline = self._floats[:0].reshape(0, 0)  # the logits in the frame, in the shape of the last answer's
        self._ids = 0
        self._owed: dict[int, Slip] = {}
        self._shared: set[int] = set()  # regions that the agent has mapped for this connection
        self._prepared: Prepared | None = None  # the last request, which is often the next one
        self._last: wire.Reply | None = None  # the head of the last answer
        self._last_bytes = 0  # of its frame, which is in the link's until another comes
        self._sent_ns = 0  # when the last request left
        self._text, self._told = b"", wire.Told("", "", "", "", "")  # of the last answer
        self.ended = ""  # why

    def ask(self, batch: NDArray[np.float32], wishes: Wishes) -> Answer:
        """Sends a request and waits for its answer: :meth:`submit` and :meth:`settled` in one.

        What a client in a loop asks takes a short way: a processor that has just slept runs each line as if for the
        first time.

        Raises:
            GearshiftError: as :meth:`submit` and :meth:`settled`.
        """
        prepared = self._prepared
        if self._owed or prepared is None or prepared.place is None or not prepared.fits(batch, wishes):
            return self.settled(self.submit(batch, wishes))
        link, identifier = self.link, self._ids + 1
        self._ids = identifier
        wire.set_id(prepared.head, identifier)
        try:
            link.send(prepared.head)
            self._sent_ns = time.monotonic_ns()
            size, kind = link.receive(self._due_ns(1), self._rehearse)
            if kind == _ANSWER:
                reply = wire.read_answer(link.frame, size)
                if reply.id == identifier:
                    self._last, self._last_bytes = reply, size
                    return self._answer(reply, link.frame, size, prepared.place)
            slip = self._owed[identifier] = Slip(batch, prepared.place)
            self._take(link.frame, size, kind)
        except (UnavailableError, WireError) as error:
            raise self._broken(error) from None
        return self.settled(slip)

    def submit(self, batch: NDArray[np.float32], wishes: Wishes) -> Slip:
        """Sends a request; waits only while as many as may be are under way.

        Args:
            batch: see :meth:`agent.client.Client.infer`.
            wishes: deadline in ms, subnet, minimum accuracy, stream; each may be None.

        Raises:
            InputError: it makes no sense.
            UnavailableError: nothing is heard of the agent; ``Gone`` if the connection has broken.
        """
        prepared = self._prepared
        if prepared is None or not prepared.fits(batch, wishes):
            batch, prepared = self._prepare(batch, wishes)
        while len(self._owed) >= self._in_flight:
            self.receive()
        self._ids += 1
        wire.set_id(prepared.head, self._ids)
        slip = self._owed[self._ids] = Slip(batch, prepared.place)
        if prepared.place is None:
            self._send(prepared.head, batch)
        else:
            self._send(prepared.head)
        self._sent_ns = time.monotonic_ns()
        return slip

    def _prepare(self, batch: NDArray[np.float32], wishes: Wishes) -> tuple[NDArray[np.float32], Prepared]:
        """The request for a batch, and the batch where it can be sent from."""
        deadline_ms, subnet, min_accuracy, stream = wishes
        given, batch = batch, as_batch(batch, self.shape, self.max_images)
        place_of_subnet, name = self._checked(deadline_ms, subnet, min_accuracy, stream)
        wide = 4 * len(batch) * self.classes > wire.INLINE_LOGITS_BYTES
        place = self.buffers.find(batch)
        if place is None and (wide or batch.nbytes > _INLINE_BYTES):
            copy = self.buffer(len(batch))
            copy[:] = batch
            batch, place = copy, self.buffers.find(copy)
        if place is not None and place.arena.number not in self._shared:
            self._share(place.arena)
        head = wire.request(
            0,
            batch.shape,
            region=0 if place is None else place.arena.number,
            input_offset=0 if place is None else place.input_offset,
            logits_offset=place.logits_offset if place is not None and wide else None,
            place=place_of_subnet,
            deadline_ms=deadline_ms or 0.0,
            min_accuracy=min_accuracy or 0.0,
            stream=name,
            more_soon=self.link.spins,
        )
        prepared = Prepared(batch, wishes, place, bytearray(head))
        self._prepared = prepared if batch is given else None  # a copy must be made again each time
        return batch, prepared

    def settled(self, slip: Slip) -> Answer:
        """Waits for an answer.

        Raises:
            UnavailableError: nothing is heard of the agent; ``Gone`` if the connection has broken.
            GearshiftError: what came instead of an answer.
        """
        while not slip.done:
            self.receive(self._due_ns(len(self._owed)))
        return slip.given()

    def receive(self, due_ns: int = 0) -> None:
        """Takes one frame; whoever waits for it finds it settled.

        Args:
            due_ns: see :meth:`agent.client_link.Link.receive`.

        Raises:
            UnavailableError: nothing came in time, or what came makes no sense; ``Gone`` if the connection has broken.
        """
        if self.ended:
            raise Gone(self.ended)
        try:
            size, kind = self.link.receive(due_ns, self._rehearse)
            self._take(self.link.frame, size, kind)
        except (UnavailableError, WireError) as error:
            raise self._broken(error) from None

    def buffer(self, images: int) -> NDArray[np.float32]:
        """An array in shared memory.

        Raises:
            InputError: too many are in use.
        """
        array, gone = self.buffers.take(images)
        if gone is not None and gone.number in self._shared:
            self._shared.discard(gone.number)
            self._control(lambda identifier: wire.release(identifier, gone.number))
        return array

    def end(self, why: str) -> None:
        """Closes the connection; what is owed is settled with an error. Ending twice is harmless."""
        self.ended = self.ended or why
        self.link.close()
        for slip in self._owed.values():
            slip.settle(None, UnavailableError(f"{why}; send the request again"))
        self._owed.clear()

    def _checked(
        self, deadline_ms: float | None, subnet: str | None, min_accuracy: float | None, stream: str | None
    ) -> tuple[int, bytes]:
        """The subnet's place and the stream's name, as they are sent."""
        if deadline_ms is not None and not 0 < deadline_ms < float("inf"):
            raise InputError(f"deadline_ms is {deadline_ms}; give a time above 0")
        if min_accuracy is not None and not 0 <= min_accuracy <= 1:
            raise InputError(f"min_accuracy is {min_accuracy}; give a share from 0 to 1")
        if subnet is not None and subnet not in self.places:
            raise InputError(f"subnet '{subnet}' is not one of {', '.join(self.places)}")
        name = b"" if stream is None else stream.encode()
        if stream is not None and not (0 < len(name) <= wire.STREAM_BYTES and b"\0" not in name):
            raise InputError(f"stream '{stream[:80]}' must have 1 to {wire.STREAM_BYTES} bytes, none of them zero")
        return 0 if subnet is None else self.places[subnet], name

    def _send(self, *parts: Any, descriptors: Sequence[int] = ()) -> None:
        if self.ended:
            raise Gone(self.ended)
        try:
            self.link.send(*parts, descriptors=descriptors)
        except UnavailableError as error:
            raise self._broken(error) from None

    def _broken(self, error: UnavailableError | WireError) -> UnavailableError:
        """Ends the connection for what has gone wrong on it; what to raise."""
        self.end(str(error))
        return UnavailableError(str(error)) if isinstance(error, WireError) else error

    def _take(self, frame: bytearray, size: int, kind: int) -> None:
        if kind == _ANSWER:
            reply = wire.read_answer(frame, size)
            self._last, self._last_bytes = reply, size
            if (slip := self._owed.pop(reply.id, None)) is not None:
                slip.settle(self._answer(reply, frame, size, slip.place), None)
        elif kind == Kind.ERROR:
            identifier, failure, sentence = wire.read_error(frame, size)
            if (slip := self._owed.pop(identifier, None)) is not None:
                slip.settle(None, _FAILURES.get(failure, UnavailableError)(sentence))
            elif not identifier:
                raise UnavailableError(sentence)
        elif kind == Kind.DONE and (slip := self._owed.pop(wire.frame_id(frame, size), None)) is not None:
            slip.settle(None, None)

    def _answer(self, reply: wire.Reply, frame: bytearray, size: int, place: Place | None) -> Answer:
        if reply.flags & wire.LOGITS_IN_REGION and place is not None:
            logits = self.buffers.logits(place, reply.images)
        else:
            if self._inline.shape != (reply.images, reply.classes):
                self._inline = self._floats[: reply.images * reply.classes].reshape(reply.images, reply.classes)
            logits = self._inline.copy()
        text = frame[size - reply.text_bytes : size]
        if text != self._text:
            self._text = bytes(text)
            self._told = wire.read_told(self._text)
        subnet, point, bound, energy_source, reason = self._told
        return Answer(
            logits,
            subnet,
            point,
            reply.queue_ms,
            reply.infer_ms,
            reason,
            bound,
            reply.accuracy,
            None if reply.energy_j != reply.energy_j else reply.energy_j,  # NaN
            energy_source,
        )

    def _due_ns(self, owed: int) -> int:
        """When the awaited answer may come, if it is the only one owed and the last came regularly; 0 = unknown."""
        last = self._last
        if not self.link.looks or last is None or owed != 1:
            return 0
        if last.queue_ms >= wire.AT_ONCE_MS or last.infer_ms >= _LONGEST_LOOKED_FOR_MS:
            return 0
        return self._sent_ns + int(last.infer_ms * 1e6)

    def _rehearse(self) -> None:
        """Reads the last answer again, for the processor's caches."""
        frame, size = self.link.frame, self._last_bytes
        if wire.kind_of(frame, size) == _ANSWER:
            reply = wire.read_answer(frame, size)
            if not reply.flags & wire.LOGITS_IN_REGION:
                self._answer(reply, frame, size, None)

    def _share(self, arena: Arena) -> None:
        self._control(lambda identifier: wire.region(identifier, arena.number, arena.size_bytes), [arena.descriptor])
        self._shared.add(arena.number)

    def _control(self, frame: Callable[[int], bytes], descriptors: Sequence[int] = ()) -> None:
        """Sends a frame that the agent answers with DONE, and waits for that."""
        self._ids += 1
        slip = self._owed[self._ids] = Slip(None, None)
        self._send(frame(self._ids), descriptors=descriptors)
        while not slip.done:
            self.receive()
        if slip.error is not None:
            raise slip.error
