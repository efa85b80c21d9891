"""The waiting room: order, bound, streams, and that nobody gets lost in it."""

import math
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.waiting import Request, Waiting


def request(due_s=math.inf, images=1, stream=None, future=None):
    deadline_ms = None if due_s == math.inf else due_s * 1000
    return Request(np.empty((images, 1, 1, 1), np.float32), 0.0, deadline_ms, stream=stream, future=future)


dues = st.one_of(st.integers(0, 5).map(float), st.just(math.inf))


@given(st.lists(dues, max_size=30))
def test_whoever_is_due_first_comes_first_and_equals_come_as_they_arrived(due):
    waiting, came = Waiting(100), [request(d) for d in due]
    for one in came:
        waiting.add(one)
    left = [waiting.pop() for _ in came]
    assert left == sorted(came, key=lambda one: one.due_s)  # sorted is stable
    assert waiting.pop() is None


@given(st.lists(st.tuples(dues, st.integers(1, 4), st.booleans()), max_size=20), st.integers(0, 8))
def test_those_who_fit_join_in_order_until_one_has_no_room(asked, room):
    waiting = Waiting(100)
    came = [(request(due, images), fits) for due, images, fits in asked]
    for one, _ in came:
        waiting.add(one)
    fitting = {one for one, fits in came if fits}
    joined = waiting.join(lambda one: one in fitting, room)
    expected, left = [], room
    for one in sorted((one for one, _ in came), key=lambda one: one.due_s):
        if one in fitting:
            if one.images > left:
                break
            expected.append(one)
            left -= one.images
            if left == 0:
                break
    assert joined == expected
    assert set(waiting) == {one for one, _ in came} - set(joined)
    assert waiting.images == sum(one.images for one in waiting)


def test_the_newest_of_a_stream_is_known_until_it_leaves():
    waiting = Waiting(10)
    first, other = request(1.0, stream="a"), request(2.0, stream="b")
    for one in (first, other):
        waiting.add(one)
    assert (waiting.older("a"), waiting.older("b"), waiting.older(None), waiting.older("c")) == (
        first,
        other,
        None,
        None,
    )
    assert waiting.remove(first) and not waiting.remove(first)
    assert waiting.older("a") is None
    assert waiting.pop() is other
    assert waiting.older("b") is None


def test_a_full_room_takes_others_in_once_somebody_has_been_cancelled():
    waiting, futures = Waiting(2), [Future(), Future()]
    for future in futures:
        waiting.add(request(future=future))
    assert waiting.full() and not waiting.full(1)
    futures[0].cancel()
    assert not waiting.full()
    assert [one.future for one in waiting] == [futures[1]]


def test_whoever_steps_aside_keeps_the_place():
    waiting = Waiting(10)
    early, late = request(1.0), request(2.0)
    for one in (early, late):
        waiting.add(one)
    assert waiting.pop() is early
    waiting.step_aside(early)
    assert (len(waiting), waiting.images, list(waiting)) == (2, 2, [late])
    assert waiting.step_back(early)
    assert list(waiting) == [early, late]
    assert not waiting.step_back(early)


def test_an_outcome_is_told_once_and_a_cancelled_future_takes_none():
    cancelled, future = request(future=Future()), request(future=Future())
    cancelled.future.cancel()
    given_back = []
    cancelled.lease = lambda: given_back.append("cancelled")
    cancelled.finish(None, RuntimeError("nobody hears it"))
    assert cancelled.future.cancelled() and given_back == ["cancelled"]
    assert future.begin() and future.begin() and not future.future.cancel()
    future.finish(None, RuntimeError("told"))
    with pytest.raises(RuntimeError, match="told"):
        future.future.result()


class Room(RuleBasedStateMachine):
    """Anything that can happen, in any order: every request is in exactly one place, and the room knows how many."""

    def __init__(self):
        super().__init__()
        self.waiting = Waiting(5)
        self.inside, self.aside, self.out = set(), set(), set()

    @rule(due=dues, images=st.integers(1, 3), stream=st.sampled_from([None, "a", "b"]))
    def come(self, due, images, stream):
        older = self.waiting.older(stream)
        if older is None and self.waiting.full():
            assert len(self.inside) + len(self.aside) >= 5
            return
        if older is not None:
            assert self.waiting.remove(older)
            self.inside.discard(older)
            self.aside.discard(older)
            self.out.add(older)
        one = request(due, images, stream)
        self.waiting.add(one)
        self.inside.add(one)

    @precondition(lambda self: self.inside)
    @rule()
    def take_turn(self):
        one = self.waiting.pop()
        assert one.due_s == min(other.due_s for other in self.inside)
        self.inside.remove(one)
        self.out.add(one)

    @precondition(lambda self: self.inside)
    @rule()
    def miss_an_engine(self):
        one = self.waiting.pop()
        self.waiting.step_aside(one)
        self.inside.remove(one)
        self.aside.add(one)

    @precondition(lambda self: self.aside)
    @rule(data=st.data())
    def get_the_engine(self, data):
        one = data.draw(st.sampled_from(sorted(self.aside, key=lambda other: other.number)))
        assert self.waiting.step_back(one)
        self.aside.remove(one)
        self.inside.add(one)

    @rule(room=st.integers(1, 4))
    def join(self, room):
        joined = self.waiting.join(lambda one: True, room)
        assert sum(one.images for one in joined) <= room
        self.inside -= set(joined)
        self.out |= set(joined)

    @invariant()
    def nobody_is_lost(self):
        waiting = self.waiting
        assert set(waiting) == self.inside
        assert [one.due_s for one in waiting] == sorted(one.due_s for one in self.inside)
        assert len(waiting) == len(self.inside) + len(self.aside) <= 5
        assert waiting.images == sum(one.images for one in self.inside | self.aside)
        for name in "ab":
            assert [one for one in self.inside | self.aside if one.stream == name] in ([], [waiting.older(name)])

    def teardown(self):
        assert set(self.waiting.clear()) == self.inside | self.aside
        assert len(self.waiting) == self.waiting.images == 0


TestRoom = Room.TestCase
