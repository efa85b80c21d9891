"""Scores against computations that share nothing with them: loops over channels, and finite differences."""

import itertools

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from subnets.data import ArraySplit, Dataset
from subnets.errors import InputError
from subnets.groups import trace
from subnets.importance import norm_scores, score, taylor_scores
from subnets.training import augmented


def data(shape, classes, count=8):
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    split = ArraySplit(images, random.integers(0, classes, count))
    channels = shape[0]
    return Dataset(
        name="noise",
        classes=tuple(map(str, range(classes))),
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
        train=split,
        validation=split,
        test=split,
    )


def test_the_norm_of_a_channel_covers_all_it_owns_and_each_groups_mean_is_one(nets):
    network = nets.tiny()
    scores = norm_scores(network, trace(network, (1, 16, 16)))
    block = network.layer2[0]
    expected = [
        (
            block.conv1.weight[k].square().sum()
            + block.bn1.weight[k] ** 2
            + block.bn1.bias[k] ** 2
            + block.conv2.weight[:, k].square().sum()
        ).sqrt()
        for k in range(16)
    ]
    expected = torch.stack(expected).detach()
    torch.testing.assert_close(scores["layer2.0.conv1"], expected / expected.mean())
    assert all(float(values.mean()) == pytest.approx(1, rel=1e-5) for values in scores.values())


def test_the_norm_of_a_flattened_channel_sums_its_pixels(nets):
    network = nets.depthwise()
    scores = norm_scores(network, trace(network, (1, 16, 16)))
    columns = network.hidden.weight.detach().reshape(10, 4, 16)
    norm = network.flatten_norm
    expected = (
        network.point.weight.detach().square().sum((1, 2, 3))
        + columns.square().sum((0, 2))
        + norm.weight.detach().reshape(4, 16).square().sum(1)
        + norm.bias.detach().reshape(4, 16).square().sum(1)
    ).sqrt()
    torch.testing.assert_close(scores["point"], expected / expected.mean())


class _Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_taylor_equals_finite_differences_of_the_loss():
    torch.manual_seed(3)
    network, dataset = _Small(), data((1, 6, 6), 2)
    traced = trace(network, (1, 6, 6))
    found = taylor_scores(network, traced, dataset)["conv"]
    x = torch.from_numpy((dataset.train.images / 255.0 - 0.4) / 0.3)
    labels = torch.from_numpy(dataset.train.labels)
    network.double()

    @torch.no_grad()
    def change(value, index, step=1e-6):
        """|w * dL/dw| by a central difference."""
        here = float(value[index])
        losses = []
        for at in (here + step, here - step):
            value[index] = at
            losses.append(float(nn.functional.cross_entropy(network(x), labels)))
        value[index] = here
        return abs(here * (losses[0] - losses[1]) / (2 * step))

    for k in range(3):
        kernel = sum(change(network.conv.weight, (k, 0, i, j)) for i in range(3) for j in range(3))
        readers = sum(change(network.fc.weight, (c, k)) for c in range(2))
        assert float(found[k]) == pytest.approx(kernel + change(network.conv.bias, k) + readers, rel=1e-3)


def test_taylor_is_the_mean_over_batches_and_leaves_no_gradients(nets):
    network = nets.tiny(num_classes=3)
    traced, dataset = trace(network, (1, 16, 16)), data((1, 16, 16), 3, count=300)
    both = taylor_scores(network, traced, dataset, batch_count=2)
    expected = torch.zeros(8)
    for images, labels in itertools.islice(augmented(dataset.train, dataset, 128, 11, 0), 2):
        loss = nn.functional.cross_entropy(network(images), labels)
        block = network.layer1[0]
        owned = (block.conv1.weight, block.bn1.weight, block.bn1.bias, block.conv2.weight)
        first, scale, shift, second = (
            (value * gradient).abs().detach()
            for value, gradient in zip(owned, torch.autograd.grad(loss, owned), strict=True)
        )
        expected += (first.sum((1, 2, 3)) + scale + shift + second.sum((0, 2, 3))) / 2
    torch.testing.assert_close(both["layer1.0.conv1"], expected)
    more = taylor_scores(network, traced, dataset, batch_count=50)  # 300 images are two batches
    assert all(torch.equal(both[name], more[name]) for name in both)
    assert all(value.grad is None for value in network.parameters())


def test_a_group_of_zeros_scores_zero_and_not_nan(nets):
    network = nets.tiny()
    traced = trace(network, (1, 16, 16))
    with torch.no_grad():
        for member in traced.group("layer1.0.conv1").members:
            if member.tensor in dict(network.named_parameters()):
                network.get_parameter(member.tensor).zero_()
    assert torch.equal(norm_scores(network, traced)["layer1.0.conv1"], torch.zeros(8))


def test_damaged_weights_unknown_scores_and_missing_images_are_refused(nets):
    network, dataset = nets.tiny(num_classes=3), data((1, 16, 16), 3)
    traced = trace(network, (1, 16, 16))
    with pytest.raises(InputError, match="score 'size' is unknown; use one of norm, taylor"):
        score("size", network, traced, dataset)
    empty = msgspec.structs.replace(dataset, train=ArraySplit(dataset.train.images[:0], dataset.train.labels[:0]))
    with pytest.raises(InputError, match="no training images"):
        score("taylor", network, traced, empty)
    with torch.no_grad():
        network.conv1.weight[0] = torch.nan
    with pytest.raises(InputError, match="'norm' score of group 'conv1' is not finite"):
        score("norm", network, traced, dataset)
