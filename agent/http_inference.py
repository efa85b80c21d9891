"""One inference over HTTP, from a request's bytes to a reply's, without a web framework in between.

* :class:`Limits`: what HTTP requests may ask for.
* :class:`Inference`: finds the model in a path, reads a request, asks the agent, writes the reply.
* :class:`Exchange`: one request under way.

Knows nothing of connections: :mod:`agent.http_connection` has both halves called in its event loop.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import CancelledError, Future
from urllib.parse import quote, unquote

import msgspec

from agent.http_heads import Heads
from agent.http_replies import BINARY_HEADERS, JSON_HEADERS, NotAllowed, Reply, refusal_of
from agent.http_request import Request
from agent.model import ServedModel
from agent.protocol import (
    HEADER,
    InferRequest,
    compress,
    decompress,
    json_length,
    write_reply,
)
from agent.regions import Regions
from agent.statistics import ServingStatistics
from agent.values import Answer
from subnets.errors import Busy

LENGTH_HEADER = HEADER.lower().encode()
_PATH = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_WORTH_COMPRESSING = 1024  # bytes; below, the headers of a reply are the larger part


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What clients may ask for; over a limit they get 413, 429, 431 or 503, and no memory is taken."""

    max_body_bytes: int = 64 * 2**20  # also unpacked
    max_json_bytes: int = 8 * 2**20  # of the JSON part; its numbers take many times that as objects
    max_head_bytes: int = 16 * 1024  # request line and headers
    max_connections: int = 64
    max_held_bytes: int = 256 * 2**20  # for all requests being read or answered
    read_timeout_s: float = 30.0  # from a request's first byte to its last, and for a reply to be taken
    idle_timeout_s: float = 75.0  # between requests


class Exchange:
    """A request that waits for its answer."""

    __slots__ = ("began_ns", "encoding", "future", "input_ns", "pinned", "request")

    def __init__(
        self, request: InferRequest, future: Future[Answer], pinned: str | None, encoding: str, began_ns: int
    ) -> None:
        self.request, self.future, self.pinned, self.encoding = request, future, pinned, encoding
        self.began_ns = began_ns
        self.input_ns = time.perf_counter_ns() - began_ns

    def cancel(self) -> None:
        """Nobody waits for the answer any more; if its turn has not come, it costs nothing."""
        self.future.cancel()


class Inference:
    """``POST /v2/models/{model}[/versions/{version}]/infer``.

    Args:
        model: answers.
        regions: where tensors may lie.
        statistics: fed with every answer.
        limits: of requests.
    """

    def __init__(self, model: ServedModel, regions: Regions, statistics: ServingStatistics, limits: Limits) -> None:
        self.model, self.regions, self.statistics, self.limits = model, regions, statistics, limits
        self._heads = Heads(model, regions, limits.max_json_bytes)
        base = f"/v2/models/{quote(model.name)}".encode()
        # The paths that exist, looked up before any other spelling is searched for its mistake.
        self._paths: dict[bytes, str | None] = {base + b"/infer": None}
        for version in model.versions:
            path = base + b"/versions/" + version.encode() + b"/infer"
            self._paths[path] = model.subnet_of(model.name, version)

    def serves(self, path: bytes) -> bool:
        """Whether a path (undecoded, without query) asks for an inference, if only of a model that does not exist."""
        return path in self._paths or _PATH.fullmatch(path) is not None

    def begin(self, asked: Request) -> Exchange:
        """Reads a request and asks the agent.

        Args:
            asked: whole, with a path that is served.

        Raises:
            GearshiftError: the request is refused at once.
        """
        began_ns = time.perf_counter_ns()
        if asked.method != b"POST":
            raise NotAllowed("Method Not Allowed: an inference is a POST")
        path, headers, body = asked.path, asked.named, asked.body()
        pinned = self._paths.get(path)
        if pinned is None and path not in self._paths:
            pinned = self._find(path)
        head = headers.get(LENGTH_HEADER)
        if b"content-encoding" in headers:
            body = decompress(body, _text(headers[b"content-encoding"]), self.limits.max_body_bytes)
        length = None if head is None else json_length(_text(head), len(body))
        request = self._heads.read(body, length, pinned)
        accepted = headers.get(b"accept-encoding")
        encoding = "" if accepted is None else _preferred(_text(accepted))
        try:
            future = self.model.submit(request.batch, request.wishes)
        except Exception:
            self._count_failure(pinned, began_ns)
            raise
        return Exchange(request, future, request.wishes.subnet, encoding, began_ns)

    def finish(self, exchange: Exchange) -> Reply:
        """The reply to an exchange whose future is done; a refusal where it raised."""
        finished_ns = time.perf_counter_ns()
        try:
            answer = exchange.future.result(0)
            content, head = write_reply(exchange.request, answer, self.model, self.regions)
        except (Exception, CancelledError) as error:
            self._count_failure(exchange.pinned, exchange.began_ns)
            if isinstance(error, CancelledError):
                return refusal_of(Busy("the request was given up before its turn came; try again later"))
            return refusal_of(error)
        headers = JSON_HEADERS if head is None else (*BINARY_HEADERS, (LENGTH_HEADER, b"%d" % head))
        if exchange.encoding and len(content) >= _WORTH_COMPRESSING:
            content = compress(content, exchange.encoding)
            headers += ((b"content-encoding", exchange.encoding.encode()),)
        now_ns = time.perf_counter_ns()
        self.statistics.succeeded(
            self.model.version_of(answer.subnet),
            answer,
            total_ns=now_ns - exchange.began_ns,
            input_ns=exchange.input_ns,
            output_ns=now_ns - finished_ns,
        )
        return Reply(200, headers, content)

    def _find(self, path: bytes) -> str | None:
        """The subnet of a path spelt otherwise than usual.

        Raises:
            NotFound: there is no such model or version.
        """
        found = _PATH.fullmatch(path)
        assert found is not None  # it is served
        name, version = (None if part is None else unquote(_text(part)) for part in found.groups())
        return self.model.subnet_of(name or "", version)

    def _count_failure(self, pinned: str | None, began_ns: int) -> None:
        version = None if pinned is None else self.model.version_of(pinned)
        self.statistics.failed(version, total_ns=time.perf_counter_ns() - began_ns)


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _preferred(accepted: str) -> str:
    """gzip or deflate, whichever an Accept-Encoding header takes, or nothing."""
    for offered in ("gzip", "deflate"):
        for item in accepted.split(","):
            name, _, quality = item.partition(";")
            if name.strip().lower() == offered and not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", quality):
                return offered
    return ""
