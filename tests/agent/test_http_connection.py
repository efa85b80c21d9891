"""HTTP/1.1 itself, byte by byte over real sockets: framing, order, endings, and every limit."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest

INFER = "/v2/models/tiny/infer"


@pytest.fixture
def agent(make_agent):
    return make_agent(queue_limit=8)


def request(body=b"", *, method="POST", path=INFER, head="") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


def inference(value: float, **more) -> bytes:
    """A request whose answer tells it apart: the fake s100's first logit is 4 x 16 x value."""
    tensor = {"name": "input", "shape": [1, 1, 4, 4], "datatype": "FP32", "data": [value] * 16}
    return json.dumps({"inputs": [tensor], **more}).encode()


GET = request(method="GET", path="/v2/health/live")


class Stream:
    """Reads replies off a connection, one after another."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.rest = connection, b""

    def send(self, content: bytes) -> None:
        self.connection.sendall(content)

    def more(self) -> bool:
        piece = self.connection.recv(65536)
        self.rest += piece
        return bool(piece)

    def reply(self, *, head_only=False) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self.rest:
            assert self.more(), f"closed after {self.rest!r}"
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if status.startswith("HTTP/1.1 100"):
            return 100, headers, b""
        length = 0 if head_only else int(headers.get("content-length", 0))
        while len(self.rest) < length:
            assert self.more()
        body, self.rest = self.rest[:length], self.rest[length:]
        return int(status.split()[1]), headers, body

    def closed(self) -> bool:
        """Whether the server closes, with nothing more to say."""
        while self.more():
            pass
        return self.rest == b""


@pytest.fixture
def connect(agent, make_http):
    """Makes streams to a server with given limits."""
    with contextlib.ExitStack() as stack:
        servers = {}

        def connect(**limits) -> Stream:
            key = tuple(limits.items())
            if key not in servers:
                servers[key] = make_http(agent, **limits)
            stream = Stream(stack.enter_context(servers[key].connect()))
            stream.http = servers[key]
            return stream

        yield connect


def told(reply) -> str:
    status, headers, body = reply
    assert status >= 400 and headers["content-type"] == "application/json"
    (name, sentence) = next(iter(json.loads(body).items()))
    assert name == "error" and "Traceback" not in sentence
    return sentence


def first_logit(reply) -> float:
    assert reply[0] == 200, reply
    return json.loads(reply[2])["outputs"][0]["data"][0]


# -- framing


def test_a_request_may_arrive_in_any_pieces(connect):
    stream, content = connect(), request(inference(1.0))
    for at in range(0, len(content), 7):
        stream.send(content[at : at + 7])
    assert first_logit(stream.reply()) == 64


def test_many_requests_use_one_connection(connect):
    stream = connect()
    for value in (1.0, 2.0, 3.0):
        stream.send(request(inference(value)))
        assert first_logit(stream.reply()) == 64 * value
    stream.send(GET)
    assert stream.reply()[0] == 200


def test_pipelined_requests_of_all_kinds_are_answered_in_order(connect):
    stream = connect()
    stream.send(request(inference(1.0)) + GET + request(b"{") + request(inference(2.0)) + GET)
    assert first_logit(stream.reply()) == 64
    assert stream.reply()[0] == 200
    assert "not JSON" in told(stream.reply())
    assert first_logit(stream.reply()) == 128
    assert stream.reply()[0] == 200


def test_too_many_pipelined_requests_end_the_connection_after_those_before_them(connect, backend):
    stream = connect()
    stream.send(GET * 40)
    replies = []
    while not replies or replies[-1][0] == 200:
        replies.append(stream.reply())
    assert 16 <= len(replies) < 40 and "on one connection" in told(replies[-1])
    assert replies[-1][0] == 429 and replies[-1][1]["connection"] == "close"


def test_a_chunked_body_is_read_and_limited(connect):
    stream, body = connect(max_body_bytes=1000), inference(1.0)
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:50], body[50:]))
    stream.send(head + chunks + b"0\r\nContent-Encoding: br\r\nHost: elsewhere\r\n\r\n")  # too late to count
    assert first_logit(stream.reply()) == 64
    stream.send(head + b"1f4\r\n" + b"x" * 500 + b"\r\n" + b"1f5\r\n" + b"x" * 501)
    reply = stream.reply()
    assert reply[0] == 413 and "more than 1000 bytes" in told(reply)


def test_a_body_too_large_by_its_length_is_refused_before_it_arrives(connect):
    stream = connect(max_body_bytes=1000)
    stream.send(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n".encode())
    reply = stream.reply()
    assert reply[0] == 413 and "1001 bytes" in told(reply) and reply[1]["connection"] == "close"


def test_a_client_that_is_still_sending_reads_why_it_was_refused(connect):
    stream = connect(max_body_bytes=1000)
    stream.send(request(b"x" * 3_000_000))  # would fail if the server closed at once
    assert "at most 1000" in told(stream.reply())


def test_bodies_that_are_no_inference_have_a_smaller_limit(connect):
    stream = connect()
    stream.send(request(b"x" * (2**20 + 1), path="/v2/repository/index"))
    assert "1048576" in told(stream.reply())


def test_a_large_tensor_arrives_whole_and_is_given_to_the_engine_where_it_lies_aligned(make_http, make_agent, helpers):
    seen = []
    agent = make_agent()
    http = make_http(agent, max_body_bytes=2**20)
    submit = agent.submit
    agent.submit = lambda batch, **wishes: seen.append(batch) or submit(batch[:1], **wishes)
    images = np.random.Generator(np.random.PCG64(3)).uniform(size=(2000, 1, 4, 4)).astype(np.float32)
    http.model.max_images = 2000
    tensor = {"name": "input", "shape": [2000, 1, 4, 4], "datatype": "FP32"}
    for padding in range(5):
        document = {"id": "x" * padding, "inputs": [tensor | {"parameters": {"binary_data_size": images.nbytes}}]}
        head = json.dumps(document).encode()
        reply = http.post(INFER, head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))})
        assert reply.status == 200
        (batch,) = seen
        seen.clear()
        np.testing.assert_array_equal(batch, images)
        assert batch.ctypes.data % 64 == 0 and batch.flags.aligned and batch.flags.writeable


def test_expect_continue_is_answered_before_the_body(connect):
    stream, body = connect(), inference(1.0)
    content = request(body, head="Expect: 100-continue\r\n")
    stream.send(content[: -len(body)])
    assert stream.reply()[0] == 100
    stream.send(body)
    assert first_logit(stream.reply()) == 64


def test_head_has_no_body(connect):
    stream = connect()
    for path, status in (("/v2", 200), ("/nowhere", 404)):
        stream.send(request(method="HEAD", path=path))
        reply = stream.reply(head_only=True)
        assert reply[0] == status and int(reply[1]["content-length"]) > 0
    stream.send(request(method="HEAD", path=INFER))
    assert stream.reply(head_only=True)[0] == 405
    stream.send(GET)
    assert stream.reply()[0] == 200


@pytest.mark.parametrize(
    "head",
    [b"POST %b HTTP/1.0\r\nHost: localhost\r\n", b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"],
)
def test_connections_close_when_the_client_asks(connect, head):
    stream, body = connect(), inference(1.0)
    stream.send(head % INFER.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    reply = stream.reply()
    assert first_logit(reply) == 64 and reply[1]["connection"] == "close" and stream.closed()


def test_an_upgrade_is_answered_as_if_it_were_none(connect):
    stream = connect()
    stream.send(request(method="GET", path="/v2", head="Connection: Upgrade\r\nUpgrade: h2c\r\n") + b"PRI * HTTP/2.0")
    reply = stream.reply()
    assert reply[0] == 200 and reply[1]["connection"] == "close" and stream.closed()


def test_a_target_with_scheme_and_host_is_understood(connect):
    stream = connect()
    stream.send(request(inference(1.0), path=f"http://localhost{INFER}?x"))
    assert first_logit(stream.reply()) == 64


# -- what is no HTTP


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS where none is spoken
        (b"GET\r\n\r\n", 400),
        (b"NONSENSE / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA\x00B: c\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET relative HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_what_is_no_http_gets_a_sentence_and_the_end(connect, content, status):
    stream = connect()
    stream.send(content)
    reply = stream.reply()
    assert reply[0] in (status, 400) and told(reply)
    stream = connect()
    stream.send(GET)
    assert stream.reply()[0] == 200, "and the server goes on"


def test_a_broken_request_after_a_good_one_does_not_spoil_its_answer(connect):
    stream = connect()
    stream.send(request(inference(1.0)) + b"junk\r\n\r\n")
    assert first_logit(stream.reply()) == 64
    assert "not HTTP/1.1" in told(stream.reply())


# -- limits

MANY = 600_000  # more than is ever read at once
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"GET /" + b"x" * MANY,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * MANY,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * (MANY // 6),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X" * MANY,
        CHUNKED + b"0\r\n" + b"X: y\r\n" * (MANY // 6),
        CHUNKED + b"0\r\nX: " + b"y" * MANY,
        CHUNKED + b"1;" + b"y" * MANY,
    ],
)
@pytest.mark.parametrize("piece", [1000, 10**6])
def test_heads_trailers_and_chunk_extensions_have_a_limit_however_they_arrive(connect, content, piece):
    stream = connect(max_head_bytes=1000)
    for at in range(0, len(content), piece):
        stream.send(content[at : at + piece])
    reply = stream.reply()
    assert reply[0] == 431 and "more than 1000 bytes" in told(reply)


def test_a_large_body_does_not_count_towards_the_head_of_the_next_request(connect):
    stream = connect(max_head_bytes=300)
    body = inference(1.0, id="x" * 5000)
    for _ in range(3):
        stream.send(request(body) + GET[:20])
        assert first_logit(stream.reply()) == 64
        stream.send(GET[20:])
        assert stream.reply()[0] == 200


def test_over_the_limit_of_connections_an_idle_one_gives_way(connect):
    first, second, third = (connect(max_connections=2) for _ in range(3))
    third.send(GET)
    assert third.reply()[0] == 200
    assert first.closed(), "it has idled longest"
    second.send(GET)
    assert second.reply()[0] == 200


def test_over_the_limit_of_connections_in_use_a_new_one_is_503(connect, backend):
    backend.blocking = threading.Event()
    first, second = connect(max_connections=2), connect(max_connections=2)
    first.send(request(inference(1.0)))
    assert backend.entered.wait(10)
    second.send(GET[:20])  # half a request
    while second.http.server._shared.connections and any(c.idle for c in second.http.server._shared.connections):
        time.sleep(0.01)
    third = connect(max_connections=2)
    reply = third.reply()
    assert reply[0] == 503 and "too many connections" in told(reply) and third.closed()
    backend.blocking.set()
    assert first_logit(first.reply()) == 64
    second.send(GET[20:])
    assert second.reply()[0] == 200


def test_other_machines_leave_places_for_this_ones_own_programs(agent):
    from agent.access import Access
    from agent.http_connection import Connection
    from agent.http_inference import Inference, Limits
    from agent.http_shared import Shared
    from agent.model import ServedModel
    from agent.regions import Regions
    from agent.statistics import ServingStatistics

    class Busy(Connection):
        idle = False

    model, limits = ServedModel(agent), Limits(max_connections=4)
    inference = Inference(model, Regions(enabled=False), ServingStatistics(model.name, model.versions), limits)
    shared = Shared(inference, None, Access(), limits)
    admitted = [shared.admit(Busy(shared, public, None)) for public in (True, True, True, True, False, False)]
    assert admitted == [True, True, True, False, True, False]


def test_all_requests_together_hold_no_more_memory_than_allowed(connect):
    held = [connect(max_held_bytes=2900) for _ in range(3)]
    for stream in held[:2]:
        stream.send(request(b"x" * 1400)[:-1])  # all but the last byte
    while held[0].http.server._shared._held_bytes < 2600:
        time.sleep(0.01)
    held[2].send(request(inference(1.0)))
    reply = held[2].reply()
    assert reply[0] == 503 and "under way already" in told(reply)
    for stream in held[:2]:
        stream.connection.close()
    while held[0].http.server._shared._held_bytes:
        time.sleep(0.01)
    again = connect(max_held_bytes=2900)
    again.send(request(inference(1.0)))
    assert first_logit(again.reply()) == 64


def test_nothing_is_held_any_more_once_all_is_answered(connect, backend):
    stream = connect()
    for body in (inference(1.0), b"{", inference(2.0)):
        stream.send(request(body))
        stream.reply()
    gone = connect()
    gone.send(request(b"x" * 1000)[:-1])
    gone.connection.close()
    refused = connect()
    refused.send(b"nonsense")
    refused.reply()
    while stream.http.server._shared._held_bytes:
        time.sleep(0.01)


def test_a_request_that_does_not_end_is_408_and_an_idle_connection_is_closed(connect):
    slow, idle = (connect(read_timeout_s=0.3, idle_timeout_s=0.3) for _ in range(2))
    slow.send(GET[:-1])
    reply = slow.reply()
    assert reply[0] == 408 and "0.3 s" in told(reply)
    assert idle.closed()


def test_a_client_that_does_not_take_its_replies_is_cut_off(connect):
    stream = connect(read_timeout_s=0.3)
    stream.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.suppress(ConnectionError):
        for _ in range(2000):  # about 5 MB of replies, none of which is read
            stream.send(request(inference(1.0, id="x" * 3000)))
    with contextlib.suppress(ConnectionError):
        while stream.more():
            stream.rest = b""
    assert not stream.http.server._shared.connections


def test_an_inference_whose_client_has_gone_costs_nothing(connect, agent, backend):
    backend.blocking = threading.Event()
    first, second = connect(), connect()
    first.send(request(inference(1.0)))
    assert backend.entered.wait(10)
    second.send(request(inference(2.0)))
    while not agent.status().queue_depth:
        time.sleep(0.01)
    second.connection.close()
    while len(second.http.server._shared.connections) > 1:
        time.sleep(0.01)
    asked = len(backend.sizes)
    backend.blocking.set()
    assert first_logit(first.reply()) == 64
    first.send(request(inference(3.0)))
    assert first_logit(first.reply()) == 192
    assert len(backend.sizes) == asked + 1


def test_a_reply_does_not_wait_for_the_loop(connect, backend):
    """The thread that has the answer writes it; the loop hears of it later, and goes on with the next request."""
    client, loops = connect(), []
    inference_path = client.http.server._shared.inference
    taken = inference_path.begin
    inference_path.begin = lambda asked: loops.append(asyncio.get_running_loop()) or taken(asked)
    backend.blocking, held = threading.Event(), threading.Event()
    client.send(request(inference(1.0)))
    assert backend.entered.wait(10)
    loops[0].call_soon_threadsafe(held.wait, 60)
    try:
        backend.blocking.set()
        status, _, body = client.reply()  # the connection gives up before the loop would be let go
        assert status == 200 and json.loads(body)["outputs"][0]["data"][0] == 64.0
    finally:
        held.set()
    client.send(request(inference(2.0)) + GET)
    assert json.loads(client.reply()[2])["outputs"][0]["data"][0] == 128.0
    assert client.reply()[0] == 200


def test_the_server_ends_after_what_is_under_way(connect, backend):
    backend.blocking = threading.Event()
    busy, idle = connect(), connect()
    busy.send(request(inference(1.0)))
    assert backend.entered.wait(10)
    stopping = threading.Thread(target=busy.http.stop)
    stopping.start()
    assert idle.closed()
    backend.blocking.set()
    reply = busy.reply()
    assert first_logit(reply) == 64 and reply[1]["connection"] == "close" and busy.closed()
    stopping.join(20)
    assert not busy.http.path.exists()
