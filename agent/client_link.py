"""The client's connection to the agent's native socket: finding it, its first frame, frames out and in.

Waiting is the kernel's affair (``SO_RCVTIMEO``): a timeout of Python's would cost a system call more for every frame.
Knows nothing of tensors and of what is asked.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent import wire
from agent.wire import Kind, WireError
from subnets.errors import UnavailableError

_TIMEVAL = struct.Struct("@ll")
_SELECTABLE = 1024
_EARLY_NS, _LATE_NS = 150_000, 150_000  # before and after a frame is due; waking up takes 50 us and more
_NAP_NS = 300_000  # the shortest that is worth what it does to the processor's caches
_FRAME_BYTES = 64 * 1024  # of the largest frame that the agent sends
_TOLD = ("model", "subnets", "input", "classes", "max_images", "in_flight", "regions")


class Gone(UnavailableError):
    """The connection has broken: the agent was stopped, or has died, or does not listen yet."""


class Link:
    """One connection.

    Args:
        path: the agent's native socket; None = where the running agent says.
        timeout_s: how long to wait for a frame, in or out.
        spin_ms: how long to look for a frame before sleeping until it comes; None = around when it is due.

    Attributes:
        told: what the agent said first.
        looks: whether it is worth knowing when a frame is due.

    Raises:
        Gone: nobody listens there.
        UnavailableError: no agent runs, it offers no native socket, or it refuses this client.
    """

    def __init__(self, path: str | Path | None, timeout_s: float, spin_ms: float | None) -> None:
        place = str(path) if path is not None else _announced()
        self.frame = bytearray(_FRAME_BYTES)
        self._timeout_s, self._spin_ns = timeout_s, int((spin_ms or 0.0) * 1e6)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        try:
            # Above what the kernel takes by default on small machines, so that every frame the agent takes can be sent.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.FRAME_BYTES)
            timeval = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            try:
                self._socket.connect(place)
            except (FileNotFoundError, ConnectionRefusedError):
                raise Gone(f"{place}: no agent listens there; start one with 'gearshift run --native'") from None
            except OSError as error:
                raise UnavailableError(f"{place}: cannot be connected to ({error.strerror or error})") from None
            self.told = self._welcomed(place)
            # select() takes microseconds, which poll() does not, but only descriptors below 1024.
            self.looks = spin_ms is None and self.told.get("looks") is True and self._socket.fileno() < _SELECTABLE
        except BaseException:
            self._socket.close()
            raise

    @property
    def spins(self) -> bool:
        """Whether it looks for frames before it sleeps."""
        return self._spin_ns > 0

    def send(self, *parts: Any, descriptors: Sequence[int] = ()) -> None:
        """Sends one frame, made of parts.

        Raises:
            Gone: the connection has broken.
            UnavailableError: the agent takes nothing in.
        """
        try:
            if descriptors:
                socket.send_fds(self._socket, parts, descriptors)
            elif len(parts) == 1:
                self._socket.send(parts[0])
            else:
                self._socket.sendmsg(parts)
        except BlockingIOError:
            raise self._too_slow() from None
        except OSError as error:
            raise Gone(f"the agent has gone ({error.strerror or error})") from None

    def receive(self, due_ns: int = 0, rehearse: Callable[[], object] = int) -> tuple[int, int]:
        """(size, kind) of the next frame, which is in ``frame``.

        Args:
            due_ns: when it may come, by ``time.monotonic_ns``: it is looked for from just before until just after.
            rehearse: called where that begins, with time to spare: code that has not run since before a sleep takes
                twice as long.

        Raises:
            Gone: the connection has broken.
            UnavailableError: nothing came in time, or something that is no frame.
        """
        if self._spin_ns:
            self._look(time.monotonic_ns() + self._spin_ns)
        elif due_ns:
            nap_ns = due_ns - _EARLY_NS - time.monotonic_ns()
            if nap_ns < _NAP_NS or not select.select((self._socket,), (), (), nap_ns / 1e9)[0]:
                rehearse()
                self._look(due_ns + _LATE_NS)
        try:
            size = self._socket.recv_into(self.frame)
        except BlockingIOError:
            raise self._too_slow() from None
        except OSError as error:
            raise Gone(f"the agent has gone ({error.strerror or error})") from None
        if not size:
            raise Gone("the agent has closed the connection")
        try:
            return size, wire.kind_of(self.frame, size)
        except WireError as error:
            raise UnavailableError(f"the agent does not speak this client's language: {error}") from None

    def close(self) -> None:
        """Ends it; closing twice is harmless."""
        self._socket.close()

    def _look(self, until_ns: int) -> None:
        poll, now_ns = self._poll.poll, time.monotonic_ns
        while not poll(0) and now_ns() < until_ns:
            pass

    def _welcomed(self, place: str) -> dict[str, Any]:
        size, kind = self.receive()
        try:
            if kind == Kind.ERROR:
                raise UnavailableError(f"{place}: {wire.read_error(self.frame, size)[2]}")
            told = wire.read_welcome(self.frame, size)
        except WireError as error:
            raise UnavailableError(f"{place}: {error}") from None
        if kind != Kind.WELCOME or any(key not in told for key in _TOLD):
            raise UnavailableError(f"{place}: the agent begins with a frame this client does not know; update it")
        return told

    def _too_slow(self) -> UnavailableError:
        return UnavailableError(f"no word from the agent in {self._timeout_s:g} s; see 'gearshift status'")


def _announced() -> str:
    """Where the running agent listens.

    Raises:
        UnavailableError: none runs, or it has no native socket.
    """
    from agent.lifecycle import find_running  # late: it needs more than the standard library

    running = find_running()
    if not running.native:
        raise UnavailableError(
            f"the agent (process {running.pid}) has no native socket; start it with 'gearshift run --native PATH'"
        )
    return running.native
