"""The contract of a policy, as tests: subclass :class:`PolicyContract`, say how to build yours, and inherit them all.

::

    class TestMine(PolicyContract):
        def build(self, goals):
            return Mine(goals)

Needs pytest and hypothesis, and a session-scoped fixture ``table`` with a calibration table of several rungs. The
strategies :func:`conditions` and :func:`timelines` are of use to other tests too.
"""
# ruff: noqa: D102 (the names of tests are sentences)

from __future__ import annotations

import json
import time
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.table import Table, frontier
from policies.base import Conditions, Decision, Goals, Policy

Timeline = list[tuple[Conditions, str | None]]

BOUNDS = frozenset(
    {"none", "deadline", "throughput", "thermal", "battery", "power", "accuracy", "dwell", "hold", "fallback"}
)
_KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "battery_charge": st.floats(0, 1),
    "battery_energy_j": st.floats(0, 500_000),
    "battery_power_w": st.floats(-20, 40),
    "on_mains": st.booleans(),
    "temperature_c": st.floats(-20, 120),
    "throttled": st.booleans(),
    "power_w": st.floats(0, 40),
    "cpu_load": st.floats(0, 1),
    "pressure": st.floats(0, 1),
    "arrival_rate_hz": st.floats(0, 500),
    "queue_depth": st.integers(0, 1000),
    "slowdown": st.floats(0.5, 5),
    "miss_rate": st.floats(0, 1),
}
_WORSE = ("arrival_rate_hz", "queue_depth", "temperature_c", "throttled", "battery_energy_j")  # the last downwards
_examples = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    # inherited by design; with no database there are no examples that one class could replay to another
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)


@st.composite
def conditions(draw: st.DrawFn, time_s: float = 0.0) -> Conditions:
    """Arbitrary conditions at a given time; every field may be unknown."""
    fields = {name: draw(st.none() | known) for name, known in _KNOWN.items()}
    return Conditions(time_s=time_s, **fields)


@st.composite
def timelines(draw: st.DrawFn, points: tuple[str, ...], most: int = 6) -> Timeline:
    """Stretches of some ticks, each with one condition changed, and the point in use: a row, a stranger, or none."""
    moment, timeline = draw(conditions()), []
    current = st.none() | st.sampled_from((*points, "gone@nowhere:f32:b1"))
    for _ in range(draw(st.integers(1, most))):
        name = draw(st.sampled_from(sorted(_KNOWN)))
        step_s, ticks, in_use = (
            draw(st.sampled_from((0.0, 0.1, 1.0, 7.5, 100.0))),
            draw(st.integers(1, 15)),
            draw(current),
        )
        moment = msgspec.structs.replace(moment, **{name: draw(st.none() | _KNOWN[name])})
        for _ in range(ticks):
            moment = msgspec.structs.replace(moment, time_s=moment.time_s + step_s)
            timeline.append((moment, in_use))
    return timeline


@st.composite
def all_goals(draw: st.DrawFn) -> Goals:
    """Arbitrary possible goals, each wish present or not."""
    return Goals(
        deadline_ms=draw(st.none() | st.floats(1, 200)),
        min_accuracy=draw(st.none() | st.floats(0.85, 0.99)),
        max_power_w=draw(st.none() | st.floats(1, 30)),
        temperature_limit_c=draw(st.none() | st.floats(40, 105)),
        last_until_s=draw(st.none() | st.floats(1, 20_000)),
        reserve=draw(st.floats(0, 0.5)),
        battery_capacity_j=draw(st.none() | st.floats(1000, 500_000)),
        deadline_percentile=draw(st.sampled_from((0.5, 0.95, 0.99))),
        switches_per_hour=draw(st.none() | st.integers(1, 100)),
        maximise=draw(st.sampled_from(("accuracy", "accuracy", "answers_per_joule"))),
    )


class PolicyContract:
    """What every policy keeps to. Override :meth:`build`; switch off what does not apply, and say why.

    Attributes:
        keeps_accuracy: the policy never goes below ``goals.min_accuracy`` where a row reaches it.
        monotone: a new policy never answers more load, more heat or less battery with a more accurate point.
        scale: the batch size of the rows that it chooses from.
    """

    keeps_accuracy: ClassVar[bool] = True
    monotone: ClassVar[bool] = True
    scale: ClassVar[int] = 1

    def build(self, goals: Goals) -> Policy:
        """A new policy."""
        raise NotImplementedError

    @given(data=st.data())
    @_examples
    def test_a_decision_is_a_row_with_a_reason_a_known_bound_and_an_ascending_plan(
        self, table: Table, data: st.DataObject
    ) -> None:
        rows = {row.point: row for row in table.rows}
        policy = self.build(data.draw(all_goals()))
        for moment, current in data.draw(timelines(tuple(rows))):
            decision = policy.decide(moment, table, current)
            assert decision.point in rows
            assert decision.reason
            assert "nan" not in decision.reason
            assert decision.bound in BOUNDS
            slacks = [step.slack_ms for step in decision.slack_plan]
            assert slacks == sorted(set(slacks))
            assert all(rows[step.point].accuracy <= rows[decision.point].accuracy for step in decision.slack_plan)

    @given(data=st.data())
    @_examples
    def test_the_same_conditions_give_the_same_decisions_and_a_reset_is_a_new_start(
        self, table: Table, data: st.DataObject
    ) -> None:
        goals = data.draw(all_goals())
        timeline = data.draw(timelines(tuple(row.point for row in table.rows)))
        policy = self.build(goals)
        first = _run(policy, table, timeline)
        policy.reset()
        assert policy.state() == self.build(goals).state()
        assert _run(policy, table, timeline) == first
        assert _run(self.build(goals), table, timeline) == first

    @given(data=st.data())
    @_examples
    def test_a_state_restored_from_json_goes_on_as_if_nothing_had_happened(
        self, table: Table, data: st.DataObject
    ) -> None:
        goals = data.draw(all_goals())
        timeline = data.draw(timelines(tuple(row.point for row in table.rows)))
        cut = data.draw(st.integers(0, len(timeline)))
        policy, other = self.build(goals), self.build(goals)
        _run(policy, table, timeline[:cut])
        saved = json.dumps(policy.state(), allow_nan=False)
        rest = _run(policy, table, timeline[cut:])
        other.restore(json.loads(saved))
        assert _run(other, table, timeline[cut:]) == rest
        assert other.state() == policy.state()

    @given(data=st.data())
    @_examples
    def test_what_it_does_not_look_at_changes_nothing(self, table: Table, data: st.DataObject) -> None:
        goals = data.draw(all_goals())
        timeline = data.draw(timelines(tuple(row.point for row in table.rows)))
        policy = self.build(goals)
        unseen = {name: None for name in _KNOWN if name not in policy.looks_at}
        blind = [(msgspec.structs.replace(moment, **unseen), current) for moment, current in timeline]
        assert _run(policy, table, timeline) == _run(self.build(goals), table, blind)

    @given(data=st.data())
    @_examples
    def test_the_wished_accuracy_is_kept_where_a_row_reaches_it(self, table: Table, data: st.DataObject) -> None:
        if not self.keeps_accuracy:
            pytest.skip("this policy does not keep an accuracy")
        best = frontier(table.select(batch_size=self.scale))[-1].accuracy
        wished = data.draw(st.floats(0, best))
        goals = msgspec.structs.replace(data.draw(all_goals()), min_accuracy=wished)
        policy = self.build(goals)
        kept = tuple(row.point for row in table.rows if row.accuracy >= wished)
        for moment, current in data.draw(timelines(kept)):
            decision = policy.decide(moment, table, current)
            assert table.row(decision.point).accuracy >= wished

    @given(data=st.data())
    @_examples
    def test_more_load_more_heat_or_less_battery_never_gives_a_more_accurate_point(
        self, table: Table, data: st.DataObject
    ) -> None:
        if not self.monotone:
            pytest.skip("this policy is not monotone from a new start")
        goals = data.draw(all_goals())
        current = data.draw(st.none() | st.sampled_from([row.point for row in table.rows]))
        moment = msgspec.structs.replace(data.draw(conditions()), battery_power_w=None, battery_charge=None)
        name = data.draw(st.sampled_from(_WORSE))
        low, high = sorted((data.draw(_KNOWN[name]), data.draw(_KNOWN[name])), reverse=name == "battery_energy_j")
        easy, hard = (msgspec.structs.replace(moment, **{name: value}) for value in (low, high))
        relaxed = self.build(goals).decide(easy, table, current)
        stressed = self.build(goals).decide(hard, table, current)
        assert table.row(stressed.point).accuracy <= table.row(relaxed.point).accuracy, (
            relaxed.reason,
            stressed.reason,
        )

    def test_no_clock_is_read(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> float:
            raise AssertionError("a policy read a clock")

        policy = self.build(Goals(deadline_ms=50, temperature_limit_c=80, last_until_s=1000, battery_capacity_j=10_000))
        with monkeypatch.context() as patched:
            for name in ("time", "monotonic", "perf_counter", "process_time", "time_ns", "monotonic_ns"):
                patched.setattr(time, name, refuse)
            moment = Conditions(time_s=5.0, temperature_c=60, arrival_rate_hz=5, battery_charge=0.5, power_w=4)
            policy.decide(moment, table, None)

    def test_a_state_that_is_none_of_its_own_is_refused_in_one_sentence(self) -> None:
        from subnets.errors import InputError

        with pytest.raises(InputError):
            self.build(Goals()).restore({"no such field": 1})


def _run(policy: Policy, table: Table, timeline: Timeline) -> list[Decision]:
    return [policy.decide(moment, table, current) for moment, current in timeline]
