"""The gRPC front door under fuzzing: messages, and what is no HTTP/2 at all."""

from __future__ import annotations

import random
import socket
from typing import Any, ClassVar

import numpy as np
from live import LiveAgent
from mutations import spoil

_SERVICE = "/inference.GRPCInferenceService/"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_METHODS = (
    "ServerLive",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryRegister",
    "NoSuchMethod",
)


class GrpcDoor:
    """Sends spoilt messages and judges the replies; the messages are those of Triton's own client.

    Args:
        live: the agent.
        timeout_s: within which every call must end.
    """

    name = "grpc"
    shares: ClassVar[dict[str, float]] = {"grpc infer": 0.6, "grpc calls": 0.3, "grpc bytes": 0.1}

    def __init__(self, live: LiveAgent, timeout_s: float) -> None:
        import grpc  # type: ignore[import-untyped]  # neither has types
        from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]

        self._grpc, self._messages = grpc, service_pb2
        self._path, self._timeout_s = live.running.grpc_socket, timeout_s
        self._model, self._shape = live.bundle.name, live.bundle.input.shape
        self._classes = len(live.bundle.labels)
        self._channel = grpc.insecure_channel(f"unix:{self._path}")

    def input(self, category: str, chance: random.Random) -> tuple[str, bytes]:
        """(method, or "" for raw bytes; what is sent)."""
        message = self._request(chance)
        if category == "grpc bytes":
            frame = bytes([0, 0, chance.randrange(64), chance.randrange(11), chance.randrange(256)]) + chance.randbytes(
                12
            )
            return "", spoil(_PREFACE + frame * chance.randint(1, 4), chance)
        if category == "grpc calls":
            method = chance.choice(_METHODS)
            return method, spoil(message.SerializeToString() or b"\0", chance) if chance.random() < 0.7 else b""
        what = chance.randrange(6)
        if what == 0:
            message.inputs[0].shape[chance.randrange(4)] = chance.choice((0, -1, 3, 2**31, 2**62))
        elif what == 1:
            message.raw_input_contents[0] = spoil(message.raw_input_contents[0], chance)
        elif what == 2:
            message.model_version = chance.choice(("0", "5", "-1", "x", "9" * 30))
            message.parameters["timeout"].int64_param = chance.choice((-1, 0, 2**62))
        elif what == 3:
            message.inputs[0].contents.fp32_contents.extend([1.0] * chance.choice((1, 16, 256)))
            message.inputs.add(name="x", datatype="FP32")
        elif what == 4:
            message.inputs[0].parameters["shared_memory_region"].string_param = "x"
            message.outputs.add(name=chance.choice(("logits", "x"))).parameters[
                "classification"
            ].int64_param = chance.choice((-1, 0, 3, 2**62))
        encoded = message.SerializeToString()
        return "ModelInfer", spoil(encoded, chance) if what == 5 or chance.random() < 0.3 else encoded

    def judge(self, sent: tuple[str, bytes]) -> tuple[str, str]:
        """(what came: a status, or "closed"; what is wrong with it, or "")."""
        method, content = sent
        if not method:
            return self._raw(content)
        call = self._channel.unary_unary(_SERVICE + method, request_serializer=None, response_deserializer=None)
        try:
            reply = call(content, timeout=self._timeout_s)
        except self._grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            if code in ("UNKNOWN", "DEADLINE_EXCEEDED") or "Traceback" in details or "internal error" in details:
                return code, f"{code}: {details[:300]}"
            return code, ""
        return "OK", self._wrong(reply) if method == "ModelInfer" else ""

    def check(self) -> str:
        """What is wrong with the answer to a proper request, or ""."""
        came, wrong = self.judge(("ModelInfer", self._request(random.Random(0)).SerializeToString()))
        return wrong or ("" if came == "OK" else f"{came} for a proper request")

    def close(self) -> None:
        """Ends the channel."""
        self._channel.close()

    def _request(self, chance: random.Random) -> Any:
        images = chance.choice((1, 1, 2, 5))
        tensor = np.random.default_rng(chance.getrandbits(32)).standard_normal((images, *self._shape))
        message = self._messages.ModelInferRequest(model_name=self._model, id="7")
        message.inputs.add(name="input", datatype="FP32", shape=tensor.shape)
        message.raw_input_contents.append(tensor.astype(np.float32).tobytes())
        return message

    def _wrong(self, reply: bytes) -> str:
        found = self._messages.ModelInferResponse.FromString(reply)
        if not found.outputs or found.outputs[0].datatype == "BYTES":
            return ""
        shape = list(found.outputs[0].shape)
        size = len(found.raw_output_contents[0]) if found.raw_output_contents else -1
        if len(shape) != 2 or shape[0] < 1 or shape[1] != self._classes or size != 4 * shape[0] * shape[1]:
            return f"logits of shape {shape} in {size} bytes"
        return ""

    def _raw(self, content: bytes) -> tuple[str, str]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout_s)
            connection.connect(self._path)
            received = b""
            try:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    received += part
            except TimeoutError:
                return "hang", f"not closed in {self._timeout_s:g} s"
            except OSError:
                pass
        return "closed", "a traceback in the reply" if b"Traceback" in received else ""
