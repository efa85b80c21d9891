"""Torch, the reference: the contract, shared weights, and bundles that changed."""

import contextlib
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")

from backends import CompileRequest
from backends import torch as backend_module
from backends.contract import BackendContract
from backends.torch import TorchBackend
from subnets import EngineError


class TestTorch(BackendContract):
    needs_torch = True

    @pytest.fixture
    def backend(self, tmp_path):
        return TorchBackend(tmp_path / "cache")

    @pytest.fixture
    def bundle(self, tiny_bundle):
        return tiny_bundle

    @pytest.fixture
    def reference(self, tiny_reference):
        return tiny_reference


@pytest.fixture
def backend(tmp_path):
    return TorchBackend(tmp_path / "cache")


def test_f32_is_the_plain_network_but_for_rounding(backend, tiny_bundle, tiny_reference):
    images = np.random.default_rng(1).standard_normal((1, 1, 16, 16), np.float32)
    for subnet in tiny_bundle.ladder.names:
        with contextlib.closing(backend.load(backend.build(tiny_bundle, CompileRequest(subnet=subnet)))) as engine:
            expected = tiny_reference(subnet, images)
            assert np.abs(engine.infer(images) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_engines_of_one_bundle_hold_its_weights_once_and_the_last_frees_them(backend, tiny_bundle):
    engines = [
        backend.load(backend.build(tiny_bundle, CompileRequest(subnet=subnet))) for subnet in tiny_bundle.ladder.names
    ]
    assert backend_module._held.keys() == {tiny_bundle.key}
    assert backend_module._held[tiny_bundle.key].users == 2
    engines[0].close()
    engines[0].close()
    assert backend_module._held[tiny_bundle.key].users == 1
    assert np.isfinite(engines[1].infer(np.zeros((1, 1, 16, 16), np.float32))).all()
    engines[1].close()
    assert not backend_module._held


def test_a_bundle_that_changed_or_went_is_refused(backend, tiny_bundle):
    artifact = backend.build(tiny_bundle, CompileRequest(subnet="s50"))
    tiny_bundle.rewrite(input=tiny_bundle.input.__class__(channels=1, height=16, width=16, mean=(0.1,), std=(1.0,)))
    with pytest.raises(EngineError, match="changed"):
        backend.load(artifact)
    shutil.rmtree(tiny_bundle.path)
    with pytest.raises(EngineError, match="cannot be opened"):
        backend.load(artifact)
    assert not backend_module._held
