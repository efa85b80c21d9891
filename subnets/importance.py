"""How much each channel matters: one score per channel and group, higher is more important.

* :func:`norm_scores`: group L2 norm over every tensor the channel owns (the DAC 2020 paper ranks by weight norm).
* :func:`taylor_scores`: first-order change of the loss when the channel goes, ``sum |w * dL/dw|`` (Molchanov 2019).
* :func:`scale_scores`: batch-norm's scale ``|gamma|`` (network slimming, Liu et al. 2017).
* ``noise``: how little noise the channel bears (:mod:`subnets.noise`).

:func:`normalised` makes groups comparable, :func:`per_mac` divides by what a channel costs. Knows nothing of widths or
budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from subnets.data import Dataset
from subnets.errors import InputError
from subnets.groups import Traced
from subnets.noise import noise_scores
from subnets.pointwise import sound_gradients
from subnets.spec import own_entries
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
                own = own_entries(values[member.tensor], member, group.width)
                total += _per_channel(own, member.axis, member.repeat).cpu()
        scores[group.name] = total
    return scores


def norm_scores(network: nn.Module, traced: Traced, normalise: str = "group") -> Scores:
    """The group L2 norm of each channel, by default divided by its group's mean so that layers compare."""
    squares = {name: value.detach() ** 2 for name, value in network.named_parameters()}
    norms = {name: score.sqrt() for name, score in _accumulate(traced, squares).items()}
    return normalised(norms, traced, normalise)


@sound_gradients()
def taylor_scores(network: nn.Module, traced: Traced, dataset: Dataset, *, batch_count: int = 50) -> Scores:
    """Mean over training batches of ``sum |w * dL/dw|`` over each channel's tensors, in units of loss.

    Takes ``batch_count`` batches, or one pass over a smaller training split.
    """
    network.eval()
    device = next(network.parameters()).device
    total: dict[str, Tensor] = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    done = 0
    for images, labels in islice(augmented(dataset.train, dataset, 128, 11, 0), batch_count):
        network.zero_grad()
        nn.functional.cross_entropy(network(images.to(device)), labels.to(device)).backward()  # type: ignore[no-untyped-call]
        for name, value in network.named_parameters():
            if value.grad is not None:
                total[name] += (value.detach() * value.grad).abs()
        done += 1
    network.zero_grad()
    return {name: score / done for name, score in _accumulate(traced, total).items()}


def scale_scores(network: nn.Module, traced: Traced) -> Scores:
    """The mean of ``|gamma|`` over the batch-norms that a channel passes.

    Raises:
        InputError: a group has no batch-norm with a scale.
    """
    modules = dict(network.named_modules())
    parameters = dict(network.named_parameters())
    scores: Scores = {}
    for group in traced.groups:
        scales = [
            _per_channel(own_entries(parameters[member.tensor], member, group.width).detach().abs(), 0, member.repeat)
            / member.repeat
            for member in group.members
            if member.tensor.endswith(".weight")
            and isinstance(modules[member.tensor.rpartition(".")[0]], nn.modules.batchnorm._BatchNorm)
        ]
        if not scales:
            raise InputError(f"score 'scale' needs a batch-norm after '{group.name}', which has none; use 'norm'")
        scores[group.name] = torch.stack(scales).mean(0).cpu()
    return scores


SCORES: Mapping[str, Callable[[nn.Module, Traced, Dataset], Scores]] = {
    "norm": lambda network, traced, dataset: norm_scores(network, traced, "none"),
    "taylor": taylor_scores,
    "scale": lambda network, traced, dataset: scale_scores(network, traced),
    "noise": noise_scores,
}


def score(kind: str, network: nn.Module, traced: Traced, dataset: Dataset, *, normalise: str | None = None) -> Scores:
    """Scores of that kind.

    Args:
        kind: one of :data:`SCORES`.
        network: trained.
        traced: its channel groups.
        dataset: some scores look at its training images.
        normalise: as :func:`normalised`; None is the kind's own way: by group for ``norm``, else not at all.

    Raises:
        InputError: the kind is unknown, it needs training images that are not there, or a score is not a number.
    """
    if kind not in SCORES:
        raise InputError(f"score '{kind}' is unknown; use one of {', '.join(SCORES)}")
    if kind in ("taylor", "noise") and not len(dataset.train):
        raise InputError(f"data '{dataset.name}' has no training images, which score '{kind}' needs; add some")
    scores = SCORES[kind](network, traced, dataset)
    for group, values in scores.items():
        if not bool(values.isfinite().all()):
            raise InputError(f"the '{kind}' score of group '{group}' is not finite; the network's weights are damaged")
    return normalised(scores, traced, normalise or ("group" if kind == "norm" else "none"))


NORMALISATIONS = ("none", "group", "type")


def normalised(scores: Scores, traced: Traced, by: str) -> Scores:
    """Scores made comparable.

    Args:
        scores: per channel.
        traced: whose groups they are of.
        by: ``group`` divides by the group's mean, so that every group has the same; ``type`` by the mean over all
            groups of its type (stages that an addition couples, or interiors), so that layers of one type keep their
            differences (isomorphic pruning, Fang et al. 2024); ``none`` leaves them.

    Raises:
        InputError: ``by`` is unknown.
    """
    if by not in NORMALISATIONS:
        raise InputError(f"normalisation '{by}' is unknown; use one of {', '.join(NORMALISATIONS)}")
    if by == "none":
        return dict(scores)
    means = {}
    for group in traced.groups:
        alike = [g.name for g in traced.groups if by == "type" and g.coupled == group.coupled] or [group.name]
        means[group.name] = torch.cat([scores[name] for name in alike]).mean()
    return {name: value / means[name].clamp_min(torch.finfo(value.dtype).tiny) for name, value in scores.items()}


def per_mac(scores: Scores, traced: Traced) -> Scores:
    """Scores divided by the MACs that one channel of the group costs in the full network, relative to the mean group.

    A group that no layer's cost depends on keeps its scores.
    """
    whole = traced.macs(traced.full)
    costs = {}
    for group in traced.groups:
        one_less = {**traced.full, group.name: group.width - 1}
        costs[group.name] = float(whole - traced.macs(one_less))
    mean = sum(costs.values()) / len(costs) or 1.0
    return {name: value * (mean / costs[name] if costs[name] else 1.0) for name, value in scores.items()}
