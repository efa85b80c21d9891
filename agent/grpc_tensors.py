"""``ModelInferRequest`` to a batch with its wishes, and an answer to ``ModelInferResponse``.

A tensor comes in one of three ways: raw little-endian bytes beside the tensors (what Triton's clients send), typed
numbers inside it, or a part of a registered shared memory region. If one tensor comes raw, all must. Logits go back
raw, as Triton sends them, or into shared memory. Shapes and sizes are checked against the model before anything is
allocated. Knows nothing of servers, and of the agent only its answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import msgspec
import numpy as np

from agent.grpc_descriptors import Message
from agent.grpc_messages import INFERENCE
from agent.model import INPUT, OUTPUT, ServedModel, Wishes, pack_bytes
from agent.regions import Regions
from agent.values import Answer
from backends.base import Batch
from subnets.errors import InputError

_RESPONSE = INFERENCE["ModelInferResponse"]
_REGION = "shared_memory_region"
_PLACE = (_REGION, "shared_memory_offset", "shared_memory_byte_size")


class Place(msgspec.Struct, frozen=True, gc=False):
    """A part of a shared memory region."""

    region: str
    offset: int
    byte_size: int


class Asked(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request, understood."""

    batch: Batch  # float32 [N, C, H, W]
    wishes: Wishes
    id: str
    classification: int  # best classes wanted instead of logits; 0 = the logits
    place: Place | None  # where the output goes; None = into the reply


def read_request(request: Message, model: ServedModel, regions: Regions) -> Asked:
    """Understands a request.

    Args:
        request: a ``ModelInferRequest``.
        model: what is served.
        regions: where shared memory is.

    Raises:
        NotFound: no such model, version or region.
        InputError: anything else in it is wrong.
        Unsupported: it asks for what is not offered.
    """
    pinned = model.subnet_of(request.model_name, request.model_version)
    wishes = model.wishes(parameters_of(request.parameters), pinned)
    if len(request.inputs) != 1:
        raise InputError(f"the model takes exactly one input, '{INPUT}'; the request has {len(request.inputs)}")
    classification, place = _output(request.outputs)
    batch = _batch(request, request.inputs[0], model, regions)
    if place is not None:  # before the engine works for nothing
        least = 4 * len(batch) * model.agent.classes
        if not classification and place.byte_size < least:
            raise InputError(
                f"shared memory size specified with the request for output '{OUTPUT}' ({place.byte_size} bytes) "
                f"should be at least {least} bytes to hold the results"
            )
        regions.check(place.region, place.offset, place.byte_size)
    return Asked(batch=batch, wishes=wishes, id=request.id, classification=classification, place=place)


def write_reply(asked: Asked, answer: Answer, model: ServedModel, regions: Regions) -> Message:
    """The ``ModelInferResponse``; an output for shared memory is written there.

    Raises:
        InputError: the region is gone or too short for the classes by now.
    """
    response = _RESPONSE(model_name=model.name, model_version=model.version_of(answer.subnet), id=asked.id)
    for key, value in model.reply_parameters(answer).items():
        parameter = response.parameters[key]
        if isinstance(value, str):
            parameter.string_param = value
        else:
            parameter.double_param = value
    output = response.outputs.add(name=OUTPUT)
    if asked.classification:
        told, shape = model.classify(answer.logits, asked.classification)
        output.datatype, content = "BYTES", pack_bytes(told)
        output.shape.extend(shape)
    else:
        output.datatype = "FP32"
        output.shape.extend(answer.logits.shape)
        content = np.ascontiguousarray(answer.logits, "<f4").tobytes()
    place = asked.place
    if place is None:
        response.raw_output_contents.append(content)
    elif len(content) > place.byte_size:
        raise InputError(
            f"shared memory size specified with the request for output '{OUTPUT}' ({place.byte_size} bytes) "
            f"should be at least {len(content)} bytes to hold the results"
        )
    else:
        regions.write(place.region, place.offset, content)
    return response


def parameters_of(sent: Mapping[str, Message]) -> dict[str, Any]:
    """Parameters as plain values; one that was sent empty is left out."""
    if not sent:
        return {}
    chosen = ((key, value, value.WhichOneof("parameter_choice")) for key, value in sent.items())
    return {key: getattr(value, choice) for key, value, choice in chosen if choice is not None}


def _output(outputs: Iterable[Message]) -> tuple[int, Place | None]:
    """(best classes wanted, where to): what is asked of the one output; asked for twice, the last counts."""
    classification, place = 0, None
    for output in outputs:
        if output.name != OUTPUT:
            raise InputError(f"unexpected inference output '{output.name[:80]}'; the model gives '{OUTPUT}'")
        parameters = parameters_of(output.parameters)
        place = _place(parameters, OUTPUT)
        classification = parameters.get("classification", 0)
        if not _whole(classification):
            raise InputError(f"'classification' of output '{OUTPUT}' must be a whole number of classes")
        if classification and place is not None:
            raise InputError(f"output '{OUTPUT}': give either 'classification' or '{_REGION}'")
    return classification, place


def _place(parameters: Mapping[str, Any], tensor: str) -> Place | None:
    if not parameters or not any(key in parameters for key in _PLACE):
        return None
    region, offset, size = parameters.get(_REGION), parameters.get(_PLACE[1], 0), parameters.get(_PLACE[2])
    if not (isinstance(region, str) and region and _whole(offset) and _whole(size)):
        raise InputError(
            f"'{tensor}': shared memory needs '{_REGION}' (a name) and '{_PLACE[2]}', and may have '{_PLACE[1]}' "
            "(whole numbers)"
        )
    return Place(region, offset, size)


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _batch(request: Message, tensor: Message, model: ServedModel, regions: Regions) -> Batch:
    """The one input's numbers."""
    shape = _shape(tensor, model)
    raw = request.raw_input_contents
    typed = tensor.contents.ListFields() if tensor.HasField("contents") else ()
    place = _place(parameters_of(tensor.parameters), INPUT)
    ways = (len(raw) > 0) + bool(typed) + (place is not None)
    if ways != 1:
        raise InputError(
            f"input '{INPUT}' comes in {ways} ways; give one of raw_input_contents, contents and a shared memory region"
        )
    needed = 4 * math.prod(shape)
    if place is not None:
        if place.byte_size != needed:
            raise InputError(f"input '{INPUT}' of shape {list(shape)} needs {needed} bytes, not {place.byte_size}")
        content: Any = regions.read(place.region, place.offset, place.byte_size)
    elif typed:
        return _numbers(typed, shape)
    else:
        content = raw[0]
        if len(raw) != 1 or len(content) != needed:
            raise InputError(
                f"input '{INPUT}' of shape {list(shape)} needs {needed} bytes; raw_input_contents has {len(raw)} "
                f"elements, the first of {len(content)} bytes"
            )
    return np.frombuffer(content, "<f4").astype(np.float32, copy=False).reshape(shape)


def _shape(tensor: Message, model: ServedModel) -> tuple[int, ...]:
    if tensor.name != INPUT:
        raise InputError(f"unexpected inference input '{tensor.name[:80]}'; the model takes '{INPUT}'")
    if tensor.datatype != "FP32":
        raise InputError(f"input '{INPUT}' has datatype '{tensor.datatype[:40]}'; send FP32")
    shape = tuple(tensor.shape[:5])
    if len(shape) != 4 or shape[1:] != model.shape or shape[0] < 1:
        raise InputError(f"input '{INPUT}' has shape {list(shape)}; expected [N, {', '.join(map(str, model.shape))}]")
    if shape[0] > model.max_images:
        raise InputError(f"a batch of {shape[0]} images is too large; send at most {model.max_images} at a time")
    return shape


def _numbers(typed: Iterable[Any], shape: tuple[int, ...]) -> Batch:
    (field, values), *more = typed
    if more or field.name != "fp32_contents":
        raise InputError(f"contents of input '{INPUT}' must be in fp32_contents alone")
    if len(values) != math.prod(shape):
        raise InputError(
            f"fp32_contents of input '{INPUT}' has {len(values)} numbers, shape {list(shape)} needs {math.prod(shape)}"
        )
    return np.fromiter(values, np.float32, len(values)).reshape(shape)
