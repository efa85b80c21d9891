"""How much each channel matters: one score per channel and group, higher is more important.

* :func:`norm_scores`: group L2 norm over every tensor the channel owns (the DAC 2020 paper ranks by weight norm).
* :func:`taylor_scores`: first-order change of the loss when the channel goes, ``sum |w * dL/dw|`` (Molchanov 2019).

Knows nothing of widths or budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from subnets.data import Dataset
from subnets.errors import InputError
from subnets.groups import Traced
from subnets.training import augmented

Scores = dict[str, Tensor]  # group -> [width]


def _per_channel(value: Tensor, axis: int, repeat: int) -> Tensor:
    """Sums everything but ``axis``, then each channel's ``repeat`` entries: [width]."""
    other = [a for a in range(value.ndim) if a != axis]
    return (value.sum(other) if other else value).reshape(-1, repeat).sum(1)


def _accumulate(traced: Traced, values: Mapping[str, Tensor]) -> Scores:
    scores: Scores = {}
    for group in traced.groups:
        total = torch.zeros(group.width)
        for member in group.members:
            if member.tensor in values:
                total += _per_channel(values[member.tensor], member.axis, member.repeat)
        scores[group.name] = total
    return scores


def norm_scores(network: nn.Module, traced: Traced) -> Scores:
    """The group L2 norm of each channel, divided by its group's mean so that layers compare."""
    squares = {name: value.detach() ** 2 for name, value in network.named_parameters()}
    norms = {name: score.sqrt() for name, score in _accumulate(traced, squares).items()}
    return {name: norm / norm.mean().clamp_min(torch.finfo(norm.dtype).tiny) for name, norm in norms.items()}


def taylor_scores(network: nn.Module, traced: Traced, dataset: Dataset, *, batch_count: int = 50) -> Scores:
    """Mean over training batches of ``sum |w * dL/dw|`` over each channel's tensors, in units of loss.

    Takes ``batch_count`` batches, or one pass over a smaller training split.

    Raises:
        InputError: the training split is empty.
    """
    if not len(dataset.train):
        raise InputError(f"data '{dataset.name}' has no training images, which score 'taylor' needs; add some")
    network.eval()
    total: dict[str, Tensor] = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    done = 0
    for images, labels in islice(augmented(dataset.train, dataset, 128, 11, 0), batch_count):
        network.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        for name, value in network.named_parameters():
            if value.grad is not None:
                total[name] += (value.detach() * value.grad).abs()
        done += 1
    network.zero_grad()
    return {name: score / done for name, score in _accumulate(traced, total).items()}


SCORES: Mapping[str, Callable[[nn.Module, Traced, Dataset], Scores]] = {
    "norm": lambda network, traced, dataset: norm_scores(network, traced),
    "taylor": taylor_scores,
}


def score(kind: str, network: nn.Module, traced: Traced, dataset: Dataset) -> Scores:
    """Scores of that kind.

    Raises:
        InputError: the kind is unknown, or a score is not a number.
    """
    if kind not in SCORES:
        raise InputError(f"score '{kind}' is unknown; use one of {', '.join(SCORES)}")
    scores = SCORES[kind](network, traced, dataset)
    for group, values in scores.items():
        if not bool(values.isfinite().all()):
            raise InputError(f"the '{kind}' score of group '{group}' is not finite; the network's weights are damaged")
    return scores
