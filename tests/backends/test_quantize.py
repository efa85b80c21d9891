"""Int8 exports: what is quantized, on which images, what the engine makes of it, and the commands."""

import contextlib
import json
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from backends import CompileRequest, quantize
from backends.openvino import OpenVINOBackend
from backends.quantize import add_int8_exports, calibration_images, quantize_openvino
from backends.runtime import Processor
from subnets import EngineError, InputError, UnavailableError
from subnets.bundle import Bundle
from subnets.data import ArraySplit, Dataset, digits

native = pytest.mark.skipif(not Processor.here().computes_int8, reason="this processor has no int8 dot products")


@pytest.fixture(scope="module")
def quantized(root, tmp_path_factory):
    """A copy of the digits bundle that ships, quantized once on a few images."""
    pytest.importorskip("nncf")
    copy = shutil.copytree(root / "bundles" / "digits", tmp_path_factory.mktemp("int8") / "digits")
    return add_int8_exports(Bundle.open(copy), digits(), samples=16)


@pytest.fixture
def hand_data():
    """Noise shaped like the hand bundle's images; every pixel of a split has that split's own range."""
    random = np.random.default_rng(0)

    def split(low, high, count):
        pixels = random.integers(low, high, (count, 2, 6, 5), dtype=np.uint8)
        return ArraySplit(pixels, np.zeros(count, np.int64))

    return Dataset(
        name="noise",
        classes=("a", "b", "c"),
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
        train=split(0, 100, 20),
        validation=split(100, 200, 5),
        test=split(200, 256, 5),
    )


def test_calibration_images_are_training_images_the_same_each_time_and_each_once(hand_bundle, hand_data):
    images = calibration_images(hand_bundle, hand_data, 12)
    assert images.shape == (12, 2, 6, 5) and images.dtype == np.float32
    assert images.max() < 100 / 255  # validation and test images are brighter
    np.testing.assert_array_equal(images, calibration_images(hand_bundle, hand_data, 12))
    everything = calibration_images(hand_bundle, hand_data, 1000)
    assert len(everything) == 20 and len(np.unique(everything.reshape(20, -1), axis=0)) == 20


def test_images_that_do_not_fit_and_too_few_are_refused(hand_bundle, hand_data):
    with pytest.raises(InputError, match="give the data it was trained on"):
        calibration_images(hand_bundle, digits(), 4)
    with pytest.raises(InputError, match="samples 0"):
        calibration_images(hand_bundle, hand_data, 0)
    none = msgspec.structs.replace(hand_data, train=ArraySplit(np.zeros((0, 2, 6, 5), np.uint8), np.zeros(0, np.int64)))
    with pytest.raises(InputError, match="no training images"):
        calibration_images(hand_bundle, none, 4)


def test_without_nncf_it_says_what_to_install(hand_bundle, hand_data, monkeypatch):
    quantize.load_nncf.cache_clear()
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UnavailableError, match=r"gearshift\[quantize\]"):
        add_int8_exports(hand_bundle, hand_data, 4)
    quantize.load_nncf.cache_clear()
    assert Bundle.open(hand_bundle.path).manifest == hand_bundle.manifest


@native
def test_a_bundle_without_int8_exports_does_not_offer_int8_and_says_how_to_make_them(tmp_path, hand_bundle):
    backend = OpenVINOBackend(tmp_path / "cache")
    assert "int8" not in backend.precisions_for(hand_bundle)
    with pytest.raises(InputError, match="--precision int8 --data"):
        backend.build(hand_bundle, CompileRequest(subnet="s50", precision="int8"))


def test_a_processor_that_only_emulates_int8_does_not_offer_it(tmp_path, hand_bundle, monkeypatch):
    bundle = hand_bundle
    for subnet in bundle.ladder.names:  # any file will do: it is not opened
        bundle = bundle.add_export(subnet, "openvino-int8", [bundle.export(subnet, "openvino")])
    backend = OpenVINOBackend(tmp_path / "cache")
    for flags, offered in (({"avx2"}, False), ({"avx512_vnni"}, True)):
        monkeypatch.setattr(Processor, "here", staticmethod(lambda flags=flags: Processor("x", frozenset(flags))))
        assert ("int8" in backend.precisions_for(bundle)) == offered
    monkeypatch.setattr(Processor, "here", staticmethod(lambda: Processor("x", frozenset({"avx2"}))))
    with pytest.raises(InputError, match="'int8' is not native"):
        backend.build(bundle, CompileRequest(subnet="s50", precision="int8"))


class TestWithNNCF:
    """The digits bundle that ships, with int8 exports."""

    def test_every_subnet_has_an_int8_file_half_as_large_that_verifies_and_keeps_the_key(self, quantized, root):
        opened = Bundle.open(quantized.path)
        opened.verify()
        assert opened.key == Bundle.open(root / "bundles" / "digits").key
        for subnet in opened.ladder.names:
            before, after = (
                opened.export(subnet, format).with_suffix(".bin") for format in ("openvino", "openvino-int8")
            )
            assert after.stat().st_size < 0.65 * before.stat().st_size
        origin = opened.manifest.provenance["int8"]
        assert (origin["data"], origin["split"], origin["samples"]) == ("digits", "train", 16)
        assert opened.manifest.provenance.keys() - {"int8"}  # the rest is still there

    @native
    def test_its_engine_computes_in_int8_and_answers_nearly_like_f32(self, quantized, tmp_path):
        backend = OpenVINOBackend(tmp_path / "cache")
        assert backend.precisions_for(quantized)[-1] == "int8"
        images = quantized.input.preprocess(digits().validation.images[:64])
        right = {}
        for precision in ("f32", "int8"):
            request = CompileRequest(subnet="s100", precision=precision, batch_sizes=(64,))
            artifact = backend.build(quantized, request)
            with contextlib.closing(backend.load(artifact)) as engine:
                right[precision] = engine.infer(images)
        assert (right["f32"].argmax(1) == right["int8"].argmax(1)).mean() > 0.95
        assert np.abs(right["f32"] - right["int8"]).max() > 1e-4  # it is not the same arithmetic

    def test_a_file_that_answers_otherwise_is_not_recorded(self, quantized, tmp_path, monkeypatch):
        monkeypatch.setattr(quantize, "MAX_DEVIATION", 1e-6)
        bundle = Bundle.open(shutil.copytree(quantized.path, tmp_path / "digits"))
        with pytest.raises(EngineError, match="--samples"):
            add_int8_exports(bundle, digits(), samples=1)
        assert Bundle.open(bundle.path).manifest == bundle.manifest
        assert sorted(f.name for f in (bundle.path / "exports/openvino-int8").iterdir()) == sorted(
            f"{subnet}.{suffix}" for subnet in bundle.ladder.names for suffix in ("bin", "xml")
        )

    def test_a_damaged_export_is_not_quantized(self, quantized, tmp_path):
        bundle = Bundle.open(shutil.copytree(quantized.path, tmp_path / "digits"))
        weights = bundle.export("s12", "openvino").with_suffix(".bin")
        weights.write_bytes(weights.read_bytes()[:-1])
        with pytest.raises(InputError, match=r"s12\.bin: missing or damaged"):
            quantize_openvino(bundle, "s12", np.zeros((1, 1, 16, 16), np.float32), tmp_path / "x.xml")

    def test_the_command_writes_and_lists_them(self, quantized, tmp_path, monkeypatch):
        from cli.export import command

        asked = []

        def already_there(bundle, dataset, samples):
            asked.append((dataset.name, samples))
            return bundle

        monkeypatch.setattr(quantize, "add_int8_exports", already_there)
        options = [str(quantized.path), "--precision", "int8", "--data", "digits", "--json", str(tmp_path / "l.json")]
        result = CliRunner().invoke(command, options)
        assert result.exit_code == 0, result.output
        assert asked == [("digits", 300)]
        rows = json.loads((tmp_path / "l.json").read_text())["exports"]
        assert [row["file"] for row in rows] == [f"exports/openvino-int8/{s}.xml" for s in quantized.ladder.names]

    @native
    def test_evaluate_measures_at_int8_and_does_not_record_it(self, quantized, tmp_path, monkeypatch):
        from cli.evaluate import command

        monkeypatch.setenv("GEARSHIFT_CACHE", str(tmp_path / "cache"))
        options = [str(quantized.path), "--data", "digits", "--precision", "int8", "--split", "validation"]
        result = CliRunner().invoke(command, [*options, "--json", "-"])
        assert result.exit_code == 0, result.output
        measured = json.loads(result.stdout)
        assert measured["precision"] == "int8"
        assert all(0.9 < row["accuracy"] <= 1 for row in measured["subnets"])
        assert CliRunner().invoke(command, [*options, "--record"]).exit_code == 2


def test_the_command_asks_for_data_and_refuses_it_where_it_has_no_use(hand_bundle):
    from cli.export import command

    for options in (["--precision", "int8"], ["--data", "digits"], ["--samples", "5"]):
        result = CliRunner().invoke(command, [str(hand_bundle.path), *options])
        assert result.exit_code == 2 and "int8" in result.output


def test_nncf_comes_without_telemetry():
    pytest.importorskip("nncf")
    script = (
        "import sys; from backends.runtime import load_nncf; load_nncf()\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "from nncf.telemetry.wrapper import telemetry\n"
        "assert 'Mock' in str(type(telemetry)) + str(telemetry), telemetry\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
