"""Inferences over HTTP: tensors as JSON, binary or in shared memory, compression, classes, parameters, refusals."""

import gzip
import json
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from agent.regions import Regions
from policies.base import Goals

INFER = "/v2/models/tiny/infer"
ONE = np.ones((1, 1, 4, 4), np.float32)


@pytest.fixture(scope="module")
def http(bundle, helpers, tmp_path_factory):
    """One agent for all tests that leave it as it was, with room for 20,000 bytes and 8 images."""
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
    shm = tmp_path_factory.mktemp("shm")
    with agent:
        regions = Regions(enabled=True, folder=shm)
        http = helpers.Http(agent, tmp_path_factory.mktemp("http"), regions=regions, max_body_bytes=20_000)
        http.shm = shm
        yield http
        http.stop()


def ask(batch, data="flat", **more) -> dict:
    values = batch.ravel().tolist() if data == "flat" else batch.tolist()
    return {"inputs": [{"name": "input", "shape": list(batch.shape), "datatype": "FP32", "data": values}], **more}


def binary(batch, **more) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "input", "shape": list(batch.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": batch.nbytes}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + batch.astype("<f4").tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def parts(reply) -> tuple[dict, bytes]:
    """A binary reply's JSON and what follows it."""
    cut = int(reply.headers["inference-header-content-length"])
    return json.loads(reply.body[:cut]), reply.body[cut:]


def logits_of(document) -> np.ndarray:
    (output,) = document["outputs"]
    return np.float32(output["data"]).reshape(output["shape"])


@pytest.mark.parametrize("data", ["flat", "nested"])
def test_json_round_trip_gives_the_engines_logits_exactly(http, images, helpers, data):
    reply = http.post(INFER, ask(images, data, id="42")).json()
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("42", "tiny", "4")
    (output,) = reply["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [5, 3])
    assert "parameters" not in output
    np.testing.assert_array_equal(logits_of(reply), helpers.expected("s100", images))


def test_the_reply_says_who_answered_and_why(http, images, helpers):
    told = http.post(INFER, ask(images)).json()["parameters"]
    assert (told["subnet"], told["expected_accuracy"], told["point"]) == ("s100", 0.95, helpers.point("s100"))
    assert "script" in told["reason"] and told["bound"] == "none"
    assert told["queue_ms"] >= 0 and told["infer_ms"] > 0
    assert told["energy_source"] == "unmeasurable" and "energy_j" not in told


def test_energy_is_told_with_its_source_where_it_is_known(make_agent, make_http, table, images):
    import msgspec

    rows = [
        msgspec.structs.replace(row, energy_j=0.25, power_w=1.0, energy_source="rapl-package") for row in table.rows
    ]
    http = make_http(make_agent(table=msgspec.structs.replace(table, rows=tuple(rows))))
    told = http.post(INFER, ask(images)).json()["parameters"]
    assert (told["energy_j"], told["energy_source"]) == (1.25, "rapl-package")  # five images


@pytest.mark.parametrize("where", ["request", "output"])
def test_binary_round_trip(http, images, helpers, where):
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    more = {"parameters": {"binary_data_output": True}} if where == "request" else {"outputs": outputs}
    document, rest = parts(http.post(INFER, *binary(images, **more)))
    (output,) = document["outputs"]
    assert output["parameters"] == {"binary_data_size": 60} and "data" not in output
    np.testing.assert_array_equal(np.frombuffer(rest, "<f4").reshape(output["shape"]), helpers.expected("s100", images))


def test_json_may_carry_the_length_header_and_binary_input_may_get_a_json_reply(http, images):
    body = json.dumps(ask(images)).encode()
    assert http.post(INFER, body, {"Inference-Header-Content-Length": str(len(body))}).status == 200
    reply = http.post(INFER, *binary(images, outputs=[{"name": "logits", "parameters": {"binary_data": False}}]))
    assert "data" in reply.json()["outputs"][0]


@pytest.mark.parametrize(("place", "subnet"), [(1, "s25"), (2, "s50"), (3, "s75"), (4, "s100")])
def test_a_version_pins_the_subnet(http, images, helpers, place, subnet):
    reply = http.post(f"/v2/models/tiny/versions/{place}/infer", ask(images)).json()
    assert (reply["model_version"], reply["parameters"]["subnet"]) == (str(place), subnet)
    np.testing.assert_array_equal(logits_of(reply), helpers.expected(subnet, images))


def test_a_path_may_be_quoted_and_have_a_query(http, images):
    assert http.post("/v2/models/t%69ny/infer?x=1", ask(images)).json()["model_version"] == "4"
    assert http.post("/v2/models/tiny/versions/%31/infer", ask(images)).json()["model_version"] == "1"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_requests_are_read(http, images, encoding):
    body, headers = binary(images)
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    headers["Content-Encoding"] = encoding
    assert http.post(INFER, packed, headers).status == 200
    for content, status in ((packed[:-9], 400), (packed + b"x", 400), (b"junk", 400)):
        assert http.post(INFER, content, headers).status == status
    reply = http.post(INFER, body, {"Content-Encoding": "br"})
    assert reply.status == 501 and "gzip, deflate" in reply.error


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, deflate;q=0.5", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0.000", None),
        ("identity", None),
    ],
)
def test_large_replies_are_compressed_as_the_client_accepts(http, accepted, encoding):
    batch = np.full((8, 1, 4, 4), 1 / 3, np.float32)
    plain = http.post(INFER, ask(batch, id="x" * 900)).json()
    reply = http.post(INFER, ask(batch, id="x" * 900), {"Accept-Encoding": accepted})
    assert reply.headers.get("content-encoding") == encoding
    unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[encoding]
    assert json.loads(unpack(reply.body))["outputs"] == plain["outputs"]
    small = http.post(INFER, ask(ONE), {"Accept-Encoding": accepted})
    assert "content-encoding" not in small.headers, "a few bytes are not worth it"


@pytest.mark.parametrize("wanted", ["json", "binary"])
def test_classes_come_as_score_index_and_label_best_first(http, helpers, wanted):
    batch = np.float32([1.0, 2.0])[:, None, None, None] * ONE
    logits = helpers.expected("s100", batch)
    parameters = {"classification": 2, "binary_data": wanted == "binary"}
    reply = http.post(INFER, ask(batch, outputs=[{"name": "logits", "parameters": parameters}]))
    document, rest = (reply.json(), b"") if wanted == "json" else parts(reply)
    (output,) = document["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    told = output.get("data")
    if wanted == "binary":
        assert output["parameters"]["binary_data_size"] == len(rest)
        told = []
        while rest:
            size = int.from_bytes(rest[:4], "little")
            told, rest = [*told, rest[4 : 4 + size].decode()], rest[4 + size :]
    # The fake engine's last class always scores highest.
    assert told == [f"{logits[0, 2]:.6f}:2:c", f"{logits[0, 1]:.6f}:1:b", f"{logits[1, 2]:.6f}:2:c", told[3]]


def test_more_classes_than_there_are_give_all_of_them(http):
    output = {"name": "logits", "parameters": {"classification": 99}}
    assert http.post(INFER, ask(ONE, outputs=[output])).json()["outputs"][0]["shape"] == [1, 3]


# -- parameters


def test_a_parameter_pins_the_subnet_as_a_version_does(http):
    reply = http.post(INFER, ask(ONE, parameters={"subnet": "s50", "priority": 3, "sequence_id": 7, "mine": "x"}))
    assert reply.json()["parameters"]["subnet"] == "s50"
    reply = http.post("/v2/models/tiny/versions/1/infer", ask(ONE, parameters={"subnet": "s50"}))
    assert reply.status == 400 and "one of them" in reply.error


def test_the_timeout_is_a_deadline_in_microseconds(make_agent, make_http, clock, images):
    agent = make_agent(clock=clock)
    http = make_http(agent)
    submit, seen = agent.submit, []
    agent.submit = lambda batch, **wishes: seen.append(wishes) or submit(batch, **wishes)
    for timeout in (0, 250_000):
        assert http.post(INFER, ask(images, parameters={"timeout": timeout})).status == 200
    assert seen == [{}, {"deadline_ms": 250.0}]


def test_minimum_accuracy_and_stream_reach_the_agent(make_agent, make_http, images):
    agent = make_agent()
    http = make_http(agent)
    agent.hold("s25", 60, "small")
    reply = http.post(INFER, ask(images, parameters={"min_accuracy": 0.9, "stream": "front"})).json()
    assert reply["parameters"]["expected_accuracy"] >= 0.9
    reply = http.post(INFER, ask(images, parameters={"min_accuracy": 0.999}))
    assert reply.status == 400 and "99.9 %" in reply.error


def test_a_frame_that_a_newer_one_replaces_is_429(make_agent, make_http, backend, images):
    http = make_http(make_agent(queue_limit=8))
    backend.blocking = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(http.post, INFER, ask(images[:1]))
        assert backend.entered.wait(10)
        older = pool.submit(http.post, INFER, ask(images[:1], parameters={"stream": "front"}))
        while not http.model.agent.status().queue_depth:
            pass
        newer = pool.submit(http.post, INFER, ask(images[1:2], parameters={"stream": "front"}))
        reply = older.result(10)
        assert reply.status == 429 and "newer" in reply.error
        backend.blocking.set()
        assert running.result(10).status == newer.result(10).status == 200


# -- what is refused


def altered(**tensor) -> bytes:
    request = ask(ONE)
    request["inputs"][0].update(tensor)
    return json.dumps(request).encode()


def asking(**more) -> bytes:
    return json.dumps(ask(ONE, **more)).encode()


def output(**parameters) -> bytes:
    return asking(outputs=[{"name": "logits", "parameters": parameters}])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "object"),
        (b"[" * 100_00, "not JSON"),
        (b"{}", "exactly one input"),
        (b'{"inputs": [1]}', "exactly one input"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "400"),
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
        (altered(parameters={"shared_memory_region": 5}), "must be a name"),
        (altered(parameters={"shared_memory_region": "r", "shared_memory_byte_size": -1}), "whole number of bytes"),
        (altered(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 63}), "needs 64 bytes"),
        (asking(id=5), "'id'"),
        (asking(parameters={"timeout": "soon"}), "timeout"),
        (asking(parameters={"timeout": 2**60}), "timeout"),
        (asking(parameters={"priority": -1}), "priority"),
        (asking(parameters={"min_accuracy": 1.5}), "min_accuracy"),
        (asking(parameters={"min_accuracy": True}), "min_accuracy"),
        (asking(parameters={"stream": ""}), "stream"),
        (asking(parameters={"stream": "x" * 129}), "stream"),
        (asking(parameters={"subnet": "s60"}), "s25, s50, s75, s100"),
        (asking(outputs=[{"name": "x"}]), "'x'"),
        (asking(outputs=[5]), "outputs"),
        (asking(outputs=[{"name": "logits"}, {"name": "logits"}]), "outputs"),
        (output(classification=-1), "classification"),
        (output(classification="3"), "classification"),
        (output(shared_memory_region="r"), "shared_memory_byte_size"),
    ],
)
def test_a_wrong_request_is_answered_with_400_and_a_sentence(http, body, words):
    reply = http.post(INFER, body)
    assert reply.status == 400, reply
    assert words == "400" or words in reply.error


def test_wrong_binary_lengths_are_refused(http, images):
    body, headers = binary(images)
    for content, length in ((body[:-4], headers), (body + b"1234", headers), (body, {})):
        assert http.post(INFER, content, length).status == 400
    for length in ("-1", "x", str(10**6), "9" * 30, "²"):
        assert http.post(INFER, body, {"Inference-Header-Content-Length": length}).status == 400
    body = json.dumps(ask(images)).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    assert "follow the JSON" in http.post(INFER, body + b"1", headers).error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/tiny/versions/9/infer", 404),
        ("POST", "/v2/models/tiny/versions/x/infer", 404),
        ("GET", INFER, 405),
        ("PUT", INFER, 405),
    ],
)
def test_only_a_post_to_a_subnet_that_exists_is_an_inference(http, method, path, status):
    reply = http.ask(method, path, asking())
    assert reply.status == status and reply.error


def test_a_bomb_is_refused_before_it_unpacks(http):
    reply = http.post(INFER, gzip.compress(b"0" * 10_000_000), {"Content-Encoding": "gzip"})
    assert reply.status == 413 and "20000 bytes" in reply.error


def test_json_has_a_limit_of_its_own(make_agent, make_http):
    reply = make_http(make_agent(), max_json_bytes=500).post(INFER, asking(id="x" * 500))
    assert reply.status == 413 and "binary tensor" in reply.error


def test_a_full_queue_is_503_and_says_when_to_try_again(make_agent, make_http, images, backend):
    agent = make_agent(queue_limit=2)
    http = make_http(agent)
    backend.blocking = threading.Event()
    waiting = [agent.submit(images[:1]) for _ in range(3)]
    reply = http.post(INFER, ask(images))
    assert reply.status == 503 and "queue_limit" in reply.error and reply.headers["retry-after"] == "1"
    backend.blocking.set()
    for future in waiting:
        future.result(10)
    assert http.post(INFER, ask(images)).status == 200


def test_no_engine_left_is_500(make_agent, make_http, images, backend, helpers):
    http = make_http(make_agent())
    backend.broken.update(helpers.LADDER)
    reply = http.post(INFER, ask(images))
    assert reply.status == 500 and "no engine could answer" in reply.error


# -- shared memory


def region(http, name, content=b"", size=None) -> Path:
    path = http.shm / name
    path.write_bytes(content or bytes(size))
    asked = {"key": f"/{name}", "offset": 0, "byte_size": path.stat().st_size}
    assert http.post(f"/v2/systemsharedmemory/region/{name}/register", asked).status == 200
    return path


def shared(name, size, offset=0) -> dict:
    parameters = {"shared_memory_region": name, "shared_memory_byte_size": size}
    return parameters | ({"shared_memory_offset": offset} if offset else {})


def test_tensors_travel_through_shared_memory_and_the_reply_holds_neither_data_nor_parameters(http, images, helpers):
    region(http, "in", b"12345678" + images.tobytes())
    out = region(http, "out", size=100)
    tensor = {"name": "input", "shape": [5, 1, 4, 4], "datatype": "FP32", "parameters": shared("in", 320, 8)}
    request = {"inputs": [tensor], "outputs": [{"name": "logits", "parameters": shared("out", 60, 40)}]}
    (told,) = http.post(INFER, request).json()["outputs"]
    assert told == {"name": "logits", "datatype": "FP32", "shape": [5, 3]}
    content = out.read_bytes()
    np.testing.assert_array_equal(np.frombuffer(content[40:], "<f4").reshape(5, 3), helpers.expected("s100", images))
    assert content[:40] == bytes(40)
    (status,) = http.get("/v2/systemsharedmemory/region/in/status").json()
    assert status == {"name": "in", "key": "/in", "offset": 0, "byte_size": 328}
    assert [region["name"] for region in http.get("/v2/systemsharedmemory/status").json()] == ["in", "out"]
    assert http.post("/v2/systemsharedmemory/unregister").status == 200
    assert http.get("/v2/systemsharedmemory/status").json() == []


def test_classes_can_be_put_into_shared_memory_if_they_fit(http):
    out = region(http, "classes", size=64)
    wanted = {"classification": 1, **shared("classes", 64)}
    (told,) = http.post(INFER, ask(ONE, outputs=[{"name": "logits", "parameters": wanted}])).json()["outputs"]
    assert told == {"name": "logits", "datatype": "BYTES", "shape": [1, 1]}
    content = out.read_bytes()
    assert content[4 : 4 + content[0]].endswith(b":2:c")
    reply = http.post(INFER, ask(ONE, outputs=[{"name": "logits", "parameters": wanted | shared("classes", 8)}]))
    assert reply.status == 400 and "to hold the results" in reply.error
    http.post("/v2/systemsharedmemory/region/classes/unregister")


def test_regions_that_do_not_fit_are_refused_before_anything_is_computed(http, images):
    tensor = {"name": "input", "shape": [1, 1, 4, 4], "datatype": "FP32", "parameters": shared("gone", 64)}
    reply = http.post(INFER, {"inputs": [tensor]})
    assert reply.status == 404 and "Unable to find shared memory region" in reply.error
    assert http.get("/v2/systemsharedmemory/region/gone/status").status == 404
    region(http, "small", size=16)
    for parameters, words in (
        (shared("small", 8), "to hold the results"),
        (shared("small", 32), "Invalid offset"),
        (shared("small", 12, 8), "Invalid offset"),
    ):
        reply = http.post(INFER, ask(ONE, outputs=[{"name": "logits", "parameters": parameters}]))
        assert reply.status == 400 and words in reply.error
    path = http.shm / "small"
    path.write_bytes(b"")  # its client cuts it short
    parameters = shared("small", 12)
    reply = http.post(INFER, ask(ONE, outputs=[{"name": "logits", "parameters": parameters}]))
    assert reply.status == 400 and "shorter" in reply.error and path.read_bytes() == b""
    http.post("/v2/systemsharedmemory/unregister")


@pytest.mark.parametrize("where", ["shape", "id", "name"])
def test_half_a_character_is_refused_wherever_it_stands(http, where):
    body = ask(ONE)
    (body if where == "id" else body["inputs"][0])[where] = "HALF"
    text = json.dumps(body).replace("HALF", "\\ud83e")
    reply = http.post(INFER, text.encode())
    assert reply.status == 400 and "not JSON" in reply.error
    whole = json.dumps(ask(ONE, id="HALF")).replace("HALF", "\\ud83e\\udd80")
    assert json.loads(http.post(INFER, whole.encode()).body)["id"] == "\U0001f980"
