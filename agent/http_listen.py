"""Sockets that listen for HTTP: TCP, Unix, or both."""

from __future__ import annotations

import socket
from pathlib import Path

from agent.access import Access
from agent.unix_socket import claimed
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
        with claimed(path, "--socket"):
            listener.bind(str(path))
            listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
