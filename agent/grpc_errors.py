"""What went wrong, as a gRPC status and one sentence; never a traceback."""

from __future__ import annotations

from concurrent.futures import CancelledError

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from agent.model import NotFound, TooMany, Unsupported
from subnets.errors import Busy, Expired, GearshiftError, InputError, Superseded

_MAX_CHARACTERS = 1000  # a status travels in a header, and headers have a limit
_CODES: tuple[tuple[type[Exception], grpc.StatusCode, str], ...] = (  # the first that fits; its own words, if empty
    (NotFound, grpc.StatusCode.NOT_FOUND, ""),
    (InputError, grpc.StatusCode.INVALID_ARGUMENT, ""),
    (DecodeError, grpc.StatusCode.INVALID_ARGUMENT, "the request is not the message that this method takes"),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED, ""),
    (TooMany, grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
    (Superseded, grpc.StatusCode.ABORTED, ""),
    (Expired, grpc.StatusCode.DEADLINE_EXCEEDED, ""),
    (Busy, grpc.StatusCode.UNAVAILABLE, ""),
    (CancelledError, grpc.StatusCode.CANCELLED, "the call was cancelled before its turn came"),
    (GearshiftError, grpc.StatusCode.INTERNAL, ""),
)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Code and sentence of an error."""
    for kind, code, words in _CODES:
        if isinstance(error, kind):
            return code, (words or str(error))[:_MAX_CHARACTERS]
    return grpc.StatusCode.INTERNAL, f"internal error: {type(error).__name__}: {error}"[:_MAX_CHARACTERS]
