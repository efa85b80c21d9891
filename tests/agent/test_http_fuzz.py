"""Whatever bytes come over HTTP: an answer that is right, or a refusal in one sentence, and a server that goes on."""

import contextlib
import json
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.regions import Regions
from policies.base import Goals

INFER = b"/v2/models/tiny/infer"
LIMITS = {"max_body_bytes": 5000, "max_head_bytes": 1000, "max_json_bytes": 4000, "read_timeout_s": 5.0}
LAST = b"\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
IMPATIENT_S = 0.1
few = settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def http(bundle, helpers, tmp_path_factory):
    from agent import Agent

    agent = Agent(
        bundle,
        helpers.make_table(bundle),
        backends={"fake": helpers.FakeBackend()},
        policy=helpers.Scripted(helpers.point("s100")),
        goals=Goals(),
        sensors=None,
        control_period_s=3600.0,
    )
    with agent:
        regions = Regions(enabled=True, folder=tmp_path_factory.mktemp("shm"))
        http = helpers.Http(agent, tmp_path_factory.mktemp("http"), regions=regions, **LIMITS)
        yield http
        http.stop()
        assert agent.status().state == "running", "no input may harm the agent"


def exchange(http, content: bytes, patience_s: float = 20.0) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """All replies to some bytes and to a request of our own after them, until the server has no more to say.

    What it says after ``patience_s`` of silence is missed: it may be waiting for the rest of a request.
    """
    received = b""
    with http.connect() as connection, contextlib.suppress(TimeoutError):
        connection.settimeout(patience_s)
        connection.sendall(content + LAST)
        while b"\r\nconnection: close\r\n" not in received and (piece := connection.recv(65536)):
            received += piece
        # The last reply; after a refusal the server waits for us to close.
        while not whole(received) and (piece := connection.recv(65536)):
            received += piece
    return split(received)


def whole(received: bytes) -> bool:
    head, end, body = received.rpartition(b"\r\n\r\n")
    length = int(head.rpartition(b"content-length: ")[2].partition(b"\r\n")[0])
    return bool(end) and len(body) >= length


def split(received: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    replies = []
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        assert end, "a reply ends with its head"
        status, *lines = head.split(b"\r\n")
        assert status.startswith(b"HTTP/1.1 ")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        length = int(headers.get(b"content-length", b"0"))
        assert len(received) >= length
        replies.append((int(status[9:12]), headers, received[:length]))
        received = received[length:]
    return replies


def check(reply) -> None:
    """A reply is 200, or tells one sentence and no traceback; an answer has the shape it says."""
    status, headers, body = reply
    if status == 100:
        return
    if status != 200:
        assert 400 <= status <= 503 and status != 500, reply
        (name, sentence) = next(iter(json.loads(body).items()))
        assert name == "error" and sentence and "Traceback" not in sentence and "internal" not in sentence
        return
    cut = headers.get(b"inference-header-content-length")
    if cut is not None or b'"outputs"' in body:
        document = json.loads(body[: int(cut)] if cut else body)
        (output,) = document["outputs"] if "model_version" in document else [{}]
        if output.get("datatype") == "FP32" and "data" in output:
            assert len(output["data"]) == int(np.prod(output["shape"])) and output["shape"][1] == 3


def post(body: bytes, path=INFER, head=b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n%b" % (path, len(body), head, body)


numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1e308]))
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20))
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def or_anything(strategy):
    """Mostly what fits, sometimes whatever."""
    return st.one_of(strategy, strategy, strategy, anything)


sizes = st.sampled_from([0, 1, 12, 63, 64, 65, 128, 2**40])
region = st.fixed_dictionaries(
    {"shared_memory_region": or_anything(st.sampled_from(["a", "b"]))},
    optional={"shared_memory_byte_size": or_anything(sizes), "shared_memory_offset": or_anything(sizes)},
)
tensors = st.fixed_dictionaries(
    {
        "name": or_anything(st.just("input")),
        "datatype": or_anything(st.just("FP32")),
        "shape": or_anything(st.sampled_from([[1, 1, 4, 4], [2, 1, 4, 4], [9, 1, 4, 4], [-1, 1, 4, 4], [1, 16]])),
    },
    optional={
        "data": or_anything(st.lists(numbers, min_size=16, max_size=16)),
        "parameters": or_anything(st.one_of(region, st.fixed_dictionaries({"binary_data_size": or_anything(sizes)}))),
    },
)
outputs = st.fixed_dictionaries(
    {"name": or_anything(st.just("logits"))},
    optional={
        "parameters": or_anything(
            st.one_of(
                region,
                st.fixed_dictionaries({"classification": or_anything(st.integers(0, 5))}),
                st.fixed_dictionaries({"binary_data": or_anything(st.booleans())}),
            )
        )
    },
)
requests = st.fixed_dictionaries(
    {"inputs": or_anything(st.lists(tensors, min_size=1, max_size=2))},
    optional={
        "id": or_anything(st.text(max_size=10)),
        "outputs": or_anything(st.lists(outputs, max_size=2)),
        "parameters": or_anything(
            st.fixed_dictionaries(
                {},
                optional={
                    "timeout": or_anything(st.integers(0, 10**9)),
                    "priority": or_anything(st.integers(0, 9)),
                    "binary_data_output": or_anything(st.booleans()),
                    "min_accuracy": or_anything(st.floats(0, 1)),
                    "stream": or_anything(st.text(max_size=3)),
                    "subnet": or_anything(st.sampled_from(["s25", "s60"])),
                },
            )
        ),
    },
)


@few
@given(st.binary(max_size=300))
def test_any_bytes_are_answered_or_the_connection_is_closed(http, content):
    for reply in exchange(http, content, IMPATIENT_S):
        check(reply)


@few
@given(st.data())
def test_any_change_of_a_good_request_is_answered(http, data):
    tensor = {"name": "input", "shape": [1, 1, 4, 4], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    content = bytearray(post(head + np.ones(16, np.float32).tobytes(), head=length))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "repeat"]))
        if kind == "change":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 20))]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(max_size=10))
        else:
            content[at:at] = content[max(0, at - 40) : at]
        if not content:
            return
    for reply in exchange(http, bytes(content), IMPATIENT_S):
        check(reply)


@few
@given(requests, st.binary(max_size=130), st.sampled_from(["exact", "none", "off"]))
def test_any_document_and_tensor_is_answered(http, document, rest, told):
    body = json.dumps(document).encode()
    length = {"exact": len(body), "off": len(body) + len(rest) // 2, "none": None}[told]
    head = b"" if length is None else b"Inference-Header-Content-Length: %d\r\n" % length
    replies = exchange(http, post(body + rest, head=head))
    # One for the request and one for what follows, unless the body is so large that the connection ends with it.
    assert len(replies) == (1 if len(body + rest) > LIMITS["max_body_bytes"] else 2)
    check(replies[0])


@few
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *(b"Content-Encoding", b"Accept-Encoding", b"Inference-Header-Content-Length", b"Expect"),
                    *(b"Transfer-Encoding", b"Content-Length", b"Connection", b"Upgrade", b"Authorization", b"X"),
                ]
            ),
            st.sampled_from(
                [
                    *(b"", b"gzip", b"deflate", b"chunked", b"0", b"5", b"-1", b"99999999999999999999", b"\xff\xfe"),
                    *(
                        b"100-continue",
                        b"close",
                        b"upgrade",
                        b"websocket",
                        b"gzip;q=",
                        b"Bearer x",
                        b",;,;=",
                        b"a" * 300,
                    ),
                ]
            ),
        ),
        max_size=5,
    ),
    st.sampled_from(
        [INFER, b"/v2", b"/v2/repository/index", b"/gearshift/status", b"*", b"/v2/models/tiny/stats", b"//"]
    ),
    st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS", b"CONNECT", b"TRACE"]),
)
def test_any_headers_are_answered(http, headers, path, method):
    head = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    content = b"%b %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (method, path, head)
    for reply in exchange(http, content, IMPATIENT_S):
        check(reply)


@few
@given(st.text(max_size=30), st.text(max_size=30), requests)
def test_any_path_and_control_body_is_answered(http, first, second, document):

    for path in (
        f"/v2/systemsharedmemory/region/{quote(first)}/register",
        f"/v2/models/{quote(first)}/{quote(second)}",
    ):
        check(exchange(http, post(json.dumps(document).encode(), path.encode()))[0])
    load = f"/v2/repository/models/{first}/load"
    check(exchange(http, post(json.dumps({"parameters": document}).encode(), load.encode()))[0])


def test_afterwards_the_server_still_answers(http, images, helpers):
    tensor = {"name": "input", "shape": [5, 1, 4, 4], "datatype": "FP32", "data": images.ravel().tolist()}
    http.post("/v2/repository/models/tiny/load")
    reply = http.post(INFER.decode(), {"inputs": [tensor]})
    assert reply.status == 200
    logits = np.float32(reply.json()["outputs"][0]["data"]).reshape(5, 3)
    np.testing.assert_array_equal(logits, helpers.expected("s100", images))
