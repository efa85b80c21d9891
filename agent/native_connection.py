"""One client of the native path: its frames are read and answered here, in a thread of its own.

While nothing else of the client waits, the engine runs in this very thread: no hop, no copy of a small batch. What a
client pipelines is submitted instead and answered from whichever thread has the answer. Of requests of one stream that
have come together, the newest alone is asked for.

Nothing here ever waits for the client: a reply that its socket does not take ends the connection, and a client that
keeps to the limit of unanswered requests never meets that. Knows nothing of who may connect.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from agent import wire
from agent.memfd import Budget
from agent.model import ServedModel
from agent.native_requests import Asked, NativeLimits, Requests, failure
from agent.values import Answer
from agent.wire import Failure, Kind, WireError
from subnets.errors import Busy

_INT = struct.Struct("i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * _INT.size)
# As plain numbers: arithmetic with the socket module's enumerations takes microseconds.
_SEND, _RECEIVE = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL), int(socket.MSG_CMSG_CLOEXEC)
_TRUNCATED = int(socket.MSG_TRUNC)
_LOOK_NS = 300_000  # how long the next frame is looked for, where the client says that it comes at once
_BRIEF_NS = 150_000  # the same where it did so the last time
_SEND_BUFFER_BYTES = 2 * wire.FRAME_BYTES  # the kernel doubles it, for what it needs itself


class Connection:
    """Serves one client until either side ends it.

    Args:
        accepted: the socket; closed here.
        model: answers.
        limits: of this connection.
        budget: of memory, for all connections.
        on_close: called once, at the end.
    """

    def __init__(
        self,
        accepted: socket.socket,
        model: ServedModel,
        limits: NativeLimits,
        budget: Budget,
        on_close: Callable[[Connection], None],
    ) -> None:
        self._socket, self._model, self._on_close = accepted, model, on_close
        self._in_flight = limits.in_flight
        self._more = False  # whether the next frame was there before this one was answered
        self._look_ns = 0  # how long it is looked for, since it may come at once
        self._answered_ns = 0  # when the last answer was sent
        self._follows = False  # whether this frame came at once after that
        self._spare = model.spare_core
        self._requests = Requests(model, limits, budget)
        self._held: list[Asked] = []  # read, and not submitted yet
        self._futures: set[Future[Answer]] = set()
        self._mutex = threading.Lock()
        self._users = 1  # this thread, and every submitted request
        self._stopping = self._broken = False
        accepted.setblocking(True)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._poll = select.poll()
        self._poll.register(accepted, select.POLLIN)

    # -- life

    def run(self) -> None:
        """Serves; call in a thread of its own."""
        try:
            self._send(wire.welcome(self._requests.welcome()))
            while not self._broken and self._step():
                pass
        except WireError as error:
            self._send(wire.error(0, Failure.WIRE, str(error)))
        except OSError:
            pass  # the client has gone
        finally:
            if self._stopping:
                self._submit_held()
            else:
                for asked in self._held:
                    self._requests.done(asked)
                for future in tuple(self._futures):
                    future.cancel()
            self._leave()

    def stop(self) -> None:
        """Reads no more; what was read is still answered. From any thread."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def _leave(self) -> None:
        """Frees everything when the last user goes: nobody may close what another thread still writes to."""
        with self._mutex:
            self._users -= 1
            if self._users:
                return
        self._socket.close()
        self._requests.close()
        self._on_close(self)

    # -- frames

    def _step(self) -> bool:
        """Takes one frame; False at the end.

        Raises:
            WireError: it is none.
            OSError: the connection has broken.
        """
        if self._look_ns:
            self._look()
        frame = self._requests.frame
        size, ancillary, flags, _ = self._socket.recvmsg_into([frame], _ANCILLARY_BYTES, _RECEIVE)
        self._follows = time.perf_counter_ns() - self._answered_ns < _BRIEF_NS
        if not (ancillary or self._more or self._held or self._futures):
            asked = self._requests.again(size)
            if asked is not None:
                self._answer_here(asked, wire.frame_id(frame, size))
                return True
        descriptors = _descriptors(ancillary) if ancillary else []
        try:
            if flags & _TRUNCATED:
                raise WireError(f"a frame of more than {wire.FRAME_BYTES} bytes; put the tensor into a region")
            if not size:
                return False
            self._take(frame, size, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if self._held and not self._readable():
            self._submit_held()
        return True

    def _readable(self) -> bool:
        return bool(self._poll.poll(0))

    def _look(self) -> None:
        """Stays awake for the next frame, for a moment: to sleep and to be woken can take longer than an inference."""
        poll, now_ns = self._poll.poll, time.perf_counter_ns
        until_ns, self._look_ns = now_ns() + self._look_ns, 0
        while not poll(0) and now_ns() < until_ns:
            pass

    def _take(self, frame: bytearray, size: int, descriptors: list[int]) -> None:
        kind = wire.kind_of(frame, size)
        if descriptors and kind != Kind.REGION:
            raise WireError("a file descriptor beside a frame that brings no region")
        if kind == Kind.REQUEST:
            self._ask(wire.read_request(frame, size), size)
        elif kind in (Kind.REGION, Kind.RELEASE):
            asked = wire.read_region(frame, size)
            try:
                if kind == Kind.REGION:
                    self._requests.map(asked, descriptors)
                else:
                    self._requests.unmap(asked)
            except Exception as error:
                self._send(failure(asked.id, error))
            else:
                self._send(wire.done(asked.id))
        else:
            raise WireError(f"a frame of kind {kind}, which clients do not send")

    def _send(self, frame: bytes) -> None:
        try:
            self._socket.send(frame, _SEND)
        except OSError:  # it has gone, or reads too little for what it asks
            self._broken = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    # -- requests

    def _ask(self, head: wire.Request, size: int) -> None:
        """Answers a request at once if it is alone, else keeps it for those that have come with it."""
        try:
            if len(self._held) + len(self._futures) >= self._in_flight:
                raise Busy(f"{self._in_flight} requests of this connection are unanswered; read answers first")
            alone = not (self._held or self._futures or (self._more and self._readable()))
            asked = self._requests.understand(head, size, alone=alone)
        except Exception as error:
            self._send(failure(head.id, error))
            return
        if alone:
            self._answer_here(asked, head.id)
        else:
            self._held.append(asked)

    def _answer_here(self, asked: Asked, identifier: int) -> None:
        alone = False
        try:
            answer = self._model.infer(asked.batch, asked.wishes)
            alone = answer.queue_ms < wire.AT_ONCE_MS
            reply = self._requests.reply(asked.head, identifier, answer)
        except Exception as error:
            reply = failure(identifier, error)
        self._send(reply)
        self._answered_ns = time.perf_counter_ns()
        if asked.head.flags & wire.MORE_SOON:
            self._look_ns = _LOOK_NS
        elif alone and self._follows and self._spare:
            self._look_ns = _BRIEF_NS
        self._more = self._readable()  # after the answer: the client is waking up meanwhile

    def _submit_held(self) -> None:
        held, self._held = self._held, []
        newest = {asked.wishes.stream: asked for asked in held}
        for asked in held:
            stream = asked.wishes.stream
            if stream is not None and newest[stream] is not asked:
                self._requests.done(asked)
                self._send(wire.error(asked.head.id, Failure.SUPERSEDED, f"a newer request of '{stream}' has come"))
                continue
            try:
                future = self._model.submit(asked.batch, asked.wishes)
            except Exception as error:
                self._requests.done(asked)
                self._send(failure(asked.head.id, error))
                continue
            with self._mutex:
                self._users += 1
            self._futures.add(future)
            future.add_done_callback(functools.partial(self._answered, asked))

    def _answered(self, asked: Asked, future: Future[Answer]) -> None:
        """In whichever thread the answer has come."""
        try:
            self._futures.discard(future)  # before the reply: once it has that, the client may send the next
            try:
                reply = self._requests.reply(asked.head, asked.head.id, future.result())
            except BaseException as error:  # a cancelled one's is no Exception
                reply = failure(asked.head.id, error)
            self._requests.done(asked)
            self._send(reply)
        finally:
            self._leave()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """File descriptors that came with a frame; they are open now."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % _INT.size
            found += [number for (number,) in _INT.iter_unpack(data[:whole])]
    return found
