"""Networks whose batch-norm is far from fresh (errors hide in fresh ones), small data, and one tiny trained bundle."""

import shutil
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from subnets import architectures
from subnets.allocation import Limits
from subnets.bundle import Architecture, Bundle, sha256
from subnets.data import ArraySplit, Dataset, digits
from subnets.sampling import SampleOptions, fine_tune, sample
from subnets.spec import Ladder, SubnetSpec
from subnets.training import PlainObjective, Recipe, train


class DepthwiseNet(nn.Module):
    """Depthwise convolution, a feature map flattened without pooling, batch-norm on both kinds, biases."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
        self.depthwise_norm = nn.BatchNorm2d(6)
        self.point = nn.Conv2d(6, 4, 1, bias=False)
        self.flatten_norm = nn.BatchNorm1d(4 * 4 * 4)
        self.hidden = nn.Linear(4 * 4 * 4, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = nn.functional.max_pool2d(self.depthwise_norm(self.depthwise(x)), 2)
        x = self.flatten_norm(torch.flatten(self.point(x), 1))
        return self.head(torch.relu(self.hidden(x)))


@torch.no_grad()
def scramble(network, seed=0):
    """Random batch-norm statistics and affine, random biases; eval mode."""
    random = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                value.copy_(torch.rand(value.shape, generator=random) * (high - low) + low)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1.5 / module.weight[0].numel() ** 0.5
            module.weight.copy_((torch.rand(module.weight.shape, generator=random) * 2 - 1) * bound)
            if module.bias is not None:
                module.bias.copy_(torch.rand(module.bias.shape, generator=random) - 0.5)
    return network.eval()


CASES = {
    "resnet20 pad": (lambda: architectures.build("resnet20"), (3, 16, 16)),
    "resnet20 conv": (lambda: architectures.build("resnet20", shortcut="conv"), (3, 16, 16)),
    "tinynet pad": (lambda: architectures.build("tinynet", width=8, shortcut="pad"), (1, 16, 16)),
    "bottleneck": (
        lambda: architectures.ResNet(
            architectures.Bottleneck, (1, 2), (4, 6), num_classes=5, imagenet_stem=True, shortcut="conv"
        ),
        (3, 32, 32),
    ),
    "depthwise": (DepthwiseNet, (1, 16, 16)),
}


@pytest.fixture(params=CASES)
def case(request):
    """Each kind of network in turn: ``network`` (scrambled, eval) and the ``shape`` of its images."""
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    return SimpleNamespace(network=scramble(make()), shape=shape, name=request.param)


@pytest.fixture(scope="session")
def nets():
    """Builders: ``tiny()`` a scrambled tinynet, ``depthwise()``, ``scramble(network)``."""

    def tiny(seed=0, **arguments):
        return scramble(architectures.build("tinynet", **{"width": 8, **arguments}), seed)

    return SimpleNamespace(tiny=tiny, depthwise=lambda: scramble(DepthwiseNet()), scramble=scramble)


@pytest.fixture(scope="session")
def random_ladder():
    """(groups, seed) -> three nested subnets of arbitrary widths, the largest the full network."""

    def make(groups, seed=0):
        random = np.random.default_rng(seed)
        widths = {group.name: np.sort(random.integers(1, group.width + 1, 2)) for group in groups}
        rungs = [SubnetSpec(f"s{k}", {name: int(pair[k]) for name, pair in widths.items()}) for k in range(2)]
        return Ladder([*rungs, SubnetSpec("s100", {group.name: group.width for group in groups})])

    return make


def take(split, count):
    return ArraySplit(split.images[:count], split.labels[:count])


@pytest.fixture(scope="session")
def small_digits():
    """A few of the digits: 256 to train on, 80 to validate, 100 to test."""
    full = digits()
    parts = {"train": take(full.train, 256), "validation": take(full.validation, 80), "test": take(full.test, 100)}
    return Dataset(name="digits", classes=full.classes, mean=full.mean, std=full.std, pad=full.pad, **parts)


TINY = Architecture(name="tinynet", arguments={"num_classes": 10, "in_channels": 1, "width": 8})


@pytest.fixture(scope="session")
def tiny_master(tmp_path_factory, small_digits):
    """One trained tinynet: ``sampled``, fine-tuned for an epoch (``bundle``), and the ``steps`` that took."""
    torch.manual_seed(0)
    network = architectures.build(TINY.name, **TINY.arguments)
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.2, precision="f32", compile=False, average=0.9)
    train(PlainObjective(network, recipe), small_digits, recipe)
    options = SampleOptions(budgets=(0.3, 0.6, 1.0), limits=Limits(align=4))
    sampled = sample(network, TINY, small_digits, options, tmp_path_factory.mktemp("sampled") / "tiny")
    copied = Bundle.open(shutil.copytree(sampled.path, tmp_path_factory.mktemp("tuned") / "tiny"))
    seen = []
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.1, precision="f32", compile=False, average=0.9)
    tuned = fine_tune(copied, small_digits, recipe, on_step=seen.append)
    return SimpleNamespace(bundle=tuned, sampled=sampled, steps=seen)


@pytest.fixture
def tiny(tiny_master, tmp_path):
    """The tiny bundle, a copy of one's own."""
    return Bundle.open(shutil.copytree(tiny_master.bundle.path, tmp_path / "tiny"))


@pytest.fixture
def resave():
    """(bundle, tensors, **manifest changes) -> the bundle written again with them, hash made right."""

    def write(bundle, tensors, **changes):
        weights = bundle.path / "weights.safetensors"
        save_file(dict(tensors), weights)
        manifest = msgspec.structs.replace(bundle.manifest, **{"weights_sha256": sha256(weights), **changes})
        return Bundle(bundle.path, bundle.manifest).rewrite(
            **{name: getattr(manifest, name) for name in manifest.__struct_fields__}
        )

    return write
