"""Requests whose JSON was understood before: the same as if it were understood anew, whatever came between."""

import json

import msgspec
import numpy as np
import pytest

from agent import http_heads
from agent.http_heads import Heads
from agent.model import ServedModel
from agent.protocol import read_request
from agent.regions import Regions
from subnets.errors import InputError

LIMIT = 10_000


@pytest.fixture
def model(make_agent):
    return ServedModel(make_agent(), max_images=8)


@pytest.fixture
def heads(model):
    return Heads(model, Regions(enabled=False), LIMIT)


def binary(images, size=None, **more):
    """(body, length of its JSON)."""
    parameters = {"binary_data_size": images.nbytes if size is None else size}
    tensor = {"name": "input", "shape": list(images.shape), "datatype": "FP32", "parameters": parameters}
    document = json.dumps({"inputs": [tensor], **more}).encode()
    return document + images.tobytes(), len(document)


def same(heads, model, body, length, pinned=None):
    """What it reads, which must be what is read without any memory."""
    found = heads.read(body, length, pinned)
    expected = read_request(body, length, pinned, model, Regions(enabled=False), LIMIT)
    np.testing.assert_array_equal(found.batch, expected.batch)
    assert found.batch.dtype == np.float32
    blank = np.empty(0, np.float32)
    assert msgspec.structs.replace(found, batch=blank) == msgspec.structs.replace(expected, batch=blank)
    return found


def test_the_same_json_gives_the_same_request_with_the_new_tensor(heads, model, images, monkeypatch):
    body, length = binary(images[:2], parameters={"timeout": 5000, "binary_data_output": True}, id="a")
    same(heads, model, body, length)
    monkeypatch.setattr(http_heads, "read_request", None)  # nothing is understood anew
    other, _ = binary(images[3:5], parameters={"timeout": 5000, "binary_data_output": True}, id="a")
    found = same(heads, model, memoryview(other), length)
    assert found.wishes.deadline_ms == 5.0 and found.output.binary and found.id == "a"
    np.testing.assert_array_equal(found.batch, images[3:5])


def test_whatever_differs_is_understood_anew(heads, model, images):
    for _ in range(2):
        for more in ({}, {"id": "b"}, {"parameters": {"subnet": "s25"}}, {"parameters": {"min_accuracy": 0.5}}):
            for count in (1, 2):
                same(heads, model, *binary(images[:count], **more))
        same(heads, model, *binary(images[:1]), "s50")


def test_a_body_of_another_length_is_refused_after_one_that_fitted(heads, images):
    body, length = binary(images[:1])
    heads.read(body, length, None)
    for wrong in (body[:-1], body + b"\0", body[:length]):
        with pytest.raises(InputError):
            heads.read(wrong, length, None)
    heads.read(body, length, None)


def test_what_is_wrong_stays_wrong(heads, images):
    body, length = binary(images[:1], size=3)
    for _ in range(3):
        with pytest.raises(InputError, match="binary_data_size"):
            heads.read(body, length, None)


def test_ever_new_heads_take_no_more_memory(heads, model, images):
    for index in range(500):
        same(heads, model, *binary(images[:1], id=str(index)))
    assert len(heads._known) <= 64
    heads.read(*binary(images[:1], id="x" * 5000), None)
    assert all(len(head) <= 1024 for head, _, _ in heads._known)


def test_json_alone_is_read_each_time(heads, model, images):
    tensor = {"name": "input", "shape": [1, 1, 4, 4], "datatype": "FP32", "data": images[:1].ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    for length in (None, len(body)):
        same(heads, model, body, length)
    assert not heads._known
