"""From addresses to gRPC servers that listen: one for TCP, one for a Unix socket.

Two, since only the first may have to ask for tokens. Both answer from the same agent.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc  # type: ignore[import-untyped]

from agent.access import Access
from agent.grpc_calls import Calls
from agent.grpc_server import GrpcLimits, GrpcServer
from agent.model import ServedModel
from agent.regions import Regions
from agent.statistics import ServingStatistics


class GrpcFront:
    """gRPC for one started agent: listens as soon as it is made, answers from :meth:`start` on.

    Args:
        model: answers.
        host: where to listen over TCP. An address that other machines can reach needs ``access`` with token and TLS.
        port: 0 = any free one; None = no TCP.
        unix_path: a Unix socket; None = none.
        access: None = this machine only.
        limits: of the clients at each of the two; None = the defaults.
        regions: None = shared memory is off.
        statistics: shared with other front doors; None = its own.

    Raises:
        InputError: an address cannot be used.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        unix_path: Path | None = None,
        access: Access | None = None,
        limits: GrpcLimits | None = None,
        regions: Regions | None = None,
        statistics: ServingStatistics | None = None,
    ) -> None:
        regions = regions or Regions(enabled=False)
        statistics = statistics or ServingStatistics(model.name, model.versions)
        self._calls, self._limits = Calls(model, statistics, regions), limits or GrpcLimits()
        self._servers: list[GrpcServer] = []
        self.port = 0
        try:
            if port is not None:
                self.port = self._listen_tcp(access or Access(), host, port)
            if unix_path is not None:
                self._add(None).listen_unix(unix_path)
        except BaseException:
            self.stop(0)
            raise

    def start(self) -> None:
        """Answers from now on."""
        for server in self._servers:
            server.start()

    def close(self, grace_s: float) -> None:
        """Refuses new calls from now on; those under way have ``grace_s`` to finish, then they are cut off."""
        for server in self._servers:
            server.close(grace_s)

    def stop(self, grace_s: float = 20.0) -> None:
        """As :meth:`close`, and waits until all calls have ended."""
        self.close(grace_s)
        for server in self._servers:
            server.join()

    def _add(self, authorised: Callable[[str], bool] | None) -> GrpcServer:
        server = GrpcServer(self._calls, self._limits, authorised=authorised)
        self._servers.append(server)
        return server

    def _listen_tcp(self, access: Access, host: str, port: int) -> int:
        found = access.resolve(host, port)
        name, number = found.address[:2]
        address = f"[{name}]:{number}" if ":" in name else f"{name}:{number}"
        if not found.public:
            return self._add(None).listen_tcp(address)
        assert access.tokens is not None and access.tls is not None  # or resolve would have refused
        chain, key = access.tls.pem()
        credentials = grpc.ssl_server_credentials([(key, chain)])
        return self._add(access.tokens.authorised).listen_tcp(address, credentials)
