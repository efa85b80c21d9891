"""Which channels a subnet keeps: channel groups, widths, and the ladder of nested subnets.

* :class:`Member`, :class:`ChannelGroup`: tensor axes that are cut together.
* :class:`SubnetSpec`: one width per channel group.
* :class:`Ladder`: subnets from smallest to largest, each nested in the next.
* :func:`cuts`, :func:`slice_tensor`, :func:`own_entries`: from widths to the entries of each tensor that stay.

Channels are sorted by importance once, so a width ``w`` always means *the first w channels*. Needs no torch:
:func:`slice_tensor` works on numpy arrays and on tensors alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from subnets.errors import InputError

Kept = int | tuple[tuple[int, int], ...]
"""What stays of an axis: its first so many entries or, where groups lie behind one another, these (start, stop)."""


class Member(msgspec.Struct, frozen=True, order=True):
    """One axis of one tensor; ``repeat`` consecutive entries belong to each channel (a flattened map, usually 1).

    Where a concatenation puts several groups on one axis, ``part`` is (this group's first entry, entries in all).
    """

    tensor: str
    axis: int
    repeat: int = 1
    part: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET  # unset: the group has the axis to itself

    @property
    def start(self) -> int:
        """The group's first entry on the axis."""
        return self.part[0] if self.part else 0


class ChannelGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Tensor axes that must be cut together, named after the first layer that produces them.

    ``coupled`` is true where an addition ties several layers' outputs together (a residual stage), false for a
    block's interior.
    """

    name: str
    width: int  # channels in the full network
    members: tuple[Member, ...]
    coupled: bool = False


class SubnetSpec(msgspec.Struct, frozen=True):
    """A subnet: how many channels of each group it keeps."""

    name: str
    widths: Mapping[str, int]


class Ladder(Sequence[SubnetSpec]):
    """Subnets ordered from smallest to largest, each contained in the next.

    Raises:
        InputError: names repeat, groups differ, a width is below 1 or shrinks on the way up.
    """

    def __init__(self, subnets: Sequence[SubnetSpec]) -> None:
        self._subnets = tuple(subnets)
        if not self._subnets:
            raise InputError("a ladder needs at least one subnet")
        names = [subnet.name for subnet in self._subnets]
        if len(set(names)) != len(names):
            raise InputError(f"the ladder names a subnet twice: {', '.join(names)}")
        for smaller, larger in zip(self._subnets, self._subnets[1:], strict=False):
            if smaller.widths.keys() != larger.widths.keys():
                raise InputError(f"subnets '{smaller.name}' and '{larger.name}' do not list the same channel groups")
            for group, width in smaller.widths.items():
                if width > larger.widths[group]:
                    raise InputError(
                        f"the ladder is not nested: group '{group}' has {width} channels in '{smaller.name}' "
                        f"and {larger.widths[group]} in the larger '{larger.name}'"
                    )
        for subnet in self._subnets:
            for group, width in subnet.widths.items():
                if width < 1:
                    raise InputError(f"subnet '{subnet.name}' keeps {width} channels of group '{group}'; at least 1")

    def __len__(self) -> int:
        return len(self._subnets)

    def __iter__(self) -> Iterator[SubnetSpec]:
        return iter(self._subnets)

    def __getitem__(self, index: Any) -> Any:
        return self._subnets[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ladder) and self._subnets == other._subnets

    def __hash__(self) -> int:
        return hash(tuple(subnet.name for subnet in self._subnets))

    @property
    def names(self) -> tuple[str, ...]:
        """Subnet names, smallest first."""
        return tuple(subnet.name for subnet in self._subnets)

    def named(self, name: str) -> SubnetSpec:
        """The subnet of that name.

        Raises:
            InputError: there is none.
        """
        for subnet in self._subnets:
            if subnet.name == name:
                return subnet
        raise InputError(f"subnet '{name}' is not in this bundle; it has {', '.join(self.names)}")


def cuts(groups: Sequence[ChannelGroup], spec: SubnetSpec) -> dict[str, dict[int, Kept]]:
    """{tensor: {axis: entries kept}} for every tensor that some group touches.

    Raises:
        InputError: the spec lacks a group or asks for more channels than it has, or two groups claim the same entries.
    """
    kept: dict[str, dict[int, Kept]] = {}
    leaving: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
    for group in groups:
        width = spec.widths.get(group.name)
        if width is None or not 1 <= width <= group.width:
            raise InputError(
                f"subnet '{spec.name}': group '{group.name}' needs 1 to {group.width} channels, has {width}"
            )
        for member in group.members:
            stop = member.start + width * member.repeat
            if member.part:
                gone = (stop, member.start + group.width * member.repeat)
                leaving.setdefault((member.tensor, member.axis, member.part[1]), []).append(gone)
            else:
                kept.setdefault(member.tensor, {})[member.axis] = stop
    for (tensor, axis, length), ranges in leaving.items():
        kept.setdefault(tensor, {})[axis] = _staying(ranges, length, tensor)
    return kept


def _staying(leaving: Sequence[tuple[int, int]], length: int, tensor: str) -> Kept:
    """What is left of ``length`` entries without these ranges; entries of no group stay."""
    pieces, start = [], 0
    for first, stop in sorted(gone for gone in leaving if gone[0] < gone[1]):
        if first < start or stop > length:
            raise InputError(f"two channel groups claim the same entries of tensor '{tensor}'; get the bundle again")
        pieces.append((start, first))
        start = stop
    pieces.append((start, length))
    pieces = [piece for piece in pieces if piece[0] < piece[1]]
    return pieces[0][1] if len(pieces) == 1 and pieces[0][0] == 0 else tuple(pieces)


def kept_length(kept: Kept) -> int:
    """How many entries stay."""
    return kept if isinstance(kept, int) else sum(stop - start for start, stop in kept)


def slice_tensor(tensor: Any, kept: Mapping[int, Kept]) -> Any:
    """What stays of a tensor or array: a view, no copy; where ranges must be put together, a copy."""
    for axis, entries in kept.items():
        before = (slice(None),) * axis
        if isinstance(entries, int):
            tensor = tensor[(*before, slice(0, entries))]
        else:
            tensor = _joined([tensor[(*before, slice(start, stop))] for start, stop in entries], axis)
    return tensor


def own_entries(tensor: Any, member: Member, width: int) -> Any:
    """The entries of a full tensor that belong to a group of ``width`` channels, in channel order: a view."""
    return tensor[(*(slice(None),) * member.axis, slice(member.start, member.start + width * member.repeat))]


def _joined(pieces: list[Any], axis: int) -> Any:
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces, axis)
    import torch

    return torch.cat(pieces, axis)
