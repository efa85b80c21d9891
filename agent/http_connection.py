"""One HTTP/1.1 connection: parsed by httptools, limited in every direction, with a short way for inferences.

uvicorn runs the server and calls this protocol. Its own has no limit on heads, on slow clients or on pipelined
requests, and takes a task, two events and a router for each of them; here an inference goes from the parser to the
agent and back without these, and everything else to the ASGI application (:mod:`agent.http_asgi`).

A request is read whole, within :class:`agent.http_inference.Limits`, and answered before the next one is begun. What is
refused while it arrives is answered at once, and the rest of it is dropped. All of it runs in the event loop's thread,
but for one thing: the thread that has an answer writes the reply itself where nobody else waits for that thread, since
waking the loop's first can take longer than all the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
from collections import deque

import httptools

from agent.http_asgi import Cycle
from agent.http_inference import Exchange
from agent.http_replies import Reply, encode, refusal, refusal_of
from agent.http_request import Request
from agent.http_shared import Shared
from subnets.errors import Busy

_MAX_OTHER_BYTES = 2**20  # of a body that is no inference
_MAX_PIPELINED = 16
_LINGER_S = 5.0  # for a client to take the last reply, while what it still sends is dropped


class Connection(asyncio.Protocol):
    """One client's connection.

    Args:
        shared: with the server's other connections.
        public: whether it came over an address that other machines can reach.
        loop: the running event loop.
    """

    transport: asyncio.Transport

    def __init__(self, shared: Shared, public: bool, loop: asyncio.AbstractEventLoop) -> None:
        self.shared, self.public, self.loop = shared, public, loop
        self.writable = asyncio.Event()
        self.deadline_s = math.inf  # when patience ends, on the loop's clock
        self._parser = httptools.HttpRequestParser(self)
        self._arriving = self._answered = Request()  # the one being parsed, the one being answered
        self._reading = False  # whether part of a request has arrived
        self._head_bytes = 0  # of the request being parsed: what the parser has told of
        self._silent_bytes = 0  # what it has been fed since it last told anything; it may keep that
        self._waiting: deque[Request | Reply] = deque()  # whole requests, and last a refusal
        self._current: Exchange | Cycle | None = None
        self._deaf = False  # drops what arrives
        self._ending = False  # closes when nothing waits any more
        self._lost = False
        self._descriptor = -1  # of a plain socket, while it is open
        self._writing = threading.Lock()  # over writing to the descriptor, and over losing it

    @property
    def idle(self) -> bool:
        """Whether nobody would miss it."""
        nothing = self._current is None and not self._waiting and not self.transport.is_closing()
        return nothing and (self._deaf or not self._reading)

    # -- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or says that there are too many."""
        self.transport = transport  # type: ignore[assignment]  # a stream's, see create_server
        if transport.get_extra_info("ssl_object") is None:
            self._descriptor = transport.get_extra_info("socket").fileno()
        self.writable.set()
        if self.shared.admit(self):
            self._await_request()
        else:
            self._deaf = True
            self._write(refusal(503, "too many connections; close some, or try again later"), keep=False)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Forgets what is under way; an inference that still waits for its turn is cancelled."""
        self.shared.connections.discard(self)
        with self._writing:  # the transport closes the socket when this returns
            self._lost = self._deaf = True
            self._descriptor = -1
        self.writable.set()
        for item in (self._arriving, *self._waiting):
            if isinstance(item, Request):
                self.shared.release(item)
        self._waiting.clear()
        if self._current is not None:
            self._current.cancel()

    def data_received(self, data: bytes) -> None:
        """Parses what arrives, then answers what is whole."""
        if self._deaf:
            return
        if not self._reading:
            self._reading = True
            if self._current is None:
                self.deadline_s = self.loop.time() + self.shared.limits.read_timeout_s
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ending = True  # there is nothing to upgrade to: answered as it is, and whatever follows is dropped
            self._deaf = True
        except httptools.HttpParserError as error:
            self._refuse(400, f"this is not HTTP/1.1: {error}")
        if self._silent_bytes > self.shared.limits.max_head_bytes:
            self._refuse_head()
        self._next()

    def eof_received(self) -> bool:
        """The client has gone. It might have ended its side alone and still read, which nothing tells; as in other
        servers that counts as gone, so that an inference for nobody costs nothing."""
        return False

    def pause_writing(self) -> None:
        """The client does not take its replies: wait, but not for ever."""
        self.writable.clear()
        self.deadline_s = self.loop.time() + self.shared.limits.read_timeout_s

    def resume_writing(self) -> None:
        """It has taken them."""
        self.writable.set()
        if not self._deaf:  # else it is about to close, and has its time for that
            self.deadline_s = math.inf
        self._next()

    # -- what the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self._arriving = Request()
        self._reading, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        self._arriving.path += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one of those after a chunked body: these are dropped, they come too late to be looked at."""
        self._count_head(len(name) + len(value) + 4)
        request = self._arriving
        if not self._deaf and not request.method:
            name = name.lower()
            if name == b"host" and name in request.named:
                self._refuse(400, "the request has two Host headers")
            request.named[name] = value
            request.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: what can be refused by it is, before a body is read."""
        self._silent_bytes = 0
        if self._deaf:
            return
        request, parser, access = self._arriving, self._parser, self.shared.access
        request.method = parser.get_method()
        request.keep_alive = (
            parser.should_keep_alive() and parser.get_http_version() == "1.1" and not parser.should_upgrade()
        )
        if not request.path.startswith(b"/"):  # with scheme and host, as proxies are asked, or '*'
            with contextlib.suppress(httptools.HttpParserInvalidURLError):
                url = httptools.parse_url(request.path)
                request.path = (url.path or b"/") + (b"?" + url.query if url.query else b"")
        request.path, _, request.query = request.path.partition(b"?")
        host, authorization = request.named.get(b"host", b""), request.named.get(b"authorization", b"")
        refused = access.refusal(
            public=self.public, host=host.decode("latin-1"), authorization=authorization.decode("latin-1")
        )
        length = int(request.named.get(b"content-length", b"0"))
        if refused is not None:
            self._refuse(*refused)
        elif length > (most := self._max_body_bytes()):
            self._refuse(413, f"the body has {length} bytes, at most {most} are taken")
        else:
            request.expect(length)
            if b"expect" in request.named and self._current is None and not self._waiting:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        """The next bytes of the body."""
        self._silent_bytes = 0
        if self._deaf:
            return
        request = self._arriving
        if request.body_bytes + len(piece) > (most := self._max_body_bytes()):  # chunked: no length in the head
            self._refuse(413, f"the body has more than {most} bytes")
            return
        try:
            self.shared.take(request, len(piece))
        except Busy as error:
            self._refuse(503, str(error))
            return
        request.add(piece)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._silent_bytes = 0
        self._reading = False
        if self._deaf:
            return
        if len(self._waiting) >= _MAX_PIPELINED:
            self._refuse(429, f"more than {_MAX_PIPELINED} requests wait on one connection; open another")
        else:
            self._waiting.append(self._arriving)

    # -- answering

    def close(self) -> None:
        """Closes it after what is written already."""
        self._deaf = True
        unwritten = self.transport.get_write_buffer_size()
        self.deadline_s = self.loop.time() + (self.shared.limits.read_timeout_s if unwritten else _LINGER_S)
        self.transport.close()

    def shutdown(self) -> None:
        """Closes it after what is being answered: the server ends."""
        self._ending = True
        if self._current is None and not self._waiting:
            self.close()

    def expire(self) -> None:
        """Its time is over."""
        if self.transport.is_closing() or not self.writable.is_set():
            self.transport.abort()
        elif self._deaf or not self._reading:
            self.close()
        else:
            self._refuse(408, f"the request took longer than {self.shared.limits.read_timeout_s:g} s to arrive")
            self._next()

    def finished(self, keep: bool) -> None:
        """The current answer is written.

        Args:
            keep: whether the connection may be used again.
        """
        self.shared.release(self._answered)
        self._current = None
        if not keep and not self._lost:
            self.close()
        self._next()

    def send(self, content: bytes) -> None:
        """Writes a piece of a reply."""
        if not self._lost:
            self.transport.write(content)

    def keeps(self, request: Request) -> bool:
        """Whether the connection is used again after the answer to a request."""
        return request.keep_alive and not (self._ending and not self._waiting)

    def _next(self) -> None:
        """Answers what waits, in order; stops while the client does not take its replies."""
        while self._waiting and self._current is None and not self.transport.is_closing() and self.writable.is_set():
            item = self._waiting.popleft()
            if isinstance(item, Request):
                self._start(item)
            else:
                self._write(item, keep=False)
                self.deadline_s = self.loop.time() + _LINGER_S
                return
        if self._lost or self.transport.is_closing():
            return
        if self._waiting:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
            if self._current is None and self.writable.is_set() and not self._deaf:
                self._await_request()

    def _await_request(self) -> None:
        """Sets the time for the next request, or for the rest of it."""
        limits = self.shared.limits
        self.deadline_s = self.loop.time() + (limits.read_timeout_s if self._reading else limits.idle_timeout_s)

    def _start(self, request: Request) -> None:
        """Asks the agent, or has the application called."""
        self.deadline_s = math.inf
        self._answered = request
        if self.shared.inference.serves(request.path):
            self._infer(request)
            return
        self._current = cycle = Cycle(self, request)
        task = self.loop.create_task(cycle.run(self.shared.app))
        self.shared.tasks.add(task)
        task.add_done_callback(self.shared.tasks.discard)

    def _infer(self, request: Request) -> None:
        inference = self.shared.inference
        try:
            exchange = inference.begin(request)
        except Exception as error:
            self._reply(refusal_of(error))
            return
        self._current = exchange
        exchange.future.add_done_callback(lambda future: self._wake(exchange))
        try:
            self.shared.take(request, max(0, exchange.request.batch.nbytes - request.taken))  # unpacked, or from JSON
        except Busy:
            exchange.cancel()

    def _wake(self, exchange: Exchange) -> None:
        """Called in whichever thread has the answer."""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            if self.shared.inference.model.agent.waiting or not self._write_here(exchange):
                self.loop.call_soon_threadsafe(self._finish, exchange)

    def _write_here(self, exchange: Exchange) -> bool:
        """Writes a reply without the loop, which is told of it afterwards; False where that must do it."""
        with self._writing:
            if self._descriptor < 0 or self.transport.is_closing() or self.transport.get_write_buffer_size():
                return False
            reply = self.shared.inference.finish(exchange)
            keep = self.keeps(self._answered)
            content = encode(reply, keep=keep, head_only=False)
            try:
                sent = os.write(self._descriptor, content)
            except OSError:  # it takes nothing now, or has gone: the transport finds out
                sent = 0
        self.loop.call_soon_threadsafe(self._written, content[sent:], keep)
        return True

    def _written(self, rest: bytes, keep: bool) -> None:
        if rest:
            self.send(rest)
        self.finished(keep)

    def _finish(self, exchange: Exchange) -> None:
        self._reply(self.shared.inference.finish(exchange))

    def _reply(self, reply: Reply) -> None:
        keep = self.keeps(self._answered)
        self._write(reply, keep=keep)
        self.finished(keep)

    def _write(self, reply: Reply, *, keep: bool) -> None:
        self.send(encode(reply, keep=keep, head_only=self._answered.method == b"HEAD"))

    # -- refusing

    def _max_body_bytes(self) -> int:
        inference = self.shared.inference.serves(self._arriving.path)
        return self.shared.limits.max_body_bytes if inference else _MAX_OTHER_BYTES

    def _count_head(self, size_bytes: int) -> None:
        self._silent_bytes = 0
        self._head_bytes += size_bytes
        if self._head_bytes > self.shared.limits.max_head_bytes:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(431, f"request line and headers have more than {self.shared.limits.max_head_bytes} bytes")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answers once what came before is answered, and reads no more of what comes."""
        if not self._deaf:
            self._deaf = self._ending = True
            self.shared.release(self._arriving)
            self._waiting.append(refusal(status, sentence))
