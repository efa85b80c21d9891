"""HTTP replies, and which status an error becomes.

Triton's mapping, which its clients know: 400 the request is wrong, 404 not found, 500 ours, 501 not offered. Over a
limit: 413 too large, 431 too long a head, 429 a limit that this client can undo itself (its regions, a frame that its
own newer one has replaced), 503 the agent as a whole cannot take it now (queue full, too many connections, closing),
504 its deadline passed. The difference matters to load balancers: they hand a 503 to another server, and must not do
so with a 429.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from agent.model import NotFound, TooMany, Unsupported
from agent.protocol import TooLarge
from subnets.errors import Busy, Expired, GearshiftError, InputError, Superseded

Headers = tuple[tuple[bytes, bytes], ...]

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTENT_TYPE = b"content-type"
JSON_HEADERS: Headers = ((_CONTENT_TYPE, b"application/json"),)
BINARY_HEADERS: Headers = ((_CONTENT_TYPE, b"application/octet-stream"),)
_MAX_CHARACTERS = 2000  # a sentence may quote what the client sent


class NotAllowed(GearshiftError):
    """The path is served, but with another method."""


_STATUSES: tuple[tuple[type[Exception], int], ...] = (  # the first that fits
    (NotFound, 404),
    (TooLarge, 413),
    (Unsupported, 501),
    (InputError, 400),
    (TooMany, 429),
    (Superseded, 429),
    (Expired, 504),
    (Busy, 503),
    (NotAllowed, 405),
    (GearshiftError, 500),
)


class Reply(NamedTuple):
    """Status, headers (without length and connection), body."""

    status: int
    headers: Headers
    body: bytes


def encode(reply: Reply, *, keep: bool, head_only: bool) -> bytes:
    """A reply as it goes over the wire.

    Args:
        reply: what to say.
        keep: whether the connection stays open.
        head_only: it answers HEAD.
    """
    parts = [STATUS_LINES[reply.status]]
    for name, value in reply.headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"content-length: %d\r\n" % len(reply.body))
    parts.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
    if not head_only:
        parts.append(reply.body)
    return b"".join(parts)


def json_reply(value: Any) -> Reply:
    """200 with JSON."""
    return Reply(200, JSON_HEADERS, msgspec.json.encode(value))


def refusal(status: int, sentence: str) -> Reply:
    """An error as every client of the protocol reads it: ``{"error": "..."}``."""
    headers = JSON_HEADERS
    if status == 401:
        headers += ((b"www-authenticate", b"Bearer"),)
    elif status == 503:
        headers += ((b"retry-after", b"1"),)
    return Reply(status, headers, msgspec.json.encode({"error": sentence[:_MAX_CHARACTERS]}))


def refusal_of(error: BaseException) -> Reply:
    """The reply that tells an error; never a traceback."""
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return refusal(status, str(error))
    return refusal(500, f"internal error: {type(error).__name__}: {error}")
