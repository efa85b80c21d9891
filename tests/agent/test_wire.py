"""The native path's frames: what goes in comes out, and what is no frame is told from one."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from agent.wire import Failure, Kind, WireError

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(
    identifier=U64,
    shape=st.tuples(U32, U32, U32, U32),
    region=U32,
    input_offset=U64,
    logits_offset=st.none() | U64,
    place=U32,
    deadline_ms=FINITE,
    min_accuracy=FINITE,
    stream=st.binary(max_size=wire.STREAM_BYTES),
)
def test_a_request_comes_out_as_it_went_in(identifier, shape, logits_offset, stream, **more):
    frame = wire.request(identifier, shape, logits_offset=logits_offset, stream=stream, **more)
    assert len(frame) == wire.REQUEST_BYTES == 128
    assert wire.kind_of(frame, len(frame)) == Kind.REQUEST and wire.frame_id(frame, len(frame)) == identifier
    found = wire.read_request(frame, len(frame))._asdict()
    assert (found["images"], found["channels"], found["height"], found["width"]) == shape
    assert bool(found["flags"] & wire.LOGITS_IN_REGION) == (logits_offset is not None)
    assert found["logits_offset"] == (logits_offset or 0)
    assert found["stream"].rstrip(b"\0") == stream.rstrip(b"\0")
    assert {name: found[name] for name in more} == more


@given(
    identifier=U64,
    shape=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    place=U32,
    figures=st.tuples(FINITE, FINITE, FINITE, st.none() | FINITE),
    texts=st.tuples(TEXT, TEXT, TEXT, TEXT, TEXT),
    inline=st.booleans(),
)
def test_an_answer_comes_out_as_it_went_in(identifier, shape, place, figures, texts, inline):
    logits = (bytes(range(256)) * 7)[: 4 * shape[0] * shape[1]] if inline else None
    frame = wire.answer(identifier, shape, place, figures, wire.told(wire.Told(*texts)), logits)
    assert wire.kind_of(frame, len(frame)) == Kind.ANSWER
    reply = wire.read_answer(bytearray(frame), len(frame))
    assert (reply.id, (reply.images, reply.classes), reply.place) == (identifier, shape, place)
    assert reply.flags == (0 if inline else wire.LOGITS_IN_REGION)
    assert (reply.queue_ms, reply.infer_ms, reply.accuracy) == figures[:3]
    assert (None if math.isnan(reply.energy_j) else reply.energy_j) == figures[3]
    assert wire.read_told(frame[len(frame) - reply.text_bytes :]) == texts
    assert frame[wire.ANSWER_BYTES :].startswith(logits or b"")


@given(identifier=U64, failure=st.sampled_from(Failure), sentence=TEXT)
def test_an_error_comes_out_as_it_went_in(identifier, failure, sentence):
    frame = wire.error(identifier, failure, sentence)
    assert wire.read_error(frame, len(frame)) == (identifier, failure, sentence)


@given(identifier=U64, number=U32, size_bytes=U64)
def test_a_region_comes_out_as_it_went_in(identifier, number, size_bytes):
    frame = wire.region(identifier, number, size_bytes)
    found = wire.read_region(frame, len(frame))
    assert (found.kind, found.id, found.region, found.size_bytes) == (Kind.REGION, identifier, number, size_bytes)
    frame = wire.release(identifier, number)
    assert wire.read_region(frame, len(frame))[2:6] == (Kind.RELEASE, 0, identifier, number)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_a_wire_error(noise):
    readers = [wire.read_request, wire.read_answer, wire.read_region, wire.read_error, wire.read_welcome, wire.kind_of]
    for frame in (noise, wire.request(1, (1, 1, 1, 1))[:20] + noise):
        for reader in readers:
            try:
                reader(frame, len(frame))
            except WireError as error:
                assert str(error)


def test_the_layout_is_the_documented_one():
    """Byte for byte as docs/native.md has it, written by hand: other languages rely on it."""
    frame = wire.request(
        7,
        (2, 3, 32, 16),
        region=5,
        input_offset=64,
        logits_offset=128,
        place=4,
        deadline_ms=20.5,
        min_accuracy=0.25,
        stream=b"front",
    )
    assert frame[0:4] == b"GEAR" and frame[4:6] == bytes([1, 1])
    assert struct.unpack("<H", frame[6:8]) == (1,) and struct.unpack("<Q", frame[8:16]) == (7,)
    assert struct.unpack("<4I", frame[16:32]) == (2, 3, 32, 16)
    assert struct.unpack("<2I", frame[32:40]) == (5, 4)
    assert struct.unpack("<2Q", frame[40:56]) == (64, 128)
    assert struct.unpack("<2d", frame[56:72]) == (20.5, 0.25)
    assert frame[72:128] == b"front" + bytes(51)
    text = wire.told(wire.Told("s", "p", "b", "e", "r"))
    answer = wire.answer(7, (1, 2), 4, (0.5, 1.5, 0.75, 2.0), text, b"12345678")
    assert answer[4:6] == bytes([1, 66]) and len(answer) == 64 + 8 + 9
    assert struct.unpack("<4I4d", answer[16:64]) == (1, 2, 4, 9, 0.5, 1.5, 0.75, 2.0)
    assert answer[64:72] == b"12345678" and answer[72:] == b"s\0p\0b\0e\0r"
    region = wire.region(7, 5, 4096)
    assert region[4:6] == bytes([1, 2]) and struct.unpack("<2IQ", region[16:]) == (5, 0, 4096)
    assert wire.release(7, 5)[5] == 3 and wire.welcome({})[5] == 65 and wire.done(7)[5] == 68
    error = wire.error(7, Failure.BUSY, "full")
    assert error[5] == 67 and struct.unpack("<2I", error[16:24]) == (4, 4) and error[24:] == b"full"


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "0 bytes"),
        (b"HTTP" + bytes(12), "b'HTTP'"),
        (b"GEAR" + bytes([2, 1]) + bytes(10), "version 2"),
    ],
)
def test_what_is_no_frame_of_ours_is_told_why(frame, words):
    with pytest.raises(WireError, match=words):
        wire.kind_of(frame, len(frame))


def test_texts_cannot_be_taken_for_one_another_and_are_bounded():
    text = wire.told(wire.Told("s", "p", "b", "e", "one\0two" + "ä" * 4000))
    assert len(text) == wire.TEXT_BYTES
    assert wire.read_told(text).reason.startswith("one two")
    assert len(wire.error(1, Failure.INPUT, "ä" * 4000)) == wire.ERROR_BYTES + wire.TEXT_BYTES
    with pytest.raises(WireError, match="2 texts"):
        wire.read_told(b"one\0two")


def test_the_head_of_a_request_can_be_used_again():
    head = bytearray(wire.request(1, (1, 2, 3, 4), place=2))
    wire.set_id(head, 2**64 - 1)
    assert head == wire.request(2**64 - 1, (1, 2, 3, 4), place=2)
