"""What the first answer after a switch costs: the caches hold the other subnet's weights.

Within a family (one backend, precision and batch size) the engines take turns along random closed walks that use
every ordered pair once; at each stop the first answer is compared with the settled ones of the same stop, so slow drift
cancels. Engines stay loaded throughout: loading is another column of the table.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from calibration.rounds import Clocks
from calibration.subjects import Subject
from calibration.table import Switch

_SETTLING = 3  # answers after the first that may still be slow
_SETTLED = 3  # answers after those, whose median is the steady latency
LEAST_WALKS = 3


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
    points: Sequence[str],
    subjects: Sequence[Subject],
    *,
    walks: int,
    budget_s: float,
    random: np.random.Generator,
    clocks: Clocks,
    on_walk: Callable[[], None] = lambda: None,
) -> tuple[Switch, ...]:
    """Medians over up to ``walks`` closed walks within each family; at least three, then while ``budget_s`` lasts.

    The budget is shared out evenly among the families.

    Args:
        points: the subjects' operating points' names, in their order.
    """
    families: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for number, subject in enumerate(subjects):
        families[subject.family].append(number)
    several = [members for members in families.values() if len(members) > 1]
    firsts: dict[tuple[int, int], list[float]] = defaultdict(list)
    extras: dict[tuple[int, int], list[float]] = defaultdict(list)
    for members in several:
        ends = clocks.wall() + budget_s / len(several)  # each its own, so that slow families leave fast ones their time
        for walk in range(walks):
            if walk >= LEAST_WALKS and clocks.wall() >= ends:
                break
            stops = [members[place] for place in closed_walk(len(members), random)]
            _stop(subjects[stops[0]], clocks)
            for from_, to in itertools.pairwise(stops):
                first, steady = _stop(subjects[to], clocks)
                firsts[from_, to].append(first)
                extras[from_, to].append(first - steady)
            on_walk()
    return tuple(
        Switch(
            from_point=points[from_],
            to_point=points[to],
            first_ms=float(np.median(firsts[from_, to])),
            extra_ms=float(np.median(extras[from_, to])),
        )
        for from_, to in sorted(firsts)
    )


def _stop(subject: Subject, clocks: Clocks) -> tuple[float, float]:
    """(first, settled) latency in ms of some answers in a row."""
    latencies = []
    for _ in range(1 + _SETTLING + _SETTLED):
        started = clocks.wall()
        subject.engine.infer(subject.batch)
        latencies.append((clocks.wall() - started) * 1e3)
    return latencies[0], float(np.median(latencies[-_SETTLED:]))
