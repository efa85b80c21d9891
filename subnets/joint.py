"""Joint training of all subnets in one weight set.

Each step runs the full network on the labels, then smaller subnets on a teacher's answers (distillation, temperature 1)
and a little on the labels; gradients add up, one optimizer step follows. The smallest subnet is in every step, or it
collapses (the sandwich rule of US-Nets, Yu and Huang 2019, section 3.1).

* :class:`JointOptions`: the numbers of a joint step, recorded with its result.
* :class:`JointObjective`: the step.

Two published ways are settings of it: slimmable networks (Yu et al. 2019) are ``soft=0``, private batch-norm and all
subnets in each step; universally slimmable networks are ``soft=1`` with ``affine="shared"`` and two in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from subnets.errors import InputError
from subnets.passes import Pass
from subnets.supernet import Supernet
from subnets.teachers import TEACHERS, teacher
from subnets.training import Objective, Recipe

AFFINES = ("private", "shared")


class JointOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a joint step, and what each subnet has for itself."""

    middle: int | None = None  # subnets between smallest and largest that run in each step; None = all
    full_weight: float = 1.0  # how much the full network's loss counts against each of the others'
    soft: float = 0.9  # weight of the distillation term; the labels have the rest
    teacher: str = "live"  # or "frozen", "averaged": subnets.teachers
    affine: str = "private"  # batch-norm's scale and shift; its statistics are always private
    heads: bool = False  # a classifier of its own for each subnet

    def check(self) -> JointOptions:
        """Itself, when every value is usable.

        Raises:
            InputError: one is not.
        """
        if self.middle is not None and self.middle < 0:
            raise InputError(f"middle {self.middle} is no number of subnets; give at least 0")
        if not 0 < self.full_weight < math.inf:
            raise InputError(f"full weight {self.full_weight} must be above 0; 1 counts all subnets alike")
        if not 0 <= self.soft <= 1:
            raise InputError(f"soft {self.soft} must be from 0 (labels only) to 1 (the teacher only)")
        if self.teacher not in TEACHERS:
            raise InputError(f"teacher '{self.teacher}' is unknown; use one of {', '.join(TEACHERS)}")
        if self.affine not in AFFINES:
            raise InputError(f"affine '{self.affine}' is unknown; use one of {', '.join(AFFINES)}")
        return self


class JointObjective(Objective):
    """Cross-entropy of the full network plus ``soft`` distillation and ``1 - soft`` cross-entropy of the others.

    Args:
        supernet: trained in place; what is private in it stays so, whatever the options say of affine and heads.
        recipe: precision, compilation and seed.
        options: the numbers of a step.

    Raises:
        InputError: an option makes no sense.
    """

    def __init__(self, supernet: Supernet, recipe: Recipe, options: JointOptions | None = None) -> None:
        options = (options or JointOptions()).check()
        self.module: nn.Module = supernet
        self._names = supernet.ladder.names
        self._bf16 = recipe.precision == "bf16"
        self._soft, self._full_weight = options.soft, options.full_weight
        between = self._names[1:-1]
        self._middle = len(between) if options.middle is None else min(options.middle, len(between))
        self._seed = recipe.seed
        self._teacher = teacher(options.teacher, supernet)
        self._run: Callable[[Tensor, str], Tensor] = supernet
        if recipe.compile:
            # One graph per subnet comes from one code object; the default limit is eight.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(self._names))
            self._run = torch.compile(supernet, dynamic=False)
        self._passes = {name: Pass(supernet, partial(self._loss, name)) for name in self._names}

    def begin(self, average: Mapping[str, Tensor]) -> None:
        """Shows the teacher the moving average."""
        self._teacher.begin(average)

    def backward(self, images: Tensor, labels: Tensor, share_done: float) -> Tensor:
        """One pass of every chosen subnet; returns the mean of their losses."""
        loss, output = self._passes[self._names[-1]](images, labels)
        total = loss / self._full_weight
        names = self._chosen(share_done)
        target = [self._target(images, output)] if names and self._soft else []
        for name in names:
            loss, _ = self._passes[name](images, labels, *target)
            total = total + loss
        return total / (1 + len(names))

    def _loss(self, name: str, images: Tensor, labels: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output = self._forward(images, name)
        loss = nn.functional.cross_entropy(output, labels)
        if name == self._names[-1]:
            return self._full_weight * loss, output
        loss = (1 - self._soft) * loss
        if target is not None:
            loss = self._soft * nn.functional.cross_entropy(output, target) + loss
        return loss, output

    def _target(self, images: Tensor, live: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            return self._teacher.target(images, live)

    def _chosen(self, share_done: float) -> list[str]:
        """The smaller subnets of this step: from seed and step alone, so that a resumed run makes the same choice."""
        smaller = self._names[:-1]
        random = np.random.Generator(np.random.PCG64([self._seed, 99, int(share_done * 2**48)]))
        picked = sorted(1 + random.permutation(max(0, len(smaller) - 1))[: self._middle])
        return [*smaller[:1], *(smaller[index] for index in picked)]

    def _forward(self, images: Tensor, name: str) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            return self._run(images, name).float()
