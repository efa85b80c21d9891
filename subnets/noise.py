"""Trainable noise: how much noise each channel bears before the task suffers.

Every channel's output gets noise in proportion to its own spread, ``y + |alpha| * std(y) * n`` with ``n`` standard
normal, and the scales ``alpha`` are trained on the task loss while the weights stand still. A reward for noise,
``- reward * mean(log |alpha|)``, pushes every scale up; the loss holds down those of the channels it needs. Noise goes
in where a group's channels come out of a batch-norm, or out of the producing layer where there is none.

After the parametric noise injection of He, Rakin and Fan (CVPR 2019, section 3), whose authors rank channels by it in
"trainable noise ranking" (Yang, He and Fan, TNNLS 2022); theirs adds noise to weights and rewards it otherwise. Put on
the outputs, the scale of a channel's weights, which batch-norm undoes, plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, count, islice

import torch
from torch import Tensor, nn

from subnets.data import Dataset
from subnets.groups import Traced
from subnets.training import augmented

_START = 0.25  # He et al. begin here, too


def noise_scores(
    network: nn.Module,
    traced: Traced,
    dataset: Dataset,
    *,
    step_count: int = 200,
    batch_size: int = 128,
    learning_rate: float = 0.05,
    reward: float = 0.05,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Sensitivity of each channel to noise, ``1 / |alpha|`` after training: {group: [width]}.

    The network's weights and statistics stay as they are; batch-norm runs on its stored statistics.

    Args:
        network: trained.
        traced: its channel groups.
        dataset: batches come from its training split.
        step_count: steps of Adam on the noise scales.
        batch_size: images a step, or all where there are fewer.
        learning_rate: of the scales' logarithms.
        reward: weight of the mean logarithm of the scales against the loss.
        seed: of the noise and the order of images; torch's own generator is left alone.
    """
    device = next(network.parameters()).device
    scales = {
        group.name: torch.full((group.width,), _START, device=device).log_().requires_grad_() for group in traced.groups
    }
    random = torch.Generator(device).manual_seed(seed)
    modules = dict(network.named_modules())
    frozen = [(value, value.requires_grad) for value in network.parameters()]
    mode = network.training
    network.eval()
    optimizer = torch.optim.Adam(list(scales.values()), lr=learning_rate)
    epochs = (augmented(dataset.train, dataset, batch_size, seed, epoch) for epoch in count())
    with ExitStack() as hooks:
        for value, _ in frozen:
            value.requires_grad_(False)
        for name, group in _places(network, traced):
            handle = modules[name].register_forward_hook(_noisy(scales[group], random))
            hooks.callback(handle.remove)
        for images, labels in islice(chain.from_iterable(epochs), step_count):
            loss = nn.functional.cross_entropy(network(images.to(device)).float(), labels.to(device))
            loss = loss - reward * torch.cat(list(scales.values())).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for value, wanted in frozen:
        value.requires_grad_(wanted)
    network.train(mode)
    return {name: (-scale.detach()).exp().cpu() for name, scale in scales.items()}


def _places(network: nn.Module, traced: Traced) -> Iterator[tuple[str, str]]:
    """(module, group) where noise goes in: the group's batch-norms, else the layers that produce its channels."""
    modules = dict(network.named_modules())
    for group in traced.groups:
        outputs = [
            owner
            for member in group.members
            for owner, _, tensor in [member.tensor.rpartition(".")]
            if tensor == "weight" and member.axis == 0 and not member.start and member.repeat == 1
            if modules[owner].weight.shape[0] == group.width
        ]
        norms = [name for name in outputs if isinstance(modules[name], nn.modules.batchnorm._BatchNorm)]
        yield from ((name, group.name) for name in norms or outputs)


def _noisy(log_scale: Tensor, random: torch.Generator) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """output [N, C, ...] with noise per channel."""
        other = [axis for axis in range(output.ndim) if axis != 1]
        shape = [1, -1, *[1] * (output.ndim - 2)]
        spread = output.detach().std(other, correction=0).view(shape)
        noise = torch.randn(output.shape, generator=random, device=output.device)
        return output + log_scale.exp().view(shape) * spread * noise

    return hook
