"""Two small bundles: ``hand_bundle`` made with numpy and OpenVINO alone, ``tiny_bundle`` with torch."""

import shutil

import numpy as np
import pytest

from backends.runtime import load_openvino
from subnets.bundle import Architecture, Bundle, InputSpec, Manifest, SubnetEntry, save
from subnets.spec import ChannelGroup, Member

HAND_WIDTHS = {"s50": 4, "s100": 8}
CLASSES = 3


def _hand_tensors():
    random = np.random.default_rng(7)
    shapes = {"conv.weight": (8, 2, 3, 3), "conv.bias": (8,), "fc.weight": (CLASSES, 8), "fc.bias": (CLASSES,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def hand_forward(tensors, images):
    """3 x 3 convolution with zero padding, ReLU, global mean, linear: each from its definition."""
    weight, height, width = tensors["conv.weight"], images.shape[2], images.shape[3]
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(images), len(weight), height, width)) + tensors["conv.bias"][:, None, None]
    for row in range(3):
        for column in range(3):
            window = padded[:, :, row : row + height, column : column + width]
            out += np.einsum("nchw,oc->nohw", window, weight[:, :, row, column])
    features = np.maximum(out, 0).mean(axis=(2, 3))
    return (features @ tensors["fc.weight"].T + tensors["fc.bias"]).astype(np.float32)


def _write_ir(tensors, target):
    ov = load_openvino()
    from openvino import opset13 as op

    images = op.parameter([-1, 2, 6, 5], np.float32, name="input")
    maps = op.convolution(images, op.constant(tensors["conv.weight"]), [1, 1], [1, 1], [1, 1], [1, 1])
    maps = op.relu(op.add(maps, op.constant(tensors["conv.bias"].reshape(1, -1, 1, 1))))
    features = op.reduce_mean(maps, op.constant(np.array([2, 3])), False)
    logits = op.add(
        op.matmul(features, op.constant(tensors["fc.weight"]), False, True), op.constant(tensors["fc.bias"])
    )
    ov.save_model(ov.Model([logits.output(0)], [images], "hand"), target)
    return [target, target.with_suffix(".bin")]


@pytest.fixture
def hand_bundle(tmp_path):
    """One convolution and one linear layer, with exports; 2 x 6 x 5 images, so that no two axes are alike."""
    members = (Member("conv.weight", 0), Member("conv.bias", 0), Member("fc.weight", 1))
    manifest = Manifest(
        schema=1,
        name="hand",
        architecture=Architecture(name="hand"),
        input=InputSpec(channels=2, height=6, width=5, mean=(0.0, 0.0), std=(1.0, 1.0)),
        labels=("a", "b", "c"),
        groups=(ChannelGroup(name="conv", width=8, members=members),),
        subnets=tuple(
            SubnetEntry(name=name, widths={"conv": w}, macs=w * 543, parameters=w * 22 + 3)
            for name, w in HAND_WIDTHS.items()
        ),
        weights_sha256="",
    )
    bundle = save(tmp_path / "hand", manifest, _hand_tensors(), "# hand\n")
    folder = bundle.path / "exports" / "openvino"
    folder.mkdir(parents=True)
    for subnet in bundle.ladder.names:
        bundle = bundle.add_export(subnet, "openvino", _write_ir(bundle.tensors(subnet), folder / f"{subnet}.xml"))
    return bundle


@pytest.fixture
def hand_reference(hand_bundle):
    """(subnet, images) -> logits by numpy."""
    return lambda subnet, images: hand_forward(hand_bundle.tensors(subnet), images)


@pytest.fixture(scope="session")
def _tiny_master(tmp_path_factory):
    torch = pytest.importorskip("torch")
    from subnets import architectures
    from subnets.groups import trace
    from subnets.spec import Ladder, SubnetSpec
    from subnets.supernet import Supernet

    with torch.random.fork_rng():
        torch.manual_seed(3)
        arguments = {"num_classes": 4, "width": 8}
        network = architectures.build("tinynet", **arguments).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics as after training, none of them neutral
                for values in (module.weight, module.running_var):
                    torch.nn.init.uniform_(values, 0.5, 1.5)
                for values in (module.bias, module.running_mean):
                    torch.nn.init.uniform_(values, -0.5, 0.5)
        traced = trace(network, (1, 16, 16))
    half = {group.name: group.width // 2 for group in traced.groups}
    ladder = Ladder([SubnetSpec("s50", half), SubnetSpec("s100", traced.full)])
    manifest = Manifest(
        schema=1,
        name="tiny",
        architecture=Architecture(name="tinynet", arguments=arguments),
        input=InputSpec(channels=1, height=16, width=16, mean=(0.5,), std=(0.25,)),
        labels=("a", "b", "c", "d"),
        groups=traced.groups,
        subnets=tuple(SubnetEntry(name=s.name, widths=dict(s.widths), macs=1, parameters=1) for s in ladder),
        weights_sha256="",
    )
    tensors = Supernet(network, traced.groups, ladder).tensors()
    return save(tmp_path_factory.mktemp("tiny") / "tiny", manifest, tensors, "# tiny\n")


@pytest.fixture
def tiny_bundle(_tiny_master, tmp_path):
    """A residual network with batch-norm and no exports, in a place of its own so that tests may change it."""
    return Bundle.open(shutil.copytree(_tiny_master.path, tmp_path / "tiny"))


@pytest.fixture
def tiny_reference(tiny_bundle):
    """(subnet, images) -> logits by the plain network."""
    import torch

    from subnets.supernet import open_network

    def run(subnet, images):
        with torch.inference_mode():
            return open_network(tiny_bundle, subnet)(torch.from_numpy(images)).numpy()

    return run
