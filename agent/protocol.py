"""Open Inference Protocol v2 as bytes: requests and replies with JSON or binary tensors.

A body is a JSON document; with the binary extension, tensors follow it in order of appearance, little-endian and
row-major, and ``Inference-Header-Content-Length`` says where the JSON ends. With shared memory, tensors lie in regions
instead. Shapes and sizes are checked against the model before anything is allocated. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import msgspec
import numpy as np

from agent.model import INPUT, OUTPUT, ServedModel, Unsupported, Wishes, pack_bytes
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

HEADER = "Inference-Header-Content-Length"

Body = bytes | memoryview


class TooLarge(InputError):
    """The body, or what it unpacks to, is larger than the server takes."""


_JSON, _BINARY = OutputWish(), OutputWish(binary=True)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class InferRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request, understood."""

    batch: Batch
    id: str | None
    wishes: Wishes
    output: OutputWish


def decompress(body: Body, encoding: str, max_bytes: int) -> Body:
    """The body of a request sent with Content-Encoding gzip or deflate.

    Raises:
        InputError: it is damaged.
        TooLarge: it unpacks to more than ``max_bytes``.
        Unsupported: another encoding.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Unsupported(f"Content-Encoding '{encoding[:40]}' is not offered; send gzip, deflate or none")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS)
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}: {error}") from None
    if len(plain) > max_bytes:
        raise TooLarge(f"the body unpacks to more than {max_bytes} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise InputError(f"the {encoding} body ends too early or too late")
    return plain


def compress(body: bytes, encoding: str) -> bytes:
    """A reply as gzip or deflate, as quickly as can be."""
    window = zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS
    packer = zlib.compressobj(1, zlib.DEFLATED, window)
    return packer.compress(body) + packer.flush()


def json_length(value: str, size: int) -> int:
    """Where the JSON part of a body of ``size`` bytes ends, from the header's value.

    Raises:
        InputError: it is not a number of bytes within the body.
    """
    if not (value.isascii() and value.isdigit() and len(value) < 16 and int(value) <= size):
        raise InputError(f"{HEADER} is '{value[:40]}', the body has {size} bytes")
    return int(value)


def read_request(
    body: Body, head: int | None, pinned: str | None, model: ServedModel, regions: Regions, max_json_bytes: int
) -> InferRequest:
    """Understands a request.

    Args:
        body: the whole body, unpacked. A binary tensor stays where it lies in it.
        head: length of the JSON part in bytes; None = the body is all JSON.
        pinned: the subnet that the path names, or None.
        model: what is asked.
        regions: where tensors may lie.
        max_json_bytes: what the JSON part may have: as Python objects it takes many times as much.

    Raises:
        InputError: anything in it is wrong.
        TooLarge: the JSON part is.
        Unsupported: it asks for what is not offered.
    """
    length = len(body) if head is None else head
    if length > max_json_bytes:
        raise TooLarge(f"the JSON part has {length} bytes, at most {max_json_bytes} are taken; send a binary tensor")
    document = _read_json(body if head is None else body[:head])
    tensor = _only_input(document)
    shape = checked_shape(tensor.get("shape"), model)
    parameters = _dictionary(tensor, "parameters")
    size = parameters.get("binary_data_size")
    part = part_of(parameters, f"input '{INPUT}'")
    follow = len(body) - length
    if part is not None:
        batch = shared(part, shape, regions)
        if follow:
            raise InputError(f"{follow} bytes follow the JSON, though the input lies in shared memory")
    elif size is not None:
        batch = _binary(memoryview(body)[length:], size, shape)
    elif follow:
        raise InputError(f"{follow} bytes follow the JSON, no input has 'binary_data_size'")
    else:
        batch = _numbers(tensor.get("data"), shape)
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise InputError("'id' must be a string")
    asked = _dictionary(document, "parameters")
    output = _output(document, asked.get("binary_data_output") is True)
    check_output(output, shape[0], model, regions)
    return InferRequest(batch=batch, id=identifier, wishes=model.wishes(asked, pinned), output=output)


def write_reply(
    request: InferRequest, answer: Answer, model: ServedModel, regions: Regions
) -> tuple[bytes, int | None]:
    """The reply's body, and the length of its JSON part when a binary tensor follows.

    Raises:
        InputError: the region that the answer belongs into has gone meanwhile.
    """
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version_of(answer.subnet)}
    if request.id is not None:
        document["id"] = request.id
    document["parameters"] = model.reply_parameters(answer)
    wish = request.output
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": answer.logits.shape}
    document["outputs"] = [output]
    strings: list[bytes] = []
    if wish.classes:
        strings, output["shape"] = model.classify(answer.logits, wish.classes)
        output["datatype"] = "BYTES"
    if not wish.binary and wish.part is None:
        output["data"] = [s.decode() for s in strings] if wish.classes else answer.logits.ravel().tolist()
        return msgspec.json.encode(document), None
    content = pack_bytes(strings) if wish.classes else answer.logits.astype(LITTLE, copy=False).tobytes()
    if wish.part is not None:
        # Neither 'data' nor 'parameters' beside it: Triton's C++ client takes any 'parameters' for a binary tensor.
        check_room(wish.part, len(content))
        regions.write(wish.part.region, wish.part.offset, content)
        return msgspec.json.encode(document), None
    output["parameters"] = {"binary_data_size": len(content)}
    head = msgspec.json.encode(document)
    return head + content, len(head)


def read_json(text: Body) -> Any:
    """A JSON document, also with the literals NaN and Infinity, which some clients write.

    Raises:
        InputError: it is none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        try:  # only the standard library reads those literals
            document = json.loads(bytes(text))
            if _SURROGATE.search(text):  # it also takes half a character, which no reply could carry back
                json.dumps(document, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is not JSON: {error}") from None
        return document


def _read_json(text: Body) -> dict[str, Any]:
    document = read_json(text)
    if not isinstance(document, dict):
        raise InputError("the body must be a JSON object with 'inputs'")
    return document


def _dictionary(owner: dict[str, Any], key: str) -> dict[str, Any]:
    found = owner.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"'{key}' must be an object")
    return found


def _only_input(document: dict[str, Any]) -> dict[str, Any]:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InputError(f"the model takes exactly one input, '{INPUT}'")
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("name") != INPUT:
        raise InputError(f"unexpected inference input {short(tensor.get('name'))}; the model takes '{INPUT}'")
    if tensor.get("datatype") != "FP32":
        raise InputError(f"input '{INPUT}' has datatype {short(tensor.get('datatype'))}; send FP32")
    return tensor


def _binary(rest: memoryview, size: object, shape: tuple[int, ...]) -> Batch:
    expected = byte_size(shape)
    if isinstance(size, bool) or size != expected or len(rest) != expected:
        raise InputError(
            f"input '{INPUT}' of shape {list(shape)} needs {expected} bytes; "
            f"'binary_data_size' is {short(size)} and {len(rest)} bytes follow the JSON"
        )
    return np.frombuffer(rest, LITTLE).reshape(shape).astype(np.float32, copy=False)


def _numbers(data: object, shape: tuple[int, ...]) -> Batch:
    if not isinstance(data, list):
        raise InputError(f"input '{INPUT}' has neither 'data' nor 'binary_data_size'")
    try:
        values = np.asarray(data)
    except (ValueError, RecursionError):
        raise InputError(
            f"'data' of input '{INPUT}' is ragged; send a flat list or one nested as the shape says"
        ) from None
    if values.dtype.kind not in "fiu":
        raise InputError(f"'data' of input '{INPUT}' must hold numbers only")
    if values.size != int(np.prod(shape)) or (values.ndim > 1 and values.shape != shape):
        raise InputError(
            f"'data' of input '{INPUT}' has {values.size} numbers, shape {list(shape)} needs {np.prod(shape)}"
        )
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which engines refuse
        return values.astype(np.float32).reshape(shape)


def _output(document: dict[str, Any], binary: bool) -> OutputWish:
    """How the answer is wanted."""
    outputs = document.get("outputs")
    if not outputs:
        return _BINARY if binary else _JSON
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise InputError(f"'outputs' must be a list of one object, the model gives '{OUTPUT}' alone")
    output = outputs[0]
    if output.get("name") != OUTPUT:
        raise InputError(f"unexpected inference output {short(output.get('name'))}; the model gives '{OUTPUT}'")
    return output_wish(_dictionary(output, "parameters"), binary)
