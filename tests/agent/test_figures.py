"""The agent's own figures."""

import msgspec
import pytest

from agent.figures import LoadFigures
from calibration.table import Duty


def test_an_engine_that_rested_is_slower_and_that_is_no_slowdown(table, helpers):
    duty = Duty(
        rests_ms=(20.0,),
        latency_ms=(5.0,),
        settle_ms=20.0,
        extra_ms=4.0,
        extra_low_ms=4.0,
        extra_high_ms=4.0,
        rounds=4,
        samples=40,
    )
    point = helpers.point("s50")
    rows = [msgspec.structs.replace(row, duty=duty) if row.point == point else row for row in table.rows]
    row = next(row for row in rows if row.point == point)
    aware, unaware = LoadFigures(), LoadFigures()
    aware.retable(msgspec.structs.replace(table, rows=tuple(rows)))
    ended_s = 100.0
    for _ in range(80):
        took_ms = row.latency_ms_after(7.0)
        ended_s += (7.0 + took_ms) / 1000
        for figures in (aware, unaware):
            figures.ran(ended_s, point, 1, took_ms, row.latency_p50_ms)
    assert aware.slowdown(ended_s, point) == pytest.approx(1.0, abs=0.01)
    assert unaware.slowdown(ended_s, point) > 1.05
