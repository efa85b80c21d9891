"""The HTTP server: listening sockets, a thread with an event loop, and an end that waits for its clients.

uvicorn's server runs the loop; the connections are ours (:mod:`agent.http_connection`), and TLS is spoken where other
machines can reach, not over loopback or a Unix socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.routing import BaseRoute

from agent.access import Access
from agent.http_connection import Connection
from agent.http_inference import Inference, Limits
from agent.http_listen import listen_tcp, listen_unix
from agent.http_shared import Shared
from agent.model import ServedModel
from agent.regions import Regions
from agent.server import create_app
from agent.statistics import ServingStatistics

_TLS_HANDSHAKE_S = 10.0
_TICKS_PER_SWEEP = 10  # of uvicorn's, ten a second


class _Server(uvicorn.Server):
    """uvicorn's, listening with our protocol."""

    def __init__(
        self, config: uvicorn.Config, shared: Shared, listeners: Sequence[tuple[socket.socket, bool]], tls: Any
    ) -> None:
        super().__init__(config)
        self._shared, self._listeners, self._tls = shared, listeners, tls
        self.server_state.connections = shared.connections  # type: ignore[assignment]  # ours have its shutdown()
        self.server_state.tasks = shared.tasks
        self.running = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens at each socket, public ones over TLS."""
        loop = asyncio.get_running_loop()
        self.servers = []
        for listener, public in self._listeners:
            server = await loop.create_server(
                lambda public=public: Connection(self._shared, public, loop),
                sock=listener,
                ssl=self._tls if public else None,
                ssl_handshake_timeout=_TLS_HANDSHAKE_S if public else None,
            )
            self.servers.append(server)
        self.started = True
        self.running.set()

    async def on_tick(self, counter: int) -> bool:
        """Looks after slow connections about once a second."""
        if counter % _TICKS_PER_SWEEP == 0:
            self._shared.sweep(asyncio.get_running_loop().time())
        return self.should_exit


class HttpServer:
    """HTTP for one started agent: listens as soon as it is made, answers from :meth:`start` on.

    Args:
        model: answers.
        host: TCP; None = none. An address that other machines can reach needs ``access`` with token and TLS.
        port: 0 = any free one.
        unix_path: a Unix socket; None = none.
        access: None = this machine only.
        limits: None = the defaults.
        regions: None = shared memory is off.
        statistics: shared with other front doors; None = its own.
        routes: more of them, e.g. ``/metrics``.

    Raises:
        InputError: an address cannot be used.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        host: str | None = None,
        port: int = 0,
        unix_path: Path | None = None,
        access: Access | None = None,
        limits: Limits | None = None,
        regions: Regions | None = None,
        statistics: ServingStatistics | None = None,
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        access, limits = access or Access(), limits or Limits()
        regions = regions or Regions(enabled=False)
        statistics = statistics or ServingStatistics(model.name, model.versions)
        self._unix_path = unix_path
        self.host, self.port = "", 0
        listeners: list[tuple[socket.socket, bool]] = []
        tls: ssl.SSLContext | None = None
        try:
            if host:
                listeners.append(listen_tcp(host, port, access))
                self.host, self.port = listeners[0][0].getsockname()[:2]
                if listeners[0][1] and access.tls is not None:
                    tls = access.tls.context()
            if unix_path is not None:
                listeners.append((listen_unix(unix_path), False))
        except BaseException:
            for listener, _ in listeners:
                listener.close()
            raise
        self._listeners = listeners
        inference = Inference(model, regions, statistics, limits)
        app = create_app(model, regions, statistics, routes=routes)
        self._shared = Shared(inference, app, access, limits)
        self._tls = tls
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> HttpServer:
        """Answers from now on, in a thread of its own."""
        config = uvicorn.Config(self._shared.app, log_config=None, lifespan="off", loop="asyncio", ws="none")
        server = self._server = _Server(config, self._shared, self._listeners, self._tls)
        self._thread = threading.Thread(target=server.run, name="gearshift-http")
        self._thread.start()
        while not server.running.wait(0.1) and self._thread.is_alive():
            pass
        return self

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Takes no more connections and answers what has arrived; returns at once."""
        if self._server is not None:
            self._server.should_exit = True

    def stop(self, grace_s: float = 20.0) -> None:
        """As :meth:`close`, and waits for the end, so many seconds for the clients; stopping twice is harmless."""
        if self._server is not None and self._thread is not None:
            self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
            self.close()
            self._thread.join()
        for listener, _ in self._listeners:
            listener.close()
        if self._unix_path is not None:
            with contextlib.suppress(OSError):
                self._unix_path.unlink()

    def __enter__(self) -> HttpServer:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()
