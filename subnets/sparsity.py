"""The sparsity phase: group lasso over channel groups, so that some channels end at exactly nothing.

* :func:`channel_norms`: the L2 norm of each channel over every tensor it owns, the quantity that is penalised, drawn
  before and after, and ranked by the ``norm`` score.
* :class:`SparseObjective`: any objective, followed by a proximal step in the last part of the run.

The penalty is ``strength * sum over channels of sqrt(n) * ||w||`` with ``n`` numbers in a channel (Yuan and Lin 2006),
applied as a proximal step after each optimizer step, ``w <- w * max(0, 1 - rate * strength * sqrt(n) / ||w||)``,
not as a subgradient: a subgradient leaves small norms swinging round zero and passes through momentum, the proximal
step sets them to zero and keeps them there, which is what makes the norms fall into two heaps. A weight between two
groups belongs to a channel on either side and is shrunk for both, one group after the other; that differs from the
proximal step of the whole sum only by terms of order ``(rate * strength)**2``.

A channel at zero is dead: its filter, its batch-norm and all that reads it are zero, so no gradient wakes it; in the
moving average of the weights it is set to zero, too. Strength and length of the phase decide how many there are; look
at the histogram.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from subnets.groups import Traced
from subnets.spec import own_entries
from subnets.training import Objective, Recipe


def channel_norms(network: nn.Module, traced: Traced) -> dict[str, Tensor]:
    """{group: L2 norm of each channel over all its parameters, [width]}."""
    parameters = dict(network.named_parameters())
    return {
        group.name: _squares(_owned(parameters, traced, group.name), group.width).sqrt().cpu()
        for group in traced.groups
    }


class SparseObjective(Objective):
    """An objective with group lasso in the last part of the run.

    Args:
        objective: what a step minimises besides.
        traced: the network's channel groups.
        recipe: how strong, and from when.
    """

    def __init__(self, objective: Objective, traced: Traced, recipe: Recipe) -> None:
        self.module = objective.module
        self._inner, self._recipe = objective, recipe
        self._traced = traced
        parameters = dict(self.module.named_parameters())
        self._groups = [(_owned(parameters, traced, group.name), group.width) for group in traced.groups]
        self._averages: list[_Owned] = [[] for _ in traced.groups]

    def begin(self, average: Mapping[str, Tensor]) -> None:
        """As the inner objective; keeps the average, where channels that die must not live on."""
        self._inner.begin(average)
        names = {name for name, _ in self.module.named_parameters()}
        own = {name: value for name, value in average.items() if name in names}
        self._averages = [_owned(own, self._traced, group.name) for group in self._traced.groups]

    def backward(self, images: Tensor, labels: Tensor, share_done: float) -> Tensor:
        """As the inner objective: the penalty is no part of the loss."""
        return self._inner.backward(images, labels, share_done)

    @torch.no_grad()
    def after_step(self, rate: float, share_done: float) -> None:
        """Shrinks every channel a little, once the phase has begun."""
        self._inner.after_step(rate, share_done)
        if share_done < self._recipe.sparsity_from:
            return
        for (owned, width), average in zip(self._groups, self._averages, strict=True):
            norms = _squares(owned, width).sqrt()
            numbers = sum(value.numel() for value, _, _ in owned) / width
            threshold = rate * self._recipe.sparsity * numbers**0.5
            # A norm of 0 gives 0 / tiny: the channel stays at zero, and nothing is divided by zero.
            keep = (norms - threshold).clamp_min(0) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
            _scale(owned, keep)
            _scale(average, (keep > 0).to(keep.dtype))


def _scale(owned: _Owned, factors: Tensor) -> None:
    """Multiplies every channel's entries by its factor, in place."""
    for value, axis, repeat in owned:
        shape = [1] * value.ndim
        shape[axis] = -1
        value.mul_(factors.repeat_interleave(repeat).view(shape))


_Owned = list[tuple[Tensor, int, int]]  # (this group's entries of a parameter: a view, axis, entries per channel)


@torch.no_grad()
def _owned(parameters: Mapping[str, Tensor], traced: Traced, name: str) -> _Owned:
    group = traced.group(name)
    return [
        (own_entries(parameters[member.tensor], member, group.width), member.axis, member.repeat)
        for member in group.members
        if member.tensor in parameters
    ]


@torch.no_grad()
def _squares(owned: _Owned, width: int) -> Tensor:
    """Sum of squares per channel: [width]."""
    parts = []
    for value, axis, repeat in owned:
        other = [a for a in range(value.ndim) if a != axis]
        squares = value.square()
        parts.append((squares.sum(other) if other else squares).reshape(width, repeat).sum(1))
    return torch.stack(parts).sum(0)
