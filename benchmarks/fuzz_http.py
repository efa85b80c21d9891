"""The HTTP front door under fuzzing: raw bytes, headers, paths, JSON documents, tensors."""

from __future__ import annotations

import gzip
import json
import random
import socket
import zlib
from typing import Any, ClassVar

import numpy as np
from live import LiveAgent
from mutations import spoil, spoil_json

_HEAD = "Inference-Header-Content-Length"
_MAX_REPLY_BYTES = 16 * 2**20
_METHODS = ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "BREW", "post")
_HEADERS = (
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: 0x10",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Content-Encoding: gzip",
    "Content-Encoding: br",
    "Accept-Encoding: gzip;q=nonsense, deflate",
    "Expect: 100-continue",
    "Upgrade: websocket",
    "Connection: close, upgrade",
    "Host: example.org",
    "Authorization: Bearer " + "x" * 300,
    f"{_HEAD}: -5",
    f"{_HEAD}: 7",
    f"{_HEAD}: 99999999999999999999999",
    f"{_HEAD}: \xff",
    "X: " + "y" * 20000,
    ": no name",
    "no colon",
    " folded: line",
)


class HttpDoor:
    """Sends spoilt requests on the Unix socket and judges the replies.

    Args:
        live: the agent.
        timeout_s: within which every connection must be answered or closed.
    """

    name = "http"
    shares: ClassVar[dict[str, float]] = {
        "http bytes": 0.2,
        "http headers": 0.2,
        "http paths": 0.1,
        "http json": 0.3,
        "http tensors": 0.2,
    }

    def __init__(self, live: LiveAgent, timeout_s: float) -> None:
        self._path, self._timeout_s = live.running.socket, timeout_s
        self._model, self._shape = live.bundle.name, live.bundle.input.shape
        self._classes = len(live.bundle.labels)

    def input(self, category: str, chance: random.Random) -> tuple[bytes, bool]:
        """(what is sent, whether its framing is right, so that an answer is owed)."""
        document, tensor = self._document(chance)
        if category == "http json":
            return self._post(spoil_json(document, chance)), True
        if category == "http tensors":
            return self._tensors(document, tensor, chance), True
        if category == "http headers":
            body = json.dumps(document).encode()
            extra = [chance.choice(_HEADERS) for _ in range(chance.randint(1, 3))]
            return self._post(body, extra), False
        if category == "http paths":
            return self._paths(chance), False
        return spoil(self._post(json.dumps(document).encode()), chance, 6), False

    def judge(self, sent: tuple[bytes, bool]) -> tuple[str, str]:
        """(what came: a status or "closed"; what is wrong with it, or "")."""
        request, owed = sent
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout_s)
            connection.connect(self._path)
            try:
                connection.sendall(request)
                if not owed:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # closed while we still sent; the reply may be there all the same
            try:
                reply = _read_reply(connection, request.startswith(b"HEAD"))
            except TimeoutError:
                return "hang", f"neither answered nor closed in {self._timeout_s:g} s"
            except OSError:
                return "closed", "closed without an answer" if owed else ""
        if reply is None:
            return "closed", "closed without an answer" if owed else ""
        return str(reply[0]), self._wrong(request, *reply)

    def check(self) -> str:
        """What is wrong with the answer to a proper request, or ""."""
        document, _ = self._document(random.Random(0))
        status, wrong = self.judge((self._post(json.dumps(document).encode()), True))
        return wrong or ("" if status == "200" else f"status {status} for a proper request")

    def close(self) -> None:
        """Nothing is kept open."""

    # -- inputs

    def _document(self, chance: random.Random) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
        images = chance.choice((1, 1, 1, 2, 5))
        numbers = np.random.default_rng(chance.getrandbits(32))
        tensor = numbers.standard_normal((images, *self._shape)).astype(np.float32)
        document = {
            "id": "7",
            "inputs": [
                {
                    "name": "input",
                    "shape": list(tensor.shape),
                    "datatype": "FP32",
                    "data": tensor.ravel().round(2).tolist(),
                    "parameters": {},
                }
            ],
            "outputs": [{"name": "logits", "parameters": {"binary_data": chance.random() < 0.3}}],
            "parameters": {"timeout": 1_000_000, "subnet": "s100", "min_accuracy": 0.1, "stream": "front"},
        }
        return document, tensor

    def _post(self, body: bytes, extra: list[str] | None = None, path: str = "") -> bytes:
        lines = [f"POST {path or f'/v2/models/{self._model}/infer'} HTTP/1.1", "Host: localhost", *(extra or [])]
        if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def _tensors(self, document: dict[str, Any], tensor: np.ndarray[Any, Any], chance: random.Random) -> bytes:
        entry = document["inputs"][0]
        del entry["data"]
        content = tensor.tobytes()
        entry["parameters"]["binary_data_size"] = len(content)
        what = chance.randrange(7)
        if what == 0:
            entry["parameters"]["binary_data_size"] = chance.choice((0, 1, len(content) - 4, len(content) + 4, 2**40))
        elif what == 1:
            content = spoil(content, chance)
        elif what == 2:
            tensor.ravel()[chance.randrange(tensor.size)] = chance.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45))
            content = tensor.tobytes()
        elif what == 3:
            entry["shape"][chance.randrange(4)] = chance.choice((0, -1, 3, 2**31, 2**62, 1e3, "4", None))
        elif what == 4:
            entry["datatype"] = chance.choice(("FP16", "FP64", "INT8", "BYTES", "", 7))
        elif what == 5:
            entry["parameters"]["shared_memory_region"] = chance.choice(("r", "", 5))
        head = json.dumps(document).encode()
        length = (
            len(head) if what != 6 else chance.choice((0, 1, len(head) - 1, len(head) + 1, len(head) + len(content)))
        )
        return self._post(head + content, [f"{_HEAD}: {length}"])

    def _paths(self, chance: random.Random) -> bytes:
        model = f"/v2/models/{self._model}"
        path = chance.choice(
            (
                "/v2",
                "/v2/health/ready",
                model,
                f"{model}/versions/{chance.choice(('1', '0', '99', '-1', '1e3', 'x' * 500, '%31', '%D9%A1'))}",
                f"{model}/config",
                f"{model}/stats",
                f"{model}/infer",
                "/v2/repository/index",
                f"/v2/repository/models/{self._model}/unload",
                "/v2/systemsharedmemory/status",
                "/v2/systemsharedmemory/region/x/register",
                "/gearshift/status",
                "/gearshift/explain?last=" + chance.choice(("1", "-1", "1e9", "9" * 40, "")),
                "/gearshift/hold",
                "/gearshift/release",
                "/metrics",
                "/ui",
                "/../../etc/passwd",
                "*",
                "//",
            )
        )
        if chance.random() < 0.5:
            path = spoil(path.encode(), chance, 2).decode("latin-1")
        control = {"subnet": "s100", "for_s": 0.01, "reason": "fuzz", "key": "/x", "offset": 0, "byte_size": 64}
        body = spoil_json(control, chance)
        kind = chance.choice(("application/json", "text/plain", "\xff"))
        head = f"{chance.choice(_METHODS)} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        return head.encode("latin-1") + f"Content-Length: {len(body)}\r\n\r\n".encode() + body

    # -- replies

    def _wrong(self, request: bytes, status: int, headers: dict[str, str], body: bytes) -> str:
        if b"Traceback" in body or b'File "' in body:
            return "a traceback in the reply"
        if not 200 <= status < 600:
            return f"status {status}"
        if status == 500:
            return f"status 500: {body[:300].decode('utf-8', 'replace')}"
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        elif headers.get("content-encoding") == "deflate":
            body = zlib.decompress(body)
        if status >= 400:
            try:
                told = json.loads(body) if body else {"error": ""}
            except ValueError:
                return f"status {status} with a body that is not JSON"
            return "" if isinstance(told, dict) and isinstance(told.get("error"), str) else "no 'error' in the body"
        if b"/infer HTTP/1.1\r\n" not in request.partition(b"Host")[0] or status != 200:
            return ""
        return self._wrong_logits(headers, body)

    def _wrong_logits(self, headers: dict[str, str], body: bytes) -> str:
        length = int(headers.get(_HEAD.lower(), len(body)))
        try:
            reply = json.loads(body[:length])
            outputs = reply["outputs"]
            if not outputs:
                return ""
            (output,) = outputs
            shape, datatype = output["shape"], output["datatype"]
        except (ValueError, KeyError, TypeError) as error:
            return f"an answer that makes no sense: {error}"
        if datatype == "BYTES":  # the classification extension
            return "" if shape[0] >= 1 and shape[1] <= self._classes else f"classes of shape {shape}"
        size = len(body) - length if length < len(body) else 4 * len(output.get("data", ()))
        if len(shape) != 2 or shape[0] < 1 or shape[1] != self._classes or size != 4 * shape[0] * shape[1]:
            return f"logits of shape {shape} in {size} bytes"
        return ""


def _read_reply(connection: socket.socket, headless: bool) -> tuple[int, dict[str, str], bytes] | None:
    """(status, headers, body) of the first final reply; None if the connection ends before one is whole."""
    received = b""
    while True:
        head, end, rest = received.partition(b"\r\n\r\n")
        if end:
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            if status == 100:
                received = rest
                continue
            headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
            chunked = "chunked" in headers.get("transfer-encoding", "")
            length = 0 if headless or status in (204, 304) else int(headers.get("content-length", 0))
            if chunked:  # a stream of events, say: enough was seen
                return status, headers, b""
            if len(rest) >= length:
                return status, headers, rest[:length]
        part = connection.recv(65536)
        if not part or len(received) > _MAX_REPLY_BYTES:
            return None
        received += part
