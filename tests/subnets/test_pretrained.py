"""A standalone subnet answers as the bundle's does; what is damaged or of another kind is refused."""

import json
import shutil

import pytest
import torch

from subnets import from_pretrained
from subnets.errors import InputError
from subnets.pretrained import save_module
from subnets.supernet import Supernet


@torch.no_grad()
def test_each_exported_subnet_answers_as_the_supernets_slice(tiny, tmp_path):
    supernet, x = Supernet.from_bundle(tiny).eval(), torch.randn(4, *tiny.input.shape)
    for subnet in tiny.ladder.names:
        files = save_module(tiny, subnet, tmp_path / subnet)
        assert [file.name for file in files] == ["spec.json", "weights.safetensors"]
        moved = shutil.move(tmp_path / subnet, tmp_path / f"{subnet}-elsewhere")
        for network in (from_pretrained(moved), from_pretrained(str(tiny.path), subnet)):
            assert not network.training
            torch.testing.assert_close(network(x), supernet(x, subnet), atol=1e-5, rtol=0)


def test_without_a_name_the_largest_subnet_is_opened(tiny):
    network = from_pretrained(tiny.path)
    assert sum(value.numel() for value in network.parameters()) == tiny.manifest.subnets[-1].parameters


def test_the_specification_says_what_the_network_takes_and_answers(tiny, tmp_path):
    save_module(tiny, "s30", tmp_path / "s30")
    spec = json.loads((tmp_path / "s30" / "spec.json").read_text())
    assert spec["labels"] == list(tiny.labels) and spec["input"]["mean"] == list(tiny.input.mean)
    assert spec["widths"] == dict(tiny.ladder.named("s30").widths)
    assert spec["accuracy"]["value"] == tiny.entry("s30").accuracy.value


class TestRefused:
    @pytest.fixture
    def folder(self, tiny, tmp_path):
        save_module(tiny, "s30", tmp_path / "s30")
        return tmp_path / "s30"

    def test_a_folder_of_something_else(self, tmp_path):
        with pytest.raises(InputError, match=r"neither a bundle .* nor an exported subnet"):
            from_pretrained(tmp_path)

    def test_another_subnet_than_the_one_there(self, folder):
        with pytest.raises(InputError, match="holds subnet 's30', not 's60'"):
            from_pretrained(folder, "s60")

    @pytest.mark.parametrize("where", [0.1, 0.9])
    def test_damaged_weights(self, folder, where):
        content = bytearray((folder / "weights.safetensors").read_bytes())
        content[int(where * len(content))] ^= 1
        (folder / "weights.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"weights.safetensors: missing or damaged"):
            from_pretrained(folder)

    @pytest.mark.parametrize(
        ("old", "new", "said"), [('"schema": 1', '"schema": 9', "schema is 9"), ("{", "[", "damaged")]
    )
    def test_a_damaged_specification(self, folder, old, new, said):
        file = folder / "spec.json"
        file.write_text(file.read_text().replace(old, new, 1))
        with pytest.raises(InputError, match=said):
            from_pretrained(folder)

    def test_widths_that_do_not_fit_the_weights(self, folder):
        spec = json.loads((folder / "spec.json").read_text())
        spec["widths"]["conv1"] = 7
        (folder / "spec.json").write_text(json.dumps(spec))
        with pytest.raises(InputError, match="does not fit the architecture"):
            from_pretrained(folder)
