"""What HTTP answers beside inferences: Open Inference Protocol v2 under ``/v2``, our own control under ``/gearshift``.

::

    GET  /v2, /v2/health/live, /v2/health/ready
    GET  /v2/models/{m}[/versions/{v}][/ready|/config|/stats], /v2/models/stats
    POST /v2/models/{m}[/versions/{v}]/infer       in agent.http_inference; a version is a place on the ladder
    POST /v2/repository/index, /v2/repository/models/{m}/load, .../unload
    GET  /v2/systemsharedmemory[/region/{r}]/status
    POST /v2/systemsharedmemory/region/{r}/register, /v2/systemsharedmemory[/region/{r}]/unregister
    GET  /gearshift/status, /gearshift/explain?last=N
    POST /gearshift/hold {"subnet", "for_s", "reason"}, /gearshift/release

Every reply that is not 200 holds ``{"error": "..."}``. Control needs a JSON content type, which a form on a web page
cannot send. Who may ask at all is looked at before: :mod:`agent.http_connection`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agent import protocol
from agent.http_replies import Reply, json_reply, refusal, refusal_of
from agent.model import ServedModel, Unsupported
from agent.regions import Regions
from agent.statistics import ServingStatistics
from agent.tensors import whole
from subnets.errors import InputError

_Endpoint = Callable[[Request], Awaitable[Any]]
_EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "parameters", "statistics")


class _Hold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    subnet: str
    for_s: float
    reason: str = "no reason given"


def _response(reply: Reply) -> Response:
    response = Response(reply.body, reply.status)
    response.raw_headers += reply.headers
    return response


def _replying(endpoint: _Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Makes a response of what an endpoint returns (None = 200 without a body) or raises."""

    @functools.wraps(endpoint)
    async def wrapper(request: Request) -> Response:
        try:
            value = await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:  # also a mistake of ours: the client still gets JSON
            return _response(refusal_of(error))
        return Response() if value is None else _response(json_reply(value))

    return wrapper


class _Routes:
    """The endpoints, for one model."""

    def __init__(self, model: ServedModel, regions: Regions, statistics: ServingStatistics) -> None:
        self.model, self.regions, self.statistics = model, regions, statistics

    def routes(self) -> list[Route]:
        gets: list[tuple[str, _Endpoint]] = [
            ("/v2", self.server),
            ("/v2/", self.server),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            ("/v2/models/stats", self.stats),
            ("/gearshift/status", self.status),
            ("/gearshift/explain", self.explain),
        ]
        posts: list[tuple[str, _Endpoint]] = [
            ("/v2/repository/index", self.index),
            ("/v2/repository/models/{model}/load", self.load),
            ("/v2/repository/models/{model}/unload", self.unload),
            ("/gearshift/hold", self.hold),
            ("/gearshift/release", self.release),
        ]
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            gets += [
                (path, self.metadata),
                (f"{path}/ready", self.model_ready),
                (f"{path}/config", self.config),
                (f"{path}/stats", self.stats),
            ]
        for kind, status, register, unregister in (
            ("system", self.regions_status, self.region_register, self.region_unregister),
            ("cuda", self.cuda_status, self.cuda_register, self.live),
        ):
            base = f"/v2/{kind}sharedmemory"
            gets += [(f"{base}/status", status), (f"{base}/region/{{region}}/status", status)]
            posts += [(f"{base}/unregister", unregister), (f"{base}/region/{{region}}/unregister", unregister)]
            posts.append((f"{base}/region/{{region}}/register", register))
        return [
            Route(path, _replying(endpoint), methods=[method])
            for method, pairs in (("GET", gets), ("POST", posts))
            for path, endpoint in pairs
        ]

    def subnet(self, request: Request) -> str | None:
        """The subnet a path pins, None for the unversioned model."""
        return self.model.subnet_of(request.path_params["model"], request.path_params.get("version"))

    # -- the protocol

    async def server(self, request: Request) -> Any:
        extensions = list(_EXTENSIONS)
        if self.regions.enabled:
            extensions.append("system_shared_memory")
        if self.model.model_control:
            extensions.append("model_repository")
        return {"name": self.model.server_name, "version": self.model.version, "extensions": extensions}

    async def live(self, request: Request) -> None:
        return None

    async def ready(self, request: Request) -> None:
        if not self.model.ready:
            raise InputError(f"not ready: the agent is {self.model.agent.status().state}")

    async def model_ready(self, request: Request) -> None:
        self.subnet(request)
        await self.ready(request)

    async def metadata(self, request: Request) -> Any:
        self.subnet(request)
        return self.model.metadata()

    async def config(self, request: Request) -> Any:
        self.subnet(request)
        return self.model.config()

    async def stats(self, request: Request) -> Any:
        subnet = self.subnet(request) if "model" in request.path_params else None
        return self.statistics.report(None if subnet is None else self.model.version_of(subnet))

    async def index(self, request: Request) -> Any:
        asked = await _object(request)
        return self.model.index(ready_only=asked.get("ready") is True)

    async def load(self, request: Request) -> None:
        self.model.load(request.path_params["model"], _parameters(await _object(request)))

    async def unload(self, request: Request) -> None:
        await _object(request)
        self.model.unload(request.path_params["model"])

    async def regions_status(self, request: Request) -> Any:
        return self.regions.status(request.path_params.get("region"))

    async def region_register(self, request: Request) -> None:
        name, asked = request.path_params["region"], await _object(request)
        whose = f"shared memory region '{name[:80]}'"
        key = asked.get("key")
        if not isinstance(key, str):
            raise InputError(f"{whose}: 'key' must be the name of a shared memory object")
        offset = whole(asked, "offset", whose, 0)
        self.regions.register(name, key, offset, whole(asked, "byte_size", whose))

    async def region_unregister(self, request: Request) -> None:
        self.regions.unregister(request.path_params.get("region"))

    async def cuda_status(self, request: Request) -> Any:
        return []  # there are none, and perf_analyzer asks all the same

    async def cuda_register(self, request: Request) -> None:
        raise Unsupported("CUDA shared memory is not offered; use system shared memory, or send the tensor itself")

    # -- our own

    async def status(self, request: Request) -> Any:
        return self.model.agent.status()

    async def explain(self, request: Request) -> Any:
        last = request.query_params.get("last", "1")
        if not (last.isascii() and last.isdigit() and len(last) < 7):
            raise InputError(f"last is '{last[:20]}'; give a whole number")
        return self.model.agent.explain(int(last))

    async def hold(self, request: Request) -> Any:
        try:
            asked = msgspec.json.decode(await self._control_body(request), type=_Hold)
        except msgspec.DecodeError as error:
            raise InputError(f"hold takes {{subnet, for_s, reason}}: {error}") from None
        # In another thread: it is on the disk when it returns, and a disk may take its time.
        return await asyncio.to_thread(self.model.agent.hold, asked.subnet, asked.for_s, asked.reason)

    async def release(self, request: Request) -> Any:
        await self._control_body(request)
        await asyncio.to_thread(self.model.agent.release)
        return {}

    async def _control_body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise InputError("control needs Content-Type: application/json")
        return await request.body()


async def _object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; none is an empty one.

    Raises:
        InputError: it is something else.
    """
    body = await request.body()
    document = protocol.read_json(body) if body.strip() else {}
    if not isinstance(document, dict):
        raise InputError("the body must be a JSON object")
    return document


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    found = document.get("parameters") or {}
    if not isinstance(found, dict):
        raise InputError("'parameters' must be an object")
    return found


def create_app(
    model: ServedModel,
    regions: Regions | None = None,
    statistics: ServingStatistics | None = None,
    *,
    routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """The ASGI application beside the inferences.

    Args:
        model: what is told of.
        regions: None = shared memory is off.
        statistics: what is told of; None = nothing was counted.
        routes: more of them, e.g. ``/metrics``.
    """

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _response(refusal(error.status_code, f"{error.detail}: {request.method} {request.url.path[:200]}"))

    async def mistake(request: Request, error: Exception) -> Response:
        return _response(refusal_of(error))  # and raised again by Starlette, so that it is logged

    regions = regions or Regions(enabled=False)
    statistics = statistics or ServingStatistics(model.name, model.versions)
    own = _Routes(model, regions, statistics).routes()
    app = Starlette(routes=[*own, *routes], exception_handlers={HTTPException: http_error, Exception: mistake})
    app.router.redirect_slashes = False
    return app
