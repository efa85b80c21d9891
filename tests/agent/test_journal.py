"""The journal: what is in it, rotation, torn lines, and a disk that is full."""

import gzip
import json
import os
import threading
from pathlib import Path

import msgspec
import pytest

from agent.journal import BatchLine, DecisionLine, EventLine, Journal, Meta
from policies.base import Conditions, Goals


def meta() -> Meta:
    return Meta(
        version="1",
        bundle="tiny",
        bundle_key="k",
        table_key="t",
        policy={"name": "scripted", "options": {}, "state": {}},
        goals={},
        host="here",
    )


def decision(number: int) -> DecisionLine:
    return DecisionLine(
        conditions=Conditions(time_s=float(number)), current=None, point="p", reason="r" * 100, bound="b"
    )


def lines(path) -> list[dict]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_an_agent_journals_everything_that_happens_to_it(make_agent, policy, images, helpers, tmp_path):
    agent = make_agent(
        journal=Journal(tmp_path),
        sensors=helpers.Readings({"battery_charge": 1 / 3}),
        goals=Goals(deadline_ms=1000.0),
        version="0.1",
        policy_options={"up_votes": 3},
    )
    agent.infer(images, subnet="s50")
    agent.infer(images)
    policy.point = helpers.point("s50")
    agent.tick()
    agent.hold("s100", 5, "test")
    agent.tick()
    agent.close()
    found = lines(tmp_path / "journal.jsonl")
    assert all({"kind", "t_mono_ns", "t_unix_ns"} <= line.keys() for line in found)
    head = found[0]
    assert (head["kind"], head["schema"], head["version"], head["bundle"]) == ("meta", 1, "0.1", "tiny")
    assert head["policy"] == {"name": "scripted", "options": {"up_votes": 3}, "state": {"decided": 0}}
    assert head["goals"]["deadline_ms"] == 1000.0 and len(head["points"]) == 8
    decisions = [line for line in found if line["kind"] == "decision"]
    assert set(decisions[0]["conditions"]) == {field.name for field in msgspec.structs.fields(Conditions)}
    assert decisions[0]["current"] is None and decisions[0]["conditions"]["battery_charge"] == 1 / 3
    assert (decisions[1]["point"], decisions[1]["current"]) == (helpers.point("s50"), helpers.point("s100"))
    assert "applied" not in decisions[1]
    assert (decisions[2]["applied"], decisions[2]["applied_why"]) == (helpers.point("s100"), "hold: test")
    switches = [(line["from"], line["to"]) for line in found if line["kind"] == "switch"]
    s50, s100 = helpers.point("s50"), helpers.point("s100")
    assert switches == [(None, s100), (s100, s50), (s50, s100)]
    batches = [line for line in found if line["kind"] == "batch"]
    assert [(line["point"], line["n"], line["ok"]) for line in batches] == [(s50, 5, True), (s100, 5, True)]
    assert batches[0]["deadline_ms"] == 1000.0 and batches[0]["arrived_ns"] <= batches[1]["arrived_ns"]
    assert {"hold", "closed"} <= {line["name"] for line in found if line["kind"] == "event"}


def test_replaying_the_journaled_conditions_gives_the_same_decisions(make_agent, helpers, table, tmp_path, clock):
    from policies.registry import create

    goals = Goals(temperature_limit_c=80.0, deadline_ms=3.5)
    sensors = helpers.Readings()
    agent = make_agent(
        journal=Journal(tmp_path), policy=create("composite", goals), goals=goals, sensors=sensors, clock=clock
    )
    for step in range(200):
        clock.now_s += 1.0
        sensors.told = {"temperature_c": 55.0 + 30.0 * abs((step % 100) / 50 - 1)}
        agent.tick()
    agent.close()
    again = create("composite", goals)
    decided = [line for line in lines(tmp_path / "journal.jsonl") if line["kind"] == "decision"]
    assert len({line["point"] for line in decided}) > 1
    for line in decided:
        made = again.decide(msgspec.convert(line["conditions"], Conditions), table, line["current"])
        assert (made.point, made.reason, made.bound) == (line["point"], line["reason"], line.get("bound", ""))


def test_files_rotate_at_a_decision_each_with_a_header_that_carries_the_policys_state(tmp_path):
    journal = Journal(tmp_path, max_bytes=2000, keep=3)
    journal.start()
    journal.write(meta())
    for number in range(60):
        journal.write(decision(number), state={"decided": number})
        journal.write(EventLine(name="between", detail={"number": number}))
    journal.close()
    older = sorted(tmp_path.glob("journal-*.jsonl.gz"))
    assert len(older) == 3
    whole = [lines(path) for path in [*older, journal.path]]
    for content in whole:
        assert content[0]["kind"] == "meta"
        assert content[1]["kind"] == "decision"
        assert content[0]["policy"]["state"] == {"decided": int(content[1]["conditions"]["time_s"])}
    told = [line["conditions"]["time_s"] for content in whole for line in content if line["kind"] == "decision"]
    assert told == list(range(int(told[0]), 60))
    assert journal.status().dropped == 0 and not list(tmp_path.glob("*.partial"))


def test_a_file_that_an_earlier_run_left_goes_on_without_its_torn_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    for left, kept in (
        (b'{"kind":"meta"}\n{"kind":"dec', ["meta"]),
        (b'{"kind":"torn at once', []),
        (b'{"kind":"meta"}\n' + b"\0" * 100_000, ["meta"]),  # what a file system may leave after a power loss
    ):
        path.write_bytes(left)
        journal = Journal(tmp_path)
        journal.start()
        journal.write(meta())
        journal.close()
        assert [line["kind"] for line in lines(path)] == [*kept, "meta"]
    assert not list(tmp_path.glob("*.gz"))


@pytest.mark.parametrize("whole", [True, False])
def test_being_killed_while_a_file_is_compressed_loses_and_doubles_nothing(tmp_path, whole):
    """The compressed file takes the place of the plain one in one step: whichever of the two is whole is kept."""
    plain, partial = tmp_path / "journal.jsonl", tmp_path / "journal-000003-20260131T120000Z.jsonl.partial"
    content = b'{"kind":"meta","number":1}\n'
    partial.write_bytes(gzip.compress(content)[: None if whole else -9])
    if not whole:
        plain.write_bytes(content)
    journal = Journal(tmp_path)
    journal.write(meta())
    journal.close()
    assert not partial.exists()
    told = [line for path in [*sorted(tmp_path.glob("journal-*.gz")), plain] for line in lines(path)]
    assert [line.get("number") for line in told] == [1, None]


def test_files_are_numbered_so_that_a_wall_clock_set_back_deletes_no_new_ones(tmp_path):
    journal = Journal(tmp_path, max_bytes=1000, keep=2)
    journal.write(meta())
    for number in range(4):
        for step in range(10):
            journal.write(decision(10 * number + step), state={"decided": 10 * number + step})
        journal.flush()
        os.utime(journal.path, (1e9 - 1e6 * number,) * 2)  # each file seems older than the one before
        journal.write(decision(10 * number + 9), state={"decided": 0})
        journal.flush()
    journal.close()
    older = sorted(tmp_path.glob("journal-*.jsonl.gz"))
    assert len(older) == 2
    first = [next(line["conditions"]["time_s"] for line in lines(path) if line["kind"] == "decision") for path in older]
    assert first == sorted(first) and first[0] > 9


@pytest.fixture
def full_disk(tmp_path):
    """A journal's folder on a disk that is full until ``path`` is unlinked."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    return tmp_path


def test_a_full_disk_stops_the_journal_and_not_the_answers(make_agent, images, full_disk):
    told = threading.Event()
    agent = make_agent(start=False, journal=Journal(full_disk))
    agent.on_event(lambda event: told.set() if event.name == "journal_stopped" else None)
    agent.start()
    assert told.wait(10)
    assert agent.infer(images).subnet == "s100"
    status = agent.status()
    assert "No space left" in status.journal.stopped and status.counters.journal_stops == 1
    assert any("No space left" in fault for fault in agent.tick().faults)
    before = status.journal.dropped
    agent.infer(images)
    agent._journal.flush()
    assert agent.status().journal.dropped > before


def test_when_there_is_room_again_the_journal_goes_on_and_tells_the_gap(full_disk):
    told = []
    journal = Journal(full_disk, retry_s=0.0)
    journal.start(on_event=lambda name, detail: told.append((name, detail)))
    journal.write(meta())
    journal.write(decision(0), state={"decided": 0})
    journal.flush()
    journal.write(EventLine(name="lost", detail={}))
    journal.write(decision(1), state={"decided": 1})
    journal.flush()  # tries, in vain
    assert [name for name, _ in told] == ["journal_stopped"]
    journal.path.unlink()
    journal.write(EventLine(name="lost as well", detail={}))
    journal.write(decision(2), state={"decided": 2})
    journal.write(EventLine(name="kept", detail={}))
    journal.close()
    assert [name for name, _ in told] == ["journal_stopped", "journal_resumed"]
    found = lines(journal.path)
    assert [line["kind"] for line in found] == ["meta", "event", "decision", "event"]
    assert found[0]["policy"]["state"] == {"decided": 2}
    assert found[1]["name"] == "journal_resumed" and "No space left" in found[1]["detail"]["error"]
    # meta, decision 0, event, decision 1, event
    assert found[1]["detail"]["dropped"] + 2 == journal.status().dropped == 5
    assert journal.status().stopped == "" and journal.stops == 1


def test_half_a_line_that_still_fitted_on_the_disk_is_taken_back(tmp_path, monkeypatch):
    journal = Journal(tmp_path, retry_s=0.0)
    journal.write(meta())
    journal.flush()
    whole = journal.path.read_bytes()
    opened = journal._file._file

    class Short:
        """A file on a disk with ten bytes left."""

        def write(self, content):
            opened.write(content[:10])
            opened.flush()
            raise OSError(28, "No space left on device")

        def close(self):
            opened.close()

    journal._file._file = Short()
    journal.write(decision(0), state={"decided": 0})
    journal.flush()
    assert journal.path.read_bytes() == whole and journal.status().stopped
    journal.write(decision(1), state={"decided": 1})
    journal.close()
    assert [line["kind"] for line in lines(journal.path)] == ["meta", "meta", "event", "decision"]


def test_decisions_that_found_the_queue_full_are_a_gap_after_which_a_session_begins(tmp_path):
    journal = Journal(tmp_path, queue_limit=3)
    journal.write(meta())
    for number in range(5):
        journal.write(decision(number), state={"decided": number})
    journal.flush()
    journal.write(decision(5), state={"decided": 5})
    journal.close()
    found = lines(journal.path)
    assert [line["kind"] for line in found] == ["meta", "decision", "decision", "meta", "decision"]
    assert found[3]["policy"]["state"] == {"decided": 5} and journal.status().dropped == 3


def test_a_record_that_is_no_json_is_dropped_alone(tmp_path):
    journal = Journal(tmp_path)
    journal.write(meta())
    journal.write(EventLine(name="odd", detail={"what": object()}))
    journal.write(decision(0), state={"what": object()})
    journal.close()
    assert [line["kind"] for line in lines(journal.path)] == ["meta", "decision"]
    assert journal.status().dropped == 1 and not journal.status().stopped


def test_after_a_decision_that_is_no_json_a_session_begins(tmp_path):
    journal = Journal(tmp_path)
    journal.write(meta())
    journal.write(msgspec.structs.replace(decision(0), reason=object()), state={"decided": 0})
    journal.write(decision(1), state={"decided": 1})
    journal.close()
    found = lines(journal.path)
    assert [line["kind"] for line in found] == ["meta", "meta", "decision"]
    assert found[1]["policy"]["state"] == {"decided": 1}


def test_a_folder_that_cannot_be_made_stops_the_journal_only(make_agent, images, tmp_path):
    (tmp_path / "file").write_text("")
    agent = make_agent(journal=Journal(tmp_path / "file" / "journal"))
    agent._journal.flush()
    assert agent.status().journal.stopped
    assert agent.infer(images).subnet == "s100"


def test_a_full_queue_drops_counts_and_does_not_wait(tmp_path):
    journal = Journal(tmp_path, queue_limit=10)  # not started: nothing drains it
    for number in range(25):
        line = BatchLine(arrived_ns=number, n=1, point="p", queue_ms=0.0, infer_ms=1.0, deadline_ms=None)
        journal.write(line)
    assert journal.status().dropped == 15
    journal.close()
    assert [line["arrived_ns"] for line in lines(journal.path)] == list(range(10))
