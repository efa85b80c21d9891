"""HTTP beside the inferences: descriptions, health, statistics, repository, shared memory, control; real sockets."""

import json

import numpy as np
import pytest

from agent.http_replies import NotAllowed, refusal_of
from agent.model import NotFound, TooMany, Unsupported
from agent.protocol import TooLarge
from agent.regions import Regions
from policies.base import Goals
from subnets.errors import Busy, EngineError, Expired, InputError, Superseded


@pytest.fixture(scope="module")
def agent(bundle, helpers):
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
        yield agent


@pytest.fixture(scope="module")
def http(agent, helpers, tmp_path_factory):
    http = helpers.Http(agent, tmp_path_factory.mktemp("http"))
    yield http
    http.stop()


def ask(batch, **more) -> dict:
    tensor = {"name": "input", "shape": list(batch.shape), "datatype": "FP32", "data": batch.ravel().tolist()}
    return {"inputs": [tensor], **more}


ONE = np.ones((1, 1, 4, 4), np.float32)


def test_the_server_describes_itself_and_names_only_what_it_honours(http, agent, make_http):
    common = {"binary_tensor_data", "classification", "model_configuration", "parameters", "statistics"}
    told = http.get("/v2").json()
    assert (told["name"], told["version"]) == ("gearshift", "1.2.3")
    assert set(told["extensions"]) == common | {"model_repository"}
    assert http.get("/v2/").json() == told
    other = make_http(agent, model_control=False, regions=Regions(enabled=True))
    assert set(other.get("/v2").json()["extensions"]) == common | {"system_shared_memory"}


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/v2/models/tiny/versions/2", "/v2/models/t%69ny"])
def test_the_model_describes_itself(http, path):
    described = http.get(path).json()
    assert described["name"] == "tiny" and described["versions"] == ["1", "2", "3", "4"]
    assert described["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    assert described["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    config = http.get(f"{path}/config").json()
    assert (config["name"], config["max_batch_size"]) == ("tiny", 8)
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": [1, 4, 4]}]
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["parameters"]["subnet.2"] == {"string_value": "s50"}


@pytest.mark.parametrize(
    "path", ["/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/4/ready"]
)
def test_health_is_an_empty_200(http, path):
    reply = http.get(path)
    assert (reply.status, reply.body) == (200, b"")
    assert http.ask("HEAD", path).status == 200


def test_an_agent_that_cannot_answer_is_live_but_not_ready(make_agent, make_http, backend, helpers):
    http = make_http(make_agent())
    backend.broken.update(helpers.LADDER)
    assert http.post("/v2/models/tiny/infer", ask(ONE)).status == 500
    for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
        reply = http.get(path)
        assert reply.status == 400 and "degraded" in reply.error
    assert http.get("/v2/health/live").status == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("x"), 400),
        (NotFound("x"), 404),
        (NotAllowed("x"), 405),
        (TooLarge("x"), 413),
        (TooMany("x"), 429),
        (Superseded("x"), 429),
        (EngineError("x"), 500),
        (KeyError("x"), 500),
        (Unsupported("x"), 501),
        (Busy("x"), 503),
        (Expired("x"), 504),
    ],
)
def test_every_error_has_the_status_that_clients_and_load_balancers_expect(error, status):
    reply = refusal_of(error)
    assert reply.status == status and "x" in json.loads(reply.body)["error"]
    assert (b"retry-after" in dict(reply.headers)) == (status == 503)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nowhere", 404, "Not Found: GET /nowhere"),
        ("GET", "/v2/models/other", 404, "Request for unknown model"),
        ("GET", "/v2/models/other/config", 404, "Request for unknown model"),
        ("GET", "/v2/models/tiny/versions/5", 404, "it has 1, 2, 3, 4"),
        ("GET", "/v2/models/tiny/versions/0/ready", 404, "no version 0"),
        ("GET", "/v2/models/tiny/versions/one", 404, "no version one"),
        ("GET", "/v2/models/tiny/versions/9/stats", 404, "no version 9"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("GET", "/v2/repository/index", 405, "Method Not Allowed"),
        ("GET", "/gearshift/explain?last=-1", 400, "whole number"),
        ("GET", "/v2/logging", 404, "Not Found"),
        ("GET", "/%ff%fe", 404, "Not Found"),
    ],
)
def test_every_refusal_is_json_with_one_sentence(http, method, path, status, words):
    reply = http.ask(method, path)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
    assert words in reply.error


def test_statistics_count_requests_images_and_times_per_version(make_agent, make_http):
    http = make_http(make_agent())

    def told(path):
        return {stats["version"]: stats for stats in http.get(path).json()["model_stats"]}

    http.post("/v2/models/tiny/versions/2/infer", ask(np.ones((3, 1, 4, 4), np.float32)))
    http.post("/v2/models/tiny/versions/2/infer", ask(ONE))
    http.post("/v2/models/tiny/infer", ask(ONE))
    stats = told("/v2/models/tiny/stats")
    assert set(stats) == {"1", "2", "3", "4"} == set(told("/v2/models/stats"))
    assert set(told("/v2/models/tiny/versions/2/stats")) == {"2"}
    two = stats["2"]
    assert (two["name"], two["inference_count"], two["execution_count"]) == ("tiny", 4, 2)
    inferences = two["inference_stats"]
    assert set(inferences) == {
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    }
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert inferences[name]["count"] == 2
    assert 0 < inferences["compute_infer"]["ns"] < inferences["success"]["ns"]
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in two["batch_stats"]] == [(1, 1), (3, 1)]
    assert two["last_inference"] > 1.7e12
    assert stats["4"]["inference_stats"]["queue"]["count"] == 1 and stats["1"]["inference_count"] == 0
    bad = ask(ONE)
    bad["inputs"][0]["data"][0] = float("nan")
    assert http.post("/v2/models/tiny/versions/3/infer", json.dumps(bad)).status == 400
    assert told("/v2/models/tiny/stats")["3"]["inference_stats"]["fail"]["count"] == 1


def test_the_repository_is_listed_unloaded_and_loaded(make_agent, make_http):
    http = make_http(make_agent())
    ready = [{"name": "tiny", "version": str(n), "state": "READY", "reason": ""} for n in range(1, 5)]
    assert (
        http.post("/v2/repository/index").json() == ready == http.post("/v2/repository/index", {"ready": True}).json()
    )
    assert http.post("/v2/repository/models/tiny/unload", {"parameters": {"unload_dependents": False}}).status == 200
    assert http.get("/v2/models/tiny/ready").status == 400
    reply = http.post("/v2/models/tiny/infer", ask(ONE))
    assert reply.status == 503 and "no available versions" in reply.error
    assert {model["state"] for model in http.post("/v2/repository/index").json()} == {"UNAVAILABLE"}
    assert http.post("/v2/repository/index", {"ready": True}).json() == []
    assert http.post("/v2/repository/models/tiny/load").status == 200
    assert http.post("/v2/models/tiny/infer", ask(ONE)).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("other/load", {}, 404, "failed to load 'other'"),
        ("other/unload", {}, 404, "Request for unknown model"),
        ("tiny/load", {"parameters": {"file:1/model.onnx": "Y29kZQ=="}}, 501, "files are not taken"),
        ("tiny/load", {"parameters": {"config": "{"}}, 400, "failed to load 'tiny'"),
        ("tiny/load", {"parameters": {"config": '{"max_batch_size": "99"}'}}, 400, "cannot be changed"),
        ("tiny/load", {"parameters": []}, 200, ""),
        ("tiny/load", {"parameters": {"config": '{"max_batch_size": "8"}'}}, 200, ""),
        ("tiny/load", {"parameters": [1]}, 400, "'parameters'"),
    ],
)
def test_loads_that_would_change_something_are_refused(http, path, body, status, words):
    reply = http.post(f"/v2/repository/models/{path}", body)
    assert reply.status == status
    assert status == 200 or words in reply.error


def test_clients_may_not_unload_the_model_unless_configured(agent, make_http):
    http = make_http(agent, model_control=False)
    reply = http.post("/v2/repository/models/tiny/unload")
    assert reply.status == 501 and "model_control" in reply.error
    assert http.get("/v2/models/tiny/ready").status == 200


def test_shared_memory_is_off_unless_configured(http):
    assert http.get("/v2/systemsharedmemory/status").json() == []
    assert http.post("/v2/systemsharedmemory/unregister").status == 200
    reply = http.post("/v2/systemsharedmemory/region/r/register", {"key": "/r", "offset": 0, "byte_size": 4})
    assert reply.status == 501 and "shared_memory = true" in reply.error


def test_cuda_shared_memory_is_a_harmless_nothing(http):
    for base in ("/v2/cudasharedmemory", "/v2/cudasharedmemory/region/r"):
        assert http.get(f"{base}/status").json() == []
        assert http.post(f"{base}/unregister").status == 200
    reply = http.post("/v2/cudasharedmemory/region/r/register", {"raw_handle": {"b64": ""}})
    assert reply.status == 501 and "CUDA" in reply.error


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"[]", 400, "JSON object"),
        (b"{", 400, "not JSON"),
        (b'{"offset": 0, "byte_size": 4}', 400, "'key'"),
        (b'{"key": 5, "byte_size": 4}', 400, "'key'"),
        (b'{"key": "x"}', 400, "'byte_size'"),
        (b'{"key": "x", "byte_size": true}', 400, "'byte_size'"),
        (b'{"key": "x", "byte_size": 4, "offset": -1}', 400, "'offset'"),
        (b'{"key": "gearshift-no-such-object", "byte_size": 4}', 400, "create it first"),
    ],
)
def test_a_wrong_registration_is_refused(agent, make_http, body, status, words):
    reply = make_http(agent, regions=Regions(enabled=True)).post("/v2/systemsharedmemory/region/r/register", body)
    assert reply.status == status and words in reply.error


def test_status_explain_hold_and_release(make_agent, make_http, images):
    agent = make_agent()
    http = make_http(agent)
    agent.infer(images, subnet="s25")
    held = http.post("/gearshift/hold", {"subnet": "s25", "for_s": 60, "reason": "test"})
    assert held.status == 200 and held.json()["subnet"] == "s25"
    status = http.get("/gearshift/status").json()
    assert (status["subnet"], status["hold"]["reason"], status["policy"]) == ("s25", "test", "scripted")
    assert (status["backend"], status["precision"], status["bound"]) == ("fake", "f32", "hold")
    assert "time_s" in status["conditions"]
    assert http.post("/gearshift/release", {}).status == 200
    assert http.get("/gearshift/status").json()["hold"] is None
    agent.tick()
    (told,) = http.get("/gearshift/explain").json()
    assert told["decided"] == told["applied"] == "s100@fake:f32:b1"
    assert len(http.get("/gearshift/explain?last=9").json()) >= 1


def test_a_wrong_hold_is_refused(http):
    for body in ({"subnet": "s60", "for_s": 1}, {"subnet": "s25"}, {"subnet": "s25", "for_s": 0}, {"subnet": 1}, {}):
        assert http.post("/gearshift/hold", body).status == 400
    form = {"Content-Type": "text/plain"}
    reply = http.post("/gearshift/release", b"{}", form)
    assert reply.status == 400 and "application/json" in reply.error
    assert http.post("/gearshift/hold", {"subnet": "s25", "for_s": 1, "reason": "x" * 2**21}).status == 413


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8700", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 400), ("10.0.0.1:8700", 400)],
)
def test_a_request_for_another_host_is_refused(http, host, status):
    assert http.get("/v2", {"Host": host}).status == status


def test_more_routes_can_be_added_and_their_mistakes_are_told_without_a_traceback(agent, make_http, caplog):
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def fine(request):
        return PlainTextResponse("fine")

    async def broken(request):
        raise KeyError("of ours")

    http = make_http(agent, routes=[Route("/fine", fine), Route("/broken", broken)])
    assert http.get("/fine").body == b"fine"
    reply = http.get("/broken")
    assert reply.status == 500 and reply.error == "internal error: KeyError: 'of ours'"
    http.stop()  # so that all is logged
    assert "/broken" in caplog.text
