"""Whose answers the smaller subnets learn from.

* :class:`Live`: the full network's, of this very step (in-place distillation; US-Nets, Yu and Huang 2019, section 3.3).
* :class:`Frozen`: the full network's as it was when the run began (Once-for-all, Cai et al. 2020).
* :class:`Averaged`: those of the moving average of the full network's weights (DS-Net, Li et al. 2021).

The target is a softmax at temperature 1, without gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from subnets.errors import InputError
from subnets.supernet import Supernet


class Teacher(Protocol):
    """Gives the smaller subnets their target."""

    def begin(self, average: Mapping[str, Tensor]) -> None:
        """Called once before the first step, with the moving average of the supernet's tensors (a live view)."""

    def target(self, images: Tensor, live: Tensor) -> Tensor:
        """The class probabilities to learn: [N, classes].

        Args:
            images: [N, C, H, W].
            live: logits of the full network in this step, [N, classes].
        """


class Live:
    """The full network itself."""

    def __init__(self, supernet: Supernet) -> None:
        pass

    def begin(self, average: Mapping[str, Tensor]) -> None:
        """Nothing to prepare."""

    def target(self, images: Tensor, live: Tensor) -> Tensor:
        """The live answers."""
        return live.detach().softmax(1)


class Frozen:
    """A copy of the full network from before the run, in eval mode.

    A resumed run needs the supernet as it was before the run, which is what a bundle on disk holds until it ends.
    """

    def __init__(self, supernet: Supernet) -> None:
        device = next(supernet.parameters()).device
        self._network: nn.Module = supernet.extract(supernet.ladder.names[-1]).to(device)

    def begin(self, average: Mapping[str, Tensor]) -> None:
        """Nothing to prepare."""

    @torch.no_grad()
    def target(self, images: Tensor, live: Tensor) -> Tensor:
        """The copy's answers."""
        answer: Tensor = self._network(images)
        return answer.float().softmax(1)


class Averaged:
    """The full network with the averaged weights and statistics, in eval mode."""

    def __init__(self, supernet: Supernet) -> None:
        self._full = supernet.ladder.names[-1]
        self._network = supernet.extract(self._full).to(next(supernet.parameters()).device)
        self._tensors = {**dict(self._network.named_parameters()), **dict(self._network.named_buffers())}
        self._average: Mapping[str, Tensor] = {}

    def begin(self, average: Mapping[str, Tensor]) -> None:
        """Keeps the average, which the training loop goes on changing."""
        self._average = average

    @torch.no_grad()
    def target(self, images: Tensor, live: Tensor) -> Tensor:
        """The averaged network's answers."""
        for key, value in self._average.items():
            owner, _, name = key.replace("|", ".").partition("/")
            if owner in ("shared", self._full):
                self._tensors[name].copy_(value)
        answer: Tensor = self._network(images)
        return answer.float().softmax(1)


TEACHERS: Mapping[str, Callable[[Supernet], Teacher]] = {"live": Live, "frozen": Frozen, "averaged": Averaged}


def teacher(kind: str, supernet: Supernet) -> Teacher:
    """The teacher of that kind.

    Raises:
        InputError: the kind is unknown.
    """
    if kind not in TEACHERS:
        raise InputError(f"teacher '{kind}' is unknown; use one of {', '.join(TEACHERS)}")
    return TEACHERS[kind](supernet)
