"""Networks by name, and other people's weights in them."""

import pickle

import pytest
import torch
from torch import nn

from subnets import architectures
from subnets.architectures import PadShortcut
from subnets.bundle import Architecture
from subnets.errors import InputError
from subnets.sampling import open_checkpoint, save_network

RESNET20 = Architecture(name="resnet20")


def old_shortcut(x, out_channels):
    """Option A as it is usually written: every second pixel, zeros before and after."""
    extra = out_channels - x.shape[1]
    return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra - extra // 2))


@pytest.mark.parametrize(("channels", "out"), [(16, 32), (32, 64), (3, 8)])
@pytest.mark.parametrize("size", [8, 9])
def test_the_pad_shortcut_equals_slicing_and_padding_bit_for_bit(channels, out, size):
    x = torch.randn(2, channels, size, size) * 100
    assert torch.equal(PadShortcut(channels, out, 2)(x), old_shortcut(x, out))
    wide = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(PadShortcut(channels, out, 2)(wide), old_shortcut(x, out))


@pytest.mark.parametrize(("name", "layers"), [("resnet20", 20), ("resnet56", 56), ("resnet110", 110)])
def test_cifar_networks_have_as_many_weighted_layers_as_their_name_says(name, layers):
    with torch.device("meta"):
        network = architectures.build(name)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == layers


def test_imagenet_networks_use_the_names_torchvision_uses():
    with torch.device("meta"):
        names = architectures.build("resnet18").state_dict()
    for name in (
        "conv1.weight",
        "bn1.running_mean",
        "bn1.num_batches_tracked",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.running_var",
        "layer4.1.bn2.bias",
        "fc.weight",
        "fc.bias",
    ):
        assert name in names
    assert len(names) == 122  # as in torchvision's resnet18 weights
    with torch.device("meta"):
        names = architectures.build("resnet50").state_dict()
    assert len(names) == 320 and "layer1.0.downsample.0.weight" in names and "layer4.2.bn3.weight" in names


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet118", {}, "architecture 'resnet118' is unknown; did you mean 'resnet18'"),
        ("vgg", {}, "known: resnet20"),
        ("resnet18", {"shortcut": "pad"}, "does not take these arguments"),
        ("tinynet", {"width": -1}, "does not take these arguments"),
        ("tinynet", {"width": "wide"}, "does not take these arguments"),
        ("resnet20", {"shortcut": "zip"}, "shortcut 'zip' is unknown; use 'pad'"),
        ("tinynet", {"shortcut": "zip"}, "shortcut 'zip' is unknown; use 'pad'"),
    ],
)
def test_unknown_names_and_arguments_are_refused(name, arguments, message):
    with pytest.raises(InputError, match=message):
        architectures.build(name, **arguments)


class TestUsersWeights:
    def akamaster(self, state):
        """Another repository's file: wrapped, DataParallel's prefix, 'linear' for 'fc', extra numbers beside."""
        tensors = {f"module.{name.replace('fc.', 'linear.')}": value for name, value in state.items()}
        return {"state_dict": tensors, "best_prec1": 91.7}

    @pytest.fixture
    def network(self, nets):
        return nets.scramble(architectures.build("resnet20"), seed=8)

    def same(self, network, opened):
        expected = network.state_dict()
        return all(torch.equal(expected[name], value) for name, value in opened.state_dict().items())

    def test_wrappers_prefixes_and_other_names_are_undone(self, network, tmp_path):
        torch.save(self.akamaster(network.state_dict()), tmp_path / "r.th")
        opened = open_checkpoint(tmp_path / "r.th", RESNET20)
        assert self.same(network, opened) and not opened.training

    def test_a_conv_shortcut_called_shortcut_is_found(self, nets, tmp_path):
        network = nets.scramble(architectures.build("resnet20", shortcut="conv"))
        torch.save({k.replace("downsample", "shortcut"): v for k, v in network.state_dict().items()}, tmp_path / "r.pt")
        described = Architecture(name="resnet20", arguments={"shortcut": "conv"})
        assert self.same(network, open_checkpoint(tmp_path / "r.pt", described))

    def test_our_own_files_come_back_bit_for_bit(self, network, tmp_path):
        save_network(network, tmp_path / "deep" / "r.safetensors")
        assert self.same(network, open_checkpoint(tmp_path / "deep" / "r.safetensors", RESNET20))

    def test_a_published_checkpoint_loads_and_knows_its_images(self, shared_data):
        path = shared_data / "data" / "resnet20-12fca82f.th"
        if not path.exists():
            pytest.skip("no recorded checkpoint")
        raw = torch.load(path, weights_only=True, map_location="cpu")
        opened = open_checkpoint(path, RESNET20)
        assert torch.equal(opened.fc.weight, raw["state_dict"]["module.linear.weight"])
        norm = raw["state_dict"]["module.layer2.0.bn1.running_var"]
        assert torch.equal(opened.layer2[0].bn1.running_var, norm)

    @pytest.mark.parametrize(
        ("described", "says"),
        [
            (Architecture(name="resnet32"), "'layer1.3.conv1.weight' is missing"),
            (Architecture(name="resnet20", arguments={"num_classes": 100}), r"'fc.weight' is \(10, 64\) there"),
            (Architecture(name="resnet20", arguments={"shortcut": "conv"}), "downsample.*is missing"),
            (Architecture(name="resnet18", arguments={"num_classes": 10}), "another architecture"),
        ],
    )
    def test_a_checkpoint_of_another_architecture_is_refused_in_one_sentence(self, network, tmp_path, described, says):
        torch.save(network.state_dict(), tmp_path / "r.pth")
        with pytest.raises(InputError, match=says) as caught:
            open_checkpoint(tmp_path / "r.pth", described)
        text = str(caught.value)
        assert text.startswith(f"{tmp_path / 'r.pth'}: ") and "\n" not in text and "--arch" in text

    def test_left_over_tensors_are_refused(self, network, tmp_path):
        torch.save({**network.state_dict(), "extra.weight": torch.zeros(1)}, tmp_path / "r.pth")
        with pytest.raises(InputError, match=r"'extra\.weight' has no place"):
            open_checkpoint(tmp_path / "r.pth", RESNET20)

    def test_code_in_a_checkpoint_is_refused_and_never_runs(self, tmp_path):
        class Evil:
            def __reduce__(self):
                import os

                return os.system, (f"touch {tmp_path}/owned",)

        (tmp_path / "r.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
        with pytest.raises(InputError, match="not a checkpoint of plain tensors") as caught:
            open_checkpoint(tmp_path / "r.pth", RESNET20)
        assert "\n" not in str(caught.value) and not (tmp_path / "owned").exists()

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("keep", [0, 1000, -1])
    def test_truncated_files_are_refused_in_one_sentence(self, network, tmp_path, suffix, keep):
        path = tmp_path / f"r{suffix}"
        if suffix == ".pth":
            torch.save(network.state_dict(), path)
        else:
            save_network(network, path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError, match=f"{path}: not a checkpoint of plain tensors") as caught:
            open_checkpoint(path, RESNET20)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_and_a_bare_tensor_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="no such checkpoint"):
            open_checkpoint(tmp_path / "none.pth", RESNET20)
        torch.save(torch.zeros(3), tmp_path / "r.pth")
        with pytest.raises(InputError, match="holds a Tensor, not a state_dict"):
            open_checkpoint(tmp_path / "r.pth", RESNET20)
        torch.save({0: torch.zeros(3)}, tmp_path / "r.pth")
        with pytest.raises(InputError, match="is missing"):
            open_checkpoint(tmp_path / "r.pth", RESNET20)
