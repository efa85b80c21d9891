"""Open Inference Protocol v2 and control, in-process and over real sockets."""

import asyncio
import gzip
import http.client
import json
import socket
import threading
import zlib

import httpx
import numpy as np
import pytest
import uvicorn

from agent.client import UnixConnection
from agent.server import Limits, create_app, listen
from subnets.errors import InputError


@pytest.fixture
def agent(make_agent):
    return make_agent(queue_limit=2)


class Client:
    """Asks an application in-process, without a socket."""

    def __init__(self, app) -> None:
        self.app = app

    def request(self, method: str, path: str, **more) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
                return await client.request(method, path, **more)

        return asyncio.run(once())

    def get(self, path: str, **more) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more) -> httpx.Response:
        return self.request("POST", path, **more)


@pytest.fixture
def client(agent):
    return Client(create_app(agent, Limits(max_body_bytes=20_000, max_images=8), version="1.2.3"))


def ask(batch, data="flat", **more) -> dict:
    values = batch.ravel().tolist() if data == "flat" else batch.tolist()
    return {"inputs": [{"name": "input", "shape": list(batch.shape), "datatype": "FP32", "data": values}], **more}


def binary(batch, **more) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "input", "shape": list(batch.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": batch.nbytes}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + batch.astype("<f4").tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def test_server_and_model_describe_themselves(client):
    assert client.get("/v2").json() == {"name": "gearshift", "version": "1.2.3", "extensions": ["binary_tensor_data"]}
    assert client.get("/v2/").status_code == 200
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/2"):
        described = client.get(path).json()
        assert described["name"] == "tiny" and described["versions"] == ["1", "2", "3", "4"]
        assert described["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
        assert described["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/4/ready"):
        reply = client.get(path)
        assert (reply.status_code, reply.content) == (200, b"")


@pytest.mark.parametrize("data", ["flat", "nested"])
def test_json_round_trip_gives_the_engines_logits_exactly(client, images, helpers, data):
    reply = client.post("/v2/models/tiny/infer", json=ask(images, data, id="42")).json()
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("42", "tiny", "4")
    (output,) = reply["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [5, 3])
    assert "parameters" not in output
    np.testing.assert_array_equal(np.float32(output["data"]).reshape(5, 3), helpers.expected("s100", images))
    parameters = reply["parameters"]
    assert (parameters["subnet"], parameters["expected_accuracy"]) == ("s100", 0.95)
    assert parameters["point"] == helpers.point("s100") and "script" in parameters["reason"]
    assert parameters["queue_ms"] >= 0 and parameters["infer_ms"] > 0


@pytest.mark.parametrize("where", ["request", "output"])
def test_binary_round_trip(client, images, helpers, where):
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    more = {"parameters": {"binary_data_output": True}} if where == "request" else {"outputs": outputs}
    body, headers = binary(images, **more)
    reply = client.post("/v2/models/tiny/infer", content=body, headers=headers)
    cut = int(reply.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(reply.content[:cut])["outputs"]
    assert output["parameters"] == {"binary_data_size": 60} and "data" not in output
    logits = np.frombuffer(reply.content[cut:], "<f4").reshape(output["shape"])
    np.testing.assert_array_equal(logits, helpers.expected("s100", images))


def test_json_may_carry_the_length_header_and_binary_input_may_get_a_json_reply(client, images):
    body = json.dumps(ask(images)).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    assert client.post("/v2/models/tiny/infer", content=body, headers=headers).status_code == 200
    body, headers = binary(images, outputs=[{"name": "logits", "parameters": {"binary_data": False}}])
    reply = client.post("/v2/models/tiny/infer", content=body, headers=headers)
    assert "data" in reply.json()["outputs"][0]


@pytest.mark.parametrize(("place", "subnet"), [(1, "s25"), (2, "s50"), (3, "s75"), (4, "s100")])
def test_a_version_pins_the_subnet(client, images, helpers, place, subnet):
    reply = client.post(f"/v2/models/tiny/versions/{place}/infer", json=ask(images)).json()
    assert (reply["model_version"], reply["parameters"]["subnet"]) == (str(place), subnet)
    np.testing.assert_array_equal(
        np.float32(reply["outputs"][0]["data"]).reshape(5, 3), helpers.expected(subnet, images)
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_requests_are_read(client, images, encoding):
    body = json.dumps(ask(images)).encode()
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    headers = {"Content-Encoding": encoding}
    assert client.post("/v2/models/tiny/infer", content=packed, headers=headers).status_code == 200
    assert client.post("/v2/models/tiny/infer", content=packed[:-9], headers=headers).status_code == 400
    assert client.post("/v2/models/tiny/infer", content=b"junk", headers=headers).status_code == 400
    assert client.post("/v2/models/tiny/infer", content=body, headers={"Content-Encoding": "br"}).status_code == 501


ONE = np.ones((1, 1, 4, 4), np.float32)


def altered(**tensor) -> bytes:
    request = ask(ONE)
    request["inputs"][0].update(tensor)
    return json.dumps(request).encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b"[" * 100_00, "not JSON"),
        (b"{}", "exactly one input"),
        (b'{"inputs": [1]}', "exactly one input"),
        (altered(name="other"), "'other'"),
        (altered(datatype="INT8"), "INT8"),
        (altered(shape=[1, 1, 4, 5]), "shape"),
        (altered(shape=[0, 1, 4, 4]), "shape"),
        (altered(shape=[True, 1, 4, 4]), "shape"),
        (altered(shape=[1, 16]), "shape"),
        (altered(shape=[9, 1, 4, 4]), "at most 8"),
        (altered(shape=[10**12, 1, 4, 4]), "at most 8"),
        (altered(shape="1"), "shape"),
        (altered(data=[1.0]), "16"),
        (altered(data=["1"] * 16), "numbers only"),
        (altered(data=[None] * 16), "numbers only"),
        (altered(data=[10**40] * 16), "numbers only"),
        (altered(data=[[1.0], [1.0, 2.0]]), "ragged"),
        (altered(data=None), "neither"),
        (altered(data=[1e39] * 16), "not finite"),
        (altered(data=[float("nan")] * 16), "not finite"),
        (altered(parameters={"binary_data_size": 64}), "0 bytes follow"),
        (altered(parameters=[]), "parameters"),
        (json.dumps(ask(ONE, id=5)).encode(), "'id'"),
        (json.dumps(ask(ONE, parameters={"timeout": "soon"})).encode(), "timeout"),
        (json.dumps(ask(ONE, outputs=[{"name": "x"}])).encode(), "'x'"),
        (json.dumps(ask(ONE, outputs=[5])).encode(), "outputs"),
    ],
)
def test_a_wrong_request_is_answered_with_400_and_a_sentence(client, body, words):
    reply = client.post("/v2/models/tiny/infer", content=body)
    assert reply.status_code == 400, reply.text
    assert set(reply.json()) == {"error"} and words in reply.json()["error"]


def test_wrong_binary_lengths_are_refused(client, images):
    body, headers = binary(images)
    for content, length in ((body[:-4], headers), (body + b"1234", headers), (body, {})):
        assert client.post("/v2/models/tiny/infer", content=content, headers=length).status_code == 400
    for length in ("-1", "x", str(10**6), "9" * 30, "\u0663"):
        headers = {"Inference-Header-Content-Length": length.encode()}
        assert client.post("/v2/models/tiny/infer", content=body, headers=headers).status_code == 400
    body = json.dumps(ask(images)).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    assert "follow the JSON" in client.post("/v2/models/tiny/infer", content=body + b"1", headers=headers).text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/tiny/versions/5", 404),
        ("GET", "/v2/models/tiny/versions/0/ready", 404),
        ("GET", "/v2/models/tiny/versions/one", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2", 405),
        ("GET", "/gearshift/explain?last=-1", 400),
    ],
)
def test_every_refusal_is_json(client, method, path, status):
    reply = client.request(method, path)
    assert reply.status_code == status and isinstance(reply.json()["error"], str)


def test_parts_of_the_protocol_that_are_not_offered_say_so(client):
    for more in ({"classification": 3}, {"shared_memory_region": "r"}):
        body = ask(ONE, outputs=[{"name": "logits", "parameters": more}])
        assert client.post("/v2/models/tiny/infer", json=body).status_code == 501
    body = altered(parameters={"shared_memory_region": "r"}, data=None)
    assert client.post("/v2/models/tiny/infer", content=body).status_code == 501


def test_a_body_too_large_is_refused_by_its_length_while_it_arrives_and_unpacked(client):
    assert client.post("/v2/models/tiny/infer", content=b"x" * 20_001).status_code == 413

    async def stream():
        for _ in range(30):
            yield b"x" * 1000

    assert client.post("/v2/models/tiny/infer", content=stream()).status_code == 413
    bomb = gzip.compress(b"0" * 10_000_000)
    headers = {"Content-Encoding": "gzip"}
    assert client.post("/v2/models/tiny/infer", content=bomb, headers=headers).status_code == 413


def test_a_full_queue_is_503(agent, client, images, backend):
    backend.blocking = threading.Event()
    waiting = [agent.submit(images[:1]) for _ in range(3)]
    reply = client.post("/v2/models/tiny/infer", json=ask(images))
    assert reply.status_code == 503 and "queue_limit" in reply.json()["error"]
    backend.blocking.set()
    for future in waiting:
        future.result(10)
    assert client.post("/v2/models/tiny/infer", json=ask(images)).status_code == 200


def test_no_engine_left_is_500_and_not_ready(client, images, backend, helpers):
    backend.broken.update(helpers.LADDER)
    reply = client.post("/v2/models/tiny/infer", json=ask(images))
    assert reply.status_code == 500 and "no engine could answer" in reply.json()["error"]
    assert client.get("/v2/health/ready").status_code == 400
    assert client.get("/v2/health/live").status_code == 200


def test_status_explain_hold_and_release(client, agent, images):
    agent.infer(images, subnet="s25")
    held = client.post("/gearshift/hold", json={"subnet": "s25", "for_s": 60, "reason": "test"})
    assert held.status_code == 200 and held.json()["subnet"] == "s25"
    status = client.get("/gearshift/status").json()
    assert (status["subnet"], status["hold"]["reason"], status["policy"]) == ("s25", "test", "scripted")
    assert (status["backend"], status["precision"], status["bound"]) == ("fake", "f32", "hold")
    assert "time_s" in status["conditions"]
    assert client.post("/gearshift/release", json={}).status_code == 200
    assert client.get("/gearshift/status").json()["hold"] is None
    agent.tick()
    (told,) = client.get("/gearshift/explain").json()
    assert told["decided"] == told["applied"] == "s100@fake:f32:b1"
    assert len(client.get("/gearshift/explain?last=9").json()) >= 1


def test_a_wrong_hold_is_refused(client):
    for body in ({"subnet": "s60", "for_s": 1}, {"subnet": "s25"}, {"subnet": "s25", "for_s": 0}, {"subnet": 1}, []):
        assert client.post("/gearshift/hold", json=body).status_code == 400
    form = {"Content-Type": "text/plain"}
    assert client.post("/gearshift/release", content=b"{}", headers=form).status_code == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8700", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 400), ("10.0.0.1:8700", 400)],
)
def test_a_request_for_another_host_is_refused(client, host, status):
    assert client.get("/v2", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_public_addresses_are_refused(host):
    with pytest.raises(InputError, match="other machines"):
        listen(host, 0, None)


def test_a_taken_port_or_path_is_refused_and_a_stale_socket_is_replaced(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="--port"):
        listen("127.0.0.1", taken.getsockname()[1], None)
    path = tmp_path / "agent.sock"
    (first,) = listen(None, 0, path)
    with pytest.raises(InputError, match="another process listens"):
        listen(None, 0, path)
    first.close()
    (second,) = listen(None, 0, path)
    second.close()
    assert path.stat().st_mode & 0o777 == 0o660
    ordinary = tmp_path / "file"
    ordinary.write_text("keep me")
    with pytest.raises(InputError, match="not a socket"):
        listen(None, 0, ordinary)
    assert ordinary.read_text() == "keep me"


def test_accepted_connections_are_known_as_tcp_so_that_small_answers_are_sent_at_once():
    (listener,) = listen("127.0.0.1", 0, None)
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_real_sockets_answer_alike_over_tcp_and_unix(agent, images, helpers, tmp_path):
    path = tmp_path / "agent.sock"
    sockets = listen("127.0.0.1", 0, path)
    port = sockets[0].getsockname()[1]
    config = uvicorn.Config(create_app(agent), log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    try:
        for connection in (http.client.HTTPConnection("127.0.0.1", port, timeout=20), UnixConnection(path, timeout=20)):
            body, headers = binary(images, parameters={"binary_data_output": True})
            for _ in range(3):  # on one connection
                connection.request("POST", "/v2/models/tiny/infer", body, headers)
                reply = connection.getresponse()
                content = reply.read()
                assert reply.status == 200
                cut = int(reply.getheader("Inference-Header-Content-Length"))
                logits = np.frombuffer(content[cut:], "<f4").reshape(5, 3)
                np.testing.assert_array_equal(logits, helpers.expected("s100", images))
            connection.close()
    finally:
        server.should_exit = True
        thread.join(20)
        for opened in sockets:
            opened.close()
