"""HTTP: Open Inference Protocol v2 under ``/v2``, our own control under ``/gearshift``.

::

    GET  /v2, /v2/health/live, /v2/health/ready
    GET  /v2/models/{m}[/versions/{v}][/ready]
    POST /v2/models/{m}[/versions/{v}]/infer       a version is a subnet by its place on the ladder, 1 = smallest
    GET  /gearshift/status, /gearshift/explain?last=N
    POST /gearshift/hold {"subnet", "for_s", "reason"}, /gearshift/release

Every reply that is not 200 holds ``{"error": "..."}``. Serves this machine only: :func:`listen` refuses addresses that
others can reach, requests whose Host is not this machine are refused (a web page elsewhere may have its name point
here), and control needs a JSON content type, which a form on a web page cannot send.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from agent import protocol
from agent.core import Agent
from subnets.errors import Busy, GearshiftError, InputError

Endpoint = Callable[[Request], Awaitable[Response]]
_HOSTS = ("localhost", "ip6-localhost", "")
_MAX_CONTROL_BYTES = 64 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may ask for."""

    max_body_bytes: int = 64 * 2**20
    max_images: int = 256


class _Refused(Exception):
    """A request that ends here, with a status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Hold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    subnet: str
    for_s: float
    reason: str = "no reason given"


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _json({"error": message}, status)


def _guarded(endpoint: Endpoint) -> Endpoint:
    """Turns every exception into JSON with the status that Triton's clients expect."""

    @functools.wraps(endpoint)
    async def wrapper(request: Request) -> Response:
        try:
            if not _is_local(request.headers.get("host", "")):
                raise _Refused(400, "the Host header names another machine; ask for localhost")
            return await endpoint(request)
        except _Refused as error:
            return _error(error.status, str(error))
        except Busy as error:
            return _error(503, str(error))
        except protocol.Unsupported as error:
            return _error(501, str(error))
        except InputError as error:
            return _error(400, str(error))
        except GearshiftError as error:
            return _error(500, str(error))
        except ClientDisconnect:
            return _error(400, "the client has gone")
        except Exception as error:  # ours; the client still gets JSON
            return _error(500, f"internal error: {type(error).__name__}: {error}")

    return wrapper


def _is_local(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name in _HOSTS:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, no more than allowed; checked while it arrives, since a length may be missing or a lie."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > max_bytes:
        raise _Refused(413, f"the body has {declared} bytes, at most {max_bytes} are taken")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _Refused(413, f"the body has more than {max_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


class _Routes:
    """The endpoints, for one agent."""

    def __init__(self, agent: Agent, limits: Limits, version: str) -> None:
        self.agent, self.limits, self.version = agent, limits, version
        self.names = agent.bundle.ladder.names
        self.usable = tuple(name for name in self.names if any(row.subnet == name for row in agent.table.rows))
        self.accuracy = {row.point: row.accuracy for row in agent.table.rows}

    def routes(self) -> list[Route]:
        model = "/v2/models/{model}"
        versioned = model + "/versions/{version}"
        gets: list[tuple[str, Endpoint]] = [
            ("/v2", self.server),
            ("/v2/", self.server),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            ("/gearshift/status", self.status),
            ("/gearshift/explain", self.explain),
        ]
        posts: list[tuple[str, Endpoint]] = [("/gearshift/hold", self.hold), ("/gearshift/release", self.release)]
        for path in (model, versioned):
            gets += [(path, self.metadata), (f"{path}/ready", self.model_ready)]
            posts.append((f"{path}/infer", self.infer))
        return [
            Route(path, _guarded(endpoint), methods=[method])
            for method, pairs in (("GET", gets), ("POST", posts))
            for path, endpoint in pairs
        ]

    def subnet(self, request: Request) -> str | None:
        """The subnet a path pins, None for the unversioned model."""
        model, version = request.path_params["model"], request.path_params.get("version")
        if model != self.agent.bundle.name:
            raise _Refused(
                404, f"Request for unknown model: '{model}' is not found; this is '{self.agent.bundle.name}'"
            )
        if version is None:
            return None
        place = int(version) if version.isascii() and version.isdigit() and len(version) < 6 else 0
        if not 1 <= place <= len(self.names) or self.names[place - 1] not in self.usable:
            have = ", ".join(self.place(name) for name in self.usable)
            raise _Refused(404, f"Request for unknown model: '{model}' has no version {version[:20]}; it has {have}")
        return self.names[place - 1]

    def place(self, subnet: str) -> str:
        """A subnet's version."""
        return str(self.names.index(subnet) + 1)

    async def server(self, request: Request) -> Response:
        return _json({"name": "gearshift", "version": self.version, "extensions": protocol.EXTENSIONS})

    async def live(self, request: Request) -> Response:
        return Response()

    async def ready(self, request: Request) -> Response:
        return Response() if self.agent.ready else _error(400, f"the agent is {self.agent.status().state}")

    async def model_ready(self, request: Request) -> Response:
        self.subnet(request)
        return await self.ready(request)

    async def metadata(self, request: Request) -> Response:
        self.subnet(request)
        versions = [self.place(name) for name in self.usable]
        bundle = self.agent.bundle
        return _json(protocol.model_metadata(bundle.name, versions, bundle.input, self.agent.classes))

    async def infer(self, request: Request) -> Response:
        subnet = self.subnet(request)
        limit = self.limits.max_body_bytes
        try:
            encoding = request.headers.get("content-encoding", "").strip().lower()
            body = protocol.decompress(await _body(request, limit), encoding, limit)
        except OverflowError:
            raise _Refused(413, f"the body unpacks to more than {limit} bytes") from None
        json_length = request.headers.get(protocol.HEADER)
        asked = protocol.read_request(body, json_length, self.agent.bundle.input, self.limits.max_images)
        answer = await asyncio.wrap_future(self.agent.submit(asked.batch, deadline_ms=asked.deadline_ms, subnet=subnet))
        version = self.place(answer.subnet)
        accuracy = self.accuracy[answer.point]
        content, json_part = protocol.write_reply(asked, answer, self.agent.bundle.name, version, accuracy)
        if json_part is None:
            return Response(content, media_type="application/json")
        headers = {protocol.HEADER: str(json_part)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    async def status(self, request: Request) -> Response:
        return _json(self.agent.status())

    async def explain(self, request: Request) -> Response:
        last = request.query_params.get("last", "1")
        if not (last.isascii() and last.isdigit() and len(last) < 7):
            raise InputError(f"last is '{last[:20]}'; give a whole number")
        return _json(self.agent.explain(int(last)))

    async def hold(self, request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await self._control_body(request), type=_Hold)
        except msgspec.DecodeError as error:
            raise InputError(f"hold takes {{subnet, for_s, reason}}: {error}") from None
        return _json(self.agent.hold(asked.subnet, asked.for_s, asked.reason))

    async def release(self, request: Request) -> Response:
        await self._control_body(request)
        self.agent.release()
        return _json({})

    async def _control_body(self, request: Request) -> bytes:
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise _Refused(400, "control needs Content-Type: application/json")
        return await _body(request, _MAX_CONTROL_BYTES)


def create_app(agent: Agent, limits: Limits | None = None, *, version: str = "") -> Starlette:
    """The ASGI application for a started agent.

    Args:
        agent: answers.
        limits: None = the defaults.
        version: told by ``GET /v2``.
    """

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _error(error.status_code, f"{error.detail}: {request.method} {request.url.path[:200]}")

    routes = _Routes(agent, limits or Limits(), version).routes()
    app = Starlette(routes=routes, exception_handlers={HTTPException: http_error})
    app.router.redirect_slashes = False
    return app


def listen(host: str | None, port: int, unix_path: Path | None) -> list[socket.socket]:
    """Sockets that listen: TCP on a loopback address, a Unix socket, or both.

    Raises:
        InputError: the address can be reached from other machines, or is taken.
    """
    sockets: list[socket.socket] = []
    try:
        if host is not None:
            sockets.append(_listen_tcp(host, port))
        if unix_path is not None:
            sockets.append(_listen_unix(unix_path))
    except BaseException:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"host '{host}' is not an address of this machine ({error}); give 127.0.0.1") from None
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise InputError(
            f"host '{host}' can be reached from other machines, and this server has no access control; "
            "give 127.0.0.1, or a Unix socket with --socket"
        )
    # The protocol named, or asyncio does not recognise TCP and leaves Nagle's algorithm on: 40 ms on every answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(f"port {port} on {host} cannot be used ({error.strerror}); give another with --port") from None
    listener.listen(128)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise InputError(f"{path}: exists and is not a socket; give another place for --socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise InputError(f"{path}: another process listens there; give another place for --socket")
            path.unlink()  # left behind by a process that was killed
        path.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o117)  # owner and group only, from the first moment
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InputError(f"{path}: cannot listen there ({error}); give another place for --socket") from None
    except BaseException:
        listener.close()
        raise
    return listener
