"""From addresses to gRPC servers that listen: one for TCP, one for a Unix socket.

Two, since only the first may have to ask for tokens. Both answer from the same agent.
"""

from __future__ import annotations

from pathlib import Path

import grpc  # type: ignore[import-untyped]

from agent.access import Access
from agent.grpc_calls import Calls
from agent.grpc_server import GrpcLimits, GrpcServer


class GrpcFront:
    """The gRPC servers of one agent. Listens from the start; answers once started.

    Args:
        calls: what the methods do.
        limits: of the clients of each server.
        access: who may come over an address that other machines can reach.
        host: where to listen over TCP.
        port: 0 = any free one; None = no TCP.
        unix_path: a Unix socket; None = none.

    Raises:
        InputError: an address cannot be used, or can be reached from other machines without token and TLS.
    """

    def __init__(
        self, calls: Calls, limits: GrpcLimits, access: Access, *, host: str, port: int | None, unix_path: Path | None
    ) -> None:
        self.port = 0
        self.unix_path = unix_path
        self._servers: list[GrpcServer] = []
        try:
            if port is not None:
                self.port = self._listen_tcp(calls, limits, access, host, port)
            if unix_path is not None:
                self._servers.append(GrpcServer(calls, limits))
                self._servers[-1].listen_unix(unix_path)
        except BaseException:
            self.close(0)
            self.join()
            raise

    def start(self) -> None:
        """Answers from now on."""
        for server in self._servers:
            server.start()

    def close(self, grace_s: float) -> None:
        """Refuses new calls from now on; those under way have ``grace_s`` to finish."""
        for server in self._servers:
            server.close(grace_s)

    def join(self) -> None:
        """Waits until :meth:`close` has come to its end."""
        for server in self._servers:
            server.join()

    def _listen_tcp(self, calls: Calls, limits: GrpcLimits, access: Access, host: str, port: int) -> int:
        resolved = access.resolve(host, port)
        authorised = credentials = None
        if resolved.public:
            assert access.tokens is not None and access.tls is not None  # or resolve would have refused
            chain, key = access.tls.pem()
            authorised, credentials = access.tokens.authorised, grpc.ssl_server_credentials([(key, chain)])
        self._servers.append(GrpcServer(calls, limits, authorised=authorised))
        name, number = resolved.address[:2]
        return self._servers[-1].listen_tcp(f"[{name}]:{number}" if ":" in name else f"{name}:{number}", credentials)
