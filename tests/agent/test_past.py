"""A decision of the past, found in the journal's files."""

import pytest

from agent import past
from agent.journal import BatchLine, DecisionLine, EventLine, Journal, Meta
from policies.base import Conditions, Goals
from subnets.errors import InputError

START_S = 1_760_000_000.0


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A journal of 60 decisions, one a second, in several files; ``b`` instead of ``a`` from the 40th on."""
    now = [START_S]
    monkeypatch.setattr("agent.journal.time.time_ns", lambda: int(now[0] * 1e9))
    journal = Journal(tmp_path, max_bytes=4000, keep=100, clock=lambda: now[0] - START_S)
    meta = Meta(
        version="1",
        bundle="tiny",
        bundle_key="k",
        table_key="t",
        policy={"name": "scripted", "options": {}, "state": {}},
        goals={"deadline_ms": 20.0},
        host="here",
        points=("a", "b"),
    )
    journal.write(meta)
    for number in range(60):
        now[0] = START_S + number
        conditions = Conditions(time_s=float(number), temperature_c=50.0 + number)
        point = "a" if number < 40 else "b"
        line = DecisionLine(conditions=conditions, current=None, point=point, reason=f"number {number}", bound="none")
        journal.write(line, state={})
        batch = BatchLine(arrived_ns=0, n=1, point=point, queue_ms=0, infer_ms=1, deadline_ms=None)
        journal.write(batch)
        if number == 45:
            journal.write(EventLine(name="sensor_failed", detail={"error": "no bus"}))
        journal.flush()
    journal.close()
    assert len(list(tmp_path.glob("*.gz"))) > 2
    return tmp_path


@pytest.mark.parametrize("number", range(0, 60, 7))
def test_whichever_file_holds_it_the_decision_of_that_second_is_found(written, number):
    found = past.find(written, START_S + number + 0.5)
    assert found.explanation.reason == f"number {number}"
    assert found.explanation.conditions.temperature_c == 50.0 + number
    assert found.explanation.decided == found.explanation.applied == ("a" if number < 40 else "b")
    assert found.goals == Goals(deadline_ms=20.0) and found.points == ("a", "b") and found.bundle_key == "k"


def test_equal_decisions_before_it_are_counted_and_faults_shortly_before_are_told(written):
    found = past.find(written, START_S + 47.5)
    told = found.explanation
    assert told.until_unix_s == START_S + 47 and told.ticks == round(told.until_unix_s - told.since_unix_s) + 1
    assert told.since_unix_s >= START_S + 40
    assert told.faults == ("sensor failed: no bus",)
    assert found.events == ((START_S + 45, "sensor failed: no bus"),)
    assert past.find(written, START_S + 44.5).explanation.faults == ()


def test_a_time_before_or_after_the_journal_is_refused_with_what_it_covers(written):
    with pytest.raises(InputError, match="the journal begins at 2025-"):
        past.find(written, START_S - 10)
    assert past.find(written, START_S + 61.5).explanation.reason == "number 59"  # within a few periods
    with pytest.raises(InputError, match=r"nothing was decided at .* the last decision before it is of 2025-"):
        past.find(written, START_S + 600)


def test_a_torn_line_and_a_damaged_file_are_passed_over(written):
    with (written / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind":"decision","t_unix')
    assert past.find(written, START_S + 59.5).explanation.reason == "number 59"
    oldest = min(written.glob("*.gz"))
    oldest.write_bytes(oldest.read_bytes()[:-20])
    assert past.find(written, START_S + 0.5).explanation.decided == "a"


def test_a_folder_without_a_journal_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no journal; give its folder with --journal"):
        past.find(tmp_path, START_S)


def test_what_was_applied_instead_and_what_an_agent_really_journals_is_found(make_agent, helpers, images, tmp_path):
    agent = make_agent(journal=Journal(tmp_path))
    agent.infer(images[:1], subnet="s25")
    agent.hold("s25", 60.0, "because")
    agent.tick()
    agent.close()
    held = agent.explain(1)[0]
    found = past.find(tmp_path, held.until_unix_s + 0.5)
    assert (found.explanation.applied, found.explanation.applied_why) == (helpers.point("s25"), "hold: because")
    assert found.explanation.conditions == held.conditions
    assert any(words == "hold: s25 for 60 s (because)" for _, words in found.events)
