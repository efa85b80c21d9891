"""The ways to ask a live agent, as a Python program would: one class a way, opened by name.

============  ==============================================================================================
native        :class:`agent.client.Client` with a buffer in shared memory
native-sleep  the same, but asleep until the answer comes (``spin_ms=0``)
native-spin   the same, awake from the request to the answer (``spin_ms``)
http-unix     a plain socket: the head is made once and written with the tensor, of the reply's head the two lengths
              are looked for; binary tensors both ways (the standard library's ``http.client`` takes twice as long)
http-tcp      the same on TCP
grpc-unix     ``tritonclient.grpc`` on the Unix socket
grpc-tcp      the same on TCP
============  ==============================================================================================

Each has ``batch``, an array to write the images into, and ``ask()``, which gives the logits.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.client import Client
from agent.lifecycle import RunningAgent

Batch = NDArray[np.float32]
_TIMEOUT_S = 60.0


class NativePath:
    """Shared memory and the native socket."""

    def __init__(self, running: RunningAgent, shape: tuple[int, int, int], spin_ms: float | None = None) -> None:
        self._client = Client(running.native, timeout_s=_TIMEOUT_S, spin_ms=spin_ms)
        self.batch: Batch = self._client.buffer()
        assert self.batch.shape[1:] == shape

    def ask(self) -> Batch:
        """The logits of ``batch``."""
        return self._client.infer(self.batch).logits

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


class HttpPath:
    """Open Inference Protocol over HTTP with the binary extension."""

    def __init__(self, connection: socket.socket, model: str, shape: tuple[int, int, int]) -> None:
        self.batch: Batch = np.empty((1, *shape), np.float32)
        self._socket = connection
        size = {"binary_data_size": self.batch.nbytes}
        tensor = {"name": "input", "shape": list(self.batch.shape), "datatype": "FP32", "parameters": size}
        document = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        lines = [
            f"POST /v2/models/{model}/infer HTTP/1.1",
            "Host: localhost",
            f"Content-Length: {len(document) + self.batch.nbytes}",
            f"Inference-Header-Content-Length: {len(document)}",
        ]
        self._head = "\r\n".join([*lines, "", ""]).encode() + document

    def ask(self) -> Batch:
        """The logits of ``batch``."""
        rest = self.batch.data.cast("B")
        sent = self._socket.sendmsg([self._head, rest])
        if sent < len(self._head) + len(rest):
            self._socket.sendall(rest[sent - len(self._head) :])
        reply = self._socket.recv(65536)
        while (end := reply.find(b"\r\n\r\n")) < 0:
            reply += self._more()
        head = reply[:end].lower()
        length = _number(head, b"\r\ncontent-length:")
        while len(reply) < end + 4 + length:
            reply += self._more()
        if not reply.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(reply.decode("utf-8", "replace"))
        start = end + 4 + _number(head, b"\r\ninference-header-content-length:")
        shape = json.loads(reply[end + 4 : start])["outputs"][0]["shape"]
        return np.frombuffer(reply, np.float32, offset=start).reshape(shape)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def _more(self) -> bytes:
        part = self._socket.recv(65536)
        if not part:
            raise RuntimeError("the agent has closed the connection")
        return part


def _number(head: bytes, name: bytes) -> int:
    start = head.index(name) + len(name)
    return int(head[start:].partition(b"\r\n")[0])


def _http_unix(running: RunningAgent, shape: tuple[int, int, int]) -> HttpPath:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(running.socket)
    return HttpPath(connection, running.bundle, shape)


def _http_tcp(running: RunningAgent, shape: tuple[int, int, int]) -> HttpPath:
    connection = socket.create_connection((running.host, running.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return HttpPath(connection, running.bundle, shape)


class GrpcPath:
    """Open Inference Protocol over gRPC."""

    def __init__(self, address: str, model: str, shape: tuple[int, int, int]) -> None:
        import tritonclient.grpc as triton  # type: ignore[import-untyped]  # it has no types

        self.batch: Batch = np.empty((1, *shape), np.float32)
        self._client = triton.InferenceServerClient(address)
        self._model, self._input = model, triton.InferInput("input", list(self.batch.shape), "FP32")

    def ask(self) -> Batch:
        """The logits of ``batch``."""
        self._input.set_data_from_numpy(self.batch)
        logits: Batch = self._client.infer(self._model, [self._input]).as_numpy("logits")
        return logits

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


_OPENERS: dict[str, Callable[[RunningAgent, tuple[int, int, int]], Any]] = {
    "native": NativePath,
    "native-sleep": lambda running, shape: NativePath(running, shape, spin_ms=0.0),
    "native-spin": lambda running, shape: NativePath(running, shape, spin_ms=1000.0),
    "http-unix": _http_unix,
    "http-tcp": _http_tcp,
    "grpc-unix": lambda running, shape: GrpcPath(f"unix:{running.grpc_socket}", running.bundle, shape),
    "grpc-tcp": lambda running, shape: GrpcPath(f"{running.host}:{running.grpc_port}", running.bundle, shape),
}
NAMES = tuple(_OPENERS)


def open_path(name: str, running: RunningAgent, shape: tuple[int, int, int]) -> Any:
    """A connection of the kind that ``name`` says.

    Args:
        name: one of ``NAMES``.
        running: where the agent listens.
        shape: (channels, height, width).
    """
    return _OPENERS[name](running, shape)
