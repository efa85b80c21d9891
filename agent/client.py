"""Asks the agent on this device: over memory that both share, in tens of microseconds.

::

    with Client() as agent:
        image = agent.buffer()                    # an array that the agent reads where it is
        image[:] = ...                            # preprocessed: float32 [1, channels, height, width]
        answer = agent.infer(image, deadline_ms=20)
        answer.logits.argmax(), answer.subnet, answer.reason

Any other array will do as well; it is sent or copied. Needs the standard library and numpy, which is imported with the
first connection. Beneath it are :mod:`agent.client_session`, ``client_link`` and ``client_memory``, and the frames of
:mod:`agent.wire`. :func:`ask`, for control over HTTP, is :mod:`agent.control_client`'s.
"""

from __future__ import annotations

import importlib
import threading
import time
from typing import TYPE_CHECKING, Any

from agent.client_link import Gone, Link
from agent.client_session import Answer, Session, Slip
from subnets.errors import InputError, UnavailableError

if TYPE_CHECKING:  # what needs more than the standard library is imported when it is used
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from agent.control_client import UnixConnection, ask

__all__ = ["Answer", "Client", "Pending", "UnixConnection", "ask"]

_RETRY_S = 0.05


def __getattr__(name: str) -> Any:
    if name in ("UnixConnection", "ask"):
        return getattr(importlib.import_module("agent.control_client"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


class Client:
    """A connection to the agent on this device, which finds it again after a restart. For one thread at a time.

    Args:
        path: the agent's native socket; None = where the running agent says.
        timeout_s: how long an answer may take.
        reconnect_s: how long :meth:`infer` waits for an agent that has gone, before it gives up.
        spin_ms: how long to look for an answer, instead of sleeping until it comes: waking up takes tens of
            microseconds on either side, more in a virtual machine. None = only from shortly before an answer is due,
            0.6 ms a request at most, where the agent answers at once and in less than 5 ms and has a core to spare; 0 =
            never; above 0 from the request on, and the agent then looks for the next request, too, for 0.3 ms after
            each answer. Looking takes a core that could have slept.

    Raises:
        UnavailableError: no agent is there, or it offers no native socket, or refuses this client.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        timeout_s: float = 30.0,
        reconnect_s: float = 10.0,
        spin_ms: float | None = None,
    ) -> None:
        if not 1e-6 <= timeout_s < 1e9:
            raise InputError(f"timeout_s is {timeout_s}; give seconds above 0")
        if not 0 <= reconnect_s < float("inf"):
            raise InputError(f"reconnect_s is {reconnect_s}; give seconds, 0 for not at all")
        if spin_ms is not None and not 0 <= spin_ms < 1e6:
            raise InputError(f"spin_ms is {spin_ms}; give milliseconds, 0 for not at all")
        self._path, self._timeout_s, self._reconnect_s, self._spin_ms = path, timeout_s, reconnect_s, spin_ms
        self._busy = threading.Lock()
        self._closed = False
        self._session = Session(Link(path, timeout_s, spin_ms), None)

    # -- the model

    @property
    def model(self) -> str:
        """Its name."""
        return self._session.model

    @property
    def subnets(self) -> tuple[str, ...]:
        """Those that may be asked for, smallest first."""
        return tuple(self._session.places)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self._session.shape

    @property
    def classes(self) -> int:
        """How many logits an image has."""
        return self._session.classes

    # -- asking

    def buffer(self, images: int = 1) -> NDArray[np.float32]:
        """An array float32 [images, channels, height, width] that the agent reads where it is: fill it, :meth:`infer`
        it, fill it again. It may hold anything at first, and goes back by itself when nobody refers to it any more.

        Raises:
            InputError: more images than the agent takes at a time, or too many buffers are in use.
            UnavailableError: the agent does not answer.
        """
        self._enter()
        try:
            if not 1 <= images <= self._session.max_images:
                raise InputError(f"a buffer of {images} images; the agent takes 1 to {self._session.max_images}")
            try:
                return self._session.buffer(images)
            except Gone:
                return self._come_back().buffer(images)
        finally:
            self._busy.release()

    def infer(
        self,
        batch: NDArray[np.float32],
        *,
        deadline_ms: float | None = None,
        subnet: str | None = None,
        min_accuracy: float | None = None,
        stream: str | None = None,
    ) -> Answer:
        """Asks and waits for the answer. If the agent goes away meanwhile, it is looked for again and asked once more.

        Args:
            batch: preprocessed images, float32 [N, channels, height, width]; nothing is copied if it is a
                :meth:`buffer`, or a part of one.
            deadline_ms: from now to the answer; None = the agent's own goal.
            subnet: answer with this one.
            min_accuracy: share 0..1: only subnets at least this accurate may answer.
            stream: name of a camera: while this request waits, a newer one of the same stream takes its place.

        Raises:
            InputError: the request is wrong.
            Busy: too many requests wait; ``Superseded``: a newer one of the stream has come.
            EngineError: no engine could answer.
            UnavailableError: the agent does not answer, and none has come back.
        """
        wishes = deadline_ms, subnet, min_accuracy, stream
        self._enter()
        try:
            session = self._session
            try:
                return session.ask(batch, wishes)
            except Gone:
                return self._come_back().ask(batch, wishes)
        finally:
            self._busy.release()

    def submit(
        self,
        batch: NDArray[np.float32],
        *,
        deadline_ms: float | None = None,
        subnet: str | None = None,
        min_accuracy: float | None = None,
        stream: str | None = None,
    ) -> Pending:
        """As :meth:`infer`, without waiting: several requests can be under way. A :meth:`buffer` must not be written to
        before its answer has come; any other array may.

        Raises:
            InputError: the request is wrong.
            UnavailableError: the agent does not answer.
        """
        wishes = deadline_ms, subnet, min_accuracy, stream
        self._enter()
        try:
            session = self._session
            try:
                slip = session.submit(batch, wishes)
            except Gone:
                session = self._come_back()
                slip = session.submit(batch, wishes)
            return Pending(self, session, slip)
        finally:
            self._busy.release()

    def close(self) -> None:
        """Ends the connection; closing twice is harmless. Buffers stay usable as arrays."""
        self._closed = True
        self._session.end("the client was closed")
        self._session.buffers.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _enter(self) -> None:
        """Makes sure that nobody else is inside; ends with a release of ``_busy``."""
        if not self._busy.acquire(blocking=False):
            raise InputError("this Client is in use by another thread; make one for each thread")
        if self._closed:
            self._busy.release()
            raise InputError("this Client is closed; make another")

    def _come_back(self) -> Session:
        """Connects again, to the agent that follows the one that has gone.

        Raises:
            UnavailableError: none has come in time.
        """
        self._session.end("the agent has gone")
        until_s = time.monotonic() + self._reconnect_s
        while True:
            try:
                self._session = Session(Link(self._path, self._timeout_s, self._spin_ms), self._session)
                return self._session
            except UnavailableError as error:  # a restarting agent announces itself last
                if time.monotonic() >= until_s:
                    raise UnavailableError(f"{error} (tried for {self._reconnect_s:g} s)") from None
            time.sleep(_RETRY_S)


class Pending:
    """An answer to come, from :meth:`Client.submit`."""

    def __init__(self, client: Client, session: Session, slip: Slip) -> None:
        self._client, self._session, self._slip = client, session, slip

    @property
    def done(self) -> bool:
        """Whether the answer, or an error, has been received; it is received while the client waits for something."""
        return self._slip.done

    def result(self) -> Answer:
        """Waits for the answer.

        Raises:
            GearshiftError: as :meth:`Client.infer`; ``UnavailableError`` if the agent has gone meanwhile.
        """
        if self._slip.done:
            return self._slip.given()
        self._client._enter()
        try:
            return self._session.settled(self._slip)
        except Gone:
            return self._slip.given()  # which says so
        finally:
            self._client._busy.release()
