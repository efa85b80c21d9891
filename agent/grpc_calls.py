"""The unary methods of ``inference.GRPCInferenceService``: a message in, a message out, errors as exceptions.

Knows nothing of sockets, limits or access: :mod:`agent.grpc_server` has the calls made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any

import msgspec
from google.protobuf import json_format  # type: ignore[import-untyped]

from agent.grpc_descriptors import Message
from agent.grpc_messages import INFERENCE
from agent.grpc_tensors import Asked, parameters_of, read_request, write_reply
from agent.model import ServedModel, Unsupported
from agent.regions import Regions
from agent.statistics import ServingStatistics
from agent.values import Answer

SERVICE = "inference.GRPCInferenceService"
_EXTENSIONS = ("classification", "model_configuration", "parameters", "statistics")
_FOREVER_S = 86_400.0  # a call without a deadline tells a time beyond this


class Pending(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request on its way to an answer."""

    asked: Asked
    future: Future[Answer]
    began_ns: int
    read_ns: int  # when it was understood


class Calls:
    """What each method does.

    Args:
        model: answers.
        statistics: fed with every inference.
        regions: shared memory of clients.
    """

    def __init__(self, model: ServedModel, statistics: ServingStatistics, regions: Regions) -> None:
        self.model, self._statistics, self._regions = model, statistics, regions

    def methods(self) -> dict[str, tuple[Any, Callable[[Message, Any], Message]]]:
        """(class of the request, what answers it) by the method's name."""
        return {
            name: (INFERENCE[f"{name}Request"], answers)
            for name, answers in {
                "ServerLive": self._server_live,
                "ServerReady": self._server_ready,
                "ModelReady": self._model_ready,
                "ServerMetadata": self._server_metadata,
                "ModelMetadata": self._model_metadata,
                "ModelConfig": self._model_config,
                "ModelStatistics": self._model_statistics,
                "ModelInfer": self._infer,
                "RepositoryIndex": self._index,
                "RepositoryModelLoad": self._load,
                "RepositoryModelUnload": self._unload,
                "SystemSharedMemoryStatus": self._shared_status,
                "SystemSharedMemoryRegister": self._shared_register,
                "SystemSharedMemoryUnregister": self._shared_unregister,
                "CudaSharedMemoryStatus": self._cuda_status,
                "CudaSharedMemoryRegister": self._cuda_register,
                "CudaSharedMemoryUnregister": self._cuda_unregister,
            }.items()
        }

    # -- inference

    def begin(self, request: Message) -> Pending:
        """Understands a request and asks the agent.

        Raises:
            NotFound, InputError, Unsupported, Busy, EngineError: what is known at once; the future raises the rest.
        """
        began_ns = time.perf_counter_ns()
        asked = read_request(request, self.model, self._regions)
        read_ns = time.perf_counter_ns()
        try:
            future = self.model.submit(asked.batch, asked.wishes)
        except Exception:
            self._failed(asked, began_ns)
            raise
        return Pending(asked=asked, future=future, began_ns=began_ns, read_ns=read_ns)

    def finish(self, pending: Pending) -> Message:
        """Waits for the answer and puts it into a ``ModelInferResponse``.

        Raises:
            InputError, Busy, EngineError, CancelledError: as the agent's future does.
        """
        try:
            answer = pending.future.result()
        except CancelledError:
            raise
        except Exception:
            self._failed(pending.asked, pending.began_ns)
            raise
        return self._reply(pending.asked, answer, pending.began_ns, pending.read_ns)

    def _infer(self, request: Message, context: Any) -> Message:
        began_ns = time.perf_counter_ns()
        asked = read_request(request, self.model, self._regions)
        asked = self._until(asked, context.time_remaining())
        read_ns = time.perf_counter_ns()
        try:
            answer = self._ask(asked, context)
        except CancelledError:
            raise
        except Exception:
            self._failed(asked, began_ns)
            raise
        return self._reply(asked, answer, began_ns, read_ns)

    def _until(self, asked: Asked, remaining_s: float | None) -> Asked:
        """The call's deadline as the request's, unless the request or the goals have an earlier one."""
        if remaining_s is None or remaining_s > _FOREVER_S or asked.wishes.deadline_ms is not None:
            return asked
        goal_ms = self.model.agent.goals.deadline_ms
        if goal_ms is not None and goal_ms <= remaining_s * 1000:
            return asked
        wishes = msgspec.structs.replace(asked.wishes, deadline_ms=remaining_s * 1000)
        return msgspec.structs.replace(asked, wishes=wishes)

    def _ask(self, asked: Asked, context: Any) -> Answer:
        future = self.model.submit(asked.batch, asked.wishes)
        if not context.add_callback(future.cancel):  # the client has gone
            future.cancel()
        return future.result()

    def _reply(self, asked: Asked, answer: Answer, began_ns: int, read_ns: int) -> Message:
        writing_ns = time.perf_counter_ns()
        reply = write_reply(asked, answer, self.model, self._regions)
        done_ns = time.perf_counter_ns()
        self._statistics.succeeded(
            reply.model_version,
            answer,
            total_ns=done_ns - began_ns,
            input_ns=read_ns - began_ns,
            output_ns=done_ns - writing_ns,
        )
        return reply

    def _failed(self, asked: Asked, began_ns: int) -> None:
        subnet = asked.wishes.subnet
        version = self.model.version_of(subnet) if subnet is not None else None
        self._statistics.failed(version, total_ns=time.perf_counter_ns() - began_ns)

    # -- health and descriptions

    def _server_live(self, request: Message, context: Any) -> Message:
        return INFERENCE["ServerLiveResponse"](live=True)

    def _server_ready(self, request: Message, context: Any) -> Message:
        return INFERENCE["ServerReadyResponse"](ready=self.model.agent.ready)

    def _model_ready(self, request: Message, context: Any) -> Message:
        self.model.subnet_of(request.name, request.version)
        return INFERENCE["ModelReadyResponse"](ready=self.model.ready)

    def _server_metadata(self, request: Message, context: Any) -> Message:
        extensions = list(_EXTENSIONS)
        if self._regions.enabled:
            extensions.append("system_shared_memory")
        if self.model.model_control:
            extensions.append("model_repository")
        return INFERENCE["ServerMetadataResponse"](
            name=self.model.server_name, version=self.model.version, extensions=extensions
        )

    def _model_metadata(self, request: Message, context: Any) -> Message:
        self.model.subnet_of(request.name, request.version)
        properties = {key: value["string_value"] for key, value in self.model.config()["parameters"].items()}
        return _filled("ModelMetadataResponse", {**self.model.metadata(), "properties": properties})

    def _model_config(self, request: Message, context: Any) -> Message:
        self.model.subnet_of(request.name, request.version)
        return _filled("ModelConfigResponse", {"config": self.model.config()})

    def _model_statistics(self, request: Message, context: Any) -> Message:
        if request.name:  # none = all models, and there is one
            self.model.subnet_of(request.name, request.version)
        return _filled("ModelStatisticsResponse", self._statistics.report(request.version or None))

    # -- repository

    def _index(self, request: Message, context: Any) -> Message:
        return _filled("RepositoryIndexResponse", {"models": self.model.index(ready_only=request.ready)})

    def _load(self, request: Message, context: Any) -> Message:
        self.model.load(request.model_name, parameters_of(request.parameters))
        return INFERENCE["RepositoryModelLoadResponse"]()

    def _unload(self, request: Message, context: Any) -> Message:
        self.model.unload(request.model_name)
        return INFERENCE["RepositoryModelUnloadResponse"]()

    # -- shared memory

    def _shared_status(self, request: Message, context: Any) -> Message:
        regions = {region.name: msgspec.to_builtins(region) for region in self._regions.status(request.name or None)}
        return _filled("SystemSharedMemoryStatusResponse", {"regions": regions})

    def _shared_register(self, request: Message, context: Any) -> Message:
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return INFERENCE["SystemSharedMemoryRegisterResponse"]()

    def _shared_unregister(self, request: Message, context: Any) -> Message:
        self._regions.unregister(request.name or None)
        return INFERENCE["SystemSharedMemoryUnregisterResponse"]()

    def _cuda_status(self, request: Message, context: Any) -> Message:
        return INFERENCE["CudaSharedMemoryStatusResponse"]()

    def _cuda_register(self, request: Message, context: Any) -> Message:
        raise Unsupported("CUDA shared memory is not offered; send tensors in the message, or in system shared memory")

    def _cuda_unregister(self, request: Message, context: Any) -> Message:
        return INFERENCE["CudaSharedMemoryUnregisterResponse"]()  # clients do this at start and end, whatever they use


def _filled(name: str, content: Mapping[str, Any]) -> Message:
    """A message from the JSON that HTTP would send."""
    return json_format.ParseDict(content, INFERENCE[name]())
