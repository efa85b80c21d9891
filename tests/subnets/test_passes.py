"""One pass: the same gradients whichever way it runs; the capture itself needs a GPU."""

import copy
import logging

import pytest
import torch
from torch import nn

from subnets.passes import Pass
from subnets.training import PlainObjective, Recipe, train


def cross_entropy(network):
    def loss(images, labels):
        output = network(images)
        return nn.functional.cross_entropy(output, labels), output

    return loss


@pytest.fixture
def batches():
    random = torch.Generator().manual_seed(3)
    return [
        (torch.randn(6, 1, 16, 16, generator=random), torch.randint(0, 10, (6,), generator=random)) for _ in range(4)
    ]


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return "cuda"


def test_gradients_add_up_over_passes(nets, batches):
    network, twin = nets.tiny().train(), nets.tiny().train()
    step = Pass(network, cross_entropy(network))
    for images, labels in batches:
        loss, output = step(images, labels)
        expected, answers = cross_entropy(twin)(images, labels)
        expected.backward()
        assert torch.equal(loss, expected.detach()) and torch.equal(output, answers.detach())
        assert not loss.requires_grad and not output.requires_grad
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.gpu
def test_replays_give_what_separate_kernels_give(nets, batches, cuda):
    network = nets.tiny().train().to(cuda)
    twin = copy.deepcopy(network)
    first, second = Pass(network, cross_entropy(network)), Pass(network, cross_entropy(network))
    for images, labels in batches:
        images, labels = images.to(cuda), labels.to(cuda)
        for each in (network, twin):
            each.zero_grad()
        losses = [step(images, labels)[0] for step in (first, second)]
        expected = []
        for _ in range(2):
            loss, _ = cross_entropy(twin)(images, labels)
            loss.backward()
            expected.append(loss.detach())
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-2, atol=1e-4)
        for ours, theirs in zip(network.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_all_the_same_and_says_so(nets, batches, cuda, caplog):
    network = nets.tiny().train().to(cuda)

    def loss(images, labels):
        output = network(images)
        assert float(output.detach().sum()) < 1e9  # looks at a value on the host
        return nn.functional.cross_entropy(output, labels), output

    step = Pass(network, loss)
    images, labels = (each.to(cuda) for each in batches[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found, _ = step(images, labels)
    assert torch.isfinite(found) and all(value.grad is not None for value in network.parameters())
    assert len([each for each in caplog.records if "CUDA graph" in each.message]) == 1


@pytest.mark.gpu
def test_a_run_on_the_gpu_learns_as_one_on_the_cpu(nets, small_digits, cuda):
    recipe, losses = Recipe(epochs=3, batch_size=50, precision="f32", compile=False), {}
    for device in ("cpu", cuda):
        seen = []
        network = nets.tiny().to(device)
        train(PlainObjective(network, recipe), small_digits, recipe, on_step=seen.append)
        losses[device] = seen[-1].loss
    assert losses[cuda] == pytest.approx(losses["cpu"], rel=0.1)
