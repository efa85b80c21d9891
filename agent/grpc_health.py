"""``grpc.health.v1.Health``: what container platforms and load balancers ask.

The server as a whole (the empty name) and ``inference.GRPCInferenceService`` are known; both serve while the agent
answers. Knows nothing of the model beyond that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from agent.grpc_calls import SERVICE
from agent.grpc_descriptors import Message
from agent.grpc_messages import HEALTH
from agent.model import NotFound, ServedModel

SERVICE_NAME = "grpc.health.v1.Health"
_RESPONSE = HEALTH["HealthCheckResponse"]
_KNOWN = ("", SERVICE)
_LOOK_EVERY_S = 1.0


class Health:
    """Both methods of the service.

    Args:
        model: what is served.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model, self._closing = model, False

    def check(self, request: Message) -> Message:
        """The state now.

        Raises:
            NotFound: no such service.
        """
        if request.service not in _KNOWN:
            raise NotFound(f"service '{request.service[:80]}' is not known; ask for '' or '{SERVICE}'")
        return _RESPONSE(status=self._state(request.service))

    def watch(self, request: Message, ended: threading.Event) -> Iterator[bytes]:
        """The state now, and every change of it until ``ended`` is set or nothing is served any more.

        Changes are seen within a second.
        """
        told = None
        while not ended.is_set():
            state = self._state(request.service)
            if state != told:
                told = state
                yield _RESPONSE(status=state).SerializeToString()
            if self._closing:
                return
            ended.wait(_LOOK_EVERY_S)

    def close(self) -> None:
        """From now on nothing is served."""
        self._closing = True

    def _state(self, service: str) -> str:
        if service not in _KNOWN:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._model.ready and not self._closing else "NOT_SERVING"
