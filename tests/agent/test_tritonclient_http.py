"""NVIDIA's unmodified HTTP client against the digits' real engines: what its own examples do and assert."""

import asyncio
import json
import threading

import numpy as np
import pytest

from agent import Agent
from agent.http_server import HttpServer
from agent.model import ServedModel
from agent.regions import Regions
from policies.base import Goals
from subnets.bundle import Bundle
from subnets.data import load

pytest.importorskip("openvino")
triton = pytest.importorskip("tritonclient.http")
triton_aio = pytest.importorskip("tritonclient.http.aio")
shm = pytest.importorskip("tritonclient.utils.shared_memory")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

IMAGES = 16


@pytest.fixture(scope="module")
def digits(helpers):
    return Bundle.open(helpers.root / "bundles" / "digits")


@pytest.fixture(scope="module")
def agent(digits, helpers, tmp_path_factory):
    from backends.openvino import OpenVINOBackend

    table = helpers.make_table(digits, batch_sizes=(1, IMAGES), ladder=digits.ladder.names, backend="openvino")
    largest = digits.ladder.names[-1]
    with Agent(
        digits,
        table,
        backends={"openvino": OpenVINOBackend(tmp_path_factory.mktemp("cache"))},
        policy=helpers.Scripted(f"{largest}@openvino:f32:b1"),
        goals=Goals(),
        sensors=None,
        control_period_s=3600.0,
    ) as agent:
        yield agent


@pytest.fixture(scope="module")
def server(agent):
    # NVIDIA's example asserts on the name of its own server.
    model = ServedModel(agent, "1.2.3", name="triton", max_images=IMAGES, model_control=True)
    with HttpServer(model, host="127.0.0.1", regions=Regions(enabled=True)) as server:
        server.url = f"127.0.0.1:{server.port}"
        yield server


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.url, concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def images(digits):
    return digits.manifest.input.preprocess(load("digits").test.images[:IMAGES])


@pytest.fixture(scope="module")
def expected(digits, images):
    """Logits per subnet, by OpenVINO from the bundle's exports and without this project's code."""
    import openvino

    core = openvino.Core()

    def logits(name):
        path = digits.path / "exports" / "openvino" / f"{name}.xml"
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # else bf16 where there is any
        return compiled(images)[0]

    return {name: logits(name) for name in digits.ladder.names}


def tensor(batch, binary=True):
    sent = triton.InferInput("input", batch.shape, "FP32")
    sent.set_data_from_numpy(batch, binary_data=binary)
    return sent


def same(result, logits):
    np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-2, atol=1e-2)


def refused(call):
    """(status, sentence) of a call that fails."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert "Traceback" not in caught.value.message() and "exception occurred" not in caught.value.message()
    return caught.value.status(), caught.value.message()


# -- simple_http_health_metadata.py


def test_health_and_metadata(client, digits):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1") and not client.is_model_ready("digits", "9")
    metadata = client.get_server_metadata()
    assert metadata["name"] == "triton" and "system_shared_memory" in metadata["extensions"]
    described = client.get_model_metadata("digits", query_params={"test_1": 1, "test_2": 2})
    assert described["name"] == "digits" and described["versions"] == [
        str(n + 1) for n in range(len(digits.ladder.names))
    ]
    status, words = refused(lambda: client.get_model_metadata("wrong_model_name"))
    assert status == "404" and words.startswith("Request for unknown model")


def test_configuration(client):
    config = client.get_model_config("digits")
    assert (config["name"], config["max_batch_size"]) == ("digits", IMAGES)
    assert config["input"][0]["dims"] == [1, 16, 16] and config["output"][0]["dims"] == [10]


# -- simple_http_infer_client.py


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_infer(client, images, expected, digits, binary_input, binary_output):
    outputs = None
    if binary_output is not None:
        outputs = [triton.InferRequestedOutput("logits", binary_data=binary_output)]
    result = client.infer("digits", [tensor(images, binary_input)], outputs=outputs, request_id="7")
    same(result, expected[digits.ladder.names[-1]])
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("7", str(len(digits.ladder.names)))
    told = response["parameters"]
    assert told["subnet"] == digits.ladder.names[-1] and told["reason"] and told["infer_ms"] > 0


def test_every_version_is_a_subnet(client, images, expected, digits):
    for place, name in enumerate(digits.ladder.names, 1):
        result = client.infer("digits", [tensor(images)], model_version=str(place), timeout=5_000_000, priority=1)
        same(result, expected[name])
        assert result.get_response()["parameters"]["subnet"] == name
        result = client.infer("digits", [tensor(images)], parameters={"subnet": name, "stream": "front"})
        assert result.get_response()["model_version"] == str(place)


@pytest.mark.parametrize("request_algorithm", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_algorithm", [None, "gzip", "deflate"])
def test_compression(client, images, expected, digits, request_algorithm, response_algorithm):
    result = client.infer(
        "digits",
        [tensor(images)],
        request_compression_algorithm=request_algorithm,
        response_compression_algorithm=response_algorithm,
    )
    same(result, expected[digits.ladder.names[-1]])


def test_json_with_nan_is_understood_and_refused_for_what_it_is(client, images):
    bad = images.copy()
    bad[0, 0, 0, 0] = np.nan
    body = {"inputs": [{"name": "input", "shape": list(bad.shape), "datatype": "FP32", "data": bad.ravel().tolist()}]}
    reply = client._post("v2/models/digits/infer", json.dumps(body), None, None)  # what perf_analyzer sends
    assert reply.status_code == 400 and "finite" in json.loads(reply.read())["error"]


# -- simple_http_async_infer_client.py


def test_async_infer(client, images, expected, digits):
    waiting = [client.async_infer("digits", [tensor(images)], request_id=str(n)) for n in range(8)]
    for number, request in enumerate(waiting):
        result = request.get_result()
        assert result.get_response()["id"] == str(number)
        same(result, expected[digits.ladder.names[-1]])


# -- simple_http_aio_infer_client.py


def test_aio(server, images, expected, digits):
    async def ask():
        async with triton_aio.InferenceServerClient(server.url) as client:
            assert await client.is_server_live() and await client.is_model_ready("digits")
            assert (await client.get_server_metadata())["name"] == "triton"
            assert (await client.get_model_config("digits"))["name"] == "digits"
            assert (await client.get_inference_statistics("digits"))["model_stats"]
            many = [client.infer("digits", [tensor(images)], request_id=str(n)) for n in range(8)]
            results = [*await asyncio.gather(*many)]
            results.append(await client.infer("digits", [tensor(images)], response_compression_algorithm="gzip"))
            with pytest.raises(InferenceServerException, match="unknown model"):
                await client.infer("other", [tensor(images)])
            return results

    for result in asyncio.run(ask()):
        same(result, expected[digits.ladder.names[-1]])


# -- simple_http_shm_client.py, shm_util


def test_system_shared_memory(client, images, expected, digits):
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    logits = expected[digits.ladder.names[-1]]
    given = shm.create_shared_memory_region("input_data", "/gearshift_test_in", images.nbytes)
    taken = shm.create_shared_memory_region("output_data", "/gearshift_test_out", logits.nbytes)
    try:
        shm.set_shared_memory_region(given, [images])
        client.register_system_shared_memory("input_data", "/gearshift_test_in", images.nbytes)
        client.register_system_shared_memory("output_data", "/gearshift_test_out", logits.nbytes)
        assert [region["name"] for region in client.get_system_shared_memory_status()] == ["input_data", "output_data"]
        sent = triton.InferInput("input", images.shape, "FP32")
        sent.set_shared_memory("input_data", images.nbytes)
        wanted = triton.InferRequestedOutput("logits", binary_data=True)
        wanted.set_shared_memory("output_data", logits.nbytes)
        result = client.infer("digits", [sent], outputs=[wanted])
        output = result.get_output("logits")
        assert output["shape"] == [IMAGES, 10] and "parameters" not in output and "data" not in output
        found = shm.get_contents_as_numpy(taken, np.float32, [IMAGES, 10])
        np.testing.assert_allclose(found, logits, rtol=1e-2, atol=1e-2)
        status, words = refused(
            lambda: client.register_system_shared_memory("input_data", "/gearshift_test_in", images.nbytes)
        )
        assert status == "400" and "already" in words
        client.unregister_system_shared_memory("input_data")
        assert len(client.get_system_shared_memory_status()) == 1
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == [] == client.get_cuda_shared_memory_status()
    finally:
        shm.destroy_shared_memory_region(given)
        shm.destroy_shared_memory_region(taken)


# -- image_client.py


@pytest.mark.parametrize("binary", [True, False])
def test_classification_as_the_image_client_reads_it(client, digits, binary):
    test = load("digits").test
    batch = digits.manifest.input.preprocess(test.images[:IMAGES])
    wanted = triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)
    results = client.infer("digits", [tensor(batch)], outputs=[wanted]).as_numpy("logits")
    assert results.shape == (IMAGES, 3)
    right = 0
    for row, label in zip(results, test.labels[:IMAGES], strict=True):
        told = [(r.decode() if binary else r).split(":") for r in row]
        scores = [float(score) for score, _, _ in told]
        assert scores == sorted(scores, reverse=True)
        assert all(digits.labels[int(index)] == name for _, index, name in told)
        right += int(told[0][1]) == label
    assert right >= 14


# -- simple_http_model_control.py


def test_model_control(client, images):
    client.load_model("digits")
    assert client.is_model_ready("digits")
    assert {model["state"] for model in client.get_model_repository_index()} == {"READY"}
    client.unload_model("digits")
    assert not client.is_model_ready("digits")
    assert refused(lambda: client.infer("digits", [tensor(images)]))[0] == "503"
    client.load_model("digits")
    client.infer("digits", [tensor(images)])
    status, words = refused(lambda: client.load_model("wrong_model_name"))
    assert status == "404" and "failed to load" in words
    wrong = '"parameters": {"config": {{"max_batch_size": "16"}}}'
    assert "failed to load" in refused(lambda: client.load_model("digits", config=wrong))[1]
    status, words = refused(lambda: client.load_model("digits", config="{}", files={"file:1/model.onnx": b"code"}))
    assert status == "501" and "files" in words


# -- perf_analyzer and statistics


def test_the_queue_counter_grows_with_every_request(client, images):
    def queued():
        (stats,) = client.get_inference_statistics("digits", "1")["model_stats"]
        return stats["inference_stats"]["queue"]["count"]

    before = queued()
    for _ in range(3):
        client.infer("digits", [tensor(images)], model_version="1")
    assert queued() == before + 3
    assert len(client.get_inference_statistics()["model_stats"]) > 1


# -- errors


def test_errors_are_sentences_with_tritons_codes(client, images):
    assert refused(lambda: client.infer("other", [tensor(images)]))[0] == "404"
    assert refused(lambda: client.infer("digits", [tensor(images)], model_version="9"))[0] == "404"
    status, words = refused(lambda: client.infer("digits", [tensor(images[:, :, :8])]))
    assert status == "400" and "expected [N, 1, 16, 16]" in words
    status, words = refused(lambda: client.infer("digits", [tensor(np.concatenate([images, images]))]))
    assert status == "400" and f"at most {IMAGES}" in words
    wrong = triton.InferRequestedOutput("probabilities")
    assert (
        "unexpected inference output" in refused(lambda: client.infer("digits", [tensor(images)], outputs=[wrong]))[1]
    )
    assert refused(lambda: client.get_trace_settings())[0] == "404"
    client.infer("digits", [tensor(images)])


def test_clients_in_several_threads_get_their_own_answers(server, images, expected, digits):
    failed = []

    def run(place, name):
        with triton.InferenceServerClient(server.url) as client:
            for n in range(10):
                result = client.infer("digits", [tensor(images[n : n + 1])], model_version=str(place))
                try:
                    np.testing.assert_allclose(
                        result.as_numpy("logits"), expected[name][n : n + 1], rtol=1e-2, atol=1e-2
                    )
                except AssertionError as error:
                    failed.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(digits.ladder.names, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
