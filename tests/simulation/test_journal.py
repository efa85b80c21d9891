import gzip
import itertools
import json

import msgspec
import pytest

from policies.base import Conditions, Decision, Goals, Policy
from policies.registry import create
from simulation.journal import read, trace
from simulation.verify import elsewhere, table_key, verify_recorded, verify_replay
from subnets.errors import InputError

SMALL, LARGE = "s50@toy:f32:b1", "s100@toy:f32:b1"


def _line(kind, at_s, **fields):
    return json.dumps({"kind": kind, "t_mono_ns": round(at_s * 1e9), "t_unix_ns": round((at_s + 1e6) * 1e9), **fields})


def _meta(at_s=0.0, **fields):
    return _line("meta", at_s, schema=1, version="1", bundle="b", bundle_key="k", table_key="t", host="h", **fields)


def _batch(at_s, n=1, **fields):
    values = {"n": n, "point": SMALL, "queue_ms": 0.0, "infer_ms": 5.0, "deadline_ms": None, "ok": True, **fields}
    return _line("batch", at_s + 0.1, arrived_ns=round(at_s * 1e9), **values)


def _decision(conditions, current, point, reason, bound):
    fields = {"current": current, "point": point, "reason": reason, "bound": bound}
    return _line("decision", conditions.time_s, conditions=msgspec.to_builtins(conditions), **fields)


@pytest.fixture
def write(tmp_path):
    numbers = itertools.count()

    def made(*lines, end="\n"):
        path = tmp_path / f"journal-{next(numbers)}.jsonl"
        path.write_text("\n".join(lines) + end)
        return path

    return made


def test_arrivals_of_a_journal_come_in_order_and_failed_batches_count(write):
    path = write(_meta(100.0), _batch(103.0, n=2), _batch(102.5), _batch(104.0, ok=False))
    assert trace(read([path])).arrivals_s.tolist() == pytest.approx([2.5, 3.0, 3.0, 4.0])


def test_deadlines_are_taken_where_they_vary_and_left_to_the_goals_where_not(write):
    batches = _batch(3.0, n=2, deadline_ms=50.0), _batch(2.0), _batch(4.0, deadline_ms=20.0)
    varied = trace(read([write(_meta(), *batches)]))
    assert varied.deadlines_s.tolist() == [float("inf"), 0.05, 0.05, 0.02]
    same = trace(read([write(_meta(), _batch(3.0, deadline_ms=50.0), _batch(2.0, deadline_ms=50.0))]))
    assert same.deadlines_s is None


def test_slowdown_and_mains_hold_over_unknown_readings(write):
    seen = [
        Conditions(time_s=10.0),
        Conditions(time_s=11.0, slowdown=1.5, on_mains=False),
        Conditions(time_s=12.0, on_mains=True),
    ]
    found = trace(read([write(_meta(10.0), *(_decision(c, None, SMALL, "x", "none") for c in seen))]))
    assert found.times_s.tolist() == [0.0, 1.0, 2.0]
    assert found.slowdown.tolist() == [1.5, 1.5, 1.5]
    assert found.on_mains.tolist() == [0.0, 0.0, 1.0]
    assert found.harvest_w is None


def test_a_torn_last_line_is_skipped(write):
    path = write(_meta(), _batch(1.0), _batch(2.0)[:-20], end="")
    journal = read([path])
    assert journal.torn and len(journal.sessions[0].batches) == 1
    assert not read([write(_meta(), _batch(1.0))]).torn


def test_a_broken_line_elsewhere_is_an_error_with_its_number(write):
    with pytest.raises(InputError, match=r"journal-0\.jsonl, line 2"):
        read([write(_meta(), _batch(1.0)[:-20], _batch(2.0))])
    with pytest.raises(InputError, match=r"line 3: .*Expected `int`, got `str` - at `\$\.n`"):
        read([write(_meta(), _batch(1.0), _batch(1.0, n="two"), _batch(2.0))])


def test_a_journal_that_does_not_begin_with_meta_is_refused(write):
    with pytest.raises(InputError, match="line 1: a journal begins with"):
        read([write(_batch(1.0))])
    with pytest.raises(InputError, match="holds no journal line"):
        read([write("")])
    with pytest.raises(InputError, match="journal schema 9"):
        read([write(_line("meta", 0.0, schema=9))])


def test_rotated_parts_follow_each_other_and_the_wrong_order_is_refused(write, tmp_path):
    first = write(_meta(0.0), _batch(1.0))
    packed = tmp_path / "old.jsonl.gz"
    packed.write_bytes(gzip.compress(first.read_bytes()))
    second = write(_meta(50.0), _batch(49.5), _batch(51.0))  # one was under way when the file was rotated
    assert trace(read([packed, second])).arrivals_s.tolist() == pytest.approx([1.0, 49.5, 51.0])
    with pytest.raises(InputError, match="oldest first"):
        read([second, packed])


@pytest.mark.parametrize("set_to_s", [-5000.0, 5000.0])
def test_a_wall_clock_that_was_set_moves_no_session_in_time(write, set_to_s):
    first = [_meta(0.0, clock="a"), _batch(1.0)]
    second = [_meta(50.0, clock="a"), _batch(51.0)]
    for place, line in enumerate(second):
        fields = json.loads(line)
        second[place] = json.dumps({**fields, "t_unix_ns": fields["t_unix_ns"] + round(set_to_s * 1e9)})
    assert trace(read([write(*first, *second)])).arrivals_s.tolist() == pytest.approx([1.0, 51.0])
    with pytest.raises(InputError, match="oldest first"):
        read([write(*second), write(*first)])


def test_after_a_start_of_the_machine_with_its_clock_behind_a_session_follows_the_last_line_before(write):
    first = [_meta(1000.0, clock="a"), _batch(1005.0)]  # written at 1005.1
    later = json.loads(_meta(10.0, clock="b"))
    later["t_unix_ns"] -= round(500e9)
    second = [json.dumps(later), _batch(12.0)]
    assert trace(read([write(*first, *second)])).arrivals_s.tolist() == pytest.approx([5.0, 7.1])


def test_a_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress((_meta() + "\n").encode() * 50)[:-12])
    with pytest.raises(InputError, match="cannot be read to its end"):
        read([path])


def _recorded(table, policy):
    """What a policy decided on a day with heat and a falling battery, as journal lines."""
    lines, current = [], None
    for k in range(200):
        conditions = Conditions(
            time_s=float(k),
            battery_charge=1.0 - k / 250.0,
            battery_energy_j=7200.0 * (1.0 - k / 250.0),
            temperature_c=40.0 + k / 4.0,
            arrival_rate_hz=0.1 * (k % 30) / 3.0,
            queue_depth=k % 4,
            slowdown=1.0 + (k % 7) / 10.0,
        )
        decision = policy.decide(conditions, table, current)
        lines.append(_decision(conditions, current, decision.point, decision.reason, decision.bound))
        current = decision.point
    return lines


GOALS = {"deadline_ms": 900.0, "temperature_limit_c": 70.0, "last_until_s": 2000.0}


def test_a_policy_decides_again_exactly_as_recorded(write, table):
    goals = Goals(**GOALS)
    lines = _recorded(table, create("composite", goals))
    journal = read([write(_meta(policy={"name": "composite", "options": {}}, goals=GOALS), *lines)])
    assert len({json.loads(line)["point"] for line in lines}) == 2  # it did switch
    assert verify_replay(journal, create("composite", goals), table) == (200, ())
    assert verify_recorded(journal, table) == (200, ())


def test_a_session_goes_on_from_the_state_it_recorded(write, table):
    goals = Goals(**GOALS)
    policy = create("composite", goals)
    lines = _recorded(table, policy)
    halves = []
    again = create("composite", goals)
    for line in lines[:100]:
        fields = json.loads(line)
        again.decide(msgspec.convert(fields["conditions"], Conditions), table, fields["current"])
    state = msgspec.json.decode(msgspec.json.encode(again.state()))
    record = {"name": "composite", "options": {}}
    halves.append(write(_meta(0.0, policy=record, goals=GOALS), *lines[:100]))
    halves.append(write(_meta(99.5, policy={**record, "state": state}, goals=GOALS), *lines[100:]))
    assert verify_recorded(read(halves), table) == (200, ())


def test_a_changed_decision_is_found_and_fallbacks_are_not_compared(write, table):
    lines = _recorded(table, create("largest"))
    changed = json.loads(lines[5])
    lines[5] = json.dumps({**changed, "point": SMALL})
    lines[6] = json.dumps({**json.loads(lines[6]), "bound": "fallback", "point": SMALL, "current": LARGE})
    count, mismatches = verify_replay(read([write(_meta(), *lines)]), create("largest"), table)
    assert count == 199
    (miss,) = mismatches
    assert (miss.time_s, miss.field, miss.recorded, miss.replayed) == (5.0, "point", SMALL, LARGE)


class Counting(Policy):
    """Decides by how often it was asked."""

    name = "counting"

    def __init__(self):
        self.asked = 0

    def decide(self, conditions, table, current):
        self.asked += 1
        if conditions.queue_depth == 99:
            raise ValueError("as it did then")
        return Decision(point=(SMALL, LARGE)[self.asked % 2], reason=f"asked {self.asked} times")

    def reset(self):
        self.asked = 0

    def state(self):
        return {"asked": self.asked}

    def restore(self, state):
        self.asked = state["asked"]


@pytest.mark.parametrize(
    ("asked", "depth", "goes_on_from"),
    [("failed", 0, 2), ("busy", 0, 2), ("late", 0, 3), ("late", 99, 2), ("forgot", 0, 0)],
)
def test_where_the_policy_gave_no_answer_the_replay_brings_it_into_the_same_state(
    write, table, asked, depth, goes_on_from
):
    policy, lines = Counting(), []
    for k in range(2):
        conditions = Conditions(time_s=float(k))
        made = policy.decide(conditions, table, None)
        lines.append(_decision(conditions, None, made.point, made.reason, made.bound))
    fields = json.loads(_decision(Conditions(time_s=2.0, queue_depth=depth), None, SMALL, "safe", "fallback"))
    lines.append(json.dumps({**fields, "asked": asked}))
    policy.asked = goes_on_from
    conditions = Conditions(time_s=3.0)
    made = policy.decide(conditions, table, None)
    lines.append(_decision(conditions, None, made.point, made.reason, made.bound))
    assert verify_replay(read([write(_meta(), *lines)]), Counting(), table) == (3, ())


def test_the_policy_sees_only_the_points_the_agent_could_use(write, table):
    small_only = msgspec.structs.replace(table, rows=table.rows[:1])
    lines = _recorded(small_only, create("largest"))
    journal = read([write(_meta(points=[SMALL]), *lines)])
    assert verify_replay(journal, create("largest"), table) == (200, ())
    with pytest.raises(InputError, match="'s1@toy' is not in the table"):
        verify_replay(read([write(_meta(points=["s1@toy"]), *lines)]), create("largest"), table)


def test_a_journal_without_a_policys_name_cannot_be_verified(write, table):
    with pytest.raises(InputError, match="session 1 does not name its policy"):
        verify_recorded(read([write(_meta(), _batch(1.0))]), table)


def test_decisions_by_another_table_are_left_out_and_counted(write, table):
    goals = Goals(**GOALS)
    lines = _recorded(table, create("composite", goals))
    record = {"name": "composite", "options": {}}
    first = json.loads(_meta(policy=record, goals=GOALS))
    own = json.dumps({**first, "table_key": table_key(table)})
    other = json.dumps({**json.loads(_meta(500.0, policy=record, goals=GOALS)), "table_key": "another"})
    lying = json.loads(lines[5])
    lying["reason"] = "by another table"
    journal = read([write(own, *lines, other, json.dumps(lying))])
    assert verify_recorded(journal, table) == (200, ()) and elsewhere(journal, table) == {"another": 1}
    alone = read([write(other, json.dumps(lying))])  # of no other table: then it is meant to be compared
    assert len(verify_recorded(alone, table)[1]) == 1 and elsewhere(alone, table) == {}


def test_what_the_agents_own_journal_writes_is_read(tmp_path):
    from agent.journal import BatchLine, DecisionLine, EventLine, Journal, Meta

    journal = Journal(tmp_path)
    policy = {"name": "largest", "options": {}, "state": {}}
    journal.write(Meta(version="1", bundle="b", bundle_key="k", table_key="t", policy=policy, goals={}, host="h"))
    conditions = Conditions(time_s=1.25, slowdown=1.1)
    journal.write(DecisionLine(conditions=conditions, current=None, point=LARGE, reason="r", bound="none"))
    journal.write(EventLine(name="start", detail={}))
    line = BatchLine(arrived_ns=0, n=3, point=LARGE, queue_ms=0.1, infer_ms=2.0, deadline_ms=None)
    journal.write(line)
    journal.close()
    (session,) = read([journal.path]).sessions
    assert session.decisions[0].conditions == conditions and session.batches[0].n == 3
    assert session.meta.policy.name == "largest"
