"""pretrain, sample and train: what they write, from command line to opened bundle."""

import json
from pathlib import Path

import pytest

from subnets.bundle import Bundle

QUICK = ("--epochs", 1, "--no-compile", "--precision", "f32")


@pytest.fixture
def few_digits(monkeypatch):
    """The digits, but only the first 128 of each split: the commands run as they are."""
    import msgspec

    import subnets.data
    from subnets.data import ArraySplit

    full = subnets.data.digits()
    few = {name: getattr(full, name) for name in ("train", "validation", "test")}
    few = {name: ArraySplit(split.images[:128], split.labels[:128]) for name, split in few.items()}
    dataset = msgspec.structs.replace(full, **few)
    monkeypatch.setattr(subnets.data, "digits", lambda: dataset)


def test_from_scratch_to_a_trained_bundle(gearshift, few_digits, tmp_path):
    trained = gearshift("pretrain", "tinynet", "--data", "digits", "--out", "nets/t.safetensors", *QUICK)
    assert trained.code == 0, trained.err
    assert "validation: " in trained.out and "of 128" in trained.out
    assert [path.name for path in (tmp_path / "nets").iterdir()] == ["t.safetensors"]  # and no checkpoint beside

    options = ("--arch", "tinynet", "--data", "digits", "--budgets", "0.3,1", "--score", "norm", "--json", "l.json")
    sampled = gearshift("sample", "nets/t.safetensors", *options, "--out", "bundles/mine")
    assert sampled.code == 0, sampled.err
    written = json.loads((tmp_path / "l.json").read_text())
    assert [entry["name"] for entry in written["subnets"]] == ["s30", "s100"]
    before = Bundle.open(tmp_path / "bundles" / "mine")
    assert "mine: tinynet" in sampled.out and before.key in sampled.out

    tuned = gearshift("train", "bundles/mine", "--data", "digits", "--learning-rate", 0.01, *QUICK)
    assert tuned.code == 0, tuned.err
    after = Bundle.open(tmp_path / "bundles" / "mine")
    assert after.key != before.key and after.key in tuned.out
    assert after.manifest.provenance["training"]["recipe"]["learning_rate"] == 0.01
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["mine"]


def test_another_ladder_is_sampled_from_a_bundles_full_network(gearshift, few_digits, bundle, tmp_path):
    import torch

    from subnets import from_pretrained

    assert gearshift("train", bundle, "--data", "digits", *QUICK).code == 0
    result = gearshift("sample", bundle, "--data", "digits", "--budgets", "0.4,0.7,1", "--align", 4, "--out", "other")
    assert result.code == 0, result.err
    before, after = Bundle.open(bundle), Bundle.open(tmp_path / "other")
    assert after.ladder.names == ("s40", "s70", "s100")
    assert (after.input, after.labels) == (before.input, before.labels)
    images = torch.randn(4, *before.input.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = from_pretrained(bundle)(images), from_pretrained(tmp_path / "other")(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    made = after.manifest.provenance["pretraining"]
    assert (made["bundle"], made["key"], made["made"]) == ("toy", before.key, before.manifest.provenance)
    commands = (tmp_path / "other" / "README.md").read_text().partition("```sh\n")[2].partition("```")[0].splitlines()
    assert [command.split()[1] for command in commands] == ["train", "sample"]
    again = gearshift("train", "other", "--data", "digits", *QUICK)
    assert again.code == 0, again.err


def test_what_a_bundle_brings_along_is_not_given_beside_it(refused, few_digits, bundle):
    command = ("sample", bundle, "--data", "digits", "--out", "x")
    assert "is a bundle and brings its own --arch" in refused(*command, "--arch", "tinynet")
    assert "is a bundle and brings its own --argument" in refused(*command, "--argument", "width=8")


def test_a_bundle_without_its_full_network_is_no_source(gearshift, refused, few_digits, made):
    command = ("sample", made / "tinynet.safetensors", "--arch", "tinynet", "--data", "digits", "--score", "norm")
    assert gearshift(*command, "--budgets", "0.3,0.6", "--out", "half").code == 0
    told = refused("sample", "half", "--data", "digits", "--out", "x")
    assert "'half' has lost its full network: 's60' is its largest subnet" in told


def test_a_bundle_can_be_trained_from_inside_its_own_folder(gearshift, few_digits, bundle, monkeypatch):
    key = Bundle.open(bundle).key
    monkeypatch.chdir(bundle)
    assert gearshift("train", ".", "--data", "digits", "--middle", 0, *QUICK).code == 0
    assert Bundle.open(bundle).key != key


def test_an_image_folder_gives_a_bundle_that_takes_its_images(gearshift, image_folder, tmp_path):
    import torch

    from subnets import architectures
    from subnets.sampling import save_network

    torch.manual_seed(0)
    network = architectures.build("tinynet", num_classes=2, in_channels=3)
    save_network(network, tmp_path / "t.safetensors")
    options = ("--arch", "tinynet", "--data", image_folder, "--image-size", 16, "--budgets", "0.5,1", "--align", 4)
    result = gearshift("sample", "t.safetensors", *options, "--out", "b")
    assert result.code == 0, result.err
    opened = Bundle.open(tmp_path / "b")
    assert (opened.labels, opened.input.shape) == (("cat", "dog"), (3, 16, 16))


def test_a_stopped_run_continues_from_its_checkpoint(gearshift, few_digits, tmp_path, monkeypatch):
    """The second call does only the epoch that is missing."""
    import subnets.training

    seen = []
    blend = subnets.training._blend

    def counting(*arguments):
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return blend(*arguments)

    monkeypatch.setattr(subnets.training, "_blend", counting)
    options = ("--data", "digits", "--out", "t.safetensors", "--epochs", 2, "--batch-size", 32, "--no-compile")
    assert gearshift("pretrain", "tinynet", *options).code == 130
    assert (tmp_path / "t.checkpoint").exists() and not (tmp_path / "t.safetensors").exists()
    assert gearshift("pretrain", "tinynet", *options).code == 0
    assert len(seen) == 6 + 4  # four steps an epoch


def test_a_sparse_run_writes_and_draws_its_norms_also_when_it_was_stopped(gearshift, few_digits, tmp_path, monkeypatch):
    import xml.etree.ElementTree

    import subnets.training

    seen = []
    blend = subnets.training._blend

    def counting(*arguments):
        seen.append(1)
        if len(seen) == 11:  # in the third epoch of four steps, after the phase has begun
            raise KeyboardInterrupt
        return blend(*arguments)

    monkeypatch.setattr(subnets.training, "_blend", counting)
    options = ("--data", "digits", "--out", "t.safetensors", "--epochs", 4, "--batch-size", 32, "--no-compile")
    sparse = ("--precision", "f32", "--sparsity", 3.0, "--sparsity-from", 0.5)
    assert gearshift("pretrain", "tinynet", *options, *sparse).code == 130
    done = gearshift("pretrain", "tinynet", *options, *sparse)
    assert done.code == 0, done.err
    assert "channels are at zero; their norms: t.norms.svg" in " ".join(done.out.split())
    norms = json.loads((tmp_path / "t.norms.json").read_text())
    assert min(min(values) for values in norms["before"].values()) > 0
    assert any(norm == 0 for values in norms["after"].values() for norm in values)
    picture = xml.etree.ElementTree.fromstring((tmp_path / "t.norms.svg").read_text())
    text = " ".join(picture.itertext())
    assert "before the sparsity phase" in text and "after it" in text


def test_widths_are_allocated_by_measured_milliseconds_and_looked_up_the_next_time(
    gearshift, made, few_digits, monkeypatch
):
    """Engines are built and run; in place of the clock stands the size of their weights: nothing depends on load."""
    pytest.importorskip("openvino")
    import numpy as np

    import cli._widths

    def weights_mb(engine, shape):
        assert engine.infer(np.zeros(shape, np.float32)).shape == (1, 10)
        return (Path(engine.artifact.path) / "model.bin").stat().st_size / 1e6

    monkeypatch.setattr(cli._widths, "_latency_ms", weights_mb)
    options = ("--arch", "tinynet", "--data", "digits", "--budgets", "0.8,1", "--score", "norm", "--align", 64)
    latency = ("--allocation", "latency", "--space", "interiors", "--widths-file", "w.json")
    first = gearshift("sample", made / "tinynet.safetensors", *options, *latency, "--out", "a")
    assert first.code == 0, first.err
    kept = json.loads(Path("w.json").read_text())
    assert kept["identity"]["backend"] == "openvino" and len(kept["ms"]) == 2
    again = gearshift("sample", made / "tinynet.safetensors", *options, *latency, "--out", "b")
    assert again.code == 0 and "measured on openvino: 0 widths" in again.out
    small, full = Bundle.open("b").ladder
    assert {name for name, width in small.widths.items() if width < full.widths[name]} == {"layer3.0.conv1"}


def test_a_latency_is_the_best_turns_median(monkeypatch):
    import time

    from cli._widths import _latency_ms

    now = [0.0]
    slow = iter([0.5] * 10 + [0.05, 0.07, 0.06] + [0.02, 0.04, 0.9] + [0.08] * 3)

    class Engine:
        def infer(self, batch):
            now[0] += next(slow)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert _latency_ms(Engine(), (1, 1, 2, 2)) == pytest.approx(40.0)


def test_what_a_subnet_has_for_itself_is_chosen_when_training(gearshift, few_digits, bundle):
    options = ("--soft", 0.5, "--teacher", "frozen", "--affine", "shared", "--heads")
    tuned = gearshift("train", bundle, "--data", "digits", *options, *QUICK)
    assert tuned.code == 0, tuned.err
    opened = Bundle.open(bundle)
    made = opened.manifest.provenance["training"]
    assert (made["soft"], made["teacher"], made["affine"], made["heads"]) == (0.5, "frozen", "shared", True)
    assert "s30/fc.weight" in opened.tensors() and "s30/bn1.weight" not in opened.tensors()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--teacher", "strict"), "teacher 'strict' is unknown"),
        (("--affine", "some"), "affine 'some' is unknown"),
        (("--soft", 2), "soft 2.0 must be from 0"),
        (("--device", "abacus"), "device 'abacus' is unknown; use 'cpu' or 'cuda'"),
    ],
)
def test_training_options_that_make_no_sense_are_refused(refused, few_digits, bundle, options, message):
    assert message in refused("train", bundle, "--data", "digits", *options, *QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--score", "luck"), "score 'luck' is unknown; use one of norm, taylor, scale, noise"),
        (("--normalise", "all"), "normalisation 'all' is unknown"),
        (("--allocation", "latency", "--backend", "none"), "backend 'none' is unknown"),
        (("--allocation", "latency", "--precision", "f12"), "precision 'f12' is not to be had from 'openvino' here"),
    ],
)
def test_sampling_options_that_make_no_sense_are_refused(refused, few_digits, made, options, message):
    command = ("sample", made / "tinynet.safetensors", "--arch", "tinynet", "--data", "digits", "--out", "x")
    assert message in refused(*command, *options)


@pytest.mark.parametrize(
    ("flags", "device", "expected"), [((), "cpu", "f32"), (("avx512_bf16",), "cpu", "bf16"), ((), "cuda", "bf16")]
)
def test_the_training_precision_left_out_is_what_the_device_computes_in(monkeypatch, flags, device, expected):
    from backends.runtime import Processor
    from cli._training import recipe

    monkeypatch.setattr(Processor, "here", lambda: Processor("any", frozenset(flags)))
    assert recipe(device, {"epochs": 1, "precision": None}).precision == expected
    assert recipe(device, {"epochs": 1, "precision": "f32"}).precision == "f32"
