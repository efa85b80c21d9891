"""Several processes that train one network on shares of each batch, or one process alone.

* :class:`Team`: who takes part; :data:`ALONE` is the process by itself, for which everything here does nothing.
* :func:`joined`: the team that ``torchrun`` started.

There is one exchange a step: all gradients, already summed over all subnets, in one tensor. Batch-norm sees each
process' own share of the batch, as in torch's data-parallel training; its statistics are averaged in the same exchange,
so that every process holds the same numbers at all times.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


class Team:
    """The processes that train together.

    Args:
        rank: this process, 0-based; the one with 0 writes files.
        count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes, in one exchange; all must pass the same shapes."""
        if self.count == 1:
            return
        values = list(tensors)
        together = torch.cat([value.detach().flatten().float() for value in values])
        distributed.all_reduce(together)
        together /= self.count
        parts = torch.split(together, [value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view_as(value))

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Team()


@contextmanager
def joined() -> Iterator[Team]:
    """The team of this process: what ``torchrun`` started (its WORLD_SIZE is above 1), else :data:`ALONE`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    distributed.init_process_group("gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
