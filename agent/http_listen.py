"""Sockets that listen for HTTP: TCP, Unix, or both."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from agent.access import Access
from subnets.errors import InputError

_BACKLOG = 128


def listen_tcp(host: str, port: int, access: Access) -> tuple[socket.socket, bool]:
    """A TCP socket, and whether other machines can reach it.

    Raises:
        InputError: the address is taken, none of this machine's, or public without token and TLS.
    """
    found = access.resolve(host, port)
    # The protocol named, or asyncio does not recognise TCP and leaves Nagle's algorithm on: 40 ms on every answer.
    listener = socket.socket(found.family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(found.address)
    except OSError as error:
        listener.close()
        raise InputError(f"port {port} on {host} cannot be used ({error.strerror}); give another with --port") from None
    listener.listen(_BACKLOG)
    return listener, found.public


def listen_unix(path: Path) -> socket.socket:
    """A Unix socket for owner and group.

    Raises:
        InputError: something else is there, or the place cannot be used.
    """
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
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(f"{path}: cannot listen there ({error}); give another place for --socket") from None
    except BaseException:
        listener.close()
        raise
    return listener
