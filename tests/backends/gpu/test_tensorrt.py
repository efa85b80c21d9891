"""TensorRT: the contract against a scripted vendor, keys, profiles, graphs and errors; on a GPU the contract itself."""

import contextlib
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from backends import CompileRequest, store
from backends.base import Availability
from backends.contract import TOLERANCE, BackendContract
from backends.cuda import Gpu
from backends.tensorrt import TensorRTBackend, load_vendor, native_precisions
from backends.tensorrt_rtx import TensorRTRTXBackend
from subnets import EngineError, InputError, UnavailableError


@pytest.fixture
def backend(tmp_path, vendor, gpu):
    pytest.importorskip("torch")  # computes the scripted engine
    return TensorRTBackend(tmp_path / "cache", vendor=lambda: vendor, gpu=lambda: gpu)


@pytest.fixture
def load(backend, hand_bundle):
    """An engine of the small bundle, closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(**changes):
            request = CompileRequest(subnet="s50", **changes)
            return stack.enter_context(contextlib.closing(backend.load(backend.build(hand_bundle, request))))

        yield opened


IMAGES = np.random.default_rng(0).standard_normal((2, 2, 6, 5), np.float32)


class TestScripted(BackendContract):
    @pytest.fixture
    def backend(self, backend):
        return backend

    @pytest.fixture
    def bundle(self, hand_bundle):
        return hand_bundle

    @pytest.fixture
    def reference(self, hand_reference):
        return hand_reference

    def test_another_process_loads_it(self, backend, bundle):
        """The scripted vendor lives in this process alone, so another backend object stands for the other process."""
        artifact = backend.build(bundle, CompileRequest(subnet="s100"))
        images = IMAGES[:1]
        other = TensorRTBackend(backend.cache, vendor=backend._vendor, gpu=backend._gpu)
        engines = [backend.load(artifact), other.load(store.read(Path(artifact.path)))]
        np.testing.assert_array_equal(*[engine.infer(images) for engine in engines])
        for engine in engines:
            engine.close()


def test_a_residual_network_without_exports_is_exported_on_the_way(backend, tiny_bundle, tiny_reference):
    images = np.random.default_rng(1).standard_normal((1, 1, 16, 16), np.float32)
    expected = tiny_reference("s50", images)
    for precision, tolerance in TOLERANCE.items():
        if precision in backend.precisions():
            artifact = backend.build(tiny_bundle, CompileRequest(subnet="s50", precision=precision))
            assert sorted(path.name for path in Path(artifact.path).iterdir()) == ["artifact.json", "engine.plan"]
            with contextlib.closing(backend.load(artifact)) as engine:
                assert np.abs(engine.infer(images) - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.gpu
class TestOnTheGpu(BackendContract):
    """The contract with the real library."""

    kind = TensorRTBackend

    @pytest.fixture
    def backend(self, tmp_path, real_gpu):
        backend = self.kind(tmp_path / "cache")
        if not (found := backend.available()).ok:
            pytest.skip(found.why)
        return backend

    @pytest.fixture
    def bundle(self, tiny_bundle):
        return tiny_bundle

    @pytest.fixture
    def reference(self, tiny_reference):
        return tiny_reference

    def test_the_work_is_recorded_for_every_batch_size(self, backend, bundle):
        request = CompileRequest(subnet=bundle.ladder.names[0], batch_sizes=(1, 4))
        with contextlib.closing(backend.load(backend.build(bundle, request))) as engine:
            assert engine.graphs == 2
            engine.repeat(4, 3)


@pytest.mark.gpu
class TestRTXOnTheGpu(TestOnTheGpu):
    kind = TensorRTRTXBackend


# What is stored, and under which key.


def test_another_gpu_driver_or_version_is_another_engine_and_the_old_one_is_refused(
    backend, hand_bundle, tmp_path, scripted, vendor, driver
):
    request = CompileRequest(subnet="s50")
    artifact = backend.build(hand_bundle, request)
    gpus = {
        "newer driver": Gpu(driver, driver="590.1"),
        "other GPU": Gpu(scripted.Driver((8, 9)), driver="580.95"),
    }
    others = {
        what: TensorRTBackend(tmp_path / "cache", vendor=lambda: vendor, gpu=lambda gpu=gpu: gpu)
        for what, gpu in gpus.items()
    }
    newer = scripted.Vendor(driver, version="10.10")
    others["newer version"] = TensorRTBackend(tmp_path / "cache", vendor=lambda: newer, gpu=backend._gpu)
    keys = {artifact.key}
    for what, other in others.items():
        with pytest.raises(EngineError, match="build it again"):
            other.load(artifact)
        keys.add(other.build(hand_bundle, request).key)
        assert len(keys) == 2 + list(others).index(what)


def test_subnets_precisions_and_batch_sizes_have_keys_of_their_own(backend, hand_bundle, vendor):
    requests = [
        CompileRequest(subnet=subnet, precision=precision, batch_sizes=sizes)
        for subnet in ("s50", "s100")
        for precision in ("f32", "f16", "bf16")
        for sizes in ((1,), (1, 2))
    ]
    keys = {backend.build(hand_bundle, request).key for request in requests}
    assert len(keys) == len(requests) == len(vendor.built)
    for request in requests:
        backend.build(hand_bundle, request)
    assert len(vendor.built) == len(requests)


def test_changed_weights_are_another_engine(backend, hand_bundle):
    before = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    other = hand_bundle.rewrite(weights_sha256="0" * 64)
    assert backend.build(other, CompileRequest(subnet="s50")).key != before.key


def test_one_batch_size_is_static_and_several_have_a_profile_each(backend, hand_bundle, vendor):
    backend.build(hand_bundle, CompileRequest(subnet="s50", batch_sizes=(4,)))
    backend.build(hand_bundle, CompileRequest(subnet="s50", batch_sizes=(8, 1)))
    static, dynamic = vendor.built
    assert static.profiles == []
    assert dynamic.profiles == [((size, 2, 6, 5),) * 3 for size in (1, 8)]
    assert static.cleared == dynamic.cleared == ["TF32"]


def test_a_damaged_export_is_named(backend, hand_bundle):
    file = hand_bundle.path / "exports/openvino/s50.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"s50\.bin: damaged"):
        backend.build(hand_bundle, CompileRequest(subnet="s50"))


# How an engine runs.


def test_each_batch_size_is_recorded_once_and_then_costs_one_launch(load, driver, hand_reference):
    engine = load(batch_sizes=(1, 2))
    assert engine.graphs == 2
    driver.calls.clear()
    answer = engine.infer(IMAGES)
    assert driver.calls == ["cuCtxSetCurrent", "cuGraphLaunch", "cuStreamSynchronize"]
    np.testing.assert_allclose(answer, hand_reference("s50", IMAGES), rtol=0.01, atol=0.01)


def test_what_cannot_be_recorded_is_queued_anew_each_time(load, vendor, driver, hand_reference):
    vendor.synchronizes = True
    engine = load(batch_sizes=(2,))
    assert engine.graphs == 0
    driver.calls.clear()
    answer = engine.infer(IMAGES)
    assert "cuGraphLaunch" not in driver.calls and driver.calls.count("cuMemcpyHtoDAsync_v2") == 1
    np.testing.assert_allclose(answer, hand_reference("s50", IMAGES), rtol=0.01, atol=0.01)


def test_repeating_runs_the_network_alone(load, vendor, driver):
    engine = load(batch_sizes=(2,))
    vendor.runs.clear()
    driver.calls.clear()
    engine.repeat(2, 5)
    assert vendor.runs == [IMAGES.shape] * 5
    assert not any("Memcpy" in call for call in driver.calls)
    with pytest.raises(EngineError, match="no such batch"):
        engine.repeat(3, 1)


def test_an_engine_loaded_in_one_thread_answers_in_another(load):
    engine = load(batch_sizes=(2,))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(engine.infer(IMAGES)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(answers[0], engine.infer(IMAGES))


def test_memory_is_the_gpus_and_unknown_where_none_was_taken(load, driver, backend, hand_bundle):
    engine = load(batch_sizes=(1, 2))
    assert engine.memory_bytes == 4 * 3 * (2 * 6 * 5 + 3)  # what the scripted driver gave: the buffers
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s100"))
    seen = []

    def freed_meanwhile(free, total):
        seen.append(1)
        free._obj.value = len(seen) << 20

    driver._cuMemGetInfo_v2 = freed_meanwhile
    with contextlib.closing(backend.load(artifact)) as engine:
        assert engine.memory_bytes is None


def test_closing_frees_everything_also_on_a_gpu_that_failed(backend, hand_bundle, driver):
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50", batch_sizes=(1, 2)))
    engine = backend.load(artifact)
    assert driver.allocated
    engine.close()
    assert driver.allocated == 0
    engine = backend.load(artifact)
    driver.failing.update(dict.fromkeys(("cuMemFree_v2", "cuGraphExecDestroy", "cuStreamDestroy_v2"), 700))
    engine.close()
    engine.close()


# What fails, and how it is said.


def test_a_failing_launch_is_an_engine_error_with_its_name(load, driver):
    engine = load(batch_sizes=(2,))
    driver.failing["cuStreamSynchronize"] = 700
    with pytest.raises(EngineError, match=r"subnet 's50' failed: cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):
        engine.infer(IMAGES)


def test_an_engine_that_fails_to_run_does_not_load_and_leaves_nothing(backend, hand_bundle, vendor, driver):
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    vendor.failing = "no kernel image is available\n  for execution"
    with pytest.raises(EngineError, match="no kernel image is available for execution"):
        backend.load(artifact)
    assert driver.allocated == 0


@pytest.mark.parametrize("call", ["cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamCreate"])
def test_short_memory_while_loading_leaves_nothing(backend, hand_bundle, driver, call):
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    driver.failing[call] = 2
    with pytest.raises(EngineError, match=r"CUDA_ERROR_OUT_OF_MEMORY, \d+ MiB"):
        backend.load(artifact)
    assert driver.allocated == 0


def test_a_plan_that_the_vendor_refuses_is_to_be_built_again(backend, hand_bundle, vendor):
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    vendor._plans.clear()
    with pytest.raises(EngineError, match=r"does not load \(serialization assertion failed\); build it again"):
        backend.load(artifact)


def test_a_refused_network_gives_the_first_error_and_stores_nothing(backend, hand_bundle, vendor):
    vendor.refuses = "Could not find any implementation for node conv."
    with pytest.raises(EngineError, match="tensorrt does not build 's50': Could not find any implementation"):
        backend.build(hand_bundle, CompileRequest(subnet="s50"))
    assert list((backend.cache / "tensorrt").iterdir()) == []


def test_answers_that_are_not_finite_are_an_engine_error(load, vendor):
    engine = load(precision="f16", batch_sizes=(2,))
    with pytest.raises(EngineError, match="answered with NaN or infinity"):
        engine.infer(np.full_like(IMAGES, 1e30))


# What this machine can do.


@pytest.mark.parametrize(
    ("capability", "offered"),
    [
        ((5, 2), ("f32",)),
        ((5, 3), ("f32", "f16")),
        ((6, 1), ("f32",)),
        ((7, 5), ("f32", "f16")),
        ((8, 7), ("f32", "f16", "bf16")),
        ((12, 0), ("f32", "f16", "bf16")),
    ],
)
def test_precisions_follow_the_compute_capability(capability, offered):
    assert native_precisions(capability) == offered


def test_int8_needs_an_export_of_its_own(backend, hand_bundle):
    assert "int8" not in backend.precisions_for(hand_bundle)
    with pytest.raises(InputError, match="carries no int8 export of 's50'"):
        backend.build(hand_bundle, CompileRequest(subnet="s50", precision="int8"))
    for subnet in hand_bundle.ladder.names:
        files = [hand_bundle.path / f"exports/openvino/{subnet}{suffix}" for suffix in (".xml", ".bin")]
        hand_bundle = hand_bundle.add_export(subnet, "openvino-int8", files)
    assert backend.precisions_for(hand_bundle) == (*backend.precisions(), "int8")
    with pytest.raises(EngineError, match="8-bit weights: the export is not quantized"):
        backend.build(hand_bundle, CompileRequest(subnet="s50", precision="int8"))


def test_without_gpu_or_library_each_backend_says_what_to_do(tmp_path, gpu):
    def nothing():
        raise UnavailableError("no NVIDIA GPU here")

    assert TensorRTBackend(tmp_path, gpu=nothing).available() == Availability(False, "no NVIDIA GPU here")
    missing = TensorRTBackend(tmp_path, gpu=lambda: gpu).available()
    assert not missing.ok and missing.why.startswith("tensorrt does not import (")
    assert missing.why.endswith("try: pip install 'gearshift[tensorrt]' --extra-index-url https://pypi.nvidia.com")


def test_a_library_that_breaks_on_import_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_vendor.py").write_text("raise Exception('libnvinfer.so.11 is missing\\n  many lines')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnavailableError) as caught:
        load_vendor("broken_vendor", "pip install vendor")
    assert str(caught.value) == "broken_vendor does not import (libnvinfer.so.11 is missing); try: pip install vendor"


# The second flavour.


def test_rtx_refuses_a_gpu_that_it_does_not_know(tmp_path, scripted, hand_bundle, vendor):
    hopper = Gpu(scripted.Driver((9, 0)))
    backend = TensorRTRTXBackend(tmp_path / "cache", vendor=lambda: vendor, gpu=lambda: hopper)
    found = backend.available()
    assert not found.ok and "does not know Scripted GPU (it knows SM75, SM86, this is SM90)" in found.why
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    with pytest.raises(UnavailableError, match="SM90"):
        backend.load(artifact)


def test_rtx_builds_ahead_of_time_and_the_artifact_serves_on_a_gpu(tmp_path, hand_bundle, vendor, gpu, hand_reference):
    pytest.importorskip("torch")

    def nothing():
        raise UnavailableError("no NVIDIA GPU here")

    workstation = TensorRTRTXBackend(tmp_path / "cache", vendor=lambda: vendor, gpu=nothing)
    assert workstation.precisions() == ("f32", "f16", "bf16")
    request = CompileRequest(subnet="s100", batch_sizes=(2,))
    artifact = workstation.build(hand_bundle, request)
    device = TensorRTRTXBackend(tmp_path / "cache", vendor=lambda: vendor, gpu=lambda: gpu)
    assert device.build(hand_bundle, request) == artifact and len(vendor.built) == 1
    with contextlib.closing(device.load(msgspec.structs.replace(artifact))) as engine:
        np.testing.assert_allclose(engine.infer(IMAGES), hand_reference("s100", IMAGES), rtol=0.01, atol=0.01)
