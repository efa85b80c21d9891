"""ONNX files, plain modules and Triton repositories answer as the bundle does."""

import shutil

import numpy as np
import pytest

from backends.export import add_exports
from backends.portable import OPSET, add_module_exports, add_onnx_exports, write_triton
from backends.runtime import load_openvino, openvino_core
from subnets.bundle import Bundle
from subnets.errors import EngineError, InputError


def answers(file, images):
    return openvino_core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]


def of_torch(bundle, subnet, images):
    torch = pytest.importorskip("torch")
    from subnets.supernet import Supernet

    with torch.inference_mode():
        return Supernet.from_bundle(bundle).eval()(torch.from_numpy(images), subnet).numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, _tiny_master):
    """The tiny bundle with ONNX exports."""
    pytest.importorskip("onnx")
    return add_onnx_exports(Bundle.open(shutil.copytree(_tiny_master.path, tmp_path_factory.mktemp("onnx") / "tiny")))


class TestOnnx:
    def test_every_subnet_answers_as_the_bundles_at_any_batch_size(self, exported):
        exported.verify()
        for subnet in exported.ladder.names:
            for count in (1, 5):
                images = np.random.default_rng(count).standard_normal((count, *exported.input.shape), np.float32)
                found = answers(exported.export(subnet, "onnx"), images)
                np.testing.assert_allclose(found, of_torch(exported, subnet, images), atol=1e-4, rtol=1e-4)

    def test_the_file_is_sound_and_says_its_opset_names_and_shapes(self, exported):
        onnx = pytest.importorskip("onnx")
        model = onnx.load(exported.export("s100", "onnx"))
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
        [image], [logits] = model.graph.input, model.graph.output
        shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, logits)]
        assert (image.name, logits.name) == ("input", "logits")
        assert shapes == [["batch", *exported.input.shape], ["batch", len(exported.labels)]]

    def test_a_wrong_file_is_noticed(self, exported, monkeypatch, tmp_path):
        """The exporter writes another subnet's weights."""
        from backends import portable
        from subnets import supernet

        opened = supernet.open_network
        torch = pytest.importorskip("torch")
        export = torch.onnx.export

        def swapped(network, *arguments, **options):
            return export(opened(exported, "s100").apply(jolt), *arguments, **options)

        def jolt(module):
            if isinstance(module, torch.nn.Linear):
                module.bias.data += 1

        monkeypatch.setattr(torch.onnx, "export", swapped)
        with pytest.raises(EngineError, match="the ONNX export of 's100' is off by"):
            portable.export_onnx(exported, "s100", tmp_path / "s100.onnx")


def test_module_exports_need_no_torch_to_write(hand_bundle):
    exported = add_module_exports(hand_bundle)
    Bundle.open(exported.path).verify()
    for subnet in exported.ladder.names:
        spec = exported.export(subnet, "module")
        assert spec.name == "spec.json" and (spec.parent / "weights.safetensors").is_file()
    assert {e.format for e in exported.manifest.exports} == {"openvino", "module"}


class TestTriton:
    @pytest.fixture
    def hand_bundle(self, hand_bundle):
        """Its exports with the names that Gearshift's have."""
        core = openvino_core()
        for subnet in hand_bundle.ladder.names:
            file = hand_bundle.export(subnet, "openvino")
            model = core.read_model(file)
            model.inputs[0].get_tensor().set_names({"input"})
            model.outputs[0].get_tensor().set_names({"logits"})
            named = file.with_name(f"{subnet}-named.xml")
            load_openvino().save_model(model, named)
            hand_bundle = hand_bundle.add_export(subnet, "openvino", [named, named.with_suffix(".bin")])
        return hand_bundle

    @pytest.fixture
    def repository(self, hand_bundle, tmp_path):
        """From a bundle whose network nobody can build here: its exports are enough."""
        write_triton(hand_bundle, tmp_path / "models")
        return tmp_path / "models"

    def test_one_model_a_subnet_laid_out_as_triton_reads_it(self, repository):
        found = sorted(file.relative_to(repository).as_posix() for file in repository.rglob("*") if file.is_file())
        files = ("1/model.bin", "1/model.xml", "config.pbtxt", "labels.txt")
        assert found == sorted(f"hand-{subnet}/{file}" for subnet in ("s50", "s100") for file in files)
        assert (repository / "hand-s50" / "labels.txt").read_text() == "a\nb\nc\n"

    def test_the_configuration_says_what_the_model_takes(self, repository):
        config = parsed(repository / "hand-s50")
        assert (config.name, config.backend, config.max_batch_size) == ("hand-s50", "openvino", 32)
        [image], [logits] = config.input, config.output
        assert (image.name, list(image.dims), image.data_type) == ("input", [2, 6, 5], type_fp32())
        assert (list(logits.dims), logits.data_type, logits.label_filename) == ([3], type_fp32(), "labels.txt")
        model = openvino_core().read_model(repository / "hand-s50" / "1" / "model.xml")
        assert model.inputs[0].get_any_name() == image.name and model.outputs[0].get_any_name() == logits.name

    def test_the_models_answer_as_the_bundle(self, repository, hand_bundle, hand_reference):
        images = np.random.default_rng(1).standard_normal((4, *hand_bundle.input.shape), np.float32)
        for subnet in hand_bundle.ladder.names:
            found = answers(repository / f"hand-{subnet}" / "1" / "model.xml", images)
            np.testing.assert_allclose(found, hand_reference(subnet, images), atol=5e-3, rtol=5e-3)

    def test_it_replaces_its_own_models_and_leaves_others(self, repository, hand_bundle):
        (repository / "other").mkdir()
        (repository / "hand-s50" / "1" / "stale").write_text("")
        write_triton(hand_bundle, repository)
        assert (repository / "other").is_dir() and not (repository / "hand-s50" / "1" / "stale").exists()
        assert sorted(path.name for path in repository.iterdir()) == ["hand-s100", "hand-s50", "other"]

    def test_a_folder_that_is_no_model_is_not_replaced(self, repository, hand_bundle):
        (repository / "hand-s50" / "config.pbtxt").unlink()
        with pytest.raises(InputError, match="is no Triton model"):
            write_triton(hand_bundle, repository)
        assert (repository / "hand-s50" / "1" / "model.xml").is_file()

    def test_a_damaged_export_is_refused(self, hand_bundle, tmp_path):
        file = hand_bundle.export("s50", "openvino").with_suffix(".bin")
        content = bytearray(file.read_bytes())
        content[3] ^= 1
        file.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            write_triton(hand_bundle, tmp_path / "models")
        assert not list((tmp_path / "models").iterdir())

    def test_an_unknown_backend_is_refused(self, hand_bundle, tmp_path):
        with pytest.raises(InputError, match="Triton backend 'magic' is unknown here"):
            write_triton(hand_bundle, tmp_path / "models", "magic")

    @pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
    def test_a_bundle_without_exports_gets_them_made(self, tiny_bundle, tmp_path, backend):
        pytest.importorskip("torch")
        if backend == "onnxruntime":
            pytest.importorskip("onnx")
        bundle = tiny_bundle
        [first, *_] = write_triton(bundle, tmp_path / "models", backend)
        assert parsed(first).backend == backend and Bundle.open(bundle.path).manifest.exports == ()
        images = np.random.default_rng(1).standard_normal((2, *bundle.input.shape), np.float32)
        file = "model.xml" if backend == "openvino" else "model.onnx"
        expected = of_torch(bundle, bundle.ladder.names[0], images)
        np.testing.assert_allclose(answers(first / "1" / file, images), expected, atol=2e-2, rtol=2e-2)


def parsed(model):
    """``config.pbtxt`` as Triton's own message reads it."""
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def type_fp32():
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.TYPE_FP32


def test_openvinos_exports_are_what_triton_gets(tiny_bundle, tmp_path):
    bundle = add_exports(tiny_bundle)
    [first, *_] = write_triton(bundle, tmp_path / "models")
    subnet = bundle.ladder.names[0]
    assert (first / "1" / "model.bin").read_bytes() == bundle.export(subnet, "openvino").with_suffix(
        ".bin"
    ).read_bytes()
