"""A ladder with two thresholds and a model check: what a careful engineer would write by hand."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.headroom import LOOKS_AT, HeadroomMemory, headrooms
from policies.load import LoadModel, load_model
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Where, require
from policies.watts import PowerModel, power_model


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    level: int | None = None
    since_s: float = 0.0  # when the level was taken up
    lows: int = 0  # decisions in a row below h_lo
    highs: int = 0  # and above h_hi
    seen: HeadroomMemory = msgspec.field(default_factory=HeadroomMemory)


class Ladder(RungPolicy, Remembering[_Memory]):
    """One step down when any headroom is small, one step up when all are large and will stay so.

    With ``h_i`` the least headroom of rung i over load, deadline, heat, power and battery
    (:mod:`policies.headroom`), and ``i`` the rung in use::

        down  if h_i < h_lo for down_votes decisions
        up    if h_i > h_hi for up_votes decisions, i held for stay_s, and h_(i+1) > h_lo

    The last condition is the model check: without it a ladder walks up and down for ever whenever the better rung does
    not fit. A limit that is being broken goes to the fastest rung at once.

    Source: two-threshold control with dwell, as in frequency governors; the vote counts are those of Romero et al.,
    INFaaS, USENIX ATC 2021.

    Args:
        h_lo: headroom below which it steps down.
        h_hi: headroom above which it may step up, above h_lo.
        down_votes: decisions in a row before a step down, from 1.
        up_votes: decisions in a row before a step up, from 1.
        stay_s: shortest stay on a rung before a step up, in seconds.
    """

    name = "ladder"
    looks_at = LOOKS_AT

    def __init__(
        self,
        goals: Goals,
        *,
        h_lo: float = 0.15,
        h_hi: float = 0.35,
        down_votes: int = 1,
        up_votes: int = 10,
        stay_s: float = 10.0,
        where: Where | None = None,
    ) -> None:
        super().__init__(goals, where=where)
        require(0 <= h_lo < 1, self.name, "h_lo", h_lo, "a share from 0 to below 1")
        require(h_lo < h_hi < 1, self.name, "h_hi", h_hi, f"a share above h_lo ({h_lo:g}) and below 1")
        require(down_votes >= 1, self.name, "down_votes", down_votes, "a whole number from 1")
        require(up_votes >= 1, self.name, "up_votes", up_votes, "a whole number from 1")
        require(0 <= stay_s < math.inf, self.name, "stay_s", stay_s, "a time from 0 seconds")
        self.h_lo, self.h_hi, self.down_votes, self.up_votes, self.stay_s = h_lo, h_hi, down_votes, up_votes, stay_s
        self._load: PerTable[LoadModel] = PerTable(lambda table: load_model(self._rungs(table), goals))
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The level after at most one step."""
        memory, rungs, now = self._memory, self._rungs(table), conditions.time_s
        top = len(rungs.points) - 1
        level = top if memory.level is None else min(memory.level, top)
        running = rungs.position.get(current, level) if current is not None else level
        found = headrooms(memory.seen, self.goals, conditions, rungs, self._load(table), self._model(table), running)
        least, bound = found.tightest(level)
        target, state = level, f"{bound} headroom {least:.2f}" if bound != "none" else "no constraint known"
        memory.lows = memory.lows + 1 if least < self.h_lo else 0
        memory.highs = memory.highs + 1 if least > self.h_hi else 0
        urgent = bool(found.broken) or bool(conditions.throttled)
        if found.broken:
            target, state, bound = 0, found.broken, found.broken_bound
        elif conditions.throttled:
            target, state, bound = max(0, min(level, running) - 1), "throttled", "thermal"
        elif memory.lows >= self.down_votes:
            target = max(0, level - 1)
        elif level < top and memory.highs >= self.up_votes and now - memory.since_s >= self.stay_s:
            after, bound = found.tightest(level + 1)
            if after > self.h_lo:
                target = level + 1
            else:
                state += f"; {rungs.labels[level + 1]} would leave {bound} {after:.2f}"
        if target != level or memory.level is None or now < memory.since_s:
            memory.since_s, memory.lows, memory.highs = now, 0, 0
        memory.level = target
        bound = ("throughput" if bound == "none" else bound) if target < top else "none"
        return rungs.choose(target, f"ladder: {state}: {rungs.labels[target]}", bound, urgent=urgent)
