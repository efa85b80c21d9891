"""gRPC with Triton's own client, unmodified, over a real Unix socket and in the same process as the server."""

import asyncio
import queue
import threading
import time

import grpc
import numpy as np
import pytest

from agent.grpc_messages import HEALTH, INFERENCE
from subnets.errors import InputError

triton = pytest.importorskip("tritonclient.grpc")
triton_aio = pytest.importorskip("tritonclient.grpc.aio")
shm = pytest.importorskip("tritonclient.utils.shared_memory")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException


@pytest.fixture
def agent(make_agent):
    return make_agent(queue_limit=3)


@pytest.fixture
def server(agent, make_grpc):
    return make_grpc(agent)


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture
def raw(server):
    """Calls methods with bytes: ``raw(method, message)``."""
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:

        def call(method, message=b"", **more):
            service = "grpc.health.v1.Health" if method == "Check" else "inference.GRPCInferenceService"
            content = message if isinstance(message, bytes) else message.SerializeToString()
            return channel.unary_unary(f"/{service}/{method}")(content, timeout=30, **more)

        yield call


def tensor(batch, name="input", datatype="FP32"):
    sent = triton.InferInput(name, batch.shape, datatype)
    sent.set_data_from_numpy(batch)
    return sent


def refused(call):
    """(status, sentence) of a call that fails."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    words = caught.value.message()
    assert "Traceback" not in words and "\n" not in words and len(words) <= 1000
    return caught.value.status().removeprefix("StatusCode."), words


def until(true):
    while not true():
        time.sleep(0.01)


# -- health and descriptions


def test_server_and_model_are_live_and_ready(client, agent, backend, helpers, images):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "4")
    backend.broken.update(helpers.LADDER)
    refused(lambda: client.infer("tiny", [tensor(images)]))
    assert client.is_server_live() and not client.is_server_ready() and not client.is_model_ready("tiny")


def test_server_and_model_describe_themselves(client):
    told = client.get_server_metadata()
    assert (told.name, told.version) == ("gearshift", "1.2.3")
    assert set(told.extensions) == {
        *("classification", "model_configuration", "parameters", "statistics"),
        *("system_shared_memory", "model_repository"),
    }
    described = client.get_model_metadata("tiny")
    assert (described.name, list(described.versions)) == ("tiny", ["1", "2", "3", "4"])
    assert described.platform == "gearshift"
    (taken,), (given) = described.inputs, described.outputs
    assert (taken.name, taken.datatype, list(taken.shape)) == ("input", "FP32", [-1, 1, 4, 4])
    assert [(o.name, o.datatype, list(o.shape)) for o in given] == [("logits", "FP32", [-1, 3])]
    assert client.get_model_metadata("tiny", "2", as_json=True)["name"] == "tiny"


def test_metadata_tells_which_version_is_which_subnet_as_the_open_inference_protocol_foresees(raw):
    asked = INFERENCE["ModelMetadataRequest"](name="tiny")
    read = INFERENCE["ModelMetadataResponse"].FromString(raw("ModelMetadata", asked))
    assert dict(read.properties) == {"subnet.1": "s25", "subnet.2": "s50", "subnet.3": "s75", "subnet.4": "s100"}


def test_configuration_is_one_that_tritons_tools_understand(client):
    config = client.get_model_config("tiny").config
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "gearshift", 8)
    (taken,), (given,) = config.input, config.output
    assert (taken.name, taken.data_type, taken.format, list(taken.dims)) == ("input", 11, 2, [1, 4, 4])
    assert (given.name, given.data_type, list(given.dims)) == ("logits", 11, [3])
    assert config.version_policy.HasField("all")
    assert config.parameters["subnet.1"].string_value == "s25"


def test_repository_index_unload_and_load(client, images):
    index = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in index] == [("tiny", str(n), "READY") for n in range(1, 5)]
    client.unload_model("tiny")
    assert not client.is_model_ready("tiny")
    assert {m.state for m in client.get_model_repository_index().models} == {"UNAVAILABLE"}
    assert refused(lambda: client.infer("tiny", [tensor(images)]))[0] == "UNAVAILABLE"
    client.load_model("tiny")
    assert client.is_model_ready("tiny")
    client.infer("tiny", [tensor(images)])
    assert refused(lambda: client.load_model("other"))[0] == "NOT_FOUND"
    assert refused(lambda: client.load_model("tiny", config='{"max_batch_size": 99}'))[0] == "INVALID_ARGUMENT"
    code, words = refused(lambda: client.load_model("tiny", config="{}", files={"file:1/model.onnx": b"code"}))
    assert code == "UNIMPLEMENTED" and "files" in words


def test_health_protocol_checks_and_watches(server, agent, raw):
    def status(reply):
        return HEALTH["HealthCheckResponse"].FromString(reply).status

    for service in ("", "inference.GRPCInferenceService"):
        assert status(raw("Check", HEALTH["HealthCheckRequest"](service=service))) == 1
    with pytest.raises(grpc.RpcError) as caught:
        raw("Check", HEALTH["HealthCheckRequest"](service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with grpc.insecure_channel(server.address) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        unknown = watch(HEALTH["HealthCheckRequest"](service="other").SerializeToString())
        assert status(next(unknown)) == 3
        unknown.cancel()
        known = watch(b"")
        assert status(next(known)) == 1
        agent.close()
        assert status(next(known)) == 2
        known.cancel()


# -- inference


def test_infer_gives_the_engines_logits_exactly_and_says_who_answered(client, images, helpers):
    result = client.infer("tiny", [tensor(images)], request_id="42")
    np.testing.assert_array_equal(result.as_numpy("logits"), helpers.expected("s100", images))
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("42", "tiny", "4")
    told = response.parameters
    assert told["subnet"].string_param == "s100" and told["point"].string_param == helpers.point("s100")
    assert "script" in told["reason"].string_param
    assert told["expected_accuracy"].double_param == 0.95
    assert told["infer_ms"].double_param > 0 and told["queue_ms"].double_param >= 0
    assert "energy_j" not in told  # the table has none


@pytest.mark.parametrize(("version", "subnet"), [("1", "s25"), ("2", "s50"), ("3", "s75"), ("4", "s100")])
def test_a_version_pins_the_subnet(client, images, helpers, version, subnet):
    outputs = [triton.InferRequestedOutput("logits")]
    result = client.infer("tiny", [tensor(images)], model_version=version, outputs=outputs)
    assert result.get_response().model_version == version
    np.testing.assert_array_equal(result.as_numpy("logits"), helpers.expected(subnet, images))


def test_parameters_of_a_request_reach_the_agent(client, agent, policy, images, helpers):
    def told(name, **asked):
        response = client.infer("tiny", [tensor(images)], parameters=asked).get_response()
        return response.parameters[name].double_param

    result = client.infer("tiny", [tensor(images)], parameters={"subnet": "s50"})
    np.testing.assert_array_equal(result.as_numpy("logits"), helpers.expected("s50", images))
    code, words = refused(lambda: client.infer("tiny", [tensor(images)], parameters={"subnet": "s51"}))
    assert code == "INVALID_ARGUMENT" and "s25, s50, s75, s100" in words
    policy.point = helpers.point("s25")
    agent.tick()
    assert told("expected_accuracy") == 0.8
    assert told("expected_accuracy", min_accuracy=0.88) >= 0.88
    code, words = refused(lambda: client.infer("tiny", [tensor(images)], parameters={"min_accuracy": 3.0}))
    assert code == "INVALID_ARGUMENT" and "min_accuracy" in words


class Asked:
    """Stands before the agent and notes what it is asked for."""

    def __init__(self, agent, monkeypatch) -> None:
        self.deadlines = []
        for name in ("submit", "infer"):
            original = getattr(agent, name)

            def noting(batch, original=original, **wishes):
                self.deadlines.append(wishes.get("deadline_ms"))
                return original(batch, **wishes)

            monkeypatch.setattr(agent, name, noting)


def test_the_calls_deadline_is_the_requests_unless_something_sooner_is_said(client, agent, images, monkeypatch):
    from policies.base import Goals

    asked = Asked(agent, monkeypatch)
    client.infer("tiny", [tensor(images)])
    client.infer("tiny", [tensor(images)], client_timeout=20)
    client.infer("tiny", [tensor(images)], client_timeout=20, timeout=5_000_000)
    agent.reconfigure(goals=Goals(deadline_ms=50))
    client.infer("tiny", [tensor(images)], client_timeout=20)
    none, from_call, from_parameter, from_goals = asked.deadlines
    assert (none, from_parameter, from_goals) == (None, 5000, None)  # None = what the goals say
    assert 0 < from_call <= 21_000  # gRPC rounds a deadline up


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read(client, images, helpers, algorithm):
    result = client.infer("tiny", [tensor(images)], compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("logits"), helpers.expected("s100", images))


def test_typed_contents_are_read_as_well(raw, images, helpers):
    request = INFERENCE["ModelInferRequest"](model_name="tiny")
    added = request.inputs.add(name="input", datatype="FP32", shape=images.shape)
    added.contents.fp32_contents.extend(images.ravel().tolist())
    result = triton.InferResult(triton.service_pb2.ModelInferResponse.FromString(raw("ModelInfer", request)))
    np.testing.assert_array_equal(result.as_numpy("logits"), helpers.expected("s100", images))


def test_classification_gives_the_best_classes_first(client, images, helpers):
    outputs = [triton.InferRequestedOutput("logits", class_count=2)]
    told = client.infer("tiny", [tensor(images[:2])], outputs=outputs).as_numpy("logits")
    assert told.shape == (2, 2)
    for row, logits in zip(told, helpers.expected("s100", images[:2]), strict=True):
        best = np.argsort(logits)[::-1][:2]
        parts = [entry.decode().split(":") for entry in row]
        assert [(int(index), label) for _, index, label in parts] == [(int(i), "abc"[i]) for i in best]
        np.testing.assert_allclose([float(score) for score, _, _ in parts], logits[best], rtol=1e-6)


def test_async_calls_and_callbacks(client, images, helpers):
    replies = queue.Queue()
    for image in images:
        client.infer("tiny", [tensor(image[None])])
        client.async_infer("tiny", [tensor(image[None])], lambda result, error: replies.put((result, error)))
        result, error = replies.get(timeout=30)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("logits"), helpers.expected("s100", image[None]))


def test_asyncio_client_infers_and_streams(server, images, helpers):
    async def work():
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            results = [await client.infer("tiny", [tensor(image[None])]) for image in images]

            async def requests():
                for number in range(3):
                    yield {"model_name": "tiny", "inputs": [tensor(images)], "request_id": str(number)}

            streamed = [reply async for reply in client.stream_infer(requests())]
        return results, streamed

    results, streamed = asyncio.run(work())
    got = np.concatenate([result.as_numpy("logits") for result in results])
    np.testing.assert_array_equal(got, helpers.expected("s100", images))
    assert [result.get_response().id for result, error in streamed if error is None] == ["0", "1", "2"]


# -- streams


class Stream:
    """A stream of Triton's client with its replies in a queue."""

    def __init__(self, client) -> None:
        self.client, self.replies = client, queue.Queue()
        client.start_stream(lambda result, error: self.replies.put((result, error)))

    def send(self, batch, name="tiny", **more):
        self.client.async_stream_infer(name, [tensor(batch)], **more)

    def next(self):
        return self.replies.get(timeout=30)


def test_a_stream_answers_in_order_and_survives_a_wrong_request(client, images, helpers):
    stream = Stream(client)
    for number, image in enumerate(images):
        stream.send(image[None], request_id=str(number))
        if number == 2:
            stream.send(image[None], name="other")
    for number, image in enumerate(images):
        result, error = stream.next()
        assert error is None and result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("logits"), helpers.expected("s100", image[None]))
        if number == 2:
            result, error = stream.next()
            assert result is None and "unknown model" in error.message()
    client.stop_stream()


def test_a_stream_reads_on_while_a_request_waits_but_only_so_far(agent, make_grpc, backend, images):
    server = make_grpc(agent, stream_window=2)
    backend.blocking = threading.Event()
    with triton.InferenceServerClient(server.address) as client:
        stream = Stream(client)
        for _ in range(6):
            stream.send(images[:1])
        assert backend.entered.wait(10)
        until(lambda: agent.status().queue_depth == 1)
        time.sleep(0.3)  # were more read than allowed, they would wait by now
        assert agent.status().queue_depth == 1  # one is answered, one waits, four are not read yet
        backend.blocking.set()
        assert all(stream.next()[1] is None for _ in range(6))
        client.stop_stream()


def test_of_a_camera_that_waits_only_the_newest_frame_is_answered(client, agent, backend, images, helpers):
    backend.blocking = threading.Event()
    stream = Stream(client)
    stream.send(images[:1])
    assert backend.entered.wait(10)
    for number in (1, 2, 3):
        stream.send(images[number : number + 1], request_id=str(number), parameters={"stream": "front"})
    until(lambda: agent.status().counters.superseded == 2)
    backend.blocking.set()
    assert stream.next()[1] is None
    for _ in range(2):
        assert "newer request of stream 'front'" in stream.next()[1].message()
    result, error = stream.next()
    assert error is None and result.get_response().id == "3"
    np.testing.assert_array_equal(result.as_numpy("logits"), helpers.expected("s100", images[3:4]))
    client.stop_stream()


def test_a_stream_marks_each_reply_as_the_last_for_clients_that_count_replies(client, images):
    stream = Stream(client)
    stream.send(images, enable_empty_final_response=True)
    result, _ = stream.next()
    assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


def test_a_cancelled_stream_leaves_no_thread_and_no_request_behind(server, client, agent, backend, images):
    backend.blocking = threading.Event()
    stream = Stream(client)
    for _ in range(3):
        stream.send(images[:1])
    assert backend.entered.wait(10)
    until(lambda: agent.status().queue_depth == 2)
    (served,) = server._streams
    client.stop_stream(cancel_requests=True)
    until(lambda: len(served._pending) == 1)  # the cancellation has arrived; one is under way and cannot be cancelled
    backend.blocking.set()
    agent.infer(images[:1])
    until(lambda: not any(thread.name == "gearshift-grpc-stream" for thread in threading.enumerate()))
    assert len(backend.sizes) == 2  # the one that was under way, and the last


# -- shared memory


@pytest.fixture
def region(images):
    """A region with the images and room for logits behind them."""
    handle = shm.create_shared_memory_region("tensors", "/gearshift-test-grpc", images.nbytes + 60)
    shm.set_shared_memory_region(handle, [images])
    yield handle
    shm.destroy_shared_memory_region(handle)


def test_tensors_go_through_shared_memory_both_ways(client, backend, images, helpers, region):
    client.register_system_shared_memory("tensors", "/gearshift-test-grpc", images.nbytes + 60)
    told = client.get_system_shared_memory_status().regions["tensors"]
    assert (told.key, told.offset, told.byte_size) == ("/gearshift-test-grpc", 0, images.nbytes + 60)
    sent = triton.InferInput("input", images.shape, "FP32")
    sent.set_shared_memory("tensors", images.nbytes)
    wanted = triton.InferRequestedOutput("logits")
    wanted.set_shared_memory("tensors", 60, offset=images.nbytes)
    result = client.infer("tiny", [sent], outputs=[wanted])
    output = result.get_output("logits")
    assert list(output.shape) == [5, 3] and not output.parameters
    assert list(result.get_response().raw_output_contents) == [b""]  # as Triton does; its C++ client looks there
    got = shm.get_contents_as_numpy(region, np.float32, [5, 3], offset=images.nbytes)
    np.testing.assert_array_equal(got, helpers.expected("s100", images))

    answered = len(backend.sizes)
    wanted.set_shared_memory("tensors", 56, offset=images.nbytes)
    assert "at least 60 bytes" in refused(lambda: client.infer("tiny", [sent], outputs=[wanted]))[1]
    wanted.set_shared_memory("tensors", 60, offset=images.nbytes + 4)
    assert refused(lambda: client.infer("tiny", [sent], outputs=[wanted]))[0] == "INVALID_ARGUMENT"
    sent.set_shared_memory("tensors", images.nbytes - 4)
    assert f"needs {images.nbytes} bytes" in refused(lambda: client.infer("tiny", [sent]))[1]
    assert len(backend.sizes) == answered  # no engine worked for nothing
    client.unregister_system_shared_memory("tensors")
    assert refused(lambda: client.infer("tiny", [sent]))[0] in ("NOT_FOUND", "INVALID_ARGUMENT")
    assert not client.get_system_shared_memory_status().regions


def test_shared_memory_is_refused_where_it_is_off(agent, make_grpc):
    from agent.regions import Regions

    server = make_grpc(agent, regions=Regions(enabled=False), model_control=False)
    with triton.InferenceServerClient(server.address) as client:
        told = client.get_server_metadata().extensions
        assert not {"system_shared_memory", "model_repository"} & set(told) and "statistics" in told
        assert refused(lambda: client.unload_model("tiny"))[0] == "UNIMPLEMENTED"
        code, words = refused(lambda: client.register_system_shared_memory("r", "/none", 4))
        assert code == "UNIMPLEMENTED" and "shared_memory = true" in words


def test_cuda_shared_memory_may_be_unregistered_and_listed_but_not_registered(client):
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("any")
    assert not client.get_cuda_shared_memory_status().regions
    assert refused(lambda: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 4))[0] == "UNIMPLEMENTED"


# -- statistics


def test_statistics_count_requests_images_and_failures_by_version(client, images, backend):
    for _ in range(2):
        client.infer("tiny", [tensor(images)])
    client.infer("tiny", [tensor(images[:1])], model_version="1")
    stream = Stream(client)
    stream.send(images)
    stream.next()
    client.stop_stream()
    told = {entry.version: entry for entry in client.get_inference_statistics("tiny").model_stats}
    assert sorted(told) == ["1", "2", "3", "4"]
    assert (told["4"].inference_count, told["4"].execution_count) == (15, 3)
    assert (told["1"].inference_count, told["1"].execution_count) == (1, 1)
    parts = told["4"].inference_stats
    for part in (parts.success, parts.queue, parts.compute_input, parts.compute_infer, parts.compute_output):
        assert part.count == 3
    assert parts.success.ns >= parts.compute_infer.ns + parts.compute_input.ns + parts.compute_output.ns > 0
    assert [(entry.batch_size, entry.compute_infer.count) for entry in told["4"].batch_stats] == [(5, 3)]
    backend.broken.add("s25")
    refused(lambda: client.infer("tiny", [tensor(images)], model_version="1"))
    (one,) = client.get_inference_statistics("tiny", "1").model_stats
    assert one.inference_stats.fail.count == 1
    assert len(client.get_inference_statistics().model_stats) == 4
    assert refused(lambda: client.get_inference_statistics("other"))[0] == "NOT_FOUND"


# -- errors


def test_what_is_unknown_is_not_found(client, images):
    for call in (
        lambda: client.infer("other", [tensor(images)]),
        lambda: client.infer("tiny", [tensor(images)], model_version="5"),
        lambda: client.get_model_metadata("other"),
        lambda: client.get_model_config("tiny", "9"),
        lambda: client.is_model_ready("other"),
    ):
        code, words = refused(call)
        assert code == "NOT_FOUND" and "Request for unknown model" in words


def test_what_is_not_offered_says_so(client, raw):
    assert refused(client.get_trace_settings)[0] == "UNIMPLEMENTED"
    assert refused(client.get_log_settings)[0] == "UNIMPLEMENTED"
    with pytest.raises(grpc.RpcError) as caught:
        raw("NoSuchMethod")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


ONE = np.ones((1, 1, 4, 4), np.float32)


def message(**changes):
    """A sound request, but for the changes to the request or its input."""
    request = INFERENCE["ModelInferRequest"](model_name="tiny")
    request.inputs.add(name="input", datatype="FP32", shape=[1, 1, 4, 4])
    request.raw_input_contents.append(ONE.tobytes())
    for name, value in changes.items():
        owner = request if name in request.DESCRIPTOR.fields_by_name else request.inputs[0]
        if isinstance(value, list):
            owner.ClearField(name)
            getattr(owner, name).extend(value)
        else:
            setattr(owner, name, value)
    return request


def spoilt(change):
    request = message()
    change(request)
    return request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (INFERENCE["ModelInferRequest"](model_name="tiny"), "exactly one input"),
        (spoilt(lambda r: r.inputs.add(name="input")), "exactly one input"),
        (message(name="other"), "'other'"),
        (message(datatype="INT8"), "INT8"),
        (message(shape=[1, 1, 4, 5]), "shape"),
        (message(shape=[0, 1, 4, 4]), "shape"),
        (message(shape=[-1, 1, 4, 4]), "shape"),
        (message(shape=[1, 16]), "shape"),
        (message(shape=[1, 1, 4, 4, 1]), "shape"),
        (message(shape=[9, 1, 4, 4]), "at most 8"),
        (message(shape=[2**62, 1, 4, 4]), "at most 8"),
        (message(raw_input_contents=[b"1234"]), "needs 64 bytes"),
        (message(raw_input_contents=[]), "in 0 ways"),
        (message(raw_input_contents=[ONE.tobytes()] * 2), "2 elements"),
        (spoilt(lambda r: r.inputs[0].contents.fp32_contents.append(1)), "in 2 ways"),
        (spoilt(lambda r: r.outputs.add(name="x")), "'x'"),
        (message(raw_input_contents=[np.full(16, np.nan, np.float32).tobytes()]), "not finite"),
        (spoilt(lambda r: r.parameters["timeout"].MergeFrom(INFERENCE["InferParameter"](int64_param=-1))), "timeout"),
        (
            spoilt(lambda r: r.parameters["stream"].MergeFrom(INFERENCE["InferParameter"](double_param=0.5))),
            "stream",
        ),
    ],
)
def test_a_wrong_request_is_answered_with_invalid_argument_and_a_sentence(raw, request_, words):
    with pytest.raises(grpc.RpcError) as caught:
        raw("ModelInfer", request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details() and "\n" not in caught.value.details()


def test_a_parameter_without_a_value_counts_as_not_sent(raw):
    request = message()
    request.inputs[0].parameters["shared_memory_region"].SetInParent()
    request.parameters["timeout"].SetInParent()
    assert raw("ModelInfer", request)


def test_wrong_typed_contents_are_refused(raw):
    for field, values, words in (
        ("fp32_contents", [1.0] * 15, "has 15 numbers"),
        ("fp64_contents", [1.0] * 16, "fp32_contents alone"),
    ):
        request = message(raw_input_contents=[])
        getattr(request.inputs[0].contents, field).extend(values)
        with pytest.raises(grpc.RpcError) as caught:
            raw("ModelInfer", request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and words in caught.value.details()


def test_a_full_queue_is_unavailable_and_no_engine_is_internal(client, agent, backend, images, helpers):
    backend.blocking = threading.Event()
    waiting = [agent.submit(images[:1]) for _ in range(4)]
    assert refused(lambda: client.infer("tiny", [tensor(images)]))[0] == "UNAVAILABLE"
    backend.blocking.set()
    for future in waiting:
        future.result(10)
    backend.broken.update(helpers.LADDER)
    code, words = refused(lambda: client.infer("tiny", [tensor(images)]))
    assert code == "INTERNAL" and "no engine could answer" in words


def test_a_taken_path_is_refused_and_a_stale_socket_replaced(server, agent, make_grpc, tmp_path):
    assert server.path.stat().st_mode & 0o777 == 0o660
    other = make_grpc(agent)
    with pytest.raises(InputError, match="another process listens"):
        other.listen_unix(server.path)
    ordinary = tmp_path / "file"
    ordinary.write_text("keep me")
    with pytest.raises(InputError, match="not a socket"):
        other.listen_unix(ordinary)
    assert ordinary.read_text() == "keep me"
