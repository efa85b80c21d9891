"""Torch on a GPU: the contract on a device that stands in for CUDA, and on a GPU with CUDA itself."""

import contextlib
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from backends import CompileRequest, store, torch_cuda
from backends.base import Availability
from backends.contract import BackendContract
from backends.cuda import Gpu
from backends.torch_cuda import TorchCudaBackend
from subnets import EngineError, UnavailableError

IMAGES = np.random.default_rng(0).standard_normal((2, 1, 16, 16), np.float32)


class HostDevice:
    """What :class:`torch_cuda.Device` does, on the CPU: a replay computes anew from the buffers of the recording."""

    name = "cpu"

    def __init__(self, library):
        self.recorded, self.replayed, self.synchronized, self.free = 0, 0, 0, [1000, 300]
        self.fails = ""

    def pinned(self, shape):
        return torch.zeros(shape)

    def on_stream(self):
        return contextlib.nullcontext()

    def record(self, run):
        self.recorded += 1
        output = run()

        def replay():
            if self.fails:
                raise RuntimeError(self.fails)
            self.replayed += 1
            with torch.inference_mode():
                output.copy_(run())

        return replay, output

    def synchronize(self):
        self.synchronized += 1

    def free_bytes(self):
        return self.free.pop(0)


@pytest.fixture
def devices():
    return []


@pytest.fixture
def backend(tmp_path, gpu, devices):
    def device(library):
        devices.append(HostDevice(library))
        return devices[-1]

    return TorchCudaBackend(tmp_path / "cache", gpu=lambda: gpu, device=device)


class TestScripted(BackendContract):
    needs_torch = True

    @pytest.fixture
    def backend(self, backend):
        return backend

    @pytest.fixture
    def bundle(self, tiny_bundle):
        return tiny_bundle

    @pytest.fixture
    def reference(self, tiny_reference):
        return tiny_reference

    def test_another_process_loads_it(self, backend, bundle):
        """The device lives in this process alone; the artifact is read from disk by another backend object."""
        artifact = backend.build(bundle, CompileRequest(subnet="s100", batch_sizes=(2,)))
        other = TorchCudaBackend(backend.cache, gpu=backend._gpu, device=HostDevice)
        engines = [backend.load(artifact), other.load(store.read(backend.cache / "torch-cuda" / artifact.key))]
        np.testing.assert_array_equal(*[engine.infer(IMAGES) for engine in engines])


@pytest.mark.gpu
class TestOnTheGpu(TestScripted):
    test_another_process_loads_it = BackendContract.test_another_process_loads_it

    @pytest.fixture
    def backend(self, tmp_path, real_gpu):
        backend = TorchCudaBackend(tmp_path / "cache")
        if not (found := backend.available()).ok:
            pytest.skip(found.why)
        return backend


def test_each_batch_size_is_recorded_once_and_replayed_per_request(backend, tiny_bundle, devices):
    request = CompileRequest(subnet="s50", batch_sizes=(1, 2))
    with contextlib.closing(backend.load(backend.build(tiny_bundle, request))) as engine:
        (device,) = devices
        assert device.recorded == 2
        device.replayed = 0
        engine.infer(IMAGES)
        assert device.replayed == 1
        engine.repeat(2, 5)
        assert device.replayed == 6
        assert engine.memory_bytes == 700
        with pytest.raises(EngineError, match="no such batch"):
            engine.repeat(3, 1)


def test_batch_norm_is_folded_into_every_convolution(tiny_bundle, tiny_reference):
    for subnet in tiny_bundle.ladder.names:
        network = torch_cuda._network(torch, tiny_bundle, subnet)
        called = {type(network.get_submodule(n.target)) for n in network.graph.nodes if n.op == "call_module"}
        assert torch.nn.BatchNorm2d not in called
        with torch.inference_mode():
            found = network(torch.from_numpy(IMAGES)).numpy()
        np.testing.assert_allclose(found, tiny_reference(subnet, IMAGES), atol=1e-4)


def test_a_failure_is_an_engine_error_in_one_line(backend, tiny_bundle, devices):
    artifact = backend.build(tiny_bundle, CompileRequest(subnet="s50", batch_sizes=(2,)))
    with contextlib.closing(backend.load(artifact)) as engine:
        devices[0].fails = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"
        with pytest.raises(EngineError, match=r"subnet 's50' failed: CUDA error: .* encountered$"):
            engine.infer(IMAGES)
        with pytest.raises(EngineError, match=r"encountered$"):
            engine.repeat(2, 1)


def test_short_memory_while_loading_is_an_engine_error(backend, tiny_bundle, monkeypatch):
    artifact = backend.build(tiny_bundle, CompileRequest(subnet="s50"))

    def record(self, run):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(HostDevice, "record", record)
    with pytest.raises(EngineError, match=r"does not load on the GPU: CUDA out of memory"):
        backend.load(artifact)


def test_an_artifact_of_another_gpu_is_refused(backend, tiny_bundle, tmp_path, scripted):
    artifact = backend.build(tiny_bundle, CompileRequest(subnet="s50"))
    other = TorchCudaBackend(tmp_path / "cache", gpu=lambda: Gpu(scripted.Driver((8, 9)), driver="580.95"))
    with pytest.raises(EngineError, match=r"compute capability '8\.6', here it is '8\.9'"):
        other.load(artifact)


def test_what_is_missing_is_one_sentence(tmp_path, gpu):
    def nothing():
        raise UnavailableError("no NVIDIA GPU here")

    assert TorchCudaBackend(tmp_path, gpu=nothing).available() == Availability(False, "no NVIDIA GPU here")
    without = SimpleNamespace(version=SimpleNamespace(cuda=None), __version__="2.13.0+cpu")
    with pytest.raises(UnavailableError, match=r"2\.13\.0\+cpu is built without CUDA; try: pip install torch --index"):
        torch_cuda._check_torch(without)


def test_why_torch_cannot_use_the_gpu_is_taken_from_its_warning():
    def is_available():
        warnings.warn("CUDA initialization: the driver is too old\n(found 11040)", stacklevel=1)
        return False

    library = SimpleNamespace(
        version=SimpleNamespace(cuda="13.0"), __version__="2.13.0", cuda=SimpleNamespace(is_available=is_available)
    )
    with pytest.raises(UnavailableError, match=r"cannot use the GPU: CUDA initialization: the driver is too old$"):
        torch_cuda._check_torch(library)
    library.cuda.is_available = lambda: False
    with pytest.raises(UnavailableError, match="it sees no device"):
        torch_cuda._check_torch(library)
    library.cuda.is_available = lambda: True
    torch_cuda._check_torch(library)
