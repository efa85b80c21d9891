"""What HTTP and gRPC have in common about tensors: where one lies in shared memory, and how an answer is wanted.

Both say it in ``parameters``, with the same names. Knows nothing of bodies and messages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from agent.model import INPUT, OUTPUT, ServedModel
from agent.regions import Regions
from backends.base import Batch
from subnets.errors import InputError

LITTLE = np.dtype("<f4")


class Part(msgspec.Struct, frozen=True, gc=False):
    """A part of a shared memory region."""

    region: str
    offset: int
    byte_size: int


class OutputWish(msgspec.Struct, frozen=True, gc=False):
    """How a request wants its answer."""

    binary: bool = False  # over HTTP; gRPC's is always binary
    classes: int = 0  # that many best classes instead of the logits; 0 = the logits
    part: Part | None = None  # write it there


def checked_shape(shape: object, model: ServedModel) -> tuple[int, ...]:
    """The input's shape, [N, C, H, W] as the model takes it.

    Raises:
        InputError: it is another.
    """
    sizes = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
    if not isinstance(shape, list) or not sizes or len(shape) != 4 or tuple(shape[1:]) != model.shape or shape[0] < 1:
        raise InputError(
            f"input '{INPUT}' has shape {str(shape)[:80]}; expected [N, {', '.join(map(str, model.shape))}]"
        )
    if shape[0] > model.max_images:
        raise InputError(f"a batch of {short(shape[0])} images is too large; send at most {model.max_images} at a time")
    return tuple(shape)


def byte_size(shape: tuple[int, ...]) -> int:
    """How many bytes an FP32 tensor has."""
    return 4 * math.prod(shape)


def shared(part: Part, shape: tuple[int, ...], regions: Regions) -> Batch:
    """The input out of shared memory, float32 of ``shape``, the caller's own.

    Raises:
        NotFound, InputError: the part is of another size, or not there.
    """
    expected = byte_size(shape)
    if part.byte_size != expected:
        raise InputError(
            f"input '{INPUT}' of shape {list(shape)} needs {expected} bytes; "
            f"'shared_memory_byte_size' is {part.byte_size}"
        )
    content = regions.read(part.region, part.offset, expected)
    return content.view(LITTLE).reshape(shape).astype(np.float32, copy=False)


def output_wish(parameters: Mapping[str, Any], binary: bool) -> OutputWish:
    """How the output with these parameters is wanted.

    Args:
        parameters: the output's.
        binary: where they do not say.

    Raises:
        InputError: a value makes no sense.
    """
    part = part_of(parameters, f"output '{OUTPUT}'")
    classes = parameters.get("classification", 0)
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise InputError(f"'classification' is {short(classes)}; give how many classes are wanted")
    return OutputWish(bool(parameters.get("binary_data", binary)), classes, part)


def check_output(wish: OutputWish, images: int, model: ServedModel, regions: Regions) -> None:
    """Whether the answer will have room where it belongs, before an engine works for nothing.

    Raises:
        NotFound, InputError: it will not.
    """
    if wish.part is not None:
        regions.check(wish.part.region, wish.part.offset, wish.part.byte_size)
        check_room(wish.part, 0 if wish.classes else 4 * images * model.agent.classes)


def check_room(part: Part, needed: int) -> None:
    """Whether a part holds so many bytes.

    Raises:
        InputError: it does not.
    """
    if part.byte_size < needed:
        raise InputError(
            f"shared memory size specified with the request for output '{OUTPUT}' ({part.byte_size} bytes) "
            f"should be at least {needed} bytes to hold the results"
        )


def part_of(parameters: Mapping[str, Any], whose: str) -> Part | None:
    """The part of shared memory that a tensor's parameters name, or None.

    Raises:
        InputError: a value makes no sense.
    """
    region = parameters.get("shared_memory_region")
    if region is None:
        return None
    if not isinstance(region, str):
        raise InputError(f"{whose}: 'shared_memory_region' must be a name")
    return Part(
        region,
        whole(parameters, "shared_memory_offset", whose, 0),
        whole(parameters, "shared_memory_byte_size", whose),
    )


def whole(owner: Mapping[str, Any], key: str, whose: str, default: int | None = None) -> int:
    """A number of bytes.

    Raises:
        InputError: it is missing, or none.
    """
    value = owner.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise InputError(f"{whose}: '{key}' is {short(value)}; give a whole number of bytes")
    return value


def short(value: object) -> str:
    """A value as an error quotes it."""
    return repr(value)[:60]
