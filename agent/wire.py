"""The native path's frames: what a client on this device and the agent write to each other; see ``docs/native.md``.

A connection is ``AF_UNIX``, ``SOCK_SEQPACKET``: one frame, one packet. All numbers are little-endian. Tensors follow a
frame's head, or lie in a **region**: a memfd of the client's that cannot shrink, passed once.

::

    agent  ► client   WELCOME    head, JSON                  first, unasked: the model and the limits
    client ► agent    REGION     head + a file descriptor    answered by DONE or ERROR
                      RELEASE    head                        answered by DONE or ERROR
                      REQUEST    head, tensor                answered by ANSWER or ERROR, in any order
    agent  ► client   ANSWER     head, logits, text
                      ERROR      head, one sentence
                      DONE       head

Knows nothing of sockets, arrays or the agent, and needs the standard library alone.
"""

from __future__ import annotations

import enum
import json
import math
import struct
from typing import Any, NamedTuple

from subnets.errors import GearshiftError

MAGIC, VERSION = b"GEAR", 1
FRAME_BYTES = 128 * 1024  # of the largest frame that the agent takes, head included
INLINE_LOGITS_BYTES = 16 * 1024  # of the largest logits that an answer carries itself
TEXT_BYTES = 2048  # of the longest sentence in an answer or error
STREAM_BYTES = 56  # of the longest name of a stream
ALIGNMENT = 64  # of offsets in a region
LOGITS_IN_REGION = 1  # flag of a request and its answer
MORE_SOON = 2  # flag of a request: the next one follows its answer at once
AT_ONCE_MS = 0.02  # an answer that waited less for the engine had it to itself

Buffer = bytes | bytearray | memoryview

# magic, version, kind, flags, id
_PREFIX = struct.Struct("<4sBBHQ")
_ID = struct.Struct("<Q")
_BEGINS = MAGIC + bytes([VERSION])
# ... images, channels, height, width, region, place, input offset, logits offset, deadline ms, accuracy, stream
_REQUEST = struct.Struct(f"<4sBBHQ4I2I2Q2d{STREAM_BYTES}s")
# ... images, classes, place, bytes of text, queue ms, infer ms, expected accuracy, energy J
_ANSWER = struct.Struct("<4sBBHQ4I4d")
# ... region, reserved, bytes
_REGION = struct.Struct("<4sBBHQ2IQ")
# ... status, bytes of text
_ERROR = struct.Struct("<4sBBHQ2I")

PREFIX_BYTES, REQUEST_BYTES, ANSWER_BYTES, REGION_BYTES, ERROR_BYTES = (
    part.size for part in (_PREFIX, _REQUEST, _ANSWER, _REGION, _ERROR)
)
ANSWER_FRAME_BYTES = ANSWER_BYTES + INLINE_LOGITS_BYTES + TEXT_BYTES  # of the largest frame the agent sends but WELCOME


class WireError(GearshiftError):
    """A frame that is not one; the connection ends with it."""


class Kind(enum.IntEnum):
    """What a frame is."""

    REQUEST = 1
    REGION = 2
    RELEASE = 3
    WELCOME = 65
    ANSWER = 66
    ERROR = 67
    DONE = 68


_ANSWER_KIND = int(Kind.ANSWER)  # a plain number: looking one up in an enumeration costs as much as packing a head


class Failure(enum.IntEnum):
    """Why there is no answer. After ``WIRE`` and ``REFUSED`` the agent closes the connection."""

    WIRE = 1  # not a frame
    REFUSED = 2  # this client may not connect, or not now
    INPUT = 3  # the request is wrong
    BUSY = 4  # a queue or a limit is full: again later
    SUPERSEDED = 5  # a newer request of the same stream took its place
    ENGINE = 6  # no engine could answer
    INTERNAL = 7  # the agent's own fault


class Request(NamedTuple):
    """One request. The tensor, float32 [images, channels, height, width], lies in ``region`` or follows the head."""

    magic: bytes
    version: int
    kind: int
    flags: int
    id: int
    images: int
    channels: int
    height: int
    width: int
    region: int  # 0 = the tensor follows the head
    place: int  # of the subnet on the ladder, 1 = smallest; 0 = whichever is right now
    input_offset: int
    logits_offset: int  # with LOGITS_IN_REGION
    deadline_ms: float  # 0 = none
    min_accuracy: float  # 0 = none
    stream: bytes  # name, filled up with zeros; empty = none


class Told(NamedTuple):
    """The text of an answer."""

    subnet: str
    point: str
    bound: str
    energy_source: str
    reason: str


class Reply(NamedTuple):
    """The head of an answer."""

    magic: bytes
    version: int
    kind: int
    flags: int
    id: int
    images: int
    classes: int
    place: int
    text_bytes: int
    queue_ms: float
    infer_ms: float
    accuracy: float
    energy_j: float  # NaN = unmeasurable


class Region(NamedTuple):
    """A region to map or to let go."""

    magic: bytes
    version: int
    kind: int
    flags: int
    id: int
    region: int
    reserved: int
    size_bytes: int


def kind_of(frame: Buffer, size: int) -> int:
    """The kind of a frame.

    Raises:
        WireError: too short, or of something else than this version of this protocol.
    """
    if size < PREFIX_BYTES:
        raise WireError(f"a frame of {size} bytes; the shortest has {PREFIX_BYTES}")
    if frame[:5] != _BEGINS:
        magic, version, _, _, _ = _PREFIX.unpack_from(frame)
        if magic != MAGIC:
            raise WireError(f"a frame begins with {magic!r} instead of {MAGIC!r}")
        raise WireError(f"a frame of version {version}; both sides must speak version {VERSION}")
    return frame[5]


def frame_id(frame: Buffer, size: int) -> int:
    """The id of a frame, 0 where it is too short to have one."""
    return int(_ID.unpack_from(frame, 8)[0]) if size >= PREFIX_BYTES else 0


def set_id(head: bytearray, identifier: int) -> None:
    """Makes the head of one request that of another, alike but for its id."""
    _ID.pack_into(head, 8, identifier)


def request(
    identifier: int,
    shape: tuple[int, ...],
    *,
    region: int = 0,
    input_offset: int = 0,
    logits_offset: int | None = None,
    place: int = 0,
    deadline_ms: float = 0.0,
    min_accuracy: float = 0.0,
    stream: bytes = b"",
    more_soon: bool = False,
) -> bytes:
    """The head of a request; ``logits_offset`` asks for the logits in the region."""
    flags = (0 if logits_offset is None else LOGITS_IN_REGION) | (MORE_SOON if more_soon else 0)
    return _REQUEST.pack(
        MAGIC,
        VERSION,
        Kind.REQUEST,
        flags,
        identifier,
        *shape,
        region,
        place,
        input_offset,
        logits_offset or 0,
        deadline_ms,
        min_accuracy,
        stream,
    )


def read_request(frame: Buffer, size: int) -> Request:
    """The head of a request whose kind is known.

    Raises:
        WireError: too short.
    """
    if size < REQUEST_BYTES:
        raise WireError(f"a request of {size} bytes; its head alone has {REQUEST_BYTES}")
    return Request._make(_REQUEST.unpack_from(frame))


def region(identifier: int, number: int, size_bytes: int) -> bytes:
    """A frame that brings a region; its file descriptor travels beside it."""
    return _REGION.pack(MAGIC, VERSION, Kind.REGION, 0, identifier, number, 0, size_bytes)


def release(identifier: int, number: int) -> bytes:
    """A frame that takes a region back."""
    return _REGION.pack(MAGIC, VERSION, Kind.RELEASE, 0, identifier, number, 0, 0)


def read_region(frame: Buffer, size: int) -> Region:
    """A REGION or RELEASE frame.

    Raises:
        WireError: of another size.
    """
    if size != REGION_BYTES:
        raise WireError(f"a region's frame of {size} bytes; it has {REGION_BYTES}")
    return Region._make(_REGION.unpack_from(frame))


def told(texts: Told) -> bytes:
    """The text of an answer, encoded and cut to size."""
    return "\0".join([text.replace("\0", " ") for text in texts]).encode("utf-8", "replace")[:TEXT_BYTES]


def read_told(text: bytes) -> Told:
    """The text of an answer, decoded.

    Raises:
        WireError: it has not as many parts as it should.
    """
    parts = text.decode("utf-8", "replace").split("\0")
    if len(parts) != len(Told._fields):
        raise WireError(f"an answer with {len(parts)} texts; it has {len(Told._fields)}")
    return Told._make(parts)


def answer(
    identifier: int,
    shape: tuple[int, ...],
    place: int,
    figures: tuple[float, float, float, float | None],
    text: bytes,
    logits: Buffer | None,
) -> bytes:
    """A whole answer.

    Args:
        identifier: of the request.
        shape: (images, classes).
        place: of the subnet on the ladder.
        figures: queue ms, infer ms, expected accuracy, energy in joules or None.
        text: from :func:`told`.
        logits: float32, or None when they are in the region.
    """
    queue_ms, infer_ms, accuracy, energy_j = figures
    head = _ANSWER.pack(
        MAGIC,
        VERSION,
        _ANSWER_KIND,
        0 if logits is not None else LOGITS_IN_REGION,
        identifier,
        shape[0],
        shape[1],
        place,
        len(text),
        queue_ms,
        infer_ms,
        accuracy,
        math.nan if energy_j is None else energy_j,
    )
    return b"".join((head, logits or b"", text))


def read_answer(frame: Buffer, size: int) -> Reply:
    """The head of an answer whose kind is known; inline logits begin at ``ANSWER_BYTES``, and the text ends the frame.

    Raises:
        WireError: its sizes do not add up.
    """
    if size < ANSWER_BYTES:
        raise WireError(f"an answer of {size} bytes; its head alone has {ANSWER_BYTES}")
    reply = tuple.__new__(Reply, _ANSWER.unpack_from(frame))  # as _make does, without another call
    inline = 0 if reply.flags & LOGITS_IN_REGION else 4 * reply.images * reply.classes
    if size != ANSWER_BYTES + inline + reply.text_bytes:
        raise WireError(f"an answer of {size} bytes; its head says {ANSWER_BYTES + inline + reply.text_bytes}")
    return reply


def error(identifier: int, failure: Failure, sentence: str) -> bytes:
    """A frame that says why there is no answer."""
    text = sentence.encode("utf-8", "replace")[:TEXT_BYTES]
    return _ERROR.pack(MAGIC, VERSION, Kind.ERROR, 0, identifier, failure, len(text)) + text


def read_error(frame: Buffer, size: int) -> tuple[int, int, str]:
    """(id, failure, sentence) of an error whose kind is known.

    Raises:
        WireError: its sizes do not add up.
    """
    if size < ERROR_BYTES:
        raise WireError(f"an error of {size} bytes; its head alone has {ERROR_BYTES}")
    _, _, _, _, identifier, failure, length = _ERROR.unpack_from(frame)
    if size != ERROR_BYTES + length:
        raise WireError(f"an error of {size} bytes; its head says {ERROR_BYTES + length}")
    return identifier, failure, str(frame[ERROR_BYTES:size], "utf-8", "replace")


def done(identifier: int) -> bytes:
    """A frame that says a region was mapped or let go."""
    return _PREFIX.pack(MAGIC, VERSION, Kind.DONE, 0, identifier)


def welcome(content: dict[str, Any]) -> bytes:
    """The agent's first frame."""
    return _PREFIX.pack(MAGIC, VERSION, Kind.WELCOME, 0, 0) + json.dumps(content, separators=(",", ":")).encode()


def read_welcome(frame: Buffer, size: int) -> dict[str, Any]:
    """The content of the agent's first frame.

    Raises:
        WireError: it is no JSON object.
    """
    try:
        content = json.loads(bytes(frame[PREFIX_BYTES:size]))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the agent's first frame is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise WireError("the agent's first frame is not a JSON object")
    return content
