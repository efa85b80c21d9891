"""The proximal step of the group lasso, and what it does to a run."""

import math

import pytest
import torch

from subnets.groups import trace
from subnets.importance import norm_scores
from subnets.sparsity import SparseObjective, channel_norms
from subnets.training import Objective, PlainObjective, Recipe, train


class Still(Objective):
    """Trains nothing."""

    def __init__(self, network):
        self.module = network


def recipe(**changes):
    return Recipe(**{"epochs": 2, "batch_size": 32, "precision": "f32", "compile": False, **changes})


def test_norms_are_what_the_norm_score_ranks(nets):
    for network, shape in ((nets.tiny(), (1, 16, 16)), (nets.depthwise(), (1, 16, 16))):
        traced = trace(network, shape)
        norms, scores = channel_norms(network, traced), norm_scores(network, traced, "none")
        assert all(torch.allclose(norms[name], scores[name]) for name in scores)


def test_one_step_shrinks_each_channels_norm_by_the_threshold_and_no_further_than_zero(nets):
    """On an interior whose tensors no other group owns: the proximal operator in closed form."""
    network = nets.tiny()
    traced = trace(network, (1, 16, 16))
    only = type(traced)(groups=(traced.group("layer2.0.conv1"),), layers=traced.layers, parameters=traced.parameters)
    before = channel_norms(network, only)["layer2.0.conv1"]
    directions = network.layer2[0].conv1.weight.detach() / before.view(-1, 1, 1, 1)
    numbers = 8 * 9 + 2 + 16 * 9  # filter, batch-norm, what reads it
    strength = float(before.median()) / math.sqrt(numbers) / 0.5
    objective = SparseObjective(Still(network), only, recipe(sparsity=strength, sparsity_from=0.5))
    objective.after_step(0.5, 0.49)
    assert torch.equal(channel_norms(network, only)["layer2.0.conv1"], before)
    objective.after_step(0.5, 0.5)
    after = channel_norms(network, only)["layer2.0.conv1"]
    expected = (before - before.median()).clamp_min(0)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)
    assert 0 < int((after == 0).sum()) < 16
    torch.testing.assert_close(network.layer2[0].conv1.weight.detach(), directions * after.view(-1, 1, 1, 1))


def test_channels_that_are_zero_stay_zero_and_nothing_becomes_nan(nets):
    network = nets.depthwise()
    traced = trace(network, (1, 16, 16))
    objective = SparseObjective(Still(network), traced, recipe(sparsity=100.0, sparsity_from=0.5))
    for _ in range(2):
        objective.after_step(1.0, 0.9)
        assert all(bool((norms == 0).all()) for norms in channel_norms(network, traced).values())


@pytest.fixture(scope="module")
def sparse(nets, small_digits):
    """A run whose last part is sparse: the network, its groups and the losses seen."""
    network = nets.tiny()
    traced = trace(network, (1, 16, 16))
    plan = recipe(epochs=6, learning_rate=0.2, sparsity=0.08, sparsity_from=0.5, average=0.99)
    seen = {}

    def look(progress):
        if progress.step == progress.steps // 2:
            seen["before"] = channel_norms(network, traced)

    train(SparseObjective(PlainObjective(network, plan), traced, plan), small_digits, plan, on_step=look)
    return network, traced, seen["before"]


def test_a_sparse_run_ends_with_exact_zeros_also_in_the_averaged_weights_and_some_channels_left(sparse):
    network, traced, before = sparse
    norms = torch.cat(list(channel_norms(network, traced).values()))
    assert not bool((torch.cat(list(before.values())) == 0).any())
    assert 0.05 < float((norms == 0).float().mean()) < 0.95


def test_cutting_the_dead_channels_leaves_the_answers(sparse, small_digits):
    """What the norms call nothing is nothing: sorted to the end and cut, the network answers as before."""
    from subnets.spec import SubnetSpec
    from subnets.supernet import extract, sort_channels

    network, traced, _ = sparse
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    norms = channel_norms(network, traced)
    sort_channels(network, traced.groups, norms)
    widths = {name: max(1, int((values > 0).sum())) for name, values in norms.items()}
    assert widths != traced.full
    with torch.no_grad():
        torch.testing.assert_close(
            extract(network, traced.groups, SubnetSpec("alive", widths))(x), network.eval()(x), atol=1e-4, rtol=1e-4
        )
