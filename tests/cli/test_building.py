"""pretrain, sample and train: what they write, from command line to opened bundle."""

import json

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
