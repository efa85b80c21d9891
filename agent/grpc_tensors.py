"""``ModelInferRequest`` to a batch with its wishes, and an answer to ``ModelInferResponse``.

A tensor comes in one of three ways: raw little-endian bytes beside the tensors (what Triton's clients send), typed
numbers inside it, or a part of a registered shared memory region. If one tensor comes raw, all must. Logits go back
raw, as Triton sends them, or into shared memory. Shapes and sizes are checked against the model before anything is
allocated. Knows nothing of servers, and of the agent only its answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from agent.grpc_descriptors import Message
from agent.grpc_messages import INFERENCE
from agent.model import INPUT, OUTPUT, ServedModel, Wishes, pack_bytes
from agent.regions import Regions
from agent.tensors import (
    LITTLE,
    OutputWish,
    byte_size,
    check_output,
    check_room,
    checked_shape,
    output_wish,
    part_of,
    shared,
    short,
)
from agent.values import Answer
from backends.base import Batch
from subnets.errors import InputError

_RESPONSE = INFERENCE["ModelInferResponse"]
_LOGITS = OutputWish(binary=True)


class Asked(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request, understood."""

    batch: Batch  # float32 [N, C, H, W]
    wishes: Wishes
    id: str
    output: OutputWish


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
    output = _output(request.outputs)
    batch = _batch(request, request.inputs[0], model, regions)
    check_output(output, len(batch), model, regions)
    return Asked(batch=batch, wishes=wishes, id=request.id, output=output)


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
    output, wish = response.outputs.add(name=OUTPUT), asked.output
    if wish.classes:
        told, shape = model.classify(answer.logits, wish.classes)
        output.datatype, content = "BYTES", pack_bytes(told)
        output.shape.extend(shape)
    else:
        output.datatype = "FP32"
        output.shape.extend(answer.logits.shape)
        content = answer.logits.astype(LITTLE, copy=False).tobytes()
    if wish.part is not None:
        check_room(wish.part, len(content))
        regions.write(wish.part.region, wish.part.offset, content)
        content = b""  # Triton's C++ client crashes on an output without raw contents, be they empty
    response.raw_output_contents.append(content)
    return response


def parameters_of(sent: Mapping[str, Message]) -> dict[str, Any]:
    """Parameters as plain values; one that was sent empty is left out."""
    if not sent:
        return {}
    chosen = ((key, value, value.WhichOneof("parameter_choice")) for key, value in sent.items())
    return {key: getattr(value, choice) for key, value, choice in chosen if choice is not None}


def _output(outputs: Any) -> OutputWish:
    """How the answer is wanted."""
    if not outputs:
        return _LOGITS
    if len(outputs) != 1:
        raise InputError(f"the model gives exactly one output, '{OUTPUT}'; the request names {len(outputs)}")
    if outputs[0].name != OUTPUT:
        raise InputError(f"unexpected inference output {short(outputs[0].name)}; the model gives '{OUTPUT}'")
    return output_wish(parameters_of(outputs[0].parameters), True)


def _batch(request: Message, tensor: Message, model: ServedModel, regions: Regions) -> Batch:
    """The one input's numbers."""
    if tensor.name != INPUT:
        raise InputError(f"unexpected inference input {short(tensor.name)}; the model takes '{INPUT}'")
    if tensor.datatype != "FP32":
        raise InputError(f"input '{INPUT}' has datatype {short(tensor.datatype)}; send FP32")
    shape = checked_shape(tensor.shape[:5], model)
    raw = request.raw_input_contents
    typed = tensor.contents.ListFields() if tensor.HasField("contents") else ()
    part = part_of(parameters_of(tensor.parameters), f"input '{INPUT}'")
    ways = (len(raw) > 0) + bool(typed) + (part is not None)
    if ways != 1:
        raise InputError(
            f"input '{INPUT}' comes in {ways} ways; give one of raw_input_contents, contents and a shared memory region"
        )
    if part is not None:
        return shared(part, shape, regions)
    if typed:
        return _numbers(typed, shape)
    content, needed = raw[0], byte_size(shape)
    if len(raw) != 1 or len(content) != needed:
        raise InputError(
            f"input '{INPUT}' of shape {list(shape)} needs {needed} bytes; raw_input_contents has {len(raw)} "
            f"elements, the first of {len(content)} bytes"
        )
    return np.frombuffer(content, LITTLE).astype(np.float32, copy=False).reshape(shape)


def _numbers(typed: Iterable[Any], shape: tuple[int, ...]) -> Batch:
    (field, values), *more = typed
    if more or field.name != "fp32_contents":
        raise InputError(f"contents of input '{INPUT}' must be in fp32_contents alone")
    if 4 * len(values) != byte_size(shape):
        raise InputError(
            f"fp32_contents of input '{INPUT}' has {len(values)} numbers, "
            f"shape {list(shape)} needs {byte_size(shape) // 4}"
        )
    return np.fromiter(values, np.float32, len(values)).reshape(shape)
