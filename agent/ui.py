"""The web page, its events, and the view as JSON: what an operator looks at from a browser or ``gearshift top``.

::

    GET /ui                one static page: no external resources, strict Content-Security-Policy
    GET /ui/events         server-sent events, one View a second, for at most MAX_STREAMS readers
    GET /gearshift/view    the same View once
    GET /gearshift/table   the operating points that may be used, as calibrated

Read-only throughout. Who may ask is the server's business (:mod:`agent.server`).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.resources
import re
from collections.abc import AsyncIterator, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agent.view import Viewer

MAX_STREAMS = 8
PERIOD_S = 1.0
_SHARED_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def page() -> tuple[bytes, str]:
    """The page and its Content-Security-Policy.

    Script and style stand in the page; the policy admits exactly these two by their hashes, a connection to where the
    page came from, and nothing else.
    """
    content = importlib.resources.files("agent").joinpath("ui.html").read_bytes()
    policy = [
        "default-src 'none'",
        f"script-src {_hash(content, b'script')}",
        f"style-src {_hash(content, b'style')}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return content, "; ".join(policy)


def _hash(content: bytes, tag: bytes) -> str:
    (inside,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"


class Ui:
    """The routes, for one viewer.

    Args:
        viewer: makes what is shown.
        max_streams: how many may read events at a time.
        period_s: between two events.
    """

    def __init__(self, viewer: Viewer, *, max_streams: int = MAX_STREAMS, period_s: float = PERIOD_S) -> None:
        self._viewer, self._max_streams, self._period_s = viewer, max_streams, period_s
        self._page, self._policy = page()
        self._encoder = msgspec.json.Encoder()
        self._closed = False
        self._streams = 0
        self._wakers: set[Callable[[], None]] = set()

    def routes(self) -> list[Route]:
        """For the HTTP server."""
        return [
            Route("/ui", self.html, methods=["GET"]),
            Route("/ui/events", self.events, methods=["GET"]),
            Route("/gearshift/view", self.view, methods=["GET"]),
            Route("/gearshift/table", self.table, methods=["GET"]),
        ]

    def close(self) -> None:
        """Ends all streams, so that they do not hold up the server's end; callable from any thread."""
        self._closed = True
        for wake in tuple(self._wakers):
            wake()

    async def html(self, request: Request) -> Response:
        """The page."""
        headers = {**_SHARED_HEADERS, "Content-Security-Policy": self._policy}
        return Response(self._page, headers=headers, media_type="text/html")

    async def view(self, request: Request) -> Response:
        """The view once."""
        return Response(
            self._encoder.encode(self._viewer.view()), headers=_SHARED_HEADERS, media_type="application/json"
        )

    async def table(self, request: Request) -> Response:
        """The operating points."""
        return _json(self._encoder.encode(self._viewer.agent.table))

    async def events(self, request: Request) -> Response:
        """A stream of views, until the reader goes or the agent closes; 503 when as many as may be are being read."""
        if self._closed or self._streams >= self._max_streams:
            why = f"{self._max_streams} live views are open already; close one, or ask for /gearshift/view"
            return _json(msgspec.json.encode({"error": why}), 503)
        self._streams += 1
        return _Stream(self._views(), self._released)

    def _released(self) -> None:
        self._streams -= 1

    async def _views(self) -> AsyncIterator[bytes]:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(ended.set)

        self._wakers.add(wake)
        try:
            while not self._closed:
                yield b"data: " + self._encoder.encode(self._viewer.view()) + b"\n\n"
                try:
                    await asyncio.wait_for(ended.wait(), self._period_s)
                except TimeoutError:
                    continue
        finally:
            self._wakers.discard(wake)


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, headers=_SHARED_HEADERS, media_type="application/json")


class _Stream(StreamingResponse):
    """A stream that tells when it has ended, however it did."""

    def __init__(self, content: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(content, headers=_SHARED_HEADERS, media_type="text/event-stream")
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
