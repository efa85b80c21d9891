"""What a client of the native path asks, understood: its regions, its tensors, its wishes; and the replies as frames.

Sizes and offsets are checked before anything is touched. A batch that a request gives to the agent is never in memory
that its client can still write to. Knows nothing of sockets and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agent import wire
from agent.memfd import Arrays, Budget, Mapping
from agent.model import NO_WISHES, ServedModel, Wishes
from agent.values import Answer
from agent.wire import Failure
from backends.base import Batch
from subnets.errors import Busy, EngineError, InputError, Superseded

_BEFORE_ID, _AFTER_ID = slice(0, 8), slice(wire.PREFIX_BYTES, wire.REQUEST_BYTES)


class NativeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What clients may make the agent hold."""

    connections: int = 32
    in_flight: int = 16  # requests of one connection whose answers it has not read
    regions: int = 8  # of one connection; each costs a file descriptor
    memory_bytes: int = 256 * 2**20  # of all connections: regions and private copies; one may have half


class Asked(NamedTuple):
    """A request that was understood."""

    head: wire.Request
    batch: Batch
    private: bool  # whether the batch is one of the connection's arrays, to be given back
    wishes: Wishes


class Requests:
    """Understands the requests of one connection.

    Args:
        model: what they are for.
        limits: of the connection.
        budget: of memory, for all connections.
    """

    def __init__(self, model: ServedModel, limits: NativeLimits, budget: Budget) -> None:
        self.frame = bytearray(wire.FRAME_BYTES)
        self._model, self._limits = model, limits
        self._budget = Budget(budget.limit_bytes // 2, budget)
        self._arrays = Arrays(model.shape, self._budget)
        self._regions: dict[int, Mapping] = {}
        self._inline: dict[int, Batch] = {}  # views of the tensor in the frame, by number of images
        self._image_bytes = 4 * int(np.prod(model.shape))
        self._places = {str(model.subnet_of(model.name, version)): int(version) for version in model.versions}
        self._last: tuple[bytes, bytes, int, Asked, Batch | None] | None = None  # see again()
        self._told: tuple[Answer, bytes, int] | None = None  # the last answer, its text encoded, its subnet's place

    def welcome(self) -> dict[str, Any]:
        """What the client is told first."""
        model, limits = self._model, self._limits
        return {
            "agent": model.version,
            "model": model.name,
            "subnets": self._places,
            "input": list(model.shape),
            "classes": model.agent.classes,
            "max_images": model.max_images,
            "in_flight": limits.in_flight,
            "regions": limits.regions,
            "memory_bytes": self._budget.limit_bytes,
            "frame_bytes": wire.FRAME_BYTES,
            "inline_logits_bytes": wire.INLINE_LOGITS_BYTES,
            "looks": model.spare_core,
        }

    def close(self) -> None:
        """Lets go of all memory."""
        self._forget()
        for mapping in self._regions.values():
            mapping.close()
        self._regions.clear()
        self._arrays.close()

    # -- regions

    def map(self, asked: wire.Region, descriptors: Sequence[int]) -> None:
        """Takes a region.

        Args:
            asked: its frame.
            descriptors: that came along; they stay the caller's.

        Raises:
            InputError: the descriptor, the size or the number will not do.
            Busy: a limit is reached.
        """
        if len(descriptors) != 1:
            raise InputError(f"{len(descriptors)} file descriptors come with the region; send one")
        if not asked.region or asked.region in self._regions:
            raise InputError(f"region {asked.region} is in use or 0; give another number, or release it first")
        if len(self._regions) >= self._limits.regions:
            raise Busy(f"{self._limits.regions} regions are mapped, no more are taken; release one")
        self._regions[asked.region] = Mapping(descriptors[0], asked.size_bytes, self._budget)

    def unmap(self, asked: wire.Region) -> None:
        """Lets a region go.

        Raises:
            InputError: there is none of that number.
        """
        self._forget()
        mapping = self._regions.pop(asked.region, None)
        if mapping is None:
            raise InputError(f"there is no region {asked.region}")
        mapping.close()

    # -- requests

    def again(self, size: int) -> Asked | None:
        """The request in ``frame`` if it is the last one over again but for its id and the tensor's values: what a
        client in a loop sends. Only for a request that is answered before the next frame is read.

        Args:
            size: of the frame, in bytes.
        """
        if self._last is None:
            return None
        begins, head, last_size, asked, shared = self._last
        if size != last_size or self.frame[_AFTER_ID] != head or self.frame[_BEFORE_ID] != begins:
            return None
        if shared is not None:
            np.copyto(asked.batch, shared)
        return asked

    def understand(self, head: wire.Request, size: int, *, alone: bool) -> Asked:
        """The request in ``frame``.

        Args:
            head: read from it.
            size: of the frame, in bytes.
            alone: it is answered before the next frame is read, so a tensor in the frame is not copied. What lies in a
                region always is.

        Raises:
            InputError: it makes no sense.
            Busy: memory is short.
        """
        shared, wishes = self._tensor(head, size), self._wishes(head)
        if alone and not head.region:
            asked = Asked(head, shared, False, wishes)
            self._keep(size, asked, None)
            return asked
        batch = self._arrays.take(head.images)
        np.copyto(batch, shared)
        if alone:
            asked = Asked(head, batch, False, wishes)
            self._keep(size, asked, shared)
            return asked
        return Asked(head, batch, True, wishes)

    def done(self, asked: Asked) -> None:
        """Takes the memory of a request back, once nobody reads it any more."""
        if asked.private:
            self._arrays.give(asked.batch)

    def _keep(self, size: int, asked: Asked, shared: Batch | None) -> None:
        """Remembers a request for :meth:`again`, with the array that it was copied to."""
        self._forget()
        frame = self.frame
        self._last = bytes(frame[_BEFORE_ID]), bytes(frame[_AFTER_ID]), size, asked, shared

    def _forget(self) -> None:
        if self._last is not None and self._last[4] is not None:
            self._arrays.give(self._last[3].batch)
        self._last = None

    def _tensor(self, head: wire.Request, size: int) -> Batch:
        """A view of the tensor where the client has put it, after checking that it and the place of the logits lie
        within."""
        images, shape = head.images, self._model.shape
        if (head.channels, head.height, head.width) != shape or not 1 <= images <= self._model.max_images:
            raise InputError(
                f"a batch of shape {[images, head.channels, head.height, head.width]}; send "
                f"[N, {', '.join(map(str, shape))}] with N from 1 to {self._model.max_images}"
            )
        size_bytes, logits_bytes = images * self._image_bytes, 4 * images * self._model.agent.classes
        logits_in_region = head.flags & wire.LOGITS_IN_REGION
        if not logits_in_region and logits_bytes > wire.INLINE_LOGITS_BYTES:
            raise InputError(f"logits of {logits_bytes} bytes do not fit an answer; ask for them in the region")
        if not head.region:
            if size != wire.REQUEST_BYTES + size_bytes or logits_in_region:
                raise InputError(
                    f"a batch of {size_bytes} bytes without a region, and {size - wire.REQUEST_BYTES} bytes after the "
                    "head; send them all, and take the logits from the answer"
                )
            if images not in self._inline:
                floats = np.frombuffer(self.frame, np.float32, size_bytes // 4, wire.REQUEST_BYTES)
                self._inline[images] = floats.reshape(images, *shape)
            return self._inline[images]
        if size != wire.REQUEST_BYTES:
            raise InputError(f"{size - wire.REQUEST_BYTES} bytes follow a request whose tensor is in a region")
        mapping = self._regions.get(head.region)
        if mapping is None:
            raise InputError(f"there is no region {head.region}; send it first")
        if logits_in_region:
            mapping.check(head.logits_offset, logits_bytes)
        mapping.check(head.input_offset, size_bytes)
        return mapping.floats(head.input_offset, size_bytes // 4).reshape(images, *shape)

    def _wishes(self, head: wire.Request) -> Wishes:
        if not (head.place or head.deadline_ms or head.min_accuracy or head.stream[0]):
            return NO_WISHES
        if not 0 <= head.deadline_ms < float("inf"):
            raise InputError(f"a deadline of {head.deadline_ms} ms makes no sense; give a time above 0, or 0 for none")
        if not 0 <= head.min_accuracy <= 1:
            raise InputError(f"min_accuracy is {head.min_accuracy}; give a share from 0 to 1")
        try:
            stream = head.stream.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise InputError("the stream's name is not UTF-8") from None
        return Wishes(
            deadline_ms=head.deadline_ms or None,
            subnet=self._model.subnet_of(self._model.name, str(head.place)) if head.place else None,
            min_accuracy=head.min_accuracy or None,
            stream=stream or None,
        )

    # -- replies

    def reply(self, head: wire.Request, identifier: int, answer: Answer) -> bytes:
        """The frame that answers a request; writes the logits into the client's region where it wants them there.

        Raises:
            InputError: that region was released meanwhile.
        """
        logits: Batch | None = answer.logits
        shape = answer.logits.shape
        if head.flags & wire.LOGITS_IN_REGION:
            mapping = self._regions.get(head.region)
            if mapping is None:
                raise InputError(f"region {head.region} was released before its answer had come")
            mapping.write(head.logits_offset, answer.logits)
            logits = None
        last = self._told
        # The agent gives the same strings again while nothing changes.
        if last is None or not (
            last[0].point is answer.point and last[0].reason is answer.reason and last[0].bound is answer.bound
        ):
            texts = wire.Told(answer.subnet, answer.point, answer.bound, answer.energy_source, answer.reason)
            last = self._told = answer, wire.told(texts), self._places[answer.subnet]
        figures = answer.queue_ms, answer.infer_ms, answer.accuracy, answer.energy_j
        return wire.answer(identifier, shape, last[2], figures, last[1], None if logits is None else logits.tobytes())


_FAILURES = (
    (Superseded, Failure.SUPERSEDED),
    (Busy, Failure.BUSY),
    (InputError, Failure.INPUT),
    (EngineError, Failure.ENGINE),
)


def failure(identifier: int, error: BaseException) -> bytes:
    """The frame that tells a client what went wrong: a sentence, never a traceback."""
    for kind, number in _FAILURES:
        if isinstance(error, kind):
            return wire.error(identifier, number, str(error))
    return wire.error(identifier, Failure.INTERNAL, f"internal error: {type(error).__name__}: {error}")
