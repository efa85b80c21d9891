"""Trainable noise: channels nobody reads bear more of it, and the network is left as it was."""

import copy

import pytest
import torch
from torch import nn

from subnets.groups import trace
from subnets.noise import _places, noise_scores
from subnets.training import PlainObjective, Recipe, train


@pytest.fixture(scope="module")
def trained(nets, small_digits):
    network = nets.tiny()
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.1, precision="f32", compile=False, average=0.9)
    train(PlainObjective(network, recipe), small_digits, recipe)
    return network


def test_channels_that_nothing_reads_bear_the_most_noise(trained, small_digits):
    network = copy.deepcopy(trained)
    with torch.no_grad():
        network.layer2[0].conv2.weight[:, ::2] = 0
    traced = trace(network, (1, 16, 16))
    scores = noise_scores(network, traced, small_digits, step_count=40, batch_size=64)["layer2.0.conv1"]
    assert float(scores[::2].max()) < float(scores[1::2].min())


def test_weights_statistics_mode_and_hooks_are_left_as_they_were(trained, small_digits):
    network = copy.deepcopy(trained).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    noise_scores(network, trace(network, (1, 16, 16)), small_digits, step_count=3, batch_size=16)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training and all(value.requires_grad for value in network.parameters())
    assert all(value.grad is None for value in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_scores(trained, small_digits):
    traced = trace(trained, (1, 16, 16))
    first, again, other = (
        noise_scores(trained, traced, small_digits, step_count=3, batch_size=16, seed=seed) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_noise_goes_in_after_batch_norm_where_there_is_one_and_for_every_group(case):
    traced = trace(case.network, case.shape)
    places = list(_places(case.network, traced))
    modules = dict(case.network.named_modules())
    assert {group for _, group in places} == {group.name for group in traced.groups}
    for name, group in places:
        has_norm = any(isinstance(modules[n], nn.BatchNorm2d) for n, g in places if g == group)
        assert not has_norm or isinstance(modules[name], nn.BatchNorm2d)
