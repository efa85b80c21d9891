"""One HTTP request while it arrives: head and body, the body where an engine can read it.

Knows nothing of parsing or answering.
"""

from __future__ import annotations

import numpy as np

from agent.protocol import HEADER, Body

_LENGTH_HEADER = HEADER.lower().encode()
_IN_PLACE_BYTES = 2**16  # a body larger than that is put where its tensor lies aligned
_ALIGNMENT = 64


class Request:
    """A request, as far as it has arrived. Header names are in lower case."""

    __slots__ = ("_parts", "_room", "body_bytes", "headers", "keep_alive", "method", "named", "path", "query", "taken")

    def __init__(self) -> None:
        self.method = self.path = self.query = b""  # path and query as sent
        self.headers: list[tuple[bytes, bytes]] = []
        self.named: dict[bytes, bytes] = {}  # the last of each name
        self.keep_alive = False
        self.body_bytes = 0
        self.taken = 0  # bytes counted as held for it
        self._parts: list[bytes] = []
        self._room: memoryview | None = None

    def expect(self, length: int) -> None:
        """Makes room for a large body of known length, such that a tensor after the JSON lies aligned: engines then
        read it in place. The kernel gives the pages only as bytes arrive."""
        if length > _IN_PLACE_BYTES:
            room = np.empty(length + _ALIGNMENT, np.uint8)
            head = self.named.get(_LENGTH_HEADER, b"0")
            before = int(head) if head.isdigit() and len(head) < 16 else 0
            start = -(int(room.ctypes.data) + before) % _ALIGNMENT
            self._room = room.data[start : start + length]

    def add(self, piece: bytes) -> None:
        """Takes the next bytes of the body; never more than were expected."""
        if self._room is None:
            self._parts.append(piece)
        else:
            self._room[self.body_bytes : self.body_bytes + len(piece)] = piece
        self.body_bytes += len(piece)

    def body(self) -> Body:
        """All of it."""
        return b"".join(self._parts) if self._room is None else self._room
