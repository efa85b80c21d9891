"""The hot loop: arrivals, queue, batches and answers between two control ticks, as one function on flat arrays.

:func:`advance` is written in the part of Python that numba compiles, so there is one source and two ways to run it: as
it stands, on lists (:class:`simulation.server.Server` by default), or as machine code, on arrays (:func:`compiled`,
with the extra ``simulate``). Both do the same floating-point operations in the same order; a test holds them equal to
the last bit. Everything that changes lives in the arrays ``real``, ``whole`` and those beside them; the constants below
name their places. Knows nothing of policies, sensors or the plant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from subnets.errors import UnavailableError

STALE_S = 30.0  # figures that nothing fed for so long are unknown again
_SLOWDOWN_WEIGHT = 0.1  # of the newest batch
_MISS_WEIGHT = 0.05  # of the newest answer

# Places in ``real``.
FREE_S = 0  # when the engine is free
DRAWING_W = 1  # above base while it is not
SLOWDOWN = 2  # of service times, from now on
MISS = 3  # smoothed share of late answers
MISS_S = 4  # when it was last fed
UNTOLD_S = 5  # when the running batch is done
UNTOLD_RATIO = 6  # logarithm of its time over the table's
RESTED_J = 7  # what rests have made batches cost more, so far
REALS = 8

# Places in ``whole``.
ARRIVED = 0  # requests that came so far
FIRST = 1  # place of the queue's head in ``queue``
WAITING = 2  # requests in the queue
CEILING = 3  # the operating point decided on
PLANNED = 4  # steps of the slack plan
LAST = 5  # the point that answered last, -1 before
UNTOLD = 6  # requests of the running batch, told of when it is done
UNTOLD_POINT = 7
TOLD_POINT = 8  # the point that was told of last
ANSWERED = 9
DROPPED_QUEUE = 10
DROPPED_LATE = 11
SLACK_CHOICES = 12
WHOLES = 13


def advance(  # type: ignore[no-untyped-def]  # lists in Python, arrays when compiled
    arrivals_s,
    draws,
    deadlines_s,
    median_s,
    sigma,
    batch_j,
    rest_s,
    rest_j,
    settle_s,
    batch,
    smaller,
    switch_s,
    plan_slack_s,
    plan_point,
    queue,
    missed,
    batches,
    on_time,
    latencies_s,
    log_ratio,
    log_ratio_s,
    real,
    whole,
    drop_late,
    drop_oldest,
    begin_s,
    end_s,
):
    """Everything that begins from ``begin_s`` on and before ``end_s``.

    Args:
        arrivals_s: ascending arrival times.
        draws: one standard normal number per request; that of a batch's first request makes its service time.
        deadlines_s: from arrival to answer, one per request, or one for all; infinite = none.
        median_s, sigma, batch_j, rest_s, rest_j, settle_s, batch: per operating point, see
            :class:`simulation.compiled.CompiledTable`.
        smaller: per operating point, the same engine with the next smaller batch size, or -1.
        switch_s: extra time of the first batch, at ``from * points + to``.
        plan_slack_s, plan_point: the slack plan, most slack first.
        queue: ring of waiting requests, earliest deadline first; as long as the queue may be.
        missed: of each request of the running batch, 1 if it is late.
        batches, on_time: per operating point, counts of batches begun and requests answered on time.
        latencies_s: filled with the latency of each answer.
        log_ratio, log_ratio_s: per operating point, smoothed measured over calibrated latency, and when it was fed.
        real, whole: everything else, by the places above.
        drop_late: drop a request whose deadline passed before its turn.
        drop_oldest: in a full queue the earliest deadline makes room, as a camera does; else the newcomer is dropped.
        begin_s: where the last call ended.
        end_s: may be infinite.

    Returns:
        Energy in joules drawn above base between ``begin_s`` and ``end_s``; a batch draws evenly while it runs.
    """
    count, points, room = len(arrivals_s), len(median_s), len(queue)
    each = len(deadlines_s) > 1
    common_s = 0.0 if each else deadlines_s[0]
    coming, first, waiting = whole[ARRIVED], whole[FIRST], whole[WAITING]
    ceiling, planned, last = whole[CEILING], whole[PLANNED], whole[LAST]
    free, watts, slowdown = real[FREE_S], real[DRAWING_W], real[SLOWDOWN]
    answered = whole[ANSWERED]
    drawn_j = watts * (min(free, end_s) - begin_s) if free > begin_s else 0.0
    while True:
        if waiting > 0:
            start = free
        elif coming < count:
            start = max(free, arrivals_s[coming])
        else:
            start = math.inf
        idle = start >= end_s  # nothing more begins; only the queue fills
        while coming < count and (arrivals_s[coming] < end_s if idle else arrivals_s[coming] <= start):
            if waiting == room:
                whole[DROPPED_QUEUE] += 1
                if not drop_oldest:
                    coming += 1
                    continue
                first = first + 1 if first + 1 < room else 0
                waiting -= 1
            due = arrivals_s[coming] + (deadlines_s[coming] if each else common_s)
            place = first + waiting
            if place >= room:
                place -= room
            if each:  # with one deadline for all, who came first is due first
                for _ in range(waiting):
                    before = place - 1 if place > 0 else room - 1
                    other = queue[before]
                    if arrivals_s[other] + deadlines_s[other] <= due:
                        break
                    queue[place] = other
                    place = before
            queue[place] = coming
            waiting += 1
            coming += 1

        # The batch before is told of once it is done: nobody can know earlier how long it takes.
        if whole[UNTOLD] > 0 and (not idle or free <= end_s):
            done, told = real[UNTOLD_S], whole[UNTOLD_POINT]
            ratio = real[UNTOLD_RATIO]
            if done - log_ratio_s[told] < STALE_S:
                ratio = log_ratio[told] + _SLOWDOWN_WEIGHT * (ratio - log_ratio[told])
            log_ratio[told] = ratio
            log_ratio_s[told] = done
            whole[TOLD_POINT] = told
            for k in range(whole[UNTOLD]):
                late = missed[k]
                if late >= 0.0:
                    if done - real[MISS_S] < STALE_S:
                        late = real[MISS] + _MISS_WEIGHT * (late - real[MISS])
                    real[MISS] = late
                    real[MISS_S] = done
            whole[UNTOLD] = 0
        if idle:
            break

        head = queue[first]
        slack = arrivals_s[head] + (deadlines_s[head] if each else common_s) - start
        if drop_late and slack <= 0.0:
            first = first + 1 if first + 1 < room else 0
            waiting -= 1
            whole[DROPPED_LATE] += 1
            late = 1.0
            if start - real[MISS_S] < STALE_S:
                late = real[MISS] + _MISS_WEIGHT * (late - real[MISS])
            real[MISS] = late
            real[MISS_S] = start
            continue
        point = ceiling
        if planned > 0 and slack < math.inf:
            for k in range(planned):
                point = plan_point[k]
                if slack >= plan_slack_s[k]:
                    break
            if point != ceiling:
                whole[SLACK_CHOICES] += 1
        while smaller[point] >= 0 and batch[smaller[point]] >= waiting:
            point = smaller[point]
        median, joules = median_s[point], batch_j[point]
        if rest_s[point] > 0.0 or rest_j[point] > 0.0:
            rested = -math.expm1((free - start) / settle_s[point])
            median += rest_s[point] * rested
            joules += rest_j[point] * rested
            real[RESTED_J] += rest_j[point] * rested
        service = median * math.exp(sigma[point] * draws[head]) * slowdown
        if last >= 0 and last != point:
            service += switch_s[last * points + point]
        last = point
        free = start + service
        watts = joules / service
        drawn_j += watts * (min(free, end_s) - start)
        batches[point] += 1
        size = min(batch[point], waiting)
        for k in range(size):
            request = queue[first]
            first = first + 1 if first + 1 < room else 0
            latency = free - arrivals_s[request]
            latencies_s[answered] = latency
            answered += 1
            deadline = deadlines_s[request] if each else common_s
            if latency <= deadline:
                on_time[point] += 1
                missed[k] = 0.0 if deadline < math.inf else -1.0
            else:
                missed[k] = 1.0
        waiting -= size
        whole[UNTOLD] = size
        whole[UNTOLD_POINT] = point
        real[UNTOLD_S] = free
        real[UNTOLD_RATIO] = math.log(service / median)
    whole[ARRIVED], whole[FIRST], whole[WAITING] = coming, first, waiting
    whole[LAST], whole[ANSWERED] = last, answered
    real[FREE_S], real[DRAWING_W] = free, watts
    return drawn_j


_REALS, _WHOLES = "float64[::1]", "int64[::1]"
_SIGNATURE = (
    f"float64({', '.join([_REALS] * 9)}, {_WHOLES}, {_WHOLES}, {_REALS}, {_REALS}, {_WHOLES}, {_WHOLES}, {_REALS}, "
    f"{_WHOLES}, {_WHOLES}, {_REALS}, {_REALS}, {_REALS}, {_REALS}, {_WHOLES}, boolean, boolean, float64, float64)"
)


@cache
def compiled() -> Callable[..., float]:
    """:func:`advance` as machine code, compiled once per installation and process.

    Numba keeps the code beside this file, or in its own cache directory (``NUMBA_CACHE_DIR``) where this folder cannot
    be written; where neither can, it is compiled anew in each process.

    Raises:
        UnavailableError: numba is not installed.
    """
    try:
        from numba import njit
    except ImportError:
        raise UnavailableError(
            "numba is not installed, so the simulation runs in plain Python; pip install 'gearshift[simulate]'"
        ) from None
    try:
        found: Callable[..., float] = njit(_SIGNATURE, cache=True)(advance)
    except (OSError, RuntimeError):  # RuntimeError: numba found no place for its cache
        found = njit(_SIGNATURE)(advance)
    return found
