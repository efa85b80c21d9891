"""Which channels a subnet keeps: channel groups, widths, and the ladder of nested subnets.

* :class:`Member`, :class:`ChannelGroup`: tensor axes that are cut together.
* :class:`SubnetSpec`: one width per channel group.
* :class:`Ladder`: subnets from smallest to largest, each nested in the next.

Channels are sorted by importance once, so a width ``w`` always means *the first w channels*. Knows nothing of torch:
:func:`slice_tensor` works on numpy arrays and on tensors alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from subnets.errors import InputError


class Member(msgspec.Struct, frozen=True, order=True):
    """One axis of one tensor; ``repeat`` consecutive entries belong to each channel (a flattened map, usually 1)."""

    tensor: str
    axis: int
    repeat: int = 1


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


def cuts(groups: Sequence[ChannelGroup], spec: SubnetSpec) -> dict[str, dict[int, int]]:
    """{tensor: {axis: entries kept}} for every tensor that some group touches.

    Raises:
        InputError: the spec lacks a group or asks for more channels than it has.
    """
    kept: dict[str, dict[int, int]] = {}
    for group in groups:
        width = spec.widths.get(group.name)
        if width is None or not 1 <= width <= group.width:
            raise InputError(
                f"subnet '{spec.name}': group '{group.name}' needs 1 to {group.width} channels, has {width}"
            )
        for member in group.members:
            kept.setdefault(member.tensor, {})[member.axis] = width * member.repeat
    return kept


def slice_tensor(tensor: Any, kept: Mapping[int, int]) -> Any:
    """The leading block of a tensor or array: a view, no copy."""
    if not kept:
        return tensor
    index = [slice(None)] * tensor.ndim
    for axis, count in kept.items():
        index[axis] = slice(0, count)
    return tensor[tuple(index)]
