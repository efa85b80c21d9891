"""Intervals and tests for results that come in scenarios and seeds: a paired bootstrap of two levels, and Holm.

The unit that repeats is not the request, not even the run: runs of one scenario resemble each other. So scenarios are
drawn with replacement, and seeds within each scenario drawn (Davison and Hinkley 1997, section 3.8). Pairing is the
caller's: give differences of runs that share scenario and seed. Deterministic by seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from subnets.bundle import Strict

DRAWS = 4000
CONFIDENCE = 0.95


class Estimate(Strict, frozen=True, kw_only=True):
    """The mean over scenarios of their means over seeds, its 95 % interval, and how likely chance alone made it."""

    mean: float
    low: float
    high: float
    p: float  # two-sided, of a mean of 0


def estimate(groups: Sequence[Sequence[float]], *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """The estimate from values by scenario, one value a seed (at least one scenario, each with at least one)."""
    random = np.random.Generator(np.random.PCG64(seed))
    count = len(groups)
    chosen = random.integers(0, count, (draws, count))
    means = np.empty((draws, count))
    for place, group in enumerate(groups):
        values = np.asarray(group, np.float64)
        at = np.nonzero(chosen == place)
        means[at] = values[random.integers(0, len(values), (len(at[0]), len(values)))].mean(axis=1)
    found = means.mean(axis=1)
    low, high = np.quantile(found, [(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0])
    # One is added so that p is never 0: the observed mean counts as a draw (Davison and Hinkley 1997, section 4.2).
    tail = min(int((found <= 0.0).sum()), int((found >= 0.0).sum()))
    return Estimate(
        mean=float(np.mean([np.mean(group) for group in groups])),
        low=float(low),
        high=float(high),
        p=min(1.0, 2.0 * (tail + 1) / (draws + 1)),
    )


def holm(ps: Sequence[float]) -> list[float]:
    """The p values corrected for how many there are (Holm 1979); in the order given."""
    order = sorted(range(len(ps)), key=lambda k: ps[k])
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = highest
    return corrected
