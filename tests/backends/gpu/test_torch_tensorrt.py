"""The way by torch-tensorrt: when it is taken, what the converter is given, and what its absence says."""

import contextlib
import functools
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from backends import CompileRequest, tensorrt
from backends import torch_tensorrt as module
from backends.gpu_network import Unsupported
from backends.tensorrt import TensorRTBackend
from subnets import EngineError, UnavailableError

IMAGES = np.random.default_rng(0).standard_normal((3, 1, 16, 16), np.float32)


class Converter:
    """``torch_tensorrt`` as far as it is called; an "engine" is the exported program itself."""

    def __init__(self):
        self.calls, self.Input = [], lambda **options: SimpleNamespace(**options)
        self.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=self.convert)

    def convert(self, program, *, arg_inputs, **options):
        self.calls.append((program, arg_inputs, options))
        return b"a plan"


@pytest.fixture
def converter():
    return Converter()


@pytest.fixture
def backend(tmp_path, vendor, gpu, converter, monkeypatch):
    """TensorRT with a network definition that knows no convolution, and torch on the CPU."""

    def unknown(*_):
        raise Unsupported("operation Erf ('gelu')")

    monkeypatch.setattr(tensorrt, "define", unknown)
    monkeypatch.setattr(module, "convert", functools.partial(module.convert, device="cpu"))
    monkeypatch.setattr(tensorrt, "load_vendor", lambda name, install: converter)
    return TensorRTBackend(tmp_path / "cache", vendor=lambda: vendor, gpu=lambda: gpu)


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_the_converter_gets_the_subnet_in_its_precision_with_f32_ends(
    backend, converter, tiny_bundle, tiny_reference, precision
):
    artifact = backend.build(tiny_bundle, CompileRequest(subnet="s50", precision=precision, batch_sizes=(3, 1)))
    assert artifact.classes == 4
    ((program, (spec,), options),) = converter.calls
    assert (spec.min_shape, spec.opt_shape, spec.max_shape) == ((1, 1, 16, 16), *[(3, 1, 16, 16)] * 2)
    kinds = {value.dtype for name, value in program.state_dict.items() if name.endswith("weight")}
    assert kinds == {{"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[precision]}
    for size in (1, 3):  # any batch between the smallest and the largest
        with torch.inference_mode():
            answer = program.module()(torch.from_numpy(IMAGES[:size])).numpy()
        expected = tiny_reference("s50", IMAGES[:size])
        assert answer.dtype == np.float32
        assert np.abs(answer - expected).max() <= 0.05 * np.abs(expected).max()
    assert options["require_full_compilation"] and options["disable_tf32"] and options["immutable_weights"]
    assert not options["cache_built_engines"] and not options["reuse_cached_engines"]


def test_one_batch_size_is_a_fixed_shape(backend, converter, tiny_bundle):
    backend.build(tiny_bundle, CompileRequest(subnet="s100", batch_sizes=(2,)))
    ((_, (spec,), _),) = converter.calls
    assert spec.shape == (2, 1, 16, 16)


def test_what_the_converter_says_is_an_engine_error(backend, converter, tiny_bundle, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Conversion of function erf not currently supported!\nmany lines")

    monkeypatch.setattr(converter.dynamo, "convert_exported_program_to_serialized_trt_engine", refuse)
    with pytest.raises(EngineError, match=r"does not convert 's50': Conversion of function erf .*!$"):
        backend.build(tiny_bundle, CompileRequest(subnet="s50"))


def test_without_torch_tensorrt_the_operation_and_the_command_are_named(backend, tiny_bundle, monkeypatch):
    def missing(name, install):
        raise UnavailableError(f"{name} does not import (No module named '{name}'); try: {install}")

    monkeypatch.setattr(tensorrt, "load_vendor", missing)
    with pytest.raises(UnavailableError, match=r"holds operation Erf .* pip install 'gearshift\[torch-tensorrt\]'"):
        backend.build(tiny_bundle, CompileRequest(subnet="s50"))


@pytest.mark.gpu
def test_on_a_gpu_it_answers_like_the_direct_way(tmp_path, real_gpu, tiny_bundle, monkeypatch):
    """Both ways make engines for the same runtime."""
    pytest.importorskip("torch_tensorrt", exc_type=Exception)
    direct = TensorRTBackend(tmp_path / "direct")
    if not (found := direct.available()).ok:
        pytest.skip(found.why)
    request = CompileRequest(subnet="s50", batch_sizes=(1, 3))
    artifacts = [direct.build(tiny_bundle, request)]
    monkeypatch.setattr(tensorrt, "define", lambda *_: (_ for _ in ()).throw(Unsupported("nothing")))
    artifacts.append(TensorRTBackend(tmp_path / "converted").build(tiny_bundle, request))
    answers = []
    for artifact in artifacts:
        with contextlib.closing(direct.load(artifact)) as engine:
            answers.append(engine.infer(IMAGES))
    np.testing.assert_allclose(*answers, atol=1e-2 * np.abs(answers[0]).max())
