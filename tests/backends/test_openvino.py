"""OpenVINO: the contract, what the artifact holds, and what is refused."""

import contextlib
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import msgspec
import numpy as np
import pytest

from backends import CompileRequest, openvino, requests, store
from backends.contract import TOLERANCE, BackendContract
from backends.openvino import OpenVINOBackend
from subnets import EngineError, InputError, UnavailableError
from subnets.bundle import Bundle


class TestOpenVINOOnAnExport(BackendContract):
    """The bundle carries its exports: no torch is needed anywhere."""

    @pytest.fixture
    def backend(self, tmp_path):
        return OpenVINOBackend(tmp_path / "cache")

    @pytest.fixture
    def bundle(self, hand_bundle):
        return hand_bundle

    @pytest.fixture
    def reference(self, hand_reference):
        return hand_reference


class TestOpenVINOReadingInPlace(TestOpenVINOOnAnExport):
    """The same with batches so large, or rather a limit so low, that they are read where the caller keeps them."""

    @pytest.fixture(autouse=True)
    def _nothing_is_small(self, monkeypatch):
        monkeypatch.setattr(openvino, "_COPIED_BYTES", 0)

    def test_memory_at_any_address_that_holds_f32_will_do(self, backend, bundle):
        images = np.random.default_rng(0).standard_normal((1, *bundle.input.shape), np.float32)
        room = np.zeros(images.size + 16, np.float32)
        with contextlib.closing(backend.load(backend.build(bundle, CompileRequest(subnet="s100")))) as engine:
            expected = engine.infer(images)
            for start in range(16):
                batch = room[start : start + images.size].reshape(images.shape)
                batch[:] = images
                np.testing.assert_array_equal(engine.infer(batch), expected)
                np.testing.assert_array_equal(batch, images)
            raw = np.frombuffer(bytearray(b"?" + images.tobytes()), np.float32, offset=1).reshape(images.shape)
            assert not raw.flags.aligned
            np.testing.assert_array_equal(engine.infer(raw), expected)

    def test_where_openvinos_layers_are_others_it_answers_all_the_same(self, backend, bundle, monkeypatch):
        artifact = backend.build(bundle, CompileRequest(subnet="s50"))
        images = np.random.default_rng(0).standard_normal((1, *bundle.input.shape), np.float32)
        with contextlib.closing(backend.load(artifact)) as engine:
            expected = engine.infer(images)
        monkeypatch.setattr(openvino, "_bare", lambda request: lambda: request.infer(no_such_argument=True))
        with contextlib.closing(backend.load(artifact)) as engine:
            np.testing.assert_array_equal(engine.infer(images), expected)

    def test_it_holds_the_last_batch_alone_and_lets_it_go(self, backend, bundle):
        engine = backend.load(backend.build(bundle, CompileRequest(subnet="s50")))
        batches = [np.full((1, *bundle.input.shape), value, np.float32) for value in (1, 2)]
        held = [weakref.ref(batch) for batch in batches]
        for batch in batches:
            engine.infer(batch)
        del batch, batches
        gc.collect()
        assert held[0]() is None and held[1]() is not None
        engine.close()
        gc.collect()
        assert held[1]() is None


class TestOpenVINOExportingFirst:
    """The bundle carries none: build() makes them with torch."""

    def test_answers_are_those_of_the_torch_network(self, tmp_path, tiny_bundle, tiny_reference):
        backend = OpenVINOBackend(tmp_path / "cache")
        images = np.random.default_rng(0).standard_normal((3, 1, 16, 16), np.float32)
        request = CompileRequest(subnet="s50", batch_sizes=(3,))
        with contextlib.closing(backend.load(backend.build(tiny_bundle, request))) as engine:
            expected = tiny_reference("s50", images)
            assert np.abs(engine.infer(images) - expected).max() <= TOLERANCE["f32"] * np.abs(expected).max()

    def test_without_torch_it_says_what_to_do(self, tmp_path, tiny_bundle, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(UnavailableError, match="gearshift export"):
            OpenVINOBackend(tmp_path / "cache").build(tiny_bundle, CompileRequest(subnet="s50"))
        assert list((tmp_path / "cache" / "openvino").iterdir()) == []


@pytest.fixture
def backend(tmp_path):
    return OpenVINOBackend(tmp_path / "cache")


@pytest.mark.parametrize("limit", [0, 2**18])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_spoilt_image_is_refused_though_the_network_would_answer_it(backend, hand_bundle, monkeypatch, limit, value):
    """Its ReLU turns NaN into a number, so that the answer tells nothing."""
    monkeypatch.setattr(openvino, "_COPIED_BYTES", limit)
    images = np.ones((1, 2, 6, 5), np.float32)
    with contextlib.closing(backend.load(backend.build(hand_bundle, CompileRequest(subnet="s50")))) as engine:
        expected = engine.infer(images)
        images[0, 1, 2, 3] = value  # in the very array that was answered
        with pytest.raises(InputError, match="NaN or infinity"):
            engine.infer(images)
        images[0, 1, 2, 3] = 1
        np.testing.assert_array_equal(engine.infer(images), expected)


def test_pinned_threads_are_an_option_that_is_off(backend, hand_bundle):
    """And one that makes another artifact, so that nobody loads it by accident."""
    request = CompileRequest(subnet="s50")
    pinned = msgspec.structs.replace(request, pinned=True)
    assert [openvino._options(r)["ENABLE_CPU_PINNING"] for r in (request, pinned)] == [False, True]
    artifact = backend.build(hand_bundle, pinned)
    assert artifact.key != backend.build(hand_bundle, request).key
    with contextlib.closing(backend.load(artifact)) as engine:
        assert np.isfinite(engine.infer(np.ones((1, 2, 6, 5), np.float32))).all()
    with pytest.raises(InputError, match="pinned"):
        requests.checked(hand_bundle, pinned, ("f32",))  # as a backend does that cannot pin


def test_the_artifact_shares_the_export_and_compiles_without_weights(backend, hand_bundle):
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s100"))
    files = {path.name: path for path in Path(artifact.path).iterdir()}
    assert files.keys() == {"artifact.json", "compiled.blob", "model.bin", "model.xml"}
    assert files["model.bin"].samefile(hand_bundle.path / "exports/openvino/s100.bin")


def test_the_blob_does_not_grow_with_the_weights(backend, hand_bundle):
    """Eight or four channels: the weights differ, the compiled graph does not."""
    sizes = []
    for subnet in ("s50", "s100"):
        artifact = backend.build(hand_bundle, CompileRequest(subnet=subnet))
        sizes.append((Path(artifact.path) / "compiled.blob").stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 64


def test_the_artifact_outlives_the_bundle(backend, hand_bundle, hand_reference):
    images = np.ones((1, 2, 6, 5), np.float32)
    expected = hand_reference("s50", images)
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    hand_bundle.path.rename(hand_bundle.path.with_name("gone"))
    with contextlib.closing(backend.load(artifact)) as engine:
        assert np.abs(engine.infer(images) - expected).max() <= 5e-3 * np.abs(expected).max()


def test_a_damaged_export_is_refused_and_leaves_nothing_behind(backend, hand_bundle):
    weights = hand_bundle.path / "exports/openvino/s50.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match=r"s50\.bin"):
        backend.build(hand_bundle, CompileRequest(subnet="s50"))
    assert list((backend.cache / "openvino").iterdir()) == []


def test_an_export_outside_the_bundle_is_refused(backend, hand_bundle, tmp_path):
    outside = tmp_path / "outside.xml"
    outside.write_text("<net/>")
    export = hand_bundle.manifest.exports[0]
    changed = hand_bundle.rewrite(exports=(msgspec.structs.replace(export, files={"../outside.xml": "0" * 64}),))
    with pytest.raises(InputError, match="not in the bundle"):
        backend.build(changed, CompileRequest(subnet=export.subnet))


def test_an_export_of_another_input_is_refused(backend, hand_bundle):
    wider = msgspec.structs.replace(hand_bundle.input, channels=3)
    with pytest.raises(InputError, match="export it again"):
        backend.build(hand_bundle.rewrite(input=wider), CompileRequest(subnet="s50"))


def test_another_library_or_processor_means_another_artifact(backend, hand_bundle):
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    record = Path(artifact.path) / store.RECORD
    older = msgspec.json.decode(record.read_bytes())
    older["identity"]["openvino"] = "2020.1"
    record.write_bytes(msgspec.json.encode(older))
    with pytest.raises(EngineError, match=r"openvino '2020\.1'"):
        backend.load(artifact)
    assert backend.build(hand_bundle, CompileRequest(subnet="s50")) == artifact
    backend.load(artifact).close()


def test_accuracies_and_labels_do_not_change_the_artifact(backend, hand_bundle):
    first = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    renamed = hand_bundle.rewrite(labels=("x", "y", "z"), name="other")
    assert backend.build(Bundle.open(renamed.path), CompileRequest(subnet="s50")) == first


@pytest.mark.parametrize("limit", [0, 2**18])
def test_logits_that_overflow_are_an_engine_error(backend, hand_bundle, monkeypatch, limit):
    monkeypatch.setattr(openvino, "_COPIED_BYTES", limit)
    with contextlib.closing(backend.load(backend.build(hand_bundle, CompileRequest(subnet="s100")))) as engine:
        with pytest.raises(EngineError, match="NaN or infinity"):
            engine.infer(np.full((1, 2, 6, 5), 3e38, np.float32))
        assert np.isfinite(engine.infer(np.ones((1, 2, 6, 5), np.float32))).all()


@pytest.mark.parametrize("limit", [0, 2**18])
def test_large_finite_values_are_not_mistaken_for_infinity(backend, hand_bundle, monkeypatch, limit):
    """Their sum overflows f32, the values do not: only the exact look can tell."""
    monkeypatch.setattr(openvino, "_COPIED_BYTES", limit)
    images = np.zeros((1, 2, 6, 5), np.float32)
    images[0, 0, 0, :4] = 2e38
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    with contextlib.closing(backend.load(artifact)) as engine, pytest.raises(EngineError, match="answered"):
        engine.infer(images)  # accepted as an image; it is the logits that overflow


def test_the_cache_that_cannot_be_written_is_named(tmp_path, hand_bundle):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match="GEARSHIFT_CACHE"):
        OpenVINOBackend(tmp_path / "file").build(hand_bundle, CompileRequest(subnet="s50"))


def test_two_processes_building_the_same_artifact_both_get_it(backend, hand_bundle):
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from backends import CompileRequest, create\nfrom subnets import Bundle\n"
        "backend = create('openvino', Path(sys.argv[1]))\n"
        "engine = backend.load(backend.build(Bundle.open(sys.argv[2]), CompileRequest(subnet='s50')))\n"
        "engine.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", script, str(backend.cache), str(hand_bundle.path)]
    builders = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [builder.wait(120) for builder in builders] == [0, 0]
    artifact = backend.build(hand_bundle, CompileRequest(subnet="s50"))
    assert [path.name for path in Path(artifact.path).parent.iterdir()] == [artifact.key]
