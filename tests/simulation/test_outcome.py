import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.base import Goals
from simulation.battery import Battery
from simulation.outcome import Sketch
from simulation.plant import Plant
from simulation.replay import simulate
from simulation.report import cells, clock, columns, html

SMALL, LARGE = "s50@toy:f32:b1", "s100@toy:f32:b1"
latencies = st.lists(st.floats(1e-6, 1e4), max_size=40)


@given(latencies, latencies)
def test_a_merged_sketch_is_the_sketch_of_all_values(a, b):
    assert Sketch.of(np.array(a)).merge(Sketch.of(np.array(b))) == Sketch.of(np.array(a + b))


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_a_quantile_is_within_half_a_percent_of_the_sorted_values(values, share):
    exact = sorted(values)[max(0, math.ceil(share * len(values) - 1e-12) - 1)]
    assert Sketch.of(np.array(values)).quantile_s(share) == pytest.approx(exact, rel=0.0051)


def test_a_quantile_of_nothing_is_unknown():
    assert Sketch().quantile_s(0.5) is None


@pytest.fixture
def runs(table, always, make_trace):
    plant = Plant.for_table(table, Battery.of_energy(7200.0))
    trace = make_trace([0.3 * k for k in range(200)], 120.0)
    return [
        simulate(table, trace, always(point), Goals(deadline_ms=450.0), plant, seed=seed, queue_limit=limit)
        for point, seed, limit in ((SMALL, 1, 5), (LARGE, 2, 5), (LARGE, 3, 50))
    ]


def test_merging_adds_counts_and_is_associative(runs):
    a, b, c = runs
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert left.runs == 3 and left.requests == 600
    assert left.dropped == a.dropped + b.dropped + c.dropped > 0
    assert left.latencies == right.latencies and left.bounds == right.bounds == {"none": 360}
    first, second = left.summary(), right.summary()
    assert first.pop("time_share") == pytest.approx(second.pop("time_share"))
    assert first.keys() == second.keys()
    assert all(
        second[name] == (pytest.approx(first[name]) if isinstance(first[name], float) else first[name])
        for name in first
    )
    assert left.battery_left == min(a.battery_left, b.battery_left, c.battery_left)


def test_the_hungriest_point_used_sets_the_peak_power_also_of_a_merge(runs, table):
    small, large = (row.power_w for row in table.rows)
    assert [run.peak_power_w for run in runs] == [small, large, large]
    assert runs[0].merge(runs[1]).peak_power_w == large


def test_unknown_energy_is_contagious_in_a_merge(runs, make_table, row, always, make_trace):
    blind = make_table(row("s50", 100.0, 0.8, None), idle_power_w=None)
    unknown = simulate(blind, make_trace([0.1], 1.0), always(SMALL), Goals(), Plant())
    merged = runs[0].merge(unknown)
    assert merged.energy_j is None and merged.answered == runs[0].answered + 1


def test_the_summary_keeps_its_documented_names(runs):
    assert {"requests", "on_time", "mean_accuracy", "energy_j", "switches"} <= runs[0].summary().keys()


def test_columns_that_nobody_knows_are_left_out(runs, table, always, make_trace):
    plain = simulate(table, make_trace([0.1], 1.0), always(SMALL), Goals(), Plant())
    assert "battery" not in columns({"a": plain}) and "battery" in columns({"a": plain, "b": runs[0]})
    heads = columns({"a": plain, "b": runs[0]})
    assert dict(zip(heads, cells("a", plain, heads), strict=True))["battery"] == "-"


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.5, "8.5 s"), (200, "3 min 20 s"), (2545, "42 min"), (3900, "1 h 5 min")]
)
def test_durations_read_well(seconds, text):
    assert clock(seconds) == text


def test_the_report_stands_alone_and_escapes_what_it_is_given(table, scripted, make_trace):
    trace = make_trace([0.5 * k for k in range(20)], 10.0)
    plant = Plant.for_table(table, Battery.of_energy(7200.0))
    run = simulate(table, trace, scripted({0.0: SMALL, 5.0: LARGE}), Goals(), plant)
    text = html({"<first>": run}, trace="<b>&", table="t.json", seed=0)
    assert "<first>" not in text and "<b>&<" not in text and "&lt;first&gt;" in text
    assert "http://" not in text.replace("http://www.w3.org/", "") and "https://" not in text and "<script" not in text
    drawings = [part.split("</svg>")[0] for part in text.split("<svg ")[1:]]
    assert len([part for part in drawings if "gs-chart" in part]) == 5  # points, arrivals, heat, battery, power
    assert "5.0 s: s50@toy:f32:b1 to s100@toy:f32:b1: call 6" in text
    start = text.index('<svg class="gs-chart"')
    depth, at = 0, start
    while True:  # the outermost drawing holds a nested one
        opened, closed = text.find("<svg ", at), text.find("</svg>", at)
        if opened != -1 and opened < closed:
            depth, at = depth + 1, opened + 5
        else:
            depth, at = depth - 1, closed + 6
        if depth == 0:
            break
    ET.fromstring(text[start:at])  # well-formed
