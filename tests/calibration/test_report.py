"""Charts, pages and words: escaped, self-contained, never a bare joule."""

import html
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calibration import wording
from calibration.report import report
from calibration.svg import Axis, Chart, page, table_html
from calibration.table import QUANTILES, Duty

NASTY = "<script>alert('&\"')</script>"


def _chart(**arguments):
    return Chart(Axis(0, 10, "time, s"), Axis(0, 100, "charge, %"), **arguments)


def _parsed(chart):
    return ElementTree.fromstring(chart.svg(standalone=True))


def _paths(chart, style):
    return [
        element.get("d")
        for element in _parsed(chart).iter("{http://www.w3.org/2000/svg}path")
        if style in element.get("class", "")
    ]


def _spots(path):
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


class TestAxis:
    @given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), most=st.integers(2, 12))
    @example(low=1.0, span=400001.0, most=2)
    def test_ticks_are_round_within_the_range_and_not_too_many(self, low, span, most):
        ticks = Axis(low, low + span, "").ticks(most)
        values = [value for value, _ in ticks]
        assert 1 <= len(values) <= most + 1
        assert all(low - 1e-6 * span <= value <= low + span + 1e-6 * span for value in values)
        assert len({text for _, text in ticks}) == len(ticks)

    @given(low=st.floats(1e-6, 1e3), factor=st.floats(1.01, 1e8))
    def test_logarithmic_ticks_lie_within_the_range(self, low, factor):
        ticks = Axis(low, low * factor, "", log=True).ticks(7)
        assert 1 <= len(ticks) <= 9
        assert all(low * (1 - 1e-6) <= value <= low * factor * (1 + 1e-6) for value, _ in ticks)

    def test_places_run_from_0_to_1(self):
        assert [Axis(10, 20, "").place(value) for value in (10, 15, 20)] == [0, 0.5, 1]
        assert Axis(1, 100, "", log=True).place(10) == pytest.approx(0.5)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_has_no_place(self, value):
        assert Axis(0, 1, "").place(value) is None

    @pytest.mark.parametrize("value", [0.0, -1.0])
    def test_what_is_not_above_zero_has_no_place_on_a_logarithmic_axis(self, value):
        assert Axis(1, 10, "", log=True).place(value) is None

    @given(st.lists(st.floats(-1e9, 1e9), max_size=5), st.booleans())
    def test_an_axis_around_values_shows_them_all(self, values, zero):
        axis = Axis.around([*values, math.nan], "", zero=zero)
        assert all(-1e-9 <= (axis.place(value) or 0.0) <= 1 + 1e-9 for value in values)

    def test_an_axis_around_nothing_or_a_single_value_can_still_be_drawn(self):
        for axis in (Axis.around([], ""), Axis.around([], "", log=True), Axis.around([3.0], ""), Axis(5, 5, "")):
            assert axis.ticks()


class TestChart:
    def test_texts_are_escaped_wherever_they_stand(self):
        chart = Chart(Axis(0, 1, NASTY), Axis(0, 1, NASTY), title=NASTY)
        chart.line([0, 1], [0, 1], NASTY)
        chart.points([0.5], [0.5], NASTY, [NASTY])
        chart.mark(0.5, NASTY)
        chart.y_names([NASTY])
        assert "<script" not in chart.svg()
        texts = [element.text for element in _parsed(chart).iter() if element.text]
        assert NASTY in texts and html.escape(NASTY) in chart.svg()

    def test_a_line_goes_through_its_points_in_pixels(self):
        chart = _chart()
        chart.line([0, 5, 10], [0, 50, 100], "a")
        (spots,) = [_spots(path) for path in _paths(chart, "gs-line") if "h18" not in path]
        (x0, y0), (x1, y1), (x2, y2) = spots
        assert x0 == 0 and y2 == 0 and x2 > 500 and y0 > 150
        assert (x1, y1) == (pytest.approx(x2 / 2, abs=0.1), pytest.approx(y0 / 2, abs=0.1))

    def test_a_missing_value_breaks_the_line_instead_of_being_drawn_as_zero(self):
        chart = _chart()
        chart.line([0, 1, 2, 3, 4], [10, 20, math.nan, 30, 40], "a")
        drawn = [_spots(path) for path in _paths(chart, "gs-line") if "h18" not in path]
        assert [len(spots) for spots in drawn] == [2, 2]

    def test_a_step_holds_until_the_next_and_the_last_to_the_end(self):
        chart = _chart()
        chart.steps([0, 4], [100, 0], "a")
        (spots,) = [_spots(path) for path in _paths(chart, "gs-line") if "h18" not in path]
        right = spots[-1][0]
        assert [round(x / right, 2) for x, _ in spots] == [0, 0.4, 0.4, 1]
        assert spots[0][1] == spots[1][1] == 0 and spots[2][1] == spots[3][1] > 0

    def test_long_lines_are_thinned_but_keep_their_extremes(self):
        chart = _chart()
        ys = [50.0] * 100_000
        ys[54_321], ys[77_777] = 100.0, 0.0
        chart.line([k / 10_000 for k in range(100_000)], ys, "a")
        (spots,) = [_spots(path) for path in _paths(chart, "gs-line") if "h18" not in path]
        heights = [y for _, y in spots]
        assert len(spots) < 5000
        assert min(heights) == 0 and max(heights) == pytest.approx(2 * heights[0], abs=0.2)

    def test_a_label_keeps_its_colour_and_stands_once_in_the_legend(self):
        chart = _chart()
        chart.band([0, 10], [0, 0], [9, 9], "a")
        chart.line([0, 10], [5, 5], "a")
        chart.line([0, 10], [6, 6], "b")
        texts = [element.text for element in _parsed(chart).iter("{http://www.w3.org/2000/svg}text")]
        assert texts.count("a") == 1 and texts.count("b") == 1
        assert "gs-band gs-f0" in chart.svg() and "gs-line gs-c0" in chart.svg() and "gs-line gs-c1" in chart.svg()

    def test_names_stand_beside_their_points_and_inside_the_drawing(self):
        chart = _chart()
        chart.names([0, 5], [100, 50], ["first", "second"])
        first, second = (
            element
            for element in _parsed(chart).iter("{http://www.w3.org/2000/svg}text")
            if element.get("class") == "gs-name"
        )
        assert (first.text, second.text) == ("first", "second")
        assert float(first.get("x")) > 0 and first.get("text-anchor") is None and float(first.get("y")) > 0
        assert second.get("text-anchor") == "end"

    def test_lists_of_different_lengths_are_refused(self):
        with pytest.raises(ValueError, match="zip"):
            _chart().line([1, 2], [1], "a")

    def test_an_empty_chart_can_be_drawn(self):
        chart = _chart()
        chart.line([], [], "a")
        chart.steps([], [], "b")
        chart.band([], [], [], "c")
        assert _parsed(chart).tag.endswith("svg")


class TestPage:
    def test_a_page_loads_nothing_and_escapes_its_headings(self):
        text = page(NASTY, [(NASTY, "<p>body</p>")])
        assert "<p>body</p>" in text and "<script" not in text
        assert not re.search(r"https?:|//|url\(|@import|src=|href=", text)

    def test_cells_are_escaped_and_numbers_aligned(self):
        text = table_html(["name", "ms"], [(NASTY, 1.5), ("b", None)])
        assert "<script" not in text
        assert text.count("<td class=n>") == 2 and "<th class=n>ms" in text


class TestReport:
    @pytest.fixture
    def table(self, make_table, make_row):
        joules = {
            "energy_j": 0.008,
            "energy_low_j": 0.003,
            "energy_high_j": 0.014,
            "energy_source": "modelled:spec-curve",
        }
        rows = [make_row(**joules), make_row(subnet="s100", accuracy=0.95, accuracy_high=0.97, **joules)]
        return make_table(
            rows, idle_power_w=1.4, idle_power_low_w=0.5, idle_power_high_w=2.9, power_source="modelled:spec-curve"
        )

    def test_it_is_self_contained(self, table):
        assert not re.search(r"https?:|//|url\(|@import|src=|href=|<script", report(table))

    def test_it_shows_every_point_with_interval_and_source(self, table):
        text = html.unescape(report(table))
        assert "s25@openvino:f32:b1" in text and "s100@openvino:f32:b1" in text
        assert "8.00 mJ (3.00 to 14.0)" in text and "1.40 W (0.500 to 2.90), modelled:spec-curve" in text
        assert "a model, not a measurement" in text and "90.0 % (88.0 to 92.0)" in text

    def test_the_front_is_named_and_ends_with_its_last_point(self, make_table, make_row):
        """A point that another one beats in both is drawn, but neither named nor on the line."""
        rows = [
            make_row(latency_p50_ms=2.0, accuracy=0.9),
            make_row(subnet="s50", latency_p50_ms=3.0, latency_p50_high_ms=9.0, accuracy=0.89),
            make_row(subnet="s100", latency_p50_ms=4.0, latency_p50_high_ms=4.2, accuracy=0.95, accuracy_high=0.97),
        ]
        drawn = report(make_table(rows)).partition("<svg class")[2].partition("</svg></svg>")[0]
        assert re.findall(r'class="gs-name"[^>]*>([^<]*)<', drawn) == ["s25", "s100"]
        (front,) = (path for path in re.findall(r'gs-line gs-c0" d="([^"]*)"', drawn) if "h18" not in path)
        spots = _spots(front)
        marks = [_spots(path)[0] for path in re.findall(r'gs-point gs-f1" d="([^"]*)"', drawn)]
        assert spots[0][0] == pytest.approx(marks[0][0] + 4, abs=0.2)  # a square's path begins at its corner
        assert spots[-1][0] == pytest.approx(marks[2][0] + 4, abs=0.2)

    def test_without_energies_it_says_so_and_draws_none(self, make_table):
        text = report(make_table())
        assert "Nothing on this machine tells energy" in text and "mJ" not in text

    def test_it_shows_distributions_rests_differences_and_what_was_left_out(self, make_table, make_row):
        import msgspec

        duty = Duty(
            rests_ms=(4.0, 20.0),
            latency_ms=(2.5, 3.5),
            settle_ms=10.0,
            extra_ms=2.0,
            extra_low_ms=1.5,
            extra_high_ms=2.5,
            rounds=4,
            samples=60,
        )
        shared = {"duty": duty, "quantiles_ms": tuple(1.5 + 0.2 * k for k in range(len(QUANTILES)))}
        rows = [
            make_row(round_p50_ms=(2.0, 2.1, 1.9), discarded={"pressure": 2}, **shared),
            make_row(subnet="s100", macs=4000, round_p50_ms=(4.0, 4.2, 3.8), disturbed=True, **shared),
        ]
        table = make_table(rows)
        protocol = msgspec.structs.replace(table.protocol, discarded_cells={"pressure": 2}, rests_ms=(4.0, 20.0))
        text = html.unescape(report(msgspec.structs.replace(table, protocol=protocol)))
        for heading in ("Latency distributions", "Latency of sparse requests", "Differences", "What was left out"):
            assert f"<h2>{heading}</h2>" in text
        assert "s25@openvino:f32:b1 after a rest of 20 ms" in text and "Pareto front" in text
        assert "2.000" in text and "2 because other work waited for the processor" in text
        assert "disturbed cells stand for them" in text and "4, 20 ms" in text
        assert not re.search(r"https?:|//|url\(|@import|src=|href=|<script", text)

    def test_a_table_of_before_has_a_page_without_what_it_lacks(self, make_table):
        text = report(make_table())
        assert "Latency distributions" not in text and "Differences" not in text
        assert "Nothing: no cell was disturbed." in text

    def test_what_comes_from_the_table_is_escaped(self, make_table, make_row):
        table = make_table([make_row(backend=NASTY)], bundle_name=NASTY)
        assert "<script" not in report(table)


class TestWording:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0.00"),
            (0.1234, "0.123"),
            (1.0, "1.00"),
            (12.345, "12.3"),
            (123.45, "123"),
            (12345.6, "12,346"),
            (2e-5, "2.00e-05"),
        ],
    )
    def test_numbers_have_three_significant_digits(self, value, text):
        assert wording.number(value) == text

    def test_a_wide_interval_is_told_by_its_ends(self, make_row):
        """Half of it would lie: it is symmetric on a logarithmic scale only."""
        assert wording.latency(make_row()) == "2.00 ms ± 5.0 %" and wording.median(make_row()) == "2.00 ±5.0%"
        wide = make_row(latency_p50_low_ms=1.0, latency_p50_high_ms=4.0)
        assert wording.latency(wide) == "2.00 ms (1.00 to 4.00)"
        assert wording.median(wide) == "2.00 (1.00 to 4.00)"

    def test_unknown_energy_is_called_unknown(self, make_row):
        row = make_row()
        assert wording.energy(row) == wording.net_energy(row) == wording.power(row) == "unknown"

    def test_a_reader_is_told_what_weakens_the_figures(self, make_table, make_row):
        import msgspec

        table = make_table([make_row(accuracy_source="bundle: test, n=5, not measured at this precision")])
        assert len(wording.remarks(table)) == 1
        protocol = msgspec.structs.replace(table.protocol, pressure=0.5, stopped="budget")
        remarks = wording.remarks(msgspec.structs.replace(table, protocol=protocol))
        assert any("Other work was running" in remark for remark in remarks)
        assert any("1 of 1 medians are known less well" in remark for remark in remarks)
