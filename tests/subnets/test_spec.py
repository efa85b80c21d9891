"""From widths to entries: cutting equals deleting what goes, wherever concatenation put it."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subnets.errors import InputError
from subnets.spec import ChannelGroup, Member, SubnetSpec, cuts, kept_length, own_entries, slice_tensor


@st.composite
def concatenations(draw):
    """(groups, spec, length of the axis, entries that go): groups and entries of no group behind one another."""
    groups, widths, gone, start = [], {}, [], draw(st.integers(0, 3))
    pieces = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=4))
    length = start + sum(width * repeat + behind for width, repeat, behind in pieces)
    for index, (width, repeat, behind) in enumerate(pieces):
        name = f"g{index}"
        widths[name] = draw(st.integers(1, width))
        groups.append(ChannelGroup(name=name, width=width, members=(Member("t", 1, repeat, (start, length)),)))
        gone += range(start + widths[name] * repeat, start + width * repeat)
        start += width * repeat + behind
    return groups, SubnetSpec("s", widths), length, gone


@given(concatenations())
@settings(max_examples=60, deadline=None)
def test_a_cut_keeps_all_but_what_goes(case):
    groups, spec, length, gone = case
    whole = np.arange(2 * length).reshape(2, length)
    kept = cuts(groups, spec)["t"]
    expected = np.delete(whole, gone, axis=1)
    assert np.array_equal(slice_tensor(whole, kept), expected) and kept_length(kept[1]) == expected.shape[1]
    assert np.array_equal(slice_tensor(torch.from_numpy(whole), kept).numpy(), expected)
    if expected.shape[1] == length or np.array_equal(expected, whole[:, : expected.shape[1]]):
        assert np.shares_memory(slice_tensor(whole, kept), whole)  # a leading block is a view


@given(concatenations())
@settings(max_examples=30, deadline=None)
def test_each_groups_own_entries_lie_where_it_says(case):
    groups, _, length, _ = case
    whole = np.arange(length)[None]
    for group in groups:
        [member] = group.members
        start = member.part[0]
        assert own_entries(whole, member, group.width)[0].tolist() == [
            start + k for k in range(group.width * member.repeat)
        ]


def test_groups_that_claim_the_same_entries_are_refused():
    groups = [ChannelGroup(name=n, width=4, members=(Member("t", 0, 1, (s, 8)),)) for n, s in (("a", 0), ("b", 2))]
    with pytest.raises(InputError, match="two channel groups claim the same entries of tensor 't'"):
        cuts(groups, SubnetSpec("s", {"a": 1, "b": 1}))
    beyond = [ChannelGroup(name="a", width=4, members=(Member("t", 0, 1, (6, 8)),))]
    with pytest.raises(InputError, match="claim the same entries"):
        cuts(beyond, SubnetSpec("s", {"a": 1}))


def test_a_member_with_an_axis_to_itself_is_written_as_ever():
    """The keys of bundles that were made before there were parts rest on it."""
    assert msgspec.json.encode(Member("w", 0)) == b'{"tensor":"w","axis":0,"repeat":1}'
    assert msgspec.json.decode(b'{"tensor":"w","axis":0,"repeat":1}', type=Member) == Member("w", 0)
    part = Member("w", 0, 2, (4, 12))
    assert msgspec.json.decode(msgspec.json.encode(part), type=Member) == part
