"""What the first answer after a switch costs: the caches hold the other subnet's weights.

Within a family (one backend, precision and batch size) the engines take turns along random closed walks that use
every ordered pair once; at each stop the first answer is compared with the settled ones of the same stop, so slow drift
cancels. The second and the tenth answer tell how soon it is over. Engines stay loaded throughout: loading is another
column of the table.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import numpy as np

from calibration.rounds import Clocks
from calibration.subjects import Subject
from calibration.table import Switch

_STREAM = 2  # of random numbers, beside those of the rounds
_ANSWERS = 10  # at each stop
_SETTLED = 4  # of these, the last, whose median is the steady latency
LEAST_WALKS = 3


class Leg(msgspec.Struct, frozen=True, array_like=True):
    """One switch of a walk, between two subjects' points; ms of the first, second and tenth answer and the settled."""

    from_point: str
    to_point: str
    first_ms: float
    second_ms: float
    tenth_ms: float
    settled_ms: float


class Walk(msgspec.Struct, frozen=True):
    """One closed walk of a family: which, and its legs."""

    family: tuple[str, str, int]
    number: int
    legs: tuple[Leg, ...]


def closed_walk(count: int, random: np.random.Generator) -> list[int]:
    """A random closed walk over 0..count-1 that takes every ordered pair of different numbers exactly once.

    The complete directed graph has an Eulerian circuit; Hierholzer's algorithm with shuffled edges finds one.

    Returns:
        count * (count - 1) + 1 stops, the last being the first.
    """
    if count < 2:
        return list(range(count))
    ahead = {
        stop: [int(to) for to in random.permutation([to for to in range(count) if to != stop])] for stop in range(count)
    }
    path, stack = [], [int(random.integers(count))]
    while stack:
        if ahead[stack[-1]]:
            stack.append(ahead[stack[-1]].pop())
        else:
            path.append(stack.pop())
    return path[::-1]


def switch_costs(
    subjects: Sequence[Subject],
    *,
    walks: int,
    budget_s: float,
    seed: int,
    clocks: Clocks,
    done: Sequence[Walk] = (),
    on_walk: Callable[[Walk], None] = lambda walk: None,
) -> tuple[Switch, ...]:
    """Medians over up to ``walks`` closed walks within each family; at least three, then while ``budget_s`` lasts.

    The budget is shared out evenly among the families. ``done`` are walks taken before an interruption, after which
    only what is missing of the three is taken.
    """
    families: dict[tuple[str, str, int], list[Subject]] = defaultdict(list)
    for subject in subjects:
        families[subject.family].append(subject)
    several = {family: members for family, members in families.items() if len(members) > 1}
    legs = [leg for walk in done for leg in walk.legs]
    for place, (family, members) in enumerate(several.items()):
        ends = clocks.wall() + budget_s / len(several)  # each its own, so that slow families leave fast ones their time
        taken = sum(walk.family == family for walk in done)
        for number in range(taken, walks):
            if number >= LEAST_WALKS and (taken or clocks.wall() >= ends):
                break
            random = np.random.Generator(np.random.PCG64([seed, _STREAM, place, number]))
            walk = Walk(family, number, tuple(_legs([members[k] for k in closed_walk(len(members), random)], clocks)))
            legs += walk.legs
            on_walk(walk)
    found: dict[tuple[str, str], list[Leg]] = defaultdict(list)
    for leg in legs:
        found[leg.from_point, leg.to_point].append(leg)
    order = {subject.point: place for place, subject in enumerate(subjects)}
    pairs = sorted(found, key=lambda pair: (order[pair[0]], order[pair[1]]))
    return tuple(_switch(found[pair]) for pair in pairs)


def _legs(stops: Sequence[Subject], clocks: Clocks) -> Iterator[Leg]:
    _stop(stops[0], clocks)
    for from_, to in itertools.pairwise(stops):
        answers = _stop(to, clocks)
        settled = float(np.median(answers[-_SETTLED:]))
        yield Leg(from_.point, to.point, answers[0], answers[1], answers[-1], settled)


def _stop(subject: Subject, clocks: Clocks) -> list[float]:
    """Latencies in ms of some answers in a row."""
    latencies = []
    for _ in range(_ANSWERS):
        started = clocks.wall()
        subject.engine.infer(subject.batch)
        latencies.append((clocks.wall() - started) * 1e3)
    return latencies


def _switch(legs: Sequence[Leg]) -> Switch:
    def median(values: Iterable[float]) -> float:
        return float(np.median(list(values)))

    return Switch(
        from_point=legs[0].from_point,
        to_point=legs[0].to_point,
        first_ms=median(leg.first_ms for leg in legs),
        extra_ms=median(leg.first_ms - leg.settled_ms for leg in legs),
        second_ms=median(leg.second_ms for leg in legs),
        tenth_ms=median(leg.tenth_ms for leg in legs),
    )
