"""Open Inference Protocol v2 as bytes: metadata, and requests and replies with JSON or binary tensors.

A body is a JSON document; with the binary extension, tensors follow it in order of appearance, little-endian and
row-major, and ``Inference-Header-Content-Length`` says where the JSON ends. Shapes and sizes are checked against the
bundle before anything is allocated. Knows nothing of HTTP frameworks, and of the agent only its answers.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import msgspec
import numpy as np

from agent.values import Answer
from backends.base import Batch
from subnets import InputSpec
from subnets.errors import GearshiftError, InputError

INPUT, OUTPUT = "input", "logits"
EXTENSIONS = ("binary_tensor_data",)
HEADER = "inference-header-content-length"


class Unsupported(GearshiftError):
    """The request asks for a part of the protocol that is not offered."""


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request, understood."""

    batch: Batch
    id: str | None
    deadline_ms: float | None  # the protocol's own "timeout" parameter, microseconds there
    binary_output: bool


def model_metadata(name: str, versions: list[str], spec: InputSpec, classes: int) -> dict[str, Any]:
    """What a client needs to know of a model."""
    return {
        "name": name,
        "versions": versions,
        "platform": "gearshift",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *spec.shape]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, classes]}],
    }


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body of a request sent with Content-Encoding gzip or deflate.

    Raises:
        InputError: it is damaged.
        OverflowError: it unpacks to more than ``max_bytes``.
        Unsupported: another encoding.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Unsupported(f"Content-Encoding '{encoding}' is not offered; send gzip, deflate or none")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS)
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}: {error}") from None
    if len(plain) > max_bytes:
        raise OverflowError
    if not unpacker.eof:
        raise InputError(f"the {encoding} body ends too early")
    return plain


def read_request(body: bytes, json_length: str | None, spec: InputSpec, max_images: int) -> InferRequest:
    """Understands a request.

    Args:
        body: the whole body.
        json_length: the header's value; None = the body is all JSON.
        spec: what the model takes.
        max_images: largest batch.

    Raises:
        InputError: anything in it is wrong.
        Unsupported: it asks for shared memory, another data type or classification.
    """
    length = len(body)
    if json_length is not None:
        if not (
            json_length.isascii() and json_length.isdigit() and len(json_length) < 16 and int(json_length) <= length
        ):
            raise InputError(f"{HEADER} is '{json_length[:40]}', the body has {length} bytes")
        length = int(json_length)
    document = _read_json(body[:length])
    tensor = _only_input(document)
    shape = _shape(tensor, spec, max_images)
    parameters = _dictionary(tensor, "parameters")
    if "shared_memory_region" in parameters:
        raise Unsupported("shared memory is not offered; send the tensor in the body")
    size = parameters.get("binary_data_size")
    if size is not None:
        batch = _binary(body[length:], size, shape)
    elif len(body) > length:
        raise InputError(f"{len(body) - length} bytes follow the JSON, no input has 'binary_data_size'")
    else:
        batch = _numbers(tensor.get("data"), shape)
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise InputError("'id' must be a string")
    timeout_us = _dictionary(document, "parameters").get("timeout")
    if timeout_us is not None and (isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or timeout_us < 0):
        raise InputError(f"parameter 'timeout' is {timeout_us!r}; give whole microseconds")
    return InferRequest(
        batch=batch,
        id=identifier,
        deadline_ms=timeout_us / 1000 if timeout_us else None,
        binary_output=_binary_output(document),
    )


def write_reply(
    request: InferRequest, answer: Answer, name: str, version: str, accuracy: float
) -> tuple[bytes, int | None]:
    """The reply's body, and the length of its JSON part when a binary tensor follows."""
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["parameters"] = {
        "subnet": answer.subnet,
        "expected_accuracy": accuracy,
        "point": answer.point,
        "reason": answer.reason,
        "queue_ms": round(answer.queue_ms, 4),
        "infer_ms": round(answer.infer_ms, 4),
    }
    logits = np.ascontiguousarray(answer.logits, dtype="<f4")
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(logits.shape)}
    document["outputs"] = [output]
    if not request.binary_output:
        output["data"] = logits.ravel().tolist()
        return msgspec.json.encode(document), None
    output["parameters"] = {"binary_data_size": logits.nbytes}
    head = msgspec.json.encode(document)
    return head + logits.tobytes(), len(head)


def _read_json(text: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        try:  # the literals NaN and Infinity, which some clients write and only the standard library reads
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is not JSON: {error}") from None
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
        raise InputError(f"unexpected inference input {tensor.get('name')!r}; the model takes '{INPUT}'")
    if tensor.get("datatype") != "FP32":
        raise InputError(f"input '{INPUT}' has datatype {tensor.get('datatype')!r}; send FP32")
    return tensor


def _shape(tensor: dict[str, Any], spec: InputSpec, max_images: int) -> tuple[int, ...]:
    shape = tensor.get("shape")
    whole = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
    if not isinstance(shape, list) or not whole or len(shape) != 4 or tuple(shape[1:]) != spec.shape or shape[0] < 1:
        raise InputError(
            f"input '{INPUT}' has shape {str(shape)[:80]}; expected [N, {', '.join(map(str, spec.shape))}]"
        )
    if shape[0] > max_images:
        raise InputError(f"a batch of {shape[0]} images is too large; send at most {max_images} at a time")
    return tuple(shape)


def _binary(rest: bytes, size: object, shape: tuple[int, ...]) -> Batch:
    expected = 4 * int(np.prod(shape))
    if isinstance(size, bool) or size != expected or len(rest) != expected:
        raise InputError(
            f"input '{INPUT}' of shape {list(shape)} needs {expected} bytes; "
            f"'binary_data_size' is {str(size)[:40]} and {len(rest)} bytes follow the JSON"
        )
    return np.frombuffer(rest, "<f4").reshape(shape).astype(np.float32, copy=False)


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


def _binary_output(document: dict[str, Any]) -> bool:
    """Whether the logits are wanted as binary."""
    binary = _dictionary(document, "parameters").get("binary_data_output") is True
    outputs = document.get("outputs")
    if not outputs:
        return binary
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise InputError("'outputs' must be a list of objects")
    for output in outputs:
        if output.get("name") != OUTPUT:
            raise InputError(f"unexpected inference output {output.get('name')!r}; the model gives '{OUTPUT}'")
        parameters = _dictionary(output, "parameters")
        if parameters.get("classification"):
            raise Unsupported("the classification extension is not offered; take the logits")
        if "shared_memory_region" in parameters:
            raise Unsupported("shared memory is not offered; take the tensor from the body")
        binary = bool(parameters.get("binary_data", binary))
    return binary
