"""The queue as a Markov decision process: which operating point to use, given how long the oldest request has waited.

One server, first come first served, Poisson arrivals of rate ``r``. When the server is free and the oldest request has
waited ``w``, an action takes an operating point with batch size b and service time S. The next oldest request will
have waited (Lindley's recursion, for batches)::

    w' = w - X_b + S          if the b-th arrival after it, X_b ~ Erlang(b, r), has come already (X_b <= w)
    w' = max(0, S - E)        else, with E ~ Exp(r): the batch took all there were

An action earns the accuracy for each request of its batch that is answered within the deadline, and serves
``n = 1 + E min(b - 1, Poisson(r w))`` of them. The best long-run accuracy per request ``g`` solves

    h(w) = max over actions of  earned(w) - g n(w) + E h(w')

A server that was idle has rested, and its first service may take longer (``S`` at ``w = 0``). The equation is solved
by policy iteration on a grid of waits (Puterman, Markov Decision Processes, 1994, chapters 8 and 11; a
semi-Markov process in which a request is the unit of time). The maximising action as a
function of ``w`` is a slack plan, for slack is the deadline less ``w``.

Needs numpy; knows nothing of policies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from policies.queueing import spread

Floats = npt.NDArray[np.float64]

_INSIDE, _OUTSIDE = 48, 12  # grid steps within the deadline, and beyond
_SERVICES = 5  # service times that stand for the distribution
_FINE = 4  # steps in which the distribution of the next wait is integrated, per grid step
_ROUNDS = 50
_CLOSE = 1e-9  # accuracy per request
_EQUAL = 1e-5
_LATE = 0.01  # accuracy per request and deadline of lateness: among late answers, less late is better


class Action(msgspec.Struct, frozen=True):
    """An operating point: its accuracy, batch size, and latency quantiles in seconds, back to back."""

    accuracy: float
    batch_size: int
    p50_s: float
    p99_s: float
    rested: float = 1.0  # factor on both for a request that finds the server idle


class Solution(msgspec.Struct, frozen=True):
    """The best action on the grid of waits, and what it earns per request in the long run."""

    waits_s: tuple[float, ...]
    actions: tuple[int, ...]
    gain: float


def solve(actions: Sequence[Action], rate_hz: float, deadline_s: float) -> Solution:
    """Which action to take after which wait.

    Args:
        actions: at least one; among equally good ones the first is taken.
        rate_hz: arrivals per second, above 0.
        deadline_s: from arrival to answer, above 0.
    """
    step = deadline_s / _INSIDE
    waits: Floats = step * np.arange(_INSIDE + _OUTSIDE + 1, dtype=np.float64)
    moves, earned, served = [], [], []
    for action in actions:
        services = spread(action.p50_s, action.p99_s, _SERVICES)
        move = _transitions(waits, step, action.batch_size, services, rate_hz)
        reward, count = _reward(waits, action, services, rate_hz, deadline_s)
        if action.rested != 1.0:
            services = tuple(action.rested * service for service in services)
            move[:1] = _transitions(waits, step, action.batch_size, services, rate_hz, starts=1)
            reward[:1] = _reward(waits[:1], action, services, rate_hz, deadline_s)[0]
        moves.append(move)
        earned.append(reward)
        served.append(count)
    counts, chain = np.stack(served), np.stack(moves)  # [actions, waits], [actions, waits, waits]
    # Data transformation (Puterman, section 11.4): actions that serve unequal counts become steps of one request.
    late = np.maximum(0.0, waits / deadline_s - 1.0)
    per_request, share = np.stack(earned) / counts - _LATE * late, 1.0 / counts
    here = np.arange(len(waits))
    chosen, gain = np.zeros(len(waits), dtype=int), 0.0
    for _ in range(_ROUNDS):
        # evaluate: value + gain = per request + transitions @ value, with value 0 where nothing waits
        moved = share[chosen, here][:, None] * chain[chosen, here]
        moved[here, here] += 1.0 - share[chosen, here]
        system = np.eye(len(waits)) - moved
        system[:, 0] = 1.0  # the unknown gain takes the place of value[0]
        value = np.linalg.solve(system, per_request[chosen, here])
        gain, value[0] = float(value[0]), 0.0
        quality = per_request + share * (chain @ value) + (1.0 - share) * value
        best = quality.max(axis=0)
        better = quality[chosen, here] < best - _CLOSE
        if not better.any():
            break
        chosen = np.where(better, quality.argmax(axis=0), chosen)
    # of choices that are as good as equal, the first: callers put what they prefer first
    first = (quality >= best - _EQUAL).argmax(axis=0)
    return Solution(tuple(waits.tolist()), tuple(int(k) for k in first), gain)


def _transitions(
    waits: Floats, step: float, batch: int, services: Sequence[float], rate: float, starts: int | None = None
) -> Floats:
    """[wait before, wait after]: probabilities, each fine cell's mass split between its two neighbours on the grid.

    Of the waits before only the first ``starts``, if given.
    """
    size = len(waits)
    begins = size if starts is None else starts
    fine = step / _FINE
    edges = np.arange(size * _FINE - _FINE + 1)  # in fine steps
    begin = np.arange(begins) * _FINE
    lead = begin[:, None] - edges  # all that a probability depends on: worked out on a line, then spread
    line = np.arange(-edges[-1], begin[-1] + 1)
    below = np.zeros(lead.shape)  # distribution function of the wait after
    came = _erlang(batch, (rate * fine) * begin.astype(np.float64))[:, None]  # the next one is waiting already
    for service in services:
        ahead = service / fine
        later = _erlang(batch, rate * fine * np.maximum(0.0, line + ahead))[lead + edges[-1]]
        idle = np.exp(-rate * fine * np.maximum(0.0, ahead - edges))[None, :]
        below += np.clip(came - later, 0.0, 1.0) + (1.0 - came) * idle
    below /= len(services)
    # By sums rather than a matrix product: a threaded BLAS waits for cores that are busy answering.
    mass = np.diff(below, axis=1).reshape(begins, size - 1, _FINE)
    right = (np.arange(_FINE) + 0.5) / _FINE  # a fine cell's share that goes to the later neighbour
    result: Floats = np.zeros((begins, size))
    result[:, :-1] = (mass * (1.0 - right)).sum(axis=2)
    result[:, 1:] += (mass * right).sum(axis=2)
    result[:, 0] += below[:, 0]
    result[:, -1] += 1.0 - below[:, -1]
    return result


def _reward(
    waits: Floats, action: Action, services: Sequence[float], rate: float, deadline_s: float
) -> tuple[Floats, Floats]:
    """Accuracy earned on time, and requests served, by the wait of the oldest."""
    served = np.zeros_like(waits)
    earned = np.zeros_like(waits)
    expected = rate * waits
    for place in range(action.batch_size):
        there = np.ones_like(waits) if place == 0 else _erlang(place, expected)
        own = waits * (1.0 - place / (np.maximum(expected, place) + 1.0))
        in_time = np.mean([own + service <= deadline_s + 1e-12 for service in services], axis=0)
        served += there
        earned += there * in_time
    return action.accuracy * earned, served


def _erlang(shape: int, x: Floats) -> Floats:
    """Distribution function of a sum of ``shape`` unit exponentials; above one by Wilson and Hilferty (1931)."""
    if shape == 1:
        return -np.expm1(-x)
    z = ((x / shape) ** (1 / 3) - (1.0 - 1.0 / (9 * shape))) * 3.0 * math.sqrt(shape)
    normal: Floats = 0.5 * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    return normal
