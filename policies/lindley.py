"""The queue as a Markov decision process: which operating point to use, given how long the oldest request has waited.

One server, first come first served, Poisson arrivals of rate ``r``. When the server is free and the oldest request has
waited ``w``, an action takes an operating point with batch size b. ``N = 1 + Poisson(r w)`` requests wait; where the
engine exists for smaller batches too, the smallest that holds them all runs, with service time S. The next oldest
request will have waited (Lindley's recursion, for batches)::

    w' = w - X_b + S          if the b-th arrival after it, X_b ~ Erlang(b, r), has come already (X_b <= w, N > b)
    w' = max(0, S - E)        else, with E ~ Exp(r): the batch took all there were

An action earns the accuracy for each request of its batch that is answered within the deadline, and serves
``n = E min(b, N)`` of them. The best long-run accuracy per request ``g`` solves

    h(w) = max over actions of  earned(w) - g n(w) + E h(w')

A server that was idle has rested, and its first service may take longer (``S`` at ``w = 0``). The equation is solved by
policy iteration on a grid of waits (Puterman, Markov Decision Processes, 1994, chapters 8 and 11; a semi-Markov process
in which a request is the unit of time). The maximising action as a function of ``w`` is a slack plan, for slack is the
deadline less ``w``. Of actions that are as good as equal, the one that gets most done should more be waiting than a
Poisson process brings.

Needs numpy; knows nothing of policies.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from policies.queueing import spread

Floats = npt.NDArray[np.float64]
Sizes = Sequence[tuple[int, Floats]]  # batch size, and service times that stand for its distribution

_INSIDE, _OUTSIDE = 48, 12  # grid steps within the deadline, and beyond
_SERVICES = 5  # service times that stand for the distribution
_FINE = 4  # steps in which the distribution of the next wait is integrated, per grid step
_ROUNDS = 50
_CLOSE = 1e-9  # accuracy per request
_EQUAL = 1e-5
_LATE = 0.01  # accuracy per request and deadline of lateness: among late answers, less late is better


class Size(msgspec.Struct, frozen=True):
    """A batch size, and its latency quantiles in seconds, back to back."""

    batch_size: int
    p50_s: float
    p99_s: float


class Action(msgspec.Struct, frozen=True):
    """An operating point: its accuracy, batch size, and latency quantiles in seconds, back to back."""

    accuracy: float
    batch_size: int
    p50_s: float
    p99_s: float
    rested: float = 1.0  # factor on both for a request that finds the server idle
    smaller: tuple[Size, ...] = ()  # the same engine for fewer, smallest first

    @property
    def sizes(self) -> tuple[Size, ...]:
        """All of them, smallest first."""
        return (*self.smaller, Size(self.batch_size, self.p50_s, self.p99_s))


class Solution(msgspec.Struct, frozen=True):
    """The best action on the grid of waits, and what it earns per request in the long run.

    Packed: an agent keeps a thousand of them, and tuples of numbers would take five times as much memory.
    """

    waits_s: array[float]
    actions: array[int]
    gain: float


def solve(actions: Sequence[Action], rate_hz: float, deadline_s: float) -> Solution:
    """Which action to take after which wait.

    Args:
        actions: at least one.
        rate_hz: arrivals per second, above 0.
        deadline_s: from arrival to answer, above 0.
    """
    step = deadline_s / _INSIDE
    waits: Floats = step * np.arange(_INSIDE + _OUTSIDE + 1, dtype=np.float64)
    moves, earned, served, rushed = [], [], [], []
    for action in actions:
        sizes = [(size.batch_size, np.array(spread(size.p50_s, size.p99_s, _SERVICES))) for size in action.sizes]
        move = _transitions(waits, step, sizes, rate_hz)
        reward, count = _reward(waits, action.accuracy, sizes, rate_hz, deadline_s)
        if action.rested != 1.0:
            rested = [(size, action.rested * services) for size, services in sizes]
            move[:1] = _transitions(waits[:1], step, rested, rate_hz, len(waits))
            reward[:1] = _reward(waits[:1], action.accuracy, rested, rate_hz, deadline_s)[0]
        moves.append(move)
        earned.append(reward)
        served.append(count)
        rushed.append(_rush(waits, action, sizes[-1][1], deadline_s))
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
    preferred = np.where(quality >= best - _EQUAL, np.stack(rushed), -1.0).argmax(axis=0)
    return Solution(array("d", waits), array("H", preferred.astype(np.uint16)), gain)


def _transitions(waits: Floats, step: float, sizes: Sizes, rate: float, grid: int | None = None) -> Floats:
    """[wait before, wait after]: probabilities, each fine cell's mass split between its two neighbours on the grid.

    ``waits`` before are the first of a grid of so many, by default all of it.
    """
    size, begins = grid or len(waits), len(waits)
    fine = step / _FINE
    edges = np.arange(size * _FINE - _FINE + 1)  # in fine steps
    begin = np.arange(begins) * _FINE
    lead = begin[:, None] - edges  # all that a probability depends on: worked out on a line, then spread
    line = np.arange(-edges[-1], begin[-1] + 1)
    below = np.zeros(lead.shape)  # distribution function of the wait after
    expected = (rate * fine) * begin.astype(np.float64)
    more = np.ones(begins)  # the chance that more wait than the sizes so far hold
    for batch, services in sizes:
        before, more = more, _erlang(batch, expected)
        ahead = services / fine
        idle = np.exp(-rate * fine * np.maximum(0.0, ahead[:, None] - edges)).mean(axis=0)
        below += (before - more)[:, None] * idle
    batch, services = sizes[-1]
    came = more[:, None]  # the next one is waiting already
    for ahead in services / fine:
        later = _erlang(batch, rate * fine * np.maximum(0.0, line + ahead))[lead + edges[-1]]
        below += np.clip(came - later, 0.0, 1.0) / len(services)
    # By sums rather than a matrix product: a threaded BLAS waits for cores that are busy answering.
    mass = np.diff(below, axis=1).reshape(begins, size - 1, _FINE)
    right = (np.arange(_FINE) + 0.5) / _FINE  # a fine cell's share that goes to the later neighbour
    result: Floats = np.zeros((begins, size))
    result[:, :-1] = (mass * (1.0 - right)).sum(axis=2)
    result[:, 1:] += (mass * right).sum(axis=2)
    result[:, 0] += below[:, 0]
    result[:, -1] += 1.0 - below[:, -1]
    return result


def _reward(waits: Floats, accuracy: float, sizes: Sizes, rate: float, deadline_s: float) -> tuple[Floats, Floats]:
    """Accuracy earned on time, and requests served, by the wait of the oldest."""
    served, earned = np.zeros_like(waits), np.zeros_like(waits)
    expected = rate * waits
    most = sizes[-1][0]
    waiting = [np.ones_like(waits), *(_erlang(place, expected) for place in range(1, most + 1))]  # more than so many
    waiting[most] = np.zeros_like(waits)  # the largest batch takes its share of however many
    for place in range(most):
        own = waits * (1.0 - place / (np.maximum(expected, place) + 1.0))
        served += waiting[place]
        smaller = 0
        for batch, services in sizes:
            chance = waiting[max(place, smaller)] - waiting[batch] if place < batch else 0.0
            earned += chance * _in_time(own, services, deadline_s)
            smaller = batch
    return accuracy * earned, served


def _in_time(waits: Floats, services: Floats, deadline_s: float) -> Floats:
    found: Floats = np.mean(waits + services[:, None] <= deadline_s + 1e-12, axis=0)
    return found


def _rush(waits: Floats, action: Action, services: Floats, deadline_s: float) -> Floats:
    """Right answers on time per second, were there always a whole batch that has waited so long."""
    return action.accuracy * action.batch_size * _in_time(waits, services, deadline_s) / float(services.mean())


def _erlang(shape: int, x: Floats) -> Floats:
    """Distribution function of a sum of ``shape`` unit exponentials; above one by Wilson and Hilferty (1931)."""
    if shape == 1:
        return -np.expm1(-x)
    z = ((x / shape) ** (1 / 3) - (1.0 - 1.0 / (9 * shape))) * 3.0 * math.sqrt(shape)
    normal: Floats = 0.5 * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    return normal
