"""Every way in that the configuration names: HTTP, gRPC and the native socket, opened and closed together.

They share one model, its statistics and its shared memory regions. All listen as soon as they are made, so that an
address that cannot be used is told before engines are loaded; they answer from :meth:`FrontDoors.start` on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

from agent import quantities
from agent.access import Access
from agent.config import ServeSection
from agent.core import Agent
from agent.http_inference import Limits
from agent.http_server import HttpServer
from agent.model import ServedModel
from agent.native import NativeServer
from agent.native_requests import NativeLimits
from agent.regions import Regions
from agent.statistics import ServingStatistics
from subnets.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from agent.grpc_front import GrpcFront


class FrontDoors:
    """The ways into one agent.

    Args:
        agent: answers; it may be started later.
        serve: where and how.
        version: of the program.
        private_path: a Unix socket for this machine's own commands, used where TCP is public and no socket is named.
        routes: of HTTP, beside its own.

    Raises:
        InputError: an address, a file or a limit is not fit.
        UnavailableError: gRPC is asked for and not installed.
    """

    def __init__(
        self,
        agent: Agent,
        serve: ServeSection,
        *,
        version: str = "",
        private_path: Path | None = None,
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        if not serve.host and not serve.socket:
            raise InputError("nowhere to listen: serve.host and serve.socket are both empty; give one")
        model = ServedModel(agent, version, max_images=serve.max_images, model_control=serve.model_control)
        regions = Regions(
            enabled=serve.shared_memory,
            max_regions=serve.max_regions,
            max_bytes=quantities.size_bytes(serve.region_memory),
        )
        statistics = ServingStatistics(model.name, model.versions)
        access = Access.read(serve.token_file, serve.tls_cert, serve.tls_key)
        self.unix_path = Path(serve.socket).absolute() if serve.socket else None
        if self.unix_path is None and serve.host and access.resolve(serve.host, serve.port).public:
            self.unix_path = private_path
        self._regions = regions
        self._native: NativeServer | None = None
        self._grpc: GrpcFront | None = None
        self._grpc_path = Path(serve.grpc_socket).absolute() if serve.grpc_socket else None
        self.http = HttpServer(
            model,
            host=serve.host or None,
            port=serve.port,
            unix_path=self.unix_path,
            access=access,
            limits=_limits(serve),
            regions=regions,
            statistics=statistics,
            routes=routes,
        )
        try:
            if serve.native:
                native_bytes = quantities.size_bytes(serve.native_memory)
                limits = NativeLimits(connections=serve.native_connections, memory_bytes=native_bytes)
                self._native = NativeServer(model, Path(serve.native), limits)
            if serve.grpc_port is not None or self._grpc_path is not None:
                self._grpc = _grpc(model, serve, self._grpc_path, access, regions, statistics)
        except BaseException:
            self.stop(0)
            raise

    def start(self) -> FrontDoors:
        """Answers from now on."""
        for door in (self.http, self._grpc, self._native):
            if door is not None:
                door.start()
        return self

    @property
    def alive(self) -> bool:
        """Whether HTTP answers; the others end only when told."""
        return self.http.alive

    @property
    def native_path(self) -> str:
        """The native socket, empty where there is none."""
        return str(self._native.path) if self._native is not None else ""

    @property
    def grpc_port(self) -> int:
        """gRPC's port, 0 where there is none."""
        return self._grpc.port if self._grpc is not None else 0

    @property
    def grpc_path(self) -> str:
        """gRPC's Unix socket, empty where there is none."""
        return str(self._grpc_path or "")

    def stop(self, grace_s: float) -> None:
        """Closes all at once: no new requests, and so many seconds for those that have arrived."""
        self.http.close()
        if self._grpc is not None:
            self._grpc.close(grace_s)
        for door in (self._native, self._grpc, self.http):
            if door is not None:
                door.stop(grace_s)
        self._regions.close()


def _limits(serve: ServeSection) -> Limits:
    size_bytes, seconds = quantities.size_bytes, quantities.seconds
    return Limits(
        max_body_bytes=size_bytes(serve.max_body),
        max_json_bytes=size_bytes(serve.max_json),
        max_head_bytes=size_bytes(serve.max_head),
        max_connections=serve.max_connections,
        max_held_bytes=size_bytes(serve.http_memory),
        read_timeout_s=seconds(serve.read_timeout),
        idle_timeout_s=seconds(serve.idle_timeout),
    )


def _grpc(
    model: ServedModel,
    serve: ServeSection,
    unix_path: Path | None,
    access: Access,
    regions: Regions,
    statistics: ServingStatistics,
) -> GrpcFront:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log would come between ours, in another form
    try:
        from agent.grpc_front import GrpcFront
        from agent.grpc_server import GrpcLimits
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        raise UnavailableError(
            "gRPC needs grpcio and protobuf; install them with: pip install 'gearshift[grpc]', or leave "
            "serve.grpc_port and serve.grpc_socket out"
        ) from None
    return GrpcFront(
        model,
        host=serve.host or "127.0.0.1",
        port=serve.grpc_port,
        unix_path=unix_path,
        access=access,
        limits=GrpcLimits(max_message_bytes=quantities.size_bytes(serve.max_body), max_calls=serve.grpc_calls),
        regions=regions,
        statistics=statistics,
    )
