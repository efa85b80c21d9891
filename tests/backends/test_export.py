"""Exports: what they answer, what the bundle records, and the command."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from click.testing import CliRunner

from backends import export
from backends.export import add_exports, export_openvino
from backends.runtime import openvino_core
from cli.export import command
from subnets import EngineError, InputError
from subnets.bundle import Bundle


def test_a_saved_subnet_answers_like_the_network_for_any_batch_size(tiny_bundle, tiny_reference, tmp_path):
    xml, weights = export_openvino(tiny_bundle, "s50", tmp_path / "small.xml")
    assert (xml.name, weights.name) == ("small.xml", "small.bin")
    compiled = openvino_core().compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [compiled.input().any_name, compiled.output().any_name] == ["input", "logits"]
    for size in (1, 4):
        images = np.random.default_rng(size).standard_normal((size, 1, 16, 16), np.float32)
        expected = tiny_reference("s50", images)
        error = np.abs(compiled({"input": images})["logits"] - expected).max()
        assert error <= export.TOLERANCE * np.abs(expected).max()


def test_weights_are_stored_in_two_bytes_each(tiny_bundle, tmp_path):
    _, weights = export_openvino(tiny_bundle, "s100", tmp_path / "full.xml")
    kernels = sum(v.size for k, v in tiny_bundle.tensors("s100").items() if v.ndim > 1)
    assert 2 * kernels <= weights.stat().st_size < 3 * kernels


def test_a_conversion_that_answers_otherwise_is_not_recorded(tiny_bundle, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 1e-7)  # finer than f16 weights can be
    with pytest.raises(EngineError, match="off by"):
        add_exports(tiny_bundle)
    assert Bundle.open(tiny_bundle.path).manifest.exports == ()
    assert list((tiny_bundle.path / "exports" / "openvino").iterdir()) == []


def test_an_unknown_subnet_is_refused(tiny_bundle, tmp_path):
    with pytest.raises(InputError, match="s50, s100"):
        export_openvino(tiny_bundle, "s10", tmp_path / "x.xml")


def test_the_bundle_records_exports_that_verify_and_keeps_its_key(tiny_bundle):
    exported = add_exports(tiny_bundle)
    opened = Bundle.open(tiny_bundle.path)
    opened.verify()
    assert opened.manifest == exported.manifest
    assert opened.key == tiny_bundle.key
    assert opened.export("s100", "openvino") == tiny_bundle.path / "exports/openvino/s100.xml"


def test_the_command_lists_what_it_wrote_in_place_of_older_exports(tiny_bundle, tmp_path):
    (tiny_bundle.path / "old.xml").write_text("older")
    tiny_bundle.add_export("s50", "openvino", [tiny_bundle.path / "old.xml"])
    result = CliRunner().invoke(command, [str(tiny_bundle.path), "--json", str(tmp_path / "list.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "list.json").read_text())["exports"]
    assert [(row["subnet"], row["format"]) for row in rows] == [("s50", "openvino"), ("s100", "openvino")]
    for row in rows:
        file = tiny_bundle.path / row["file"]
        assert row["bytes"] == file.stat().st_size + file.with_suffix(".bin").stat().st_size
        assert row["file"] in result.stdout


def test_the_command_refuses_what_is_no_bundle(tiny_bundle):
    (tiny_bundle.path / "bundle.json").unlink()
    result = CliRunner().invoke(command, [str(tiny_bundle.path)])
    assert isinstance(result.exception, InputError)
