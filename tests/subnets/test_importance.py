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
from subnets.importance import norm_scores, normalised, per_mac, scale_scores, score, taylor_scores
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
    with pytest.raises(InputError, match="score 'size' is unknown; use one of norm, taylor, scale, noise"):
        score("size", network, traced, dataset)
    empty = msgspec.structs.replace(dataset, train=ArraySplit(dataset.train.images[:0], dataset.train.labels[:0]))
    with pytest.raises(InputError, match="no training images"):
        score("taylor", network, traced, empty)
    with torch.no_grad():
        network.conv1.weight[0] = torch.nan
    with pytest.raises(InputError, match="'norm' score of group 'conv1' is not finite"):
        score("norm", network, traced, dataset)


def test_the_scale_of_a_channel_is_the_mean_of_the_batch_norms_it_passes(nets):
    network = nets.tiny()
    traced = trace(network, (1, 16, 16))
    scores = scale_scores(network, traced)
    block = network.layer2[0]
    torch.testing.assert_close(scores["layer2.0.conv1"], block.bn1.weight.detach().abs())
    both = (block.bn2.weight.abs() + block.downsample[1].weight.abs()).detach() / 2
    torch.testing.assert_close(scores["layer2.0.conv2"], both)


def test_the_scale_of_a_flattened_channel_is_the_mean_over_its_pixels_and_a_group_without_is_refused(nets):
    network = nets.depthwise()
    traced = trace(network, (1, 16, 16))
    with pytest.raises(InputError, match="'hidden', which has none; use 'norm'"):
        scale_scores(network, traced)
    normed = msgspec.structs.replace(traced, groups=tuple(g for g in traced.groups if g.name != "hidden"))
    expected = network.flatten_norm.weight.detach().abs().reshape(4, 16).mean(1)
    torch.testing.assert_close(scale_scores(network, normed)["point"], expected)


def test_normalising_by_type_keeps_the_differences_between_layers_of_one_type(nets):
    network = nets.tiny()
    traced = trace(network, (1, 16, 16))
    raw = {group.name: torch.rand(group.width) + index for index, group in enumerate(traced.groups)}
    by_type, by_group = normalised(raw, traced, "type"), normalised(raw, traced, "group")
    for coupled in (False, True):
        names = [group.name for group in traced.groups if group.coupled == coupled]
        assert len(names) == 3
        assert float(torch.cat([by_type[name] for name in names]).mean()) == pytest.approx(1, rel=1e-5)
        ratios = [by_type[name] / raw[name] for name in names]
        torch.testing.assert_close(torch.cat(ratios), torch.full((sum(map(len, ratios)),), float(ratios[0][0])))
    assert all(float(values.mean()) == pytest.approx(1, rel=1e-5) for values in by_group.values())
    assert all(torch.equal(values, raw[name]) for name, values in normalised(raw, traced, "none").items())
    with pytest.raises(InputError, match="normalisation 'layer' is unknown; use one of none, group, type"):
        normalised(raw, traced, "layer")


def test_per_mac_divides_by_what_a_channel_costs(nets):
    network = nets.tiny()
    traced = trace(network, (1, 16, 16))
    priced = per_mac({group.name: torch.ones(group.width) for group in traced.groups}, traced)
    # One channel of an interior at 16 x 16 pixels, 8 channels on either side, 3 x 3; of another at 4 x 4, 16 and 32.
    ratio = (4 * 4 * 9 * (16 + 32)) / (16 * 16 * 9 * (8 + 8))
    assert float(priced["layer1.0.conv1"][0] / priced["layer3.0.conv1"][0]) == pytest.approx(ratio)


@pytest.mark.parametrize("kind", ["norm", "taylor", "scale", "noise"])
def test_every_score_gives_each_channel_a_number_and_normalises_as_asked(nets, kind):
    network, dataset = nets.tiny(num_classes=3), data((1, 16, 16), 3)
    traced = trace(network, (1, 16, 16))
    scores = score(kind, network, traced, dataset, normalise="group")
    assert {name: len(values) for name, values in scores.items()} == traced.full
    assert all(float(values.mean()) == pytest.approx(1, rel=1e-4) for values in scores.values())
    assert all(bool((values >= 0).all()) for values in scores.values())
