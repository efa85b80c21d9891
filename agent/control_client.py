"""Asks the agent on this machine over HTTP, found by the state file it leaves: what the commands use.

Standard library only, over the Unix socket where there is one, else TCP.
"""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import Any

import msgspec

from agent.lifecycle import RunningAgent, find_running
from subnets.errors import InputError, UnavailableError

_TIMEOUT_S = 10.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float = _TIMEOUT_S) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(method: str, path: str, body: Any = None, *, running: RunningAgent | None = None) -> Any:
    """One request to the running agent; its JSON reply.

    Args:
        method: GET or POST.
        path: e.g. ``/gearshift/status``.
        body: sent as JSON when given.
        running: which agent; None = the one the state file names.

    Raises:
        UnavailableError: no agent runs, or it does not answer.
        InputError: it refuses the request; its own sentence.
    """
    running = running or find_running()
    connection: http.client.HTTPConnection
    if running.socket:
        connection = UnixConnection(Path(running.socket))
    else:
        connection = http.client.HTTPConnection(running.host, running.port, timeout=_TIMEOUT_S)
    content = msgspec.json.encode(body) if body is not None else None
    try:
        connection.request(method, path, content, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = msgspec.json.decode(reply.read() or b"null")
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise UnavailableError(f"the agent (process {running.pid}) does not answer: {error}; is it starting?") from None
    finally:
        connection.close()
    if reply.status != 200:
        message = answer.get("error", "") if isinstance(answer, dict) else ""
        raise InputError(message or f"the agent answers {reply.status} to {method} {path}")
    return answer
