"""Requests that begin as one before them: the JSON is understood once, then only the tensor is taken.

A client in a loop sends the same JSON before each binary tensor. Knows nothing of HTTP.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from agent.model import ServedModel, Wishes
from agent.protocol import Body, InferRequest, read_request
from agent.regions import Regions
from agent.tensors import LITTLE, OutputWish

_MOST_HEADS, _MOST_BYTES = 64, 1024


class _Head(NamedTuple):
    shape: tuple[int, ...]
    id: str | None
    wishes: Wishes
    output: OutputWish


class Heads:
    """Reads requests for one model. In one thread.

    Args:
        model: what is asked.
        regions: where tensors may lie.
        max_json_bytes: see :func:`agent.protocol.read_request`.
    """

    def __init__(self, model: ServedModel, regions: Regions, max_json_bytes: int) -> None:
        self._model, self._regions, self._max_json_bytes = model, regions, max_json_bytes
        self._known: dict[tuple[bytes, int, str | None], _Head] = {}

    def read(self, body: Body, length: int | None, pinned: str | None) -> InferRequest:
        """As :func:`agent.protocol.read_request`.

        Args:
            body: the whole body, unpacked.
            length: of the JSON part in bytes; None = the body is all JSON.
            pinned: the subnet that the path names, or None.

        Raises:
            InputError: anything in it is wrong.
            TooLarge: the JSON part is.
            Unsupported: it asks for what is not offered.
        """
        if length is None or not length <= _MOST_BYTES or length == len(body):  # of a region nothing is remembered
            return read_request(body, length, pinned, self._model, self._regions, self._max_json_bytes)
        key = bytes(body[:length]), len(body), pinned
        head = self._known.get(key)
        if head is not None:
            batch = np.frombuffer(body, LITTLE, offset=length).reshape(head.shape).astype(np.float32, copy=False)
            return InferRequest(batch=batch, id=head.id, wishes=head.wishes, output=head.output)
        request = read_request(body, length, pinned, self._model, self._regions, self._max_json_bytes)
        if request.output.part is None:
            if len(self._known) >= _MOST_HEADS:
                self._known.clear()
            self._known[key] = _Head(request.batch.shape, request.id, request.wishes, request.output)
        return request
