"""What each subnet has for itself: always batch-norm's statistics, as a rule its scale and shift, if wanted a head.

:func:`rearranged` makes a supernet of another arrangement that answers as before.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from subnets.spec import ChannelGroup
from subnets.supernet import Supernet, norm_tensors

_STATISTICS = ("running_mean", "running_var")


def head_tensors(network: nn.Module, groups: Sequence[ChannelGroup]) -> set[str]:
    """Names of the tensors of the layers that give the logits: linear layers whose outputs no group cuts."""
    cut = {(member.tensor, member.axis) for group in groups for member in group.members}
    return {
        f"{layer}.{name}"
        for layer, module in network.named_modules()
        if isinstance(module, nn.Linear) and (f"{layer}.weight", 0) not in cut
        for name, _ in module.named_parameters(recurse=False)
    }


def private_tensors(supernet: Supernet) -> set[str]:
    """Names, as in the plain network, of the tensors that each subnet has for itself."""
    return {name.partition("/")[2] for name in supernet.tensors() if "/" in name}


def rearranged(supernet: Supernet, *, affine: str, heads: bool) -> Supernet:
    """The supernet with batch-norm's affine private or shared, and with a head for each subnet if asked for.

    What becomes shared is taken from the full network; what becomes private is cut from what was shared. Heads that are
    private already stay so. The same object comes back where nothing changes.
    """
    full = supernet.extract(supernet.ladder.names[-1])
    norms, head = norm_tensors(full), head_tensors(full, supernet.groups)
    now = private_tensors(supernet)
    wanted = {name for name in norms if affine == "private" or name.endswith(_STATISTICS)}
    wanted |= head if heads else head & now
    if wanted == now:
        return supernet
    states = {name: supernet.state_of(name) for name in supernet.ladder.names}
    return Supernet(full, supernet.groups, supernet.ladder, states, wanted)
