"""What the HTTP connections of one server share: who may come in, and how much all of them may hold.

Used in the event loop's thread alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from agent.access import Access
from agent.http_inference import Inference, Limits
from agent.http_request import Request
from subnets.errors import Busy

if TYPE_CHECKING:
    from agent.http_connection import Connection


class Shared:
    """What the connections of one server have in common.

    Args:
        inference: the short way.
        app: everything else.
        access: who may come in.
        limits: of clients.
    """

    def __init__(self, inference: Inference, app: ASGIApp, access: Access, limits: Limits) -> None:
        self.inference, self.app, self.access, self.limits = inference, app, access, limits
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._held_bytes = 0

    def admit(self, connection: Connection) -> bool:
        """Whether there is room for a new connection; the one that has idled longest makes room.

        Other machines have three quarters of the places, so that this one's own programs always find some.
        """
        most, rivals = self.limits.max_connections, list(self.connections)
        if connection.public and len(rivals) < most:
            most, rivals = max(1, most * 3 // 4), [other for other in rivals if other.public]
        if len(rivals) >= most:
            idle = [other for other in rivals if other.idle]
            if not idle:
                return False
            min(idle, key=lambda other: other.deadline_s).close()
        self.connections.add(connection)
        return True

    def take(self, request: Request, size_bytes: int) -> None:
        """Counts bytes as held for a request.

        Raises:
            Busy: all requests together would hold too many.
        """
        if self._held_bytes + size_bytes > self.limits.max_held_bytes:
            raise Busy(f"requests of {self._held_bytes} bytes are under way already; try again later")
        self._held_bytes += size_bytes
        request.taken += size_bytes

    def release(self, request: Request) -> None:
        """Counts a request's bytes off."""
        self._held_bytes -= request.taken
        request.taken = 0

    def sweep(self, now_s: float) -> None:
        """Ends what has taken too long; to be called every second or so."""
        for connection in [other for other in self.connections if now_s > other.deadline_s]:
            connection.expire()
