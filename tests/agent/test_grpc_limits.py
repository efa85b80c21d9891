"""What gRPC clients may not do: too much, too often, without the token, after the end; and bytes that are junk."""

import hmac
import threading
import time

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.grpc_errors import status_of
from agent.grpc_messages import HEALTH, INFERENCE
from subnets.errors import Busy, EngineError, InputError, Superseded

SERVICE = "/inference.GRPCInferenceService/"
CODES = grpc.StatusCode


@pytest.fixture
def agent(make_agent):
    return make_agent()


@pytest.fixture
def connect():
    """Makes channels that share no connection with another one."""
    made = []

    def make(address, credentials=None):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        if credentials is None:
            channel = grpc.insecure_channel(address, options)
        else:
            channel = grpc.secure_channel(address, credentials, options)
        made.append(channel)
        return channel

    yield make
    for channel in made:
        channel.close()


def request(batch, **more):
    made = INFERENCE["ModelInferRequest"](model_name="tiny", **more)
    made.inputs.add(name="input", datatype="FP32", shape=batch.shape)
    made.raw_input_contents.append(batch.tobytes())
    return made.SerializeToString()


def refused(call):
    """Code and sentence of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def until(true):
    while not true():
        time.sleep(0.01)


def test_a_message_too_large_is_refused_also_when_it_grows_by_unpacking(agent, make_grpc, connect, images):
    server = make_grpc(agent, max_message_bytes=10_000)
    infer = connect(server.address).unary_unary(f"{SERVICE}ModelInfer")
    assert infer(request(images), compression=grpc.Compression.Gzip, timeout=20)
    big = request(np.zeros((40, 1, 8, 8), np.float32))
    assert len(big) > 10_000
    for packing in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        code, words = refused(lambda packing=packing: infer(big, compression=packing, timeout=20))
        assert code is CODES.RESOURCE_EXHAUSTED and "larger than max" in words
    assert infer(request(images), timeout=20)


def test_too_many_calls_at_once_are_refused_and_later_ones_answered(agent, make_grpc, connect, backend, images):
    server = make_grpc(agent, max_calls=2)
    infer = connect(server.address).unary_unary(f"{SERVICE}ModelInfer")
    backend.blocking = threading.Event()
    first = [infer.future(request(images[:1]), timeout=30) for _ in range(2)]
    assert backend.entered.wait(10)
    until(lambda: agent.status().queue_depth == 1)
    # The client itself holds calls back that one connection may not carry, so another connection asks.
    live = connect(server.address).unary_unary(f"{SERVICE}ServerLive")
    assert refused(lambda: live(b"", timeout=20))[0] is CODES.RESOURCE_EXHAUSTED
    backend.blocking.set()
    assert all(call.result() for call in first)
    assert live(b"", timeout=20)


def test_too_many_streams_are_refused_but_single_calls_go_on(agent, make_grpc, connect, images):
    server = make_grpc(agent, max_streams=2)
    channel = connect(server.address)
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
    stream = channel.stream_stream(f"{SERVICE}ModelStreamInfer")
    ended = threading.Event()

    def requests():
        yield request(images)
        ended.wait(30)

    first, second = watch(b""), stream(requests())
    next(first), next(second)
    for call in (lambda: next(watch(b"")), lambda: next(stream(iter([request(images)])))):
        code, words = refused(call)
        assert code is CODES.RESOURCE_EXHAUSTED and "2 streams are open" in words
    assert channel.unary_unary(f"{SERVICE}ServerLive")(b"", timeout=20)
    ended.set()
    assert list(second) == []
    third = watch(b"")
    assert next(third)
    first.cancel(), third.cancel()


def test_connections_beyond_the_limit_are_closed_and_free_places_used_again(agent, make_grpc, connect):
    server = make_grpc(agent, max_connections=2)

    def live(channel):
        return channel.unary_unary(f"{SERVICE}ServerLive")(b"", timeout=20)

    first, second, third = (connect(server.address) for _ in range(3))
    assert live(first) and live(second)
    assert refused(lambda: live(third))[0] is CODES.UNAVAILABLE
    first.close()
    for _ in range(200):
        try:
            assert live(third)
            break
        except grpc.RpcError as error:
            assert error.code() is CODES.UNAVAILABLE
            time.sleep(0.1)
    else:
        pytest.fail("the free place was not used again")


def test_without_the_token_nothing_is_answered(agent, make_grpc, connect, images):
    server = make_grpc(agent, authorised=lambda value: hmac.compare_digest(value, "Bearer right"))
    channel = connect(server.address)
    infer = channel.unary_unary(f"{SERVICE}ModelInfer")
    wrong = (None, [("authorization", "Bearer wrong")], [("authorization", "Bearer right")] * 2)
    for metadata in wrong:
        code, words = refused(lambda metadata=metadata: infer(request(images), metadata=metadata, timeout=20))
        assert code is CODES.UNAUTHENTICATED and "authorization: Bearer" in words
    stream = channel.stream_stream(f"{SERVICE}ModelStreamInfer")
    assert refused(lambda: next(stream(iter([request(images)]))))[0] is CODES.UNAUTHENTICATED
    assert infer(request(images), metadata=[("authorization", "Bearer right")], timeout=20)


def test_a_cancelled_call_frees_its_place_in_the_queue(agent, make_grpc, connect, backend, images):
    infer = connect(make_grpc(agent).address).unary_unary(f"{SERVICE}ModelInfer")
    backend.blocking = threading.Event()
    running = infer.future(request(images[:1]), timeout=30)
    assert backend.entered.wait(10)
    waiting = infer.future(request(images[:1]), timeout=30)
    until(lambda: agent.status().queue_depth == 1)
    waiting.cancel()
    time.sleep(0.1)  # for the cancellation to arrive; were it late, the count below would be 3
    backend.blocking.set()
    assert running.result()
    agent.infer(images[:1])
    assert len(backend.sizes) == 2


def test_stopping_finishes_calls_under_way_and_refuses_new_ones(agent, make_grpc, connect, backend, images, helpers):
    server = make_grpc(agent)
    channel = connect(server.address)
    infer, stream = channel.unary_unary(f"{SERVICE}ModelInfer"), channel.stream_stream(f"{SERVICE}ModelStreamInfer")
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
    assert HEALTH["HealthCheckResponse"].FromString(next(watch)).status == 1
    backend.blocking = threading.Event()
    under_way = infer.future(request(images[:1]), timeout=30)
    ended = threading.Event()

    def requests():
        yield request(images[:1], id="last")
        ended.wait(30)

    streamed = stream(requests())
    assert backend.entered.wait(10)
    until(lambda: agent.status().queue_depth == 1)
    server.close(20)
    assert HEALTH["HealthCheckResponse"].FromString(next(watch)).status == 2
    assert list(watch) == []
    assert refused(lambda: infer(request(images), timeout=20))[0] is CODES.UNAVAILABLE
    backend.blocking.set()
    reply = INFERENCE["ModelInferResponse"].FromString(under_way.result())
    logits = np.frombuffer(reply.raw_output_contents[0], "<f4").reshape(1, 3)
    np.testing.assert_array_equal(logits, helpers.expected("s100", images[:1]))
    answered = INFERENCE["ModelStreamInferResponse"].FromString(next(streamed))
    assert answered.infer_response.id == "last" and not answered.error_message
    code, words = refused(lambda: next(streamed))
    assert code is CODES.UNAVAILABLE and "closing" in words
    ended.set()
    server.join()
    assert not server.path.exists()


def test_a_taken_port_is_refused(agent, make_grpc):
    port = make_grpc(agent).listen_tcp("127.0.0.1:0")
    with pytest.raises(InputError, match="--grpc-port"):
        make_grpc(agent).listen_tcp(f"127.0.0.1:{port}")


def test_every_error_has_its_code_and_no_more_than_a_sentence():
    assert status_of(Superseded("newer"))[0] is CODES.ABORTED
    assert status_of(Busy("full")) == (CODES.UNAVAILABLE, "full")
    assert status_of(EngineError("broken"))[0] is CODES.INTERNAL
    code, words = status_of(ValueError("x" * 5000))
    assert code is CODES.INTERNAL and words.startswith("internal error: ValueError: x") and len(words) == 1000


# -- bytes that are no message


@pytest.fixture
def infer(agent, make_grpc, connect):
    """Sends bytes to ``ModelInfer``."""
    return connect(make_grpc(agent).address).unary_unary(f"{SERVICE}ModelInfer")


SOUND = request(np.ones((1, 1, 4, 4), np.float32), id="abc")


@st.composite
def damaged(draw):
    """A sound request with some bytes changed, cut out or put in."""
    content = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        if draw(st.booleans()) and place < len(content):
            content[place] = draw(st.integers(0, 255))
        else:
            content[place : place + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(content)


@given(st.one_of(damaged(), st.binary(max_size=200)))
@example(b"\xff" * 50)
@example(b"\x2a" + b"\x80" * 9 + b"\x01")
@example(SOUND[:-1])
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_are_no_sound_request_get_a_status_and_a_sentence(infer, content):
    try:
        reply = INFERENCE["ModelInferResponse"].FromString(infer(content, timeout=30))
    except grpc.RpcError as error:
        assert error.code() in (CODES.INVALID_ARGUMENT, CODES.NOT_FOUND, CODES.UNIMPLEMENTED)
        assert error.details() and "Traceback" not in error.details() and "internal error" not in error.details()
    else:  # the damage hit nothing that matters
        assert list(reply.outputs[0].shape) == [1, 3] and len(reply.raw_output_contents[0]) == 12


@pytest.mark.parametrize("name", [name for name in INFERENCE if name.endswith("Request")])
def test_every_method_answers_junk_with_a_status(agent, make_grpc, connect, name):
    method = name.removesuffix("Request")
    channel = connect(make_grpc(agent).address)
    code, words = refused(lambda: channel.unary_unary(SERVICE + method)(b"\xff" * 20, timeout=20))
    assert code is CODES.INVALID_ARGUMENT and "not the message" in words


def test_junk_on_a_stream_spoils_only_itself(agent, make_grpc, connect, images):
    stream = connect(make_grpc(agent).address).stream_stream(f"{SERVICE}ModelStreamInfer")
    replies = [
        INFERENCE["ModelStreamInferResponse"].FromString(reply)
        for reply in stream(iter([b"\xff" * 20, request(images), request(images[:, :, 1:], id="7")]), timeout=30)
    ]
    assert [bool(reply.error_message) for reply in replies] == [True, False, True]
    assert replies[2].infer_response.id == "7"
    assert list(replies[1].infer_response.outputs[0].shape) == [5, 3]
