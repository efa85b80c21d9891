"""``ModelStreamInfer``: many requests and replies on one call, in order, several under way at once.

::

    messages ──► reader thread ──► begin(...) ──► queue ──► the call's thread waits for each answer, and sends it

The next requests are read while the first is answered, so that a stream keeps the agent busy and a camera's newest
frame can take the place of one that waits; but at most ``window`` are under way, and then reading stops, which stops
the client. A request that fails gets a reply with ``error_message``; the stream goes on. Knows nothing of models.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from agent.grpc_calls import Calls, Pending
from agent.grpc_descriptors import Message
from agent.grpc_errors import status_of
from agent.grpc_messages import INFERENCE
from subnets.errors import Busy

_REQUEST, _REPLY = INFERENCE["ModelInferRequest"], INFERENCE["ModelStreamInferResponse"]
_WANTS_FINAL, _FINAL = "triton_enable_empty_final_response", "triton_final_response"


class InferStream:
    """One call of ``ModelStreamInfer``.

    Args:
        calls: begins and finishes requests.
        window: how many may be under way.
    """

    def __init__(self, calls: Calls, window: int) -> None:
        self._calls = calls
        self._room = threading.Semaphore(window)
        self._under_way: queue.SimpleQueue[tuple[Message | None, Pending | Exception] | None] = queue.SimpleQueue()
        self._order = threading.Lock()  # or the end could come before a request that was begun
        self._closing = self._gone = False
        self._pending: set[Any] = set()

    def replies(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        """The serialised replies, until the client has no more requests.

        Raises:
            Busy: the server closes; what was under way has been answered.
        """
        threading.Thread(target=self._read, args=(messages,), name="gearshift-grpc-stream", daemon=True).start()
        while (entry := self._under_way.get()) is not None and not self._gone:
            yield self._reply(*entry).SerializeToString()
            self._room.release()
        if self._closing:
            raise Busy("the agent is closing; open a stream to another one, or again after its restart")

    def close(self) -> None:
        """Takes no more requests; those under way are answered."""
        with self._order:
            self._closing = True
            self._under_way.put(None)

    def abandon(self) -> None:
        """The call is over: nobody waits for an answer any more."""
        self._gone = True
        for future in tuple(self._pending):
            future.cancel()
        self._under_way.put(None)
        self._room.release()

    def _read(self, messages: Iterator[bytes]) -> None:
        try:
            for message in messages:
                self._room.acquire()
                with self._order:
                    if self._closing or self._gone:
                        break
                    self._under_way.put(self._begin(message))
        except Exception:  # the call has ended; its thread knows from abandon()
            pass
        finally:
            self._under_way.put(None)

    def _begin(self, message: bytes) -> tuple[Message | None, Pending | Exception]:
        request = None
        try:
            request = _REQUEST.FromString(message)
            pending = self._calls.begin(request)
        except Exception as error:
            return request, error
        self._pending.add(pending.future)
        pending.future.add_done_callback(self._pending.discard)
        if self._gone:
            pending.future.cancel()
        return request, pending

    def _reply(self, request: Message | None, pending: Pending | Exception) -> Message:
        try:
            if isinstance(pending, Exception):
                raise pending
            reply = _REPLY(infer_response=self._calls.finish(pending))
        except Exception as error:
            reply = _REPLY(error_message=status_of(error)[1])
            if request is not None:
                reply.infer_response.id = request.id
        if request is not None and _WANTS_FINAL in request.parameters and request.parameters[_WANTS_FINAL].bool_param:
            reply.infer_response.parameters[_FINAL].bool_param = True
        return reply
