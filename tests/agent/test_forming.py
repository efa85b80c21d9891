"""Whose turn it is and who goes along: as the simulator says, and with wishes that it does not know."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.choosing import Chooser
from agent.forming import Former
from agent.guard import Guard
from agent.limits import HardLimits
from agent.pool import Active, EnginePool
from agent.resident import engine_key
from agent.waiting import Request, Waiting
from policies.base import Goals, SlackStep
from simulation.compiled import CompiledTable
from simulation.server import Server
from subnets.errors import EngineError, Expired, InputError

SIZES = (1, 2, 4)


class Bench:
    """Engines in memory, and a waiting room whose turns are taken by hand on a clock of its own."""

    def __init__(self, bundle, helpers):
        self.now_s = 0.0
        self.table = helpers.make_table(bundle, batch_sizes=SIZES)
        self.pool = EnginePool(bundle, self.table, {"fake": helpers.FakeBackend()})
        self.guard = Guard(
            self.table,
            helpers.LADDER,
            Goals(),
            limits=HardLimits(),
            clock=lambda: self.now_s,
            on_event=lambda name, detail: None,
        )
        for key in self.pool.keys:
            self.pool.request(key).result(10)
        self.chooser = Chooser(self.table, self.pool, self.guard)

    def use(self, point, plan=()):
        row = self.table.row(point)
        resident = self.pool.resident(engine_key(row))
        active = Active(resident=resident, row=row, point=point, reason="now", bound="none", slack_plan=plan)
        assert self.pool.activate(active)

    def former(self, drop_late=False):
        return Former(self.chooser, drop_late=drop_late, clock=lambda: self.now_s)

    def request(self, images=1, deadline_ms=None, subnet=None, floor=0.0):
        key = None if subnet is None else next(key for key in self.pool.keys if key.subnet == subnet)
        batch = np.ones((images, 1, 4, 4), np.float32)
        return Request(batch, self.now_s, deadline_ms, key, floor)

    def turn(self, *requests, drop_late=False):
        waiting = Waiting(100)
        for one in requests:
            waiting.add(one)
        return self.former(drop_late).next(waiting), waiting


@pytest.fixture(scope="module")
def shared(bundle, helpers):
    made = Bench(bundle, helpers)
    yield made
    made.pool.close()


@pytest.fixture
def bench(bundle, helpers):
    made = Bench(bundle, helpers)
    yield made
    made.pool.close()


def played(bench, arrivals_ms, deadlines_ms, limit, drop_late):
    """The same day as the simulator's, with the agent's own parts: what came out."""
    waiting, former = Waiting(limit), bench.former(drop_late)
    free_s, coming, latencies, batches = 0.0, 0, [], {}
    on_time = dropped_queue = dropped_late = 0
    while True:
        if len(waiting):
            start_s = free_s
        elif coming < len(arrivals_ms):
            start_s = max(free_s, arrivals_ms[coming] / 1000.0)
        else:
            break
        while coming < len(arrivals_ms) and arrivals_ms[coming] / 1000.0 <= start_s:
            bench.now_s = arrivals_ms[coming] / 1000.0
            if waiting.full():
                dropped_queue += 1
            else:
                waiting.add(bench.request(deadline_ms=deadlines_ms[coming]))
            coming += 1
        bench.now_s = start_s
        turn = former.next(waiting)
        assert all(isinstance(error, Expired) for _, error in turn.failed)
        dropped_late += len(turn.failed)
        if turn.active is None:
            continue
        (size,), expected_ms, _ = bench.chooser.chunks(turn.active, turn.images)
        assert size == turn.active.row.batch_size >= turn.images == len(turn.requests)
        free_s = start_s + expected_ms / 1000.0
        batches[turn.active.point] = batches.get(turn.active.point, 0) + 1
        for one in turn.requests:
            latencies.append(free_s - one.arrived_s)
            on_time += latencies[-1] <= (math.inf if one.deadline_ms is None else one.deadline_ms / 1000.0)
    return latencies, batches, on_time, dropped_queue, dropped_late


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    gaps_ms=st.lists(st.integers(0, 6), min_size=2, max_size=40),
    deadlines_ms=st.lists(st.one_of(st.integers(1, 40), st.none()), min_size=40, max_size=40),
    ceiling=st.integers(0, 11),
    plan=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 11)), max_size=5, unique_by=lambda step: step[0]),
    limit=st.integers(1, 12),
    drop_late=st.booleans(),
)
def test_the_simulator_predicts_whose_turn_it_is_with_which_point_and_who_goes_along(
    shared, gaps_ms, deadlines_ms, ceiling, plan, limit, drop_late
):
    arrivals_ms = np.cumsum(gaps_ms).tolist()
    deadlines_ms = deadlines_ms[: len(arrivals_ms)]
    rows = shared.table.rows
    steps = tuple(SlackStep(float(slack), rows[place].point) for slack, place in sorted(plan))
    shared.use(rows[ceiling].point, steps)
    latencies, batches, on_time, dropped_queue, dropped_late = played(
        shared, arrivals_ms, deadlines_ms, limit, drop_late
    )

    flat = CompiledTable(shared.table)
    server = Server(
        flat,
        [at / 1000.0 for at in arrivals_ms],
        [0.0] * len(arrivals_ms),
        deadlines_s=np.array([math.inf if deadline is None else deadline / 1000.0 for deadline in deadlines_ms]),
        drop_late=drop_late,
        queue_limit=limit,
    )
    server.use(flat.place(rows[ceiling].point), steps)
    server.advance(0.0, math.inf)
    np.testing.assert_allclose(latencies, server.latencies_s, rtol=1e-9, atol=1e-12)
    assert set(batches) == {flat.points[place] for place in server.used}
    assert (on_time, dropped_queue, dropped_late) == (server.on_time, server.dropped_queue, server.dropped_late)


def test_a_batch_takes_the_smallest_size_that_holds_it(bench, helpers):
    bench.use(helpers.point("s100", 4))
    for count, size in ((1, 1), (2, 2), (3, 4), (4, 4), (6, 4)):
        turn, waiting = bench.turn(*(bench.request() for _ in range(count)))
        assert (turn.active.point, turn.images) == (helpers.point("s100", size), min(count, 4))
        assert len(waiting) == max(0, count - 4)


def test_requests_of_several_images_go_together_as_far_as_there_is_room(bench, helpers):
    bench.use(helpers.point("s100", 4))
    requests = [bench.request(images) for images in (2, 3, 1)]
    turn, waiting = bench.turn(*requests)
    assert (turn.requests, turn.active.point) == (requests[:1], helpers.point("s100", 2))  # nobody is overtaken
    assert list(waiting) == requests[1:]


def test_a_request_larger_than_the_points_batch_is_cut_at_least_cost_and_goes_alone(bench, helpers):
    bench.use(helpers.point("s100"))
    turn, waiting = bench.turn(bench.request(5), bench.request())
    assert (turn.images, turn.active.point, len(waiting)) == (5, helpers.point("s100"), 1)
    # by the table of the tests b4 takes 3.2 times b1, so 4 + 1 beats all else
    assert bench.chooser.chunks(turn.active, 5)[0] == (4, 1)


def test_energy_is_that_of_the_batches_run_blank_images_included(bench, helpers):
    rows = [msgspec.structs.replace(row, energy_j=0.5 / row.batch_size) for row in bench.table.rows]
    unknown, bench.table = bench.table, msgspec.structs.replace(bench.table, rows=tuple(rows))
    bench.chooser.retable(bench.table)
    bench.use(helpers.point("s100", 4))
    turn, _ = bench.turn(*(bench.request() for _ in range(3)))
    assert bench.chooser.chunks(turn.active, 3)[2] == pytest.approx(0.5)  # 4 images at 0.125 J, one of them blank
    assert bench.chooser.chunks(turn.active, 5)[2] == pytest.approx(1.0)
    bench.table = unknown
    bench.chooser.retable(bench.table)
    bench.use(helpers.point("s100", 4))
    turn, _ = bench.turn(bench.request())
    assert bench.chooser.chunks(turn.active, 1)[2] is bench.chooser.chunks(turn.active, 5)[2] is None


def test_only_those_whom_one_engine_may_answer_go_together(bench, helpers):
    bench.use(helpers.point("s50", 4))
    plain, pinned, other, fussy, content = (
        bench.request(),
        bench.request(subnet="s50"),
        bench.request(subnet="s25"),
        bench.request(floor=0.9),
        bench.request(floor=0.85),
    )
    turn, waiting = bench.turn(plain, pinned, other, fussy, content)
    assert turn.requests == [plain, pinned, content]
    assert list(waiting) == [other, fussy]

    turn, waiting = bench.turn(other, plain, pinned)
    assert (turn.requests, turn.active.row.subnet) == ([other], "s25")
    assert turn.active.reason == "asked for by the request"


def test_a_minimum_accuracy_raises_a_request_no_further_than_needed_and_no_others_with_it(bench, helpers):
    bench.use(helpers.point("s25", 4))
    fussy, plain, content, fussier, alike = (
        bench.request(floor=0.86),
        bench.request(),
        bench.request(floor=0.80),  # s25 has just that
        bench.request(floor=0.93),
        bench.request(floor=0.9),
    )
    turn, waiting = bench.turn(fussy, plain, content, fussier, alike)
    assert (turn.requests, turn.active.row.subnet) == ([fussy, alike], "s75")
    assert list(waiting) == [plain, content, fussier]
    assert "86 % accuracy" in turn.active.reason


def test_what_keeps_the_minimum_anyway_is_left_as_it_is(bench, helpers):
    bench.use(helpers.point("s100"))
    turn, _ = bench.turn(bench.request(floor=0.85))
    assert (turn.active.row.subnet, turn.active.reason) == ("s100", "now")


def test_an_accurate_engine_in_memory_is_preferred_to_one_that_must_be_loaded(bench, helpers):
    bench.use(helpers.point("s25"))
    bench.pool.drop(next(key for key in bench.pool.keys if key.subnet == "s75"))
    turn, _ = bench.turn(bench.request(floor=0.86))
    assert turn.active.row.subnet == "s100"
    bench.pool.drop(next(key for key in bench.pool.keys if key.subnet == "s100"))
    asked = bench.request(floor=0.86)
    turn, waiting = bench.turn(asked)
    assert turn.active is None and [(one, key.subnet) for one, key in turn.missing] == [(asked, "s75")]
    assert len(waiting) == 1 and list(waiting) == []


def test_a_step_whose_engine_is_not_at_hand_gives_way_to_one_for_less_slack(bench, helpers):
    plan = (
        SlackStep(0.0, helpers.point("s25")),
        SlackStep(10.0, helpers.point("s50")),
        SlackStep(20.0, helpers.point("s100")),
    )
    bench.use(helpers.point("s100"), plan)
    turn, _ = bench.turn(bench.request(deadline_ms=15.0))
    assert turn.active.row.subnet == "s50"
    bench.pool.drop(next(key for key in bench.pool.keys if key.subnet == "s50"))
    turn, _ = bench.turn(bench.request(deadline_ms=15.0))
    assert (turn.active.row.subnet, turn.active.bound) == ("s25", "deadline")
    bench.guard.quarantine(next(key for key in bench.pool.keys if key.subnet == "s25"), RuntimeError("broken"))
    turn, _ = bench.turn(bench.request(deadline_ms=15.0))
    assert turn.active.row.subnet == "s100"


def test_a_step_holds_from_its_slack_on_and_the_first_one_below_it(bench, helpers):
    bench.use(helpers.point("s100"), (SlackStep(5.0, helpers.point("s25")), SlackStep(10.0, helpers.point("s100"))))
    for deadline_ms, subnet in ((11.0, "s100"), (10.0, "s100"), (9.9, "s25"), (4.0, "s25"), (None, "s100")):
        turn, _ = bench.turn(bench.request(deadline_ms=deadline_ms))
        assert turn.active.row.subnet == subnet
        quick = bench.chooser.idle(1, deadline_ms)  # the short way comes to the same, or leaves it to the long one
        assert quick is turn.active if subnet == "s100" else quick is None


def test_a_plan_never_goes_above_its_ceiling(bench, helpers):
    bench.use(helpers.point("s50"), (SlackStep(0.0, helpers.point("s25")), SlackStep(10.0, helpers.point("s100"))))
    turn, _ = bench.turn(bench.request(deadline_ms=50.0))
    assert turn.active.row.subnet == "s50"


def test_late_requests_are_answered_unless_they_are_not_wanted(bench, helpers):
    bench.use(helpers.point("s25"))
    late, fine = bench.request(deadline_ms=5.0), bench.request(deadline_ms=50.0)
    bench.now_s += 0.005
    turn, _ = bench.turn(late, fine)
    assert turn.requests == [late]
    turn, _ = bench.turn(late, fine, drop_late=True)
    assert turn.requests == [fine]
    ((failed, error),) = turn.failed
    assert failed is late and "deadline of 5 ms passed" in str(error)


def test_a_request_nobody_can_answer_fails_alone(bench, helpers):
    bench.use(helpers.point("s25"))
    for subnet in ("s75", "s100"):
        key = next(key for key in bench.pool.keys if key.subnet == subnet)
        bench.guard.quarantine(key, RuntimeError("broken"))
    fussy, plain = bench.request(floor=0.86), bench.request()
    turn, _ = bench.turn(fussy, plain)
    assert turn.requests == [plain]
    assert [(one, type(error)) for one, error in turn.failed] == [(fussy, EngineError)]
    assert not isinstance(turn.failed[0][1], InputError)
