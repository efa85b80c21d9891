import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.table import Duty, Switch
from policies.base import Goals, SlackStep
from policies.composite import Composite
from simulation import kernel
from simulation.battery import Battery
from simulation.compiled import CompiledTable
from simulation.plant import Plant, Thermal, Throttle
from simulation.replay import simulate
from simulation.server import Server
from simulation.trace import Trace, load_all
from subnets.errors import UnavailableError

UNCHANGED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For fixtures that no example changes."""


def _duty(extra_ms, settle_ms, extra_j):
    return Duty(
        rests_ms=(settle_ms,),
        latency_ms=(1.0,),
        settle_ms=settle_ms,
        extra_ms=extra_ms,
        extra_low_ms=extra_ms,
        extra_high_ms=extra_ms,
        rounds=4,
        samples=40,
        extra_net_energy_j=extra_j,
    )


@pytest.fixture
def batches(make_table, row):
    """Two subnets at batch sizes 1 and 4, service times that vary, costs of switching and, for one row, of rests."""
    rows = (
        row("s50", 10.0, 0.8, 0.1, latency_p99_ms=16.0, duty=_duty(6.0, 15.0, 0.03)),
        row("s100", 25.0, 0.9, 0.4, latency_p99_ms=33.0),
        row("s50", 22.0, 0.8, 0.06, latency_p99_ms=30.0, batch_size=4),
        row("s100", 60.0, 0.9, 0.3, latency_p99_ms=80.0, batch_size=4),
    )
    switches = tuple(
        Switch(from_point=a.point, to_point=b.point, first_ms=30.0, extra_ms=2.0 + k)
        for k, a in enumerate(rows)
        for b in rows
        if a is not b
    )
    return make_table(*rows, switches=switches)


def _expected(table, arrivals, draws, deadlines, limit, oldest, drop_late, point):
    """One engine, earliest deadline first, written down plainly: the latency of each request, None = dropped."""
    found, free, last = [None] * len(arrivals), 0.0, None
    waiting, coming = [], list(range(len(arrivals)))
    while waiting or coming:
        start = free if waiting else max(free, arrivals[coming[0]])
        while coming and arrivals[coming[0]] <= start:
            waiting.sort(key=lambda r: (arrivals[r] + deadlines[r], r))
            if len(waiting) < limit or oldest:
                waiting = [*waiting[len(waiting) == limit :], coming[0]]
            coming.pop(0)
        waiting.sort(key=lambda r: (arrivals[r] + deadlines[r], r))
        if drop_late and arrivals[waiting[0]] + deadlines[waiting[0]] - start <= 0.0:
            waiting.pop(0)
            continue
        fitting = [
            k
            for k in range(len(table.points))
            if table.subnets[k] == table.subnets[point] and len(waiting) <= table.batch[k] < table.batch[point]
        ]
        used = min(fitting, key=lambda k: table.batch[k]) if fitting else point
        median = table.median_s[used]
        if table.points[used] == "s50@toy:f32:b1":
            median += 0.006 * (1.0 - math.exp(-(start - free) / 0.015))
        service = median * math.exp(table.sigma[used] * draws[waiting[0]])
        if last not in (None, used):
            service += table.switch_s[last][used]
        last, free = used, start + service
        for request in waiting[: table.batch[used]]:
            found[request] = free - arrivals[request]
        waiting = waiting[table.batch[used] :]
    return found


requests = st.lists(
    st.tuples(st.floats(0.0, 0.05), st.floats(-2.0, 2.0), st.sampled_from([0.01, 0.05, 0.2, math.inf])),
    min_size=1,
    max_size=60,
)


@UNCHANGED
@given(requests, st.integers(1, 12), st.booleans(), st.booleans(), st.integers(0, 3))
def test_every_answer_comes_when_a_slow_and_plain_simulation_says(batches, drawn, limit, oldest, drop_late, point):
    gaps, draws, deadlines = map(list, zip(*drawn, strict=True))
    table, arrivals = CompiledTable(batches), np.cumsum(gaps).tolist()
    expected = _expected(table, arrivals, draws, deadlines, limit, oldest, drop_late, point)
    server = Server(
        table,
        arrivals,
        draws,
        deadlines_s=np.array(deadlines),
        queue_limit=limit,
        drop_oldest=oldest,
        drop_late=drop_late,
    )
    server.use(point)
    edges = [*np.linspace(0.0, arrivals[-1] + 0.01, 7).tolist(), math.inf]
    for begin, end in itertools.pairwise(edges):
        server.advance(begin, end)
    answered = [latency for latency in expected if latency is not None]
    assert sorted(server.latencies_s) == pytest.approx(sorted(answered))
    assert server.answered + server.dropped_queue + server.dropped_late == len(arrivals)
    on_time = sum(
        latency is not None and latency <= deadline for latency, deadline in zip(expected, deadlines, strict=True)
    )
    assert server.on_time == on_time


def test_the_earliest_deadline_goes_first(table):
    server = Server(CompiledTable(table), [0.0, 0.01, 0.02], [0.0] * 3, deadlines_s=np.array([1.0, 0.9, 0.2]))
    server.advance(0.0, math.inf)
    assert server.latencies_s.tolist() == pytest.approx([0.1, 0.18, 0.29])  # 1st, then the 3rd, then the 2nd


def test_a_camera_keeps_the_newest_frame(table):
    options = {"queue_limit": 1, "deadlines_s": 10.0}
    oldest = Server(CompiledTable(table), [0.0, 0.01, 0.02, 0.03], [0.0] * 4, drop_oldest=True, **options)
    newest = Server(CompiledTable(table), [0.0, 0.01, 0.02, 0.03], [0.0] * 4, **options)
    for server in (oldest, newest):
        server.advance(0.0, math.inf)
        assert (server.answered, server.dropped_queue) == (2, 2)
    assert oldest.latencies_s.tolist() == pytest.approx([0.1, 0.17])
    assert newest.latencies_s.tolist() == pytest.approx([0.1, 0.19])


def test_a_batch_that_would_not_fill_runs_on_the_smaller_engine(batches):
    table = CompiledTable(batches)
    server = Server(table, [0.0, 0.001, 0.002, 1.0], [0.0] * 4)
    server.use(table.place("s50@toy:f32:b4"))
    server.advance(0.0, math.inf)
    assert [table.points[k] for k in server.used] == ["s50@toy:f32:b1", "s50@toy:f32:b4"]
    # first and last alone, the two between as a batch; the last after a rest so long that it costs all it can
    assert server.drawn_j == pytest.approx(2 * 0.1 + 4 * 0.06 + 0.03)


def test_an_engine_that_rested_is_slower_and_dearer_and_that_is_no_slowdown(make_table, row):
    table = CompiledTable(make_table(row("s50", 100.0, 0.8, 0.1, duty=_duty(50.0, 200.0, 0.04))))
    server = Server(table, [0.2, 1.0, 1.01], [0.0] * 3)
    joules = server.advance(0.0, 5.0)
    first, second = (1.0 - math.exp(-rest / 0.2) for rest in (0.2, 1.0 - server.latencies_s[0] - 0.2))
    assert server.latencies_s[0] == pytest.approx(0.1 + 0.05 * first)
    assert server.latencies_s[1] == pytest.approx(0.1 + 0.05 * second)
    assert server.latencies_s[2] == pytest.approx(server.latencies_s[1] + 0.1 - 0.01)  # back to back again
    assert server.drawn_j == pytest.approx(0.3 + 0.04 * (first + second)) == pytest.approx(joules)
    assert server.figures.slowdown(5.0) == pytest.approx(1.0)


def _state(server):
    figures = [server.figures.slowdown(now) for now in (1.0, 5.0)] + [
        server.figures.miss_rate(now) for now in (1.0, 5.0)
    ]
    counts = (server.arrived, server.answered, server.on_time, server.dropped_queue, server.dropped_late)
    return server.latencies_s.tolist(), figures, counts, server.slack_choices, server.waiting, server.used


@pytest.fixture(scope="module")
def numba():
    return pytest.importorskip("numba")


@UNCHANGED
@given(
    requests,
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0.5, 3.0)), min_size=2, max_size=6),
)
def test_machine_code_and_plain_python_agree_to_the_last_bit(
    numba, batches, drawn, limit, oldest, drop_late, each, decided
):
    gaps, draws, deadlines = map(list, zip(*drawn, strict=True))
    table, arrivals = CompiledTable(batches), np.cumsum(gaps)
    plan = tuple(SlackStep(10.0 * k, point) for k, point in enumerate(table.points))
    edges = [*np.linspace(0.0, arrivals[-1], len(decided)).tolist(), math.inf]
    runs = []
    for compiled in (False, True):
        server = Server(
            table,
            arrivals,
            np.array(draws),
            deadlines_s=np.array(deadlines) if each else deadlines[0],
            queue_limit=limit,
            drop_oldest=oldest,
            drop_late=drop_late,
            compiled=compiled,
        )
        joules = []
        for (point, planned, slowdown), begin, end in zip(decided, edges[:-1], edges[1:], strict=True):
            server.slow_down(slowdown)
            server.use(point, plan if planned else ())
            joules.append(server.advance(begin, end))
        runs.append((_state(server), joules))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_whole_run_is_the_same_compiled_and_plain(numba, batches, seed):
    trace = load_all(
        [f"diurnal:rate=25,hours=0.1,seed={seed}", "heat:hours=0.1,first_s=60,then_s=60", "plug:hours=0.1"]
    )
    plant = Plant(
        thermal=Thermal(resistance_c_per_w=4.0, capacity_j_per_c=10.0, die_resistance_c_per_w=0.5),
        throttle=Throttle(trip_c=60.0),
        battery=Battery.of_energy(4000.0),
    )
    goals = Goals(deadline_ms=120.0, temperature_limit_c=65.0, last_until_s=360.0)
    plain, fast = (
        simulate(batches, trace, Composite(goals), goals, plant, seed=seed, compiled=compiled)
        for compiled in (False, True)
    )
    assert plain == fast
    assert plain.answered > 1000 and plain.switches > 0


def test_without_numba_machine_code_is_refused_and_plain_python_runs(monkeypatch, table):
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    kernel.compiled.cache_clear()
    with pytest.raises(UnavailableError, match=r"gearshift\[simulate\]"):
        Server(CompiledTable(table), [0.0], [0.0], compiled=True)
    server = Server(CompiledTable(table), [0.0], [0.0])
    server.advance(0.0, math.inf)
    assert server.answered == 1


def test_machine_code_runs_where_nothing_can_be_cached(monkeypatch, numba, table):
    real = numba.njit

    def no_place(*arguments, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*arguments, **options)

    monkeypatch.setattr(numba, "njit", no_place)
    kernel.compiled.cache_clear()
    server = Server(CompiledTable(table), [0.0], [0.0], compiled=True)
    server.advance(0.0, math.inf)
    kernel.compiled.cache_clear()
    assert server.latencies_s.tolist() == [0.1]


def test_a_trace_checks_its_deadlines():
    with pytest.raises(ValueError, match="deadlines_s has 1 values for 2 arrivals"):
        Trace(name="x", duration_s=1.0, arrivals_s=np.array([0.1, 0.2]), deadlines_s=np.array([0.1]))
    with pytest.raises(ValueError, match="deadlines_s holds nan at entry 1"):
        Trace(name="x", duration_s=1.0, arrivals_s=np.array([0.1, 0.2]), deadlines_s=np.array([0.1, math.nan]))
