"""The ways to ask a live agent, as a Python program would: one class a way, opened by name.

============  ==============================================================================================
native        :class:`agent.client.Client` with a buffer in shared memory
native-spin   the same, looking for the answer instead of sleeping until it comes (``spin_ms``)
http-unix     the standard library's ``http.client`` on the Unix socket, binary tensors both ways
http-tcp      the same on TCP
grpc-unix     ``tritonclient.grpc`` on the Unix socket
grpc-tcp      the same on TCP
============  ==============================================================================================

Each has ``batch``, an array to write the images into, and ``ask()``, which gives the logits.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.client import Client, UnixConnection
from agent.lifecycle import RunningAgent

Batch = NDArray[np.float32]
_TIMEOUT_S = 60.0
_HEAD = "Inference-Header-Content-Length"


class NativePath:
    """Shared memory and the native socket."""

    def __init__(self, running: RunningAgent, shape: tuple[int, int, int], spin_ms: float = 0.0) -> None:
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

    def __init__(self, connection: http.client.HTTPConnection, model: str, shape: tuple[int, int, int]) -> None:
        self.batch: Batch = np.empty((1, *shape), np.float32)
        self._connection, self._path = connection, f"/v2/models/{model}/infer"
        size = {"binary_data_size": self.batch.nbytes}
        tensor = {"name": "input", "shape": list(self.batch.shape), "datatype": "FP32", "parameters": size}
        self._head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        self._headers = {_HEAD: str(len(self._head))}

    def ask(self) -> Batch:
        """The logits of ``batch``."""
        self._connection.request("POST", self._path, self._head + self.batch.tobytes(), self._headers)
        reply = self._connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            raise RuntimeError(body.decode())
        length = int(reply.headers[_HEAD])
        shape = json.loads(body[:length])["outputs"][0]["shape"]
        return np.frombuffer(body, np.float32, offset=length).reshape(shape)

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


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
    "native-spin": lambda running, shape: NativePath(running, shape, spin_ms=1000.0),
    "http-unix": lambda running, shape: HttpPath(
        UnixConnection(Path(running.socket), timeout=_TIMEOUT_S), running.bundle, shape
    ),
    "http-tcp": lambda running, shape: HttpPath(
        http.client.HTTPConnection(running.host, running.port, timeout=_TIMEOUT_S), running.bundle, shape
    ),
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
