"""The journal: what is in it, rotation, torn lines, and a disk that is full."""

import gzip
import json
import threading

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
    assert head["goals"]["deadline_ms"] == 1000.0 and len(head["points"]) == 4
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


def test_what_an_earlier_run_left_is_set_aside_without_its_torn_line(tmp_path):
    left = b'{"kind":"meta"}\n{"kind":"dec'
    (tmp_path / "journal.jsonl").write_bytes(left)
    journal = Journal(tmp_path)
    journal.start()
    journal.write(meta())
    journal.close()
    (older,) = tmp_path.glob("journal-*.jsonl.gz")
    assert gzip.decompress(older.read_bytes()) == b'{"kind":"meta"}\n'
    assert [line["kind"] for line in lines(journal.path)] == ["meta"]


def test_a_full_disk_stops_the_journal_and_not_the_answers(make_agent, images, helpers):
    try:
        full = open("/dev/full", "ab", buffering=0)  # noqa: SIM115, PTH123 (handed to the journal)
    except OSError:
        pytest.skip("this system has no /dev/full")

    class FullDisk(Journal):
        def _open(self) -> None:
            self._file = full

    told = threading.Event()
    agent = make_agent(start=False, journal=FullDisk(helpers.root / "never-made"))
    agent.on_event(lambda event: told.set() if event.name == "journal_stopped" else None)
    agent.start()
    assert told.wait(10)
    assert agent.infer(images).subnet == "s100"
    agent.tick()
    journal = agent.status().journal
    assert "No space left" in journal.stopped and journal.dropped > 0 and journal.written == 0
    assert full.closed


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
