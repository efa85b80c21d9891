"""A table that is out for long is told; if allowed, its rows are measured again while nobody wants the engines."""

import threading

import msgspec
import numpy as np
import pytest

from agent import Journal
from agent.drift import Drift
from agent.recalibration import Recalibration, retabled
from calibration import table as tables
from calibration.table import Duty
from policies.base import Decision, Policy
from subnets.errors import UnavailableError


class Answers:
    """Feeds a drift watch with answers of one engine, back to back or after rests."""

    def __init__(self, table, point):
        self.told = []
        self.drift = Drift(table, lambda name, detail: self.told.append((name, detail)))
        self.row, self.now_s, self.faults = table.row(point), 1000.0, []

    def give(self, seconds, ratio, *, rest_ms=0.0, a_second=1.0):
        """For so long: ten answers back to back every second, each ``ratio`` times as long as the table says."""
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.now_s += a_second
            end_s = self.now_s
            for _ in range(10):
                end_s += (rest_ms + ratio * self.row.latency_p50_ms) / 1000
                self.drift.ran(end_s, self.row.point, ratio * self.row.latency_p50_ms, self.row.latency_p50_ms)
            self.faults = []
            self.drift.watch(end_s, self.faults)
        return [name for name, _ in self.told]


@pytest.fixture
def answers(table, helpers):
    return Answers(table, helpers.point("s50"))


def test_a_quarter_of_an_hour_outside_is_told_once_with_row_and_factor_and_a_fault_as_long_as_it_lasts(
    answers, helpers
):
    assert answers.give(890, 1.4) == [] and not answers.faults
    assert answers.give(60, 1.4) == ["table_drifted"]
    ((_, detail),) = answers.told
    assert detail["rows"] == [{"point": helpers.point("s50"), "ratio": 1.4}]
    assert answers.give(300, 1.4) == ["table_drifted"]
    assert answers.faults == [f"table drifted: {helpers.point('s50')} takes 1.40 times what the table says, for 21 min"]
    (out,) = answers.drift.drifted
    assert out.ratio == pytest.approx(1.4) and answers.drift.rows_drifted == 1


def test_faster_is_out_as_well(answers):
    assert answers.give(960, 0.8) == ["table_drifted"]


@pytest.mark.parametrize("ratio", [1.09, 0.92])  # the intervals of these rows have no width; 10 % is allowed
def test_within_the_tolerance_nothing_is_told(answers, ratio):
    assert answers.give(3600, ratio) == []


def test_the_tables_own_interval_is_allowed_beside_the_tolerance(table, helpers):
    point = helpers.point("s50")
    rows = tuple(msgspec.structs.replace(row, latency_p50_high_ms=1.2 * row.latency_p50_ms) for row in table.rows)
    wide = Answers(msgspec.structs.replace(table, rows=rows), point)
    assert wide.give(1800, 1.3) == []
    assert wide.give(1800, 1.35) == ["table_drifted"]


def test_one_minute_as_the_table_says_begins_the_quarter_of_an_hour_anew(answers):
    answers.give(840, 1.4)
    answers.give(63, 1.0)
    assert answers.give(840, 1.4) == []
    assert answers.give(120, 1.4) == ["table_drifted"]


def test_stalls_now_and_then_are_no_drift(answers):
    for _ in range(200):
        answers.give(9, 1.0)
        answers.give(1, 50.0)
    assert not answers.told


def test_a_row_holds_again_after_a_quarter_of_an_hour_inside(answers, helpers):
    answers.give(960, 1.4)
    assert answers.give(840, 1.0) == ["table_drifted"] and answers.faults
    assert answers.give(120, 1.0) == ["table_drifted", "table_holds"] and not answers.faults
    assert answers.told[-1][1] == {"rows": [helpers.point("s50")]}


def test_answers_after_a_rest_count_only_against_what_the_table_knows_of_rests(table, helpers):
    point = helpers.point("s50")
    assert Answers(table, point).give(1800, 1.6, rest_ms=20.0) == []  # nothing is known of rests: nothing can be told
    duty = Duty(
        extra_ms=1.2,
        extra_low_ms=1.0,
        extra_high_ms=1.4,
        settle_ms=1.0,
        rests_ms=(),
        latency_ms=(),
        rounds=4,
        samples=9,
    )
    rows = tuple(msgspec.structs.replace(row, duty=duty) for row in table.rows)
    rested = msgspec.structs.replace(table, rows=rows)
    assert Answers(rested, point).give(1800, 1.6, rest_ms=20.0) == []  # 2.0 ms and 1.2 more are what it says
    assert Answers(rested, point).give(1800, 1.2, rest_ms=20.0) == ["table_drifted"]  # faster than that
    assert Answers(rested, point).give(1800, 1.6) == ["table_drifted"]  # back to back


def test_a_trickle_of_answers_tells_nothing(answers):
    assert answers.give(7200, 1.4, a_second=400.0) == []


def test_another_table_forgets_what_was_seen_of_its_new_rows_alone(answers, table, helpers):
    answers.give(960, 1.4)
    point = helpers.point("s50")
    other = msgspec.structs.replace(table.row(helpers.point("s25")), latency_p50_ms=1.05)
    answers.drift.retable(retabled(table, {other.point: other}))
    assert [out.point for out in answers.drift.drifted] == [point]
    answers.drift.retable(retabled(table, {point: msgspec.structs.replace(table.row(point), latency_p50_ms=2.8)}))
    assert answers.drift.drifted == ()


# -- measuring again


class Bench:
    """Rows whose engines take ``factor`` times what the table says, measured with a clock that only they move."""

    def __init__(self, table, factor, noise=0.01):
        self.table, self.factor, self.now_s = table, factor, 0.0
        self.random = np.random.default_rng(1)
        self.noise, self.told, self.accepted, self.measured = noise, [], [], []
        self.wanted = self.loaded = True
        self.allowed = True
        self.drift = Drift(table, lambda name, detail: None)
        self.made = Recalibration(
            self.drift,
            lambda: self.table,
            measure=self.measure,
            allowed=lambda: self.allowed,
            accept=self.accept,
            on_event=lambda name, detail: self.told.append((name, detail)),
            clock=lambda: self.now_s,
        )
        self.made._stop = self  # rests take no time here
        self.rested_s = 0.0

    def is_set(self):
        return False

    def wait(self, seconds):
        self.rested_s += seconds
        return False

    def out(self, *points):
        for point in points:
            watched = self.drift._watched[point]
            for minute in range(16):
                watched._judge(60.0 * minute, self.factor, 60.0)

    def measure(self, row, count):
        if not self.loaded:
            return None
        self.measured.append(row.point)
        spread = np.exp(self.noise * self.random.standard_normal(count))
        latencies = list(self.factor * row.latency_p50_ms * spread)[: count if self.wanted is True else self.wanted]
        self.now_s += sum(latencies) / 1000
        return latencies

    def accept(self, rows):
        self.accepted.append(rows)
        self.table = retabled(self.table, rows)
        self.drift.retable(self.table)

    def run(self, rounds=100):
        visits = {}
        for _ in range(rounds):
            if not self.made.pending():
                break
            self.made.round(visits)


@pytest.fixture
def bench(table):
    rows = tuple(
        msgspec.structs.replace(
            row, latency_p50_low_ms=0.98 * row.latency_p50_ms, latency_p50_high_ms=1.02 * row.latency_p50_ms, rounds=12
        )
        for row in table.rows
    )
    return lambda factor, **changes: Bench(msgspec.structs.replace(table, rows=rows), factor, **changes)


def test_rows_that_are_out_get_new_latencies_and_nothing_else_changes(bench, helpers, tmp_path):
    made = bench(1.4)
    s50, s75 = helpers.point("s50"), helpers.point("s75")
    before = made.table
    made.out(s50, s75)
    made.run()
    assert {row.point for row in made.table.rows if row != before.row(row.point)} == {s50, s75}
    row = made.table.row(s50)
    assert row.latency_p50_ms == pytest.approx(2.8, rel=0.01)
    assert row.latency_p50_low_ms < 2.8 < row.latency_p50_high_ms
    assert row.throughput_per_s == pytest.approx(1000 / 2.8, rel=0.02)
    assert row.accuracy == before.row(s50).accuracy and row.rounds >= 8
    assert set(made.table.protocol.remeasured) == {s50, s75} and not made.drift.drifted
    tables.write(made.table, tmp_path / "t.json")
    assert tables.read(tmp_path / "t.json") == made.table
    # A twentieth of the time at most.
    assert made.now_s <= (made.now_s + made.rested_s) / 20 * 1.001


def test_a_row_that_holds_when_it_is_quiet_is_confirmed_and_left_alone_for_a_day(bench, helpers):
    made = bench(1.4)
    made.out(helpers.point("s50"))
    made.factor = 1.02  # busy while it answered, quiet now
    made.run()
    assert made.accepted == [] and [name for name, _ in made.told] == ["table_confirmed"]
    assert made.made.pending() == [] and len(made.drift.drifted) == 1
    made.now_s += 86_401.0
    assert [row.point for row in made.made.pending()] == [helpers.point("s50")]


@pytest.mark.parametrize("obstacle", ["a request comes", "not in memory", "throttled"])
def test_a_cell_that_is_broken_off_counts_for_nothing(bench, helpers, obstacle):
    made = bench(1.4)
    made.out(helpers.point("s50"))
    if obstacle == "a request comes":
        made.wanted = 7
    elif obstacle == "not in memory":
        made.loaded = False
    else:
        made.allowed = False
    visits = {}
    for _ in range(30):
        assert made.made.round(visits) > 0
    assert not visits and not made.accepted
    made.wanted = made.loaded = made.allowed = True
    made.run()
    assert len(made.accepted) == 1


def test_a_noisy_row_takes_more_rounds(bench, helpers):
    calm, noisy = bench(1.4), bench(1.4, noise=0.5)
    for made in (calm, noisy):
        made.out(helpers.point("s50"))
        made.run()
    assert len(calm.measured) == 8 < len(noisy.measured) <= 20


def test_a_new_table_that_cannot_be_stored_is_told_and_the_old_one_stays(bench, helpers):
    made = bench(1.4)
    made.out(helpers.point("s50"))

    def refuse(rows):
        raise UnavailableError("no room")

    made.made._accept = refuse
    made.run()
    assert made.told == [("recalibration_failed", {"error": "no room"})]


# -- in the agent


@pytest.fixture
def slow_backend(helpers, clock):
    """Engines that take what the table says, times ``factor``, by the clock of the agent."""

    class Engine:
        def __init__(self, inner, backend):
            self.inner, self.backend, self.artifact = inner, backend, inner.artifact

        def infer(self, batch):
            subnet = self.artifact.request.subnet
            if self.backend.started:
                size = len(batch)
                clock.now_s += self.backend.factor * helpers.LATENCY_MS[subnet] * (0.8 * size if size > 1 else 1) / 1000
            return self.inner.infer(batch)

        @property
        def memory_bytes(self):
            return None

        def close(self):
            self.inner.close()

    class Slow(helpers.FakeBackend):
        factor, started = 1.0, False

        def load(self, artifact):
            return Engine(super().load(artifact), self)

    return Slow()


def test_a_request_that_comes_ends_the_measuring_and_is_answered(make_agent, images, helpers, backend):
    agent = make_agent()
    row, many, measured = agent.table.row(helpers.point("s100")), 300_000, []
    measuring = threading.Thread(target=lambda: measured.append(agent._answering.measure(row, many)))
    before = len(backend.sizes)
    measuring.start()
    while len(backend.sizes) < before + 10:
        pass
    assert agent.submit(images[:1]).result(20).subnet == "s100"
    measuring.join(20)
    assert 10 <= len(measured[0]) < many


class InTime(Policy):
    """The most accurate point that the table says is in time, whatever the machine does now."""

    name = "in-time"

    def decide(self, conditions, table, current):
        fitting = [row for row in table.rows if row.latency_p50_ms <= 5.0]
        best = max(fitting, key=lambda row: row.accuracy)
        return Decision(point=best.point, reason=f"{best.latency_p50_ms} ms")


def test_an_agent_whose_engine_has_become_slower_says_so_measures_it_again_and_decides_by_the_new_table(
    make_agent, slow_backend, clock, images, helpers, bundle, tmp_path
):
    from simulation.journal import read
    from simulation.verify import elsewhere, verify_replay

    stored, seen = [], []
    agent = make_agent(
        start=False,
        backends={"fake": slow_backend},
        clock=clock,
        policy=InTime(),
        journal=Journal(tmp_path),
        table=helpers.make_table(bundle, batch_sizes=(1,)),
        recalibrate=stored.append,
    )
    old = agent.table
    new_table = threading.Event()

    def hear(event):
        seen.append(event)
        if event.name == "table_remeasured":
            new_table.set()

    agent.on_event(hear)
    stop = agent._watching.recalibration._stop
    stop.wait = lambda seconds: stop.is_set()  # rests take no time here
    agent.start()
    for subnet in helpers.LADDER:
        agent.infer(images[:1], subnet=subnet)
    slow_backend.started, slow_backend.factor = True, 1.4
    assert agent.tick().decided == helpers.point("s100")
    for _ in range(1000):
        clock.now_s += 1.0
        for _ in range(4):
            agent.infer(images[:1])
        told = agent.tick()
        if new_table.is_set():
            break
    assert new_table.wait(20)
    assert [event.name for event in seen].count("table_drifted") == 1
    assert agent.table is not old and stored[0].row(helpers.point("s100")).latency_p50_ms == pytest.approx(5.6)
    assert agent.status().counters.rows_drifted == 1
    told = agent.tick()
    assert told.decided == helpers.point("s75")  # 5.6 ms are too long for 5 ms; what s75 takes nobody has doubted yet
    agent.close()
    journal = read([tmp_path / "journal.jsonl"])
    before, after = journal.sessions
    for session, table in ((before, old), (after, stored[0])):
        alone = msgspec.structs.replace(journal, sessions=(session,))
        assert verify_replay(alone, InTime(), table) == (len(session.decisions), ())
    assert list(elsewhere(journal, old).values()) == [len(after.decisions)]
