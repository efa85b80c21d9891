"""A policy that raises, is late or never returns yields to the safe choice; a replay still decides the same."""

import threading

import pytest

from agent import Journal
from agent.deciding import Deciding
from policies.base import Conditions, Decision, Goals, Policy
from policies.remembering import Remembering
from simulation.journal import read
from simulation.verify import verify_replay


class Slow(Policy):
    """Counts its decisions; waits, or raises, when told."""

    name = "slow"

    def __init__(self, points):
        self.points = points
        self.count = 0
        self.hold = threading.Event()
        self.hold.set()
        self.entered = threading.Event()
        self.error = None

    def decide(self, conditions, table, current):
        self.count += 1
        self.entered.set()
        assert self.hold.wait(20)
        if self.error is not None:
            raise self.error
        point = self.points[self.count % len(self.points)]
        return Decision(point=point, reason=f"decision {self.count} at {conditions.time_s:g} s")

    def reset(self):
        self.count = 0

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]


@pytest.fixture
def slow(helpers):
    return Slow([helpers.point(name) for name in helpers.LADDER])


@pytest.fixture
def deciding(slow, table):
    told = []
    made = Deciding(
        slow, limit_s=0.0, safe_choice=lambda: table.rows[0], on_event=lambda name, detail: told.append((name, detail))
    )
    made._limit_s = 0.05
    made.told = told
    made._table = table  # as if it were not the first time, which may take long
    yield made
    slow.hold.set()
    made.close()


def test_a_late_policy_yields_at_once_and_is_not_asked_until_it_has_come_back(deciding, slow, table, helpers):
    slow.hold.clear()
    faults = []
    late = deciding.decide(Conditions(time_s=1.0), table, None, faults)
    assert (late.decision.point, late.decision.bound, late.asked) == (helpers.point("s25"), "fallback", "late")
    assert late.state == {"count": 0}
    busy = deciding.decide(Conditions(time_s=2.0), table, None, faults)
    assert (busy.decision.bound, busy.asked, busy.state) == ("fallback", "busy", None)
    assert deciding.state() is None and slow.count == 1
    assert [name for name, _ in deciding.told] == ["policy_late", "policy_late"] and deciding.failures == 2
    assert "has not decided within 0.05 s" in faults[0] and "still at an earlier decision" in faults[1]
    slow.hold.set()
    while deciding.state() is None:
        pass
    asked = deciding.decide(Conditions(time_s=3.0), table, None, faults)
    assert asked.asked == "" and asked.decision.reason == "decision 2 at 3 s"
    assert asked.state == {"count": 1}


def test_a_policy_that_raises_has_the_state_it_had_before(deciding, slow, table):
    deciding.decide(Conditions(time_s=0.0), table, None, [])
    slow.error = ValueError()
    asked = deciding.decide(Conditions(time_s=1.0), table, None, faults := [])
    assert asked.asked == "failed" and slow.count == 1 and faults == ["policy 'slow' failed: ValueError"]
    slow.restore = lambda state: 1 / 0
    asked = deciding.decide(Conditions(time_s=1.0), table, None, [])
    assert asked.asked == "forgot" and slow.count == 0
    assert [name for name, _ in deciding.told] == ["policy_failed"]  # the same: told once


def test_another_policy_takes_over_from_one_that_never_comes_back(deciding, slow, table, helpers):
    slow.hold.clear()
    deciding.decide(Conditions(time_s=1.0), table, None, [])
    deciding.replace(helpers.Scripted(helpers.point("s75")))
    assert deciding.decide(Conditions(time_s=2.0), table, None, []).decision.point == helpers.point("s75")


def test_a_journal_with_late_and_failed_decisions_replays_exactly(make_agent, slow, table, clock, tmp_path):
    agent = make_agent(journal=Journal(tmp_path), policy=slow, clock=clock)
    agent._control._deciding._limit_s = 0.05

    def tick():
        clock.now_s += 1.0
        return agent.tick()

    tick()
    slow.error = ValueError("odd")
    assert tick().faults
    slow.error = None
    tick()
    slow.hold.clear()
    assert "within 0.05 s" in tick().faults[0]
    assert "earlier decision" in tick().faults[0]
    slow.error = ValueError("late and odd")
    slow.hold.set()
    while agent._control._deciding.state() is None:
        pass
    slow.error = None
    tick()
    slow.hold.clear()
    tick()
    slow.hold.set()
    while agent._control._deciding.state() is None:
        pass
    assert tick().bound == "none"
    agent.close()
    journal = read([tmp_path / "journal.jsonl"])
    (session,) = journal.sessions
    assert [recorded.asked for recorded in session.decisions] == ["", "", "failed", "", "late", "busy", "", "late", ""]

    class Again(Slow):
        def decide(self, conditions, table, current):
            if conditions.time_s == session.decisions[4].conditions.time_s:
                self.count += 1
                raise ValueError("late and odd")
            return super().decide(conditions, table, current)

    assert verify_replay(journal, Again(slow.points), table) == (5, ())


def test_a_policy_with_a_plan_it_has_never_made_may_take_longer_for_the_first_time(slow, table):
    made = Deciding(slow, limit_s=0.0, safe_choice=lambda: table.rows[0], on_event=lambda *told: None)
    made._limit_s = 0.0
    slow.hold.clear()
    threading.Timer(0.05, slow.hold.set).start()
    assert made.decide(Conditions(time_s=0.0), table, None, []).asked == ""
    made.close()


def test_the_state_of_remembering_policies_is_enough_to_give_it_back(table):
    """The composite's state goes through dump and load; a failure in the middle of it leaves no trace."""
    from policies.registry import create

    policy = create("composite", Goals(temperature_limit_c=80.0, deadline_ms=50.0))
    assert not isinstance(policy, Remembering)
    made = Deciding(policy, limit_s=10.0, safe_choice=lambda: table.rows[0], on_event=lambda *told: None)
    for second in range(20):
        made.decide(Conditions(time_s=float(second), temperature_c=60.0 + second), table, None, [])
    before = policy.state()
    asked = made.decide(Conditions(time_s=20.0, temperature_c="hot"), table, None, [])
    assert asked.asked == "failed" and policy.state() == before
    made.close()
