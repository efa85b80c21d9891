"""The native path: neighbours on this device ask through a Unix socket and memory that both sides see.

The frames are in :mod:`agent.wire`, a client's life in :mod:`agent.native_connection`, its memory in
:mod:`agent.memfd`; :mod:`agent.client` is the other side. Here is who may come in: the agent's own user, root, and
members of the group that the socket's file belongs to.

* :func:`listen`: the socket, with mode 0660.
* :class:`NativeServer`: takes connections, each into a thread of its own.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
import time
from pathlib import Path

from agent import wire
from agent.memfd import Budget
from agent.model import ServedModel
from agent.native_connection import Connection
from agent.native_requests import NativeLimits
from agent.unix_socket import claimed
from agent.wire import Failure

_SO_PEERGROUPS = 59  # Linux 4.13; not in the socket module
_GROUPS_BYTES = 1024  # the most that getsockopt takes here: 256 groups
_CREDENTIALS = struct.Struct("3i")  # pid, user, group
_ACCEPT_AGAIN_S = 0.1
_BACKLOG = 64


def listen(path: Path) -> socket.socket:
    """A socket that listens at ``path``, for its owner and group.

    Raises:
        InputError: something else is there, or the place cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with claimed(path, "--native"):
            listener.bind(str(path))
            listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


class NativeServer:
    """Serves the native path; listens from the beginning, answers from :meth:`start` to :meth:`stop`.

    Args:
        model: answers.
        path: of the socket.
        limits: None = the defaults.

    Raises:
        InputError: it cannot listen there.
    """

    def __init__(self, model: ServedModel, path: Path, limits: NativeLimits | None = None) -> None:
        self.path = path.absolute()
        self._model, self._limits = model, limits or NativeLimits()
        self._budget = Budget(self._limits.memory_bytes)
        self._listener = listen(self.path)
        self._group = self.path.stat().st_gid
        self._mutex = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._stopping = False
        self._acceptor = threading.Thread(target=self._accept, name="gearshift-native", daemon=True)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    @property
    def memory_bytes(self) -> int:
        """What clients make the agent hold: mapped regions and private copies."""
        return self._budget.taken_bytes

    def start(self) -> NativeServer:
        """Begins to take connections."""
        self._acceptor.start()
        return self

    def stop(self, timeout_s: float = 10.0) -> None:
        """Takes no more connections and requests, and answers those that were read; stopping twice is harmless.

        Args:
            timeout_s: how long to wait for the answers.
        """
        if self._stopping:
            return
        self._stopping = True
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the acceptor
        if self._acceptor.is_alive():
            self._acceptor.join(timeout_s)
        self._listener.close()
        until_s = time.monotonic() + timeout_s
        with self._mutex:
            served = dict(self._connections)
        for connection in served:
            connection.stop()
        for thread in served.values():
            thread.join(max(0.0, until_s - time.monotonic()))

    def _accept(self) -> None:
        while not self._stopping:
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # stopped, or too many open files
                if not self._stopping:
                    time.sleep(_ACCEPT_AGAIN_S)
                continue
            try:
                self._welcome(accepted)
            except OSError:  # it has gone already
                accepted.close()

    def _welcome(self, accepted: socket.socket) -> None:
        if not may_connect(accepted, self._group):
            refuse(accepted, "only the agent's user, root and members of the socket's group may connect")
            return
        with self._mutex:
            if len(self._connections) >= self._limits.connections:
                refuse(
                    accepted, f"{self._limits.connections} clients are connected (native_connections); try again later"
                )
                return
            connection = Connection(accepted, self._model, self._limits, self._budget, self._forget)
            thread = threading.Thread(target=connection.run, name="gearshift-native-client", daemon=True)
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads to be had
            self._forget(connection)
            refuse(accepted, f"{error}; try again later")

    def _forget(self, connection: Connection) -> None:
        with self._mutex:
            self._connections.pop(connection, None)


def may_connect(accepted: socket.socket, group: int) -> bool:
    """Whether the process at the other end is of our user, root, or a member of ``group``.

    The file's mode says the same, until someone changes it.
    """
    size = _CREDENTIALS.size
    _, user, primary = _CREDENTIALS.unpack(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if user in (0, os.geteuid()) or primary == group:
        return True
    try:
        groups = array.array("I", accepted.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES))
    except OSError:  # an older kernel, or more groups
        return False
    return group in groups


def refuse(accepted: socket.socket, why: str) -> None:
    """Tells a client why it may not stay, and closes."""
    with accepted, contextlib.suppress(OSError):
        accepted.send(wire.error(0, Failure.REFUSED, why), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
