"""Joint training of all subnets in one weight set.

Each step runs the full network on the labels, then smaller subnets on its answers (in-place distillation, temperature
1) and a little on the labels; gradients add up, one optimizer step follows. The smallest subnet is in every step, or it
collapses (the sandwich rule of US-Nets, Yu and Huang 2019, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from subnets.errors import InputError
from subnets.supernet import Supernet
from subnets.training import Recipe


class JointObjective:
    """Cross-entropy of the full network plus ``soft`` distillation and ``1 - soft`` cross-entropy of the others.

    Args:
        supernet: trained in place.
        recipe: precision, compilation and seed.
        middle: how many of the subnets between smallest and largest run in each step; None = all.
        soft: weight of the distillation term against the labels.
        full_weight: how much the full network's loss counts against each of the others'.

    Raises:
        InputError: ``middle`` is negative or ``full_weight`` not above 0.
    """

    def __init__(
        self,
        supernet: Supernet,
        recipe: Recipe,
        *,
        middle: int | None = None,
        soft: float = 0.9,
        full_weight: float = 1.0,
    ) -> None:
        self.module: nn.Module = supernet
        self._names = supernet.ladder.names
        self._bf16 = recipe.precision == "bf16"
        self._soft = soft
        between = self._names[1:-1]
        if middle is not None and middle < 0:
            raise InputError(f"middle {middle} is no number of subnets; give at least 0")
        if not 0 < full_weight < math.inf:
            raise InputError(f"full weight {full_weight} must be above 0; 1 counts all subnets alike")
        self._full_weight = full_weight
        self._middle = len(between) if middle is None else min(middle, len(between))
        self._seed = recipe.seed
        self._run: Callable[[Tensor, str], Tensor] = supernet
        if recipe.compile:
            # One graph per subnet comes from one code object; the default limit is eight.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(self._names))
            self._run = torch.compile(supernet, dynamic=False)

    def backward(self, images: Tensor, labels: Tensor, share_done: float) -> Tensor:
        """One pass of every chosen subnet; returns the mean of their losses."""
        output = self._forward(images, self._names[-1])
        loss = nn.functional.cross_entropy(output, labels)
        (self._full_weight * loss).backward()  # type: ignore[no-untyped-call]
        target = output.detach().softmax(1)
        total = loss.detach()
        names = self._chosen(share_done)
        for name in names:
            output = self._forward(images, name)
            loss = self._soft * nn.functional.cross_entropy(output, target)
            loss = loss + (1 - self._soft) * nn.functional.cross_entropy(output, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total / (1 + len(names))

    def _chosen(self, share_done: float) -> list[str]:
        """The smaller subnets of this step: from seed and step alone, so that a resumed run makes the same choice."""
        smaller = self._names[:-1]
        random = np.random.Generator(np.random.PCG64([self._seed, 99, int(share_done * 2**48)]))
        picked = sorted(1 + random.permutation(max(0, len(smaller) - 1))[: self._middle])
        return [*smaller[:1], *(smaller[index] for index in picked)]

    def _forward(self, images: Tensor, name: str) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            return self._run(images, name).float()
