"""One request to the ASGI application: what is no inference, from metadata to server-sent events.

The body is there already, whole; a reply may be streamed. See https://asgi.readthedocs.io, version 2.3 of the HTTP
specification.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Message

from agent.http_replies import STATUS_LINES, refusal
from agent.http_request import Request

if TYPE_CHECKING:
    from agent.http_connection import Connection

_log = logging.getLogger("gearshift.http")


class Cycle:
    """Calls the application for one request and writes what it replies.

    Args:
        connection: where the request came from.
        request: whole.
    """

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection, self._request = connection, request
        self._over = asyncio.Event()  # answered, or the client has gone
        self._read = False
        self._keep = False
        self._head: bytes | None = None  # until the first piece of the body
        self._begun = self._ended = self._chunked = False

    def cancel(self) -> None:
        """The client has gone."""
        self._over.set()

    async def run(self, app: ASGIApp) -> None:
        """Until the reply is written; a failure of the application's is logged, and told without its traceback."""
        try:
            await app(self._scope(), self._receive, self._send)
        except asyncio.CancelledError:
            self._connection.close()  # the server ends and has waited long enough
        except Exception as error:
            _log.exception("the request for %s failed", self._request.path[:200].decode("latin-1"))
            if not self._begun:
                reply = refusal(500, f"internal error: {type(error).__name__}: {error}")
                await self._send({"type": "http.response.start", "status": 500, "headers": list(reply.headers)})
                await self._send({"type": "http.response.body", "body": reply.body})
        finally:
            self._over.set()
            self._connection.finished(self._keep and self._ended)

    def _scope(self) -> dict[str, Any]:
        request = self._request
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method.decode("latin-1"),
            "scheme": "https" if self._connection.transport.get_extra_info("ssl_object") else "http",
            "path": unquote_to_bytes(request.path).decode("utf-8", "replace"),
            "raw_path": request.path,
            "query_string": request.query,
            "root_path": "",
            "headers": request.headers,
            "client": None,
            "server": None,
        }

    async def _receive(self) -> Message:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": bytes(self._request.body()), "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        connection = self._connection
        if not connection.writable.is_set():
            await connection.writable.wait()
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._request.method == b"HEAD":
            body = b""
        elif self._chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        connection.send((self._head or b"") + body)
        self._head = None
        self._ended = not more

    def _begin(self, status: int, headers: Any) -> None:
        """Makes the head, to be sent with the first piece of the body."""
        self._begun = True
        self._keep = self._connection.keeps(self._request)
        parts = [STATUS_LINES[status]]
        sized = False
        for name, value in headers:
            sized |= name.lower() in (b"content-length", b"transfer-encoding")
            parts += (name, b": ", value.replace(b"\r", b" ").replace(b"\n", b" "), b"\r\n")
        if not sized and status not in (204, 304):
            self._chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n" if self._keep else b"connection: close\r\n\r\n")
        self._head = b"".join(parts)
