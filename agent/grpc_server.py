"""gRPC: Open Inference Protocol v2 with Triton's extensions, and ``grpc.health.v1``, beside the HTTP server.

A pool of threads, one a call: measured faster than an event loop with one client, and no slower with eight. Whatever a
client sends, it gets a status and a sentence; what it may send, how often and on how many connections is limited. The
token is checked before a message is read.

Needs grpcio and protobuf (the ``grpc`` extra); nothing else of the agent imports this module before it is configured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import msgspec

from agent.grpc_calls import SERVICE, Calls
from agent.grpc_descriptors import Message
from agent.grpc_errors import status_of
from agent.grpc_health import SERVICE_NAME, Health
from agent.grpc_messages import HEALTH
from agent.grpc_stream import InferStream
from agent.model import TooMany, Unsupported
from agent.unix_socket import claimed
from subnets.errors import InputError

_REFUSED = {
    "TraceSetting": "tracing is not offered; 'gearshift explain' and the journal tell what happened and why",
    "LogSettings": "the log is not changed over the network; it is set where the agent is started",
}


class GrpcLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What clients may ask for."""

    max_message_bytes: int = 64 * 2**20  # also after decompression
    max_calls: int = 64  # at the same time; also the number of threads
    max_streams: int = 16  # of these calls, those that stay open
    stream_window: int = 16  # requests of one stream that are under way
    max_connections: int = 64


class GrpcServer:
    """The server, for one started agent.

    Args:
        calls: what the methods do.
        limits: of clients.
        authorised: says whether a value of metadata ``authorization`` is right; None = everybody may call.
    """

    def __init__(
        self, calls: Calls, limits: GrpcLimits | None = None, *, authorised: Callable[[str], bool] | None = None
    ) -> None:
        self._limits = limits or GrpcLimits()
        self._health = Health(calls.model)
        self._closing = threading.Event()
        self._streams: set[InferStream] = set()
        self._places = threading.Semaphore(self._limits.max_streams)
        self._unix_path: Path | None = None
        self._ended: threading.Event | None = None
        self._threads = ThreadPoolExecutor(self._limits.max_calls, thread_name_prefix="gearshift-grpc")
        self._server = grpc.server(
            self._threads,
            handlers=[_Methods(self._handlers(calls), authorised)],
            maximum_concurrent_rpcs=self._limits.max_calls,
            options=_options(self._limits),
        )

    # -- life

    def listen_tcp(self, address: str, credentials: Any = None) -> int:
        """Takes a port.

        Args:
            address: ``127.0.0.1:8701`` or ``[::1]:8701``; port 0 = any free one.
            credentials: of ``grpc.ssl_server_credentials``; None = no TLS.

        Returns:
            The port.

        Raises:
            InputError: it cannot be used.
        """
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError:
            raise InputError(f"gRPC cannot listen at {address}; is it taken? give another with --grpc-port") from None

    def listen_unix(self, path: Path) -> None:
        """Takes a Unix socket, for owner and group only.

        Raises:
            InputError: it cannot be used.
        """
        with claimed(path, "--grpc-socket"):  # gRPC itself would take the place of a server that listens there
            try:
                self._server.add_insecure_port(f"unix:{path}")
            except RuntimeError as error:
                raise OSError(error) from None
        self._unix_path = path

    def start(self) -> None:
        """Answers from now on."""
        self._server.start()

    def close(self, grace_s: float) -> None:
        """Refuses new calls from now on; those under way have ``grace_s`` to finish, then they are cut off.

        Closing twice is harmless.
        """
        if self._ended is not None:
            return
        self._health.close()
        self._closing.set()
        for stream in tuple(self._streams):
            stream.close()
        self._ended = self._server.stop(grace_s)

    def join(self) -> None:
        """Waits until :meth:`close` has come to its end."""
        assert self._ended is not None
        self._ended.wait()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)

    # -- methods

    def _handlers(self, calls: Calls) -> dict[str, Any]:
        """Handlers by path. They take and give bytes, so that what cannot be read is ours to answer."""
        found = {
            f"/{SERVICE}/{name}": _unary(request_class, answers)
            for name, (request_class, answers) in calls.methods().items()
        }
        for name, words in _REFUSED.items():
            found[f"/{SERVICE}/{name}"] = _refusal(*status_of(Unsupported(words)))
        found[f"/{SERVICE}/ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            lambda messages, context: self._stream(calls, messages, context)
        )
        request_class = HEALTH["HealthCheckRequest"]
        found[f"/{SERVICE_NAME}/Check"] = _unary(request_class, lambda request, context: self._health.check(request))
        found[f"/{SERVICE_NAME}/Watch"] = grpc.unary_stream_rpc_method_handler(self._watch)
        return found

    def _stream(self, calls: Calls, messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        stream = InferStream(calls, self._limits.stream_window)
        try:
            self._take_place(context)
            self._streams.add(stream)
            if self._closing.is_set():
                stream.close()
            context.add_callback(stream.abandon)
            yield from stream.replies(messages)
        except Exception as error:
            context.abort(*status_of(error))
        finally:
            self._streams.discard(stream)

    def _watch(self, message: bytes, context: Any) -> Iterator[bytes]:
        ended = threading.Event()
        try:
            self._take_place(context)
            context.add_callback(ended.set)
            yield from self._health.watch(HEALTH["HealthCheckRequest"].FromString(message), ended)
        except Exception as error:
            context.abort(*status_of(error))

    def _take_place(self, context: Any) -> None:
        """One of the places for calls that stay open, until the call is over."""
        if not self._places.acquire(blocking=False):
            raise TooMany(f"{self._limits.max_streams} streams are open, no more are taken; close one first")
        if not context.add_callback(self._places.release):
            self._places.release()


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio is untyped
    """Finds a call's handler; asks for the token first."""

    def __init__(self, handlers: dict[str, Any], authorised: Callable[[str], bool] | None) -> None:
        self._handlers, self._authorised = handlers, authorised
        self._denied = _refusal(
            grpc.StatusCode.UNAUTHENTICATED, "a token is needed: send metadata 'authorization: Bearer TOKEN'"
        )

    def service(self, details: Any) -> Any:
        if self._authorised is not None:
            sent = [value for key, value in details.invocation_metadata if key == "authorization"]
            if len(sent) != 1 or not self._authorised(sent[0]):
                return self._denied
        return self._handlers.get(details.method)


def _unary(request_class: Any, answers: Callable[[Message, Any], Message]) -> Any:
    def behave(message: bytes, context: Any) -> bytes:
        try:
            return bytes(answers(request_class.FromString(message), context).SerializeToString())
        except Exception as error:
            context.abort(*status_of(error))
            raise  # not reached: abort raises

    return grpc.unary_unary_rpc_method_handler(behave)


def _refusal(code: grpc.StatusCode, words: str) -> Any:
    """Ends any kind of call without reading its message."""

    def behave(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
        context.abort(code, words)
        yield b""  # not reached: abort raises

    return grpc.stream_stream_rpc_method_handler(behave)


def _options(limits: GrpcLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", limits.max_calls),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.so_reuseport", 0),  # or a second server would quietly share the port
        # Keepalive: a client may ping every 10 s, two pings too many close the connection; a dead one is found in 80 s.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
