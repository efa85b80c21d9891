"""The native front door under fuzzing: frames, their fields, and descriptors that should not be mapped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from live import LiveAgent
from mutations import spoil

from agent import wire
from agent.wire import Kind

_SIZES = (0, 1, 63, 64, 128, 4096, 65536)


class Sent(NamedTuple):
    """Frames with the descriptors that go along, and how many images a good answer to the last has."""

    frames: tuple[tuple[bytes, tuple[str, ...]], ...]
    images: int


class NativeDoor:
    """Sends spoilt frames and judges what comes back.

    Args:
        live: the agent.
        timeout_s: within which every frame must be answered, or its connection closed.
    """

    name = "native"
    shares: ClassVar[dict[str, float]] = {"native frames": 0.5, "native fields": 0.35, "native regions": 0.15}

    def __init__(self, live: LiveAgent, timeout_s: float) -> None:
        self._path, self._timeout_s = live.running.native, timeout_s
        self._shape = live.bundle.input.shape
        self._classes = len(live.bundle.labels)
        self._connection: socket.socket | None = None

    def input(self, category: str, chance: random.Random) -> Sent:
        """What is sent."""
        images = chance.choice((1, 1, 2, 5))
        tensor = np.random.default_rng(chance.getrandbits(32)).standard_normal((images, *self._shape))
        content = tensor.astype(np.float32).tobytes()
        if category == "native regions":
            return self._regions(chance)
        if category == "native fields":
            return self._fields(images, content, chance)
        whole = wire.request(chance.getrandbits(63) + 1, (images, *self._shape)) + content
        return Sent(((spoil(whole, chance)[: 2 * wire.FRAME_BYTES], ()),), images)

    def judge(self, sent: Sent) -> tuple[str, str]:
        """(what came: a kind of frame, or "closed"; what is wrong with it, or "")."""
        came = "closed"
        for frame, descriptors in sent.frames:
            if not frame:
                continue  # an empty packet is the end of a connection
            connection = self._connected()
            try:
                with _opened(descriptors) as opened:
                    if opened:
                        socket.send_fds(connection, [frame], opened)
                    else:
                        connection.send(frame)
                reply = connection.recv(65536)
            except TimeoutError:
                self.close()
                return "hang", f"neither answered nor closed in {self._timeout_s:g} s"
            except OSError:
                self.close()
                return "closed", ""
            if not reply:
                self.close()
                return "closed", ""
            came, wrong = self._wrong(reply, sent.images)
            if wrong:
                return came, wrong
        return came, ""

    def check(self) -> str:
        """What is wrong with the answer to a proper request, or ""."""
        self.close()
        batch = np.ones((1, *self._shape), np.float32)
        came, wrong = self.judge(Sent(((wire.request(1, batch.shape) + batch.tobytes(), ()),), 1))
        return wrong or ("" if came == "answer" else f"{came} for a proper request")

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- inputs

    def _fields(self, images: int, content: bytes, chance: random.Random) -> Sent:
        shape: list[int] = [images, *self._shape]
        if chance.random() < 0.3:
            shape[chance.randrange(4)] = chance.choice((0, 1, 3, 257, 2**31, 2**32 - 1))
        wide = chance.choice((0, 1, 4, 64, 128, 2**20, 2**63, 2**64 - 64))
        head = wire.request(
            chance.getrandbits(63) + 1,
            tuple(shape),
            region=chance.choice((0, 0, 0, 1, 2**32 - 1)),
            input_offset=wide,
            logits_offset=chance.choice((None, None, 0, 64, 2**64 - 64)),
            place=chance.choice((0, 0, 1, 4, 5, 2**32 - 1)),
            deadline_ms=chance.choice((0.0, 0.0, 1.0, 1e9, 1e-300, -1.0, float("nan"), float("inf"))),
            min_accuracy=chance.choice((0.0, 0.0, 0.5, 1.0, 1.1, -0.1, float("nan"))),
            stream=chance.choice((b"", b"", b"front", b"\xff" * 56, b"a\0b", chance.randbytes(56))),
        )
        length = chance.choice((len(content), len(content), len(content), 0, 4, len(content) - 4, len(content) + 4))
        return Sent(((head + content[:length].ljust(min(length, 2 * len(content)), b"\1"), ()),), images)

    def _regions(self, chance: random.Random) -> Sent:
        size = chance.choice(_SIZES)
        said = size if chance.random() < 0.6 else chance.choice((*_SIZES, 2**31, 2**63, 2**64 - 1))
        kind = chance.choice(
            ("good", "good", "good", "unsealed", "shrinks", "readonly", "null", "file", "pipe", "socket")
        )
        number = chance.choice((1, 1, 2, 3, 0, 2**32 - 1))
        descriptors = (f"{kind}:{size}",) * chance.choice((1, 1, 1, 1, 0, 2, 4, 9))
        frames = [(wire.region(5, number, said), descriptors)]
        ask = wire.request(6, (1, *self._shape), region=number, logits_offset=chance.choice((None, 0)))
        frames.append((ask, descriptors if chance.random() < 0.1 else ()))
        frames.append((wire.release(7, chance.choice((number, number, 9))), ()))
        return Sent(tuple(frames), 1)

    # -- replies

    def _connected(self) -> socket.socket:
        if self._connection is None:
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._connection.settimeout(self._timeout_s)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * wire.FRAME_BYTES)
            self._connection.connect(self._path)
            welcome = self._connection.recv(65536)
            if wire.kind_of(welcome, len(welcome)) != Kind.WELCOME:
                raise SystemExit(f"no welcome from the agent: {welcome[:200]!r}")
        return self._connection

    def _wrong(self, reply: bytes, images: int) -> tuple[str, str]:
        try:
            kind = wire.kind_of(reply, len(reply))
            if kind == Kind.ERROR:
                _, failure, sentence = wire.read_error(reply, len(reply))
                bad = "Traceback" in sentence or 'File "' in sentence or "internal error" in sentence or not sentence
                return f"error {failure}", sentence if bad else ""
            if kind == Kind.DONE:
                return "done", ""
            if kind != Kind.ANSWER:
                return f"kind {kind}", "a frame of a kind that answers nothing"
            head = wire.read_answer(reply, len(reply))
        except wire.WireError as error:
            return "nonsense", str(error)
        # A spoilt head may ask for fewer images than were meant, never for another number of classes.
        if head.classes != self._classes or not 1 <= head.images <= max(images, 8):
            return "answer", f"logits of shape {[head.images, head.classes]}"
        return "answer", ""


@contextlib.contextmanager
def _opened(kinds: tuple[str, ...]) -> Any:
    """Descriptors of the kinds named ("good:4096"), closed afterwards."""
    opened: list[int] = []
    others: list[int] = []
    try:
        for told in kinds:
            kind, _, size = told.partition(":")
            if kind == "pipe":
                one, other = os.pipe()
                opened.append(one)
                others.append(other)
            elif kind == "null":
                opened.append(os.open("/dev/null", os.O_RDWR))
            elif kind == "file":
                descriptor, path = tempfile.mkstemp()
                Path(path).unlink()
                os.ftruncate(descriptor, int(size))
                opened.append(descriptor)
            elif kind == "socket":
                opened.append(os.dup(socket.socket().detach()))
            else:
                opened.append(_memfd(kind, int(size)))
        yield opened
    finally:
        for descriptor in opened + others:
            os.close(descriptor)


def _memfd(kind: str, size: int) -> int:
    descriptor = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    seals = {"unsealed": 0, "shrinks": fcntl.F_SEAL_GROW, "good": fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK}
    seals["readonly"] = seals["good"] | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals[kind])
    return descriptor
