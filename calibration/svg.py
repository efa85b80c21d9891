"""Charts as inline SVG, drawn with the standard library alone.

* :class:`Axis`, :class:`Chart`: lines, steps, points, bands, error bars and marks, with legend and ticks.
* :func:`page`, :func:`table_html`: the self-contained HTML document they stand in.

Colours follow the reader's colour scheme. Knows nothing of what is drawn. A value that is not finite (or not above
zero on a logarithmic axis) leaves a gap; it is never drawn as zero.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from calibration import shapes
from calibration.axes import Axis
from calibration.page import COLOURS, page, standalone_style, table_html
from calibration.shapes import Canvas

__all__ = ["Axis", "Chart", "page", "table_html"]

_CHARACTER_PX = 6.3  # mean advance of the 11 px font, for laying out the legend
_LEGEND_ROW_PX = 18
_LONGEST_NAME = 34  # characters of a category before it is cut short


class _Entry(NamedTuple):
    """One series in the legend."""

    offset: float  # pixels from the row's start
    label: str
    colour: int
    kinds: set[str]


class Chart:
    """One set of axes and what is drawn on it, in the order of the calls.

    The same label keeps its colour and stands once in the legend; an empty label stands nowhere.

    Args:
        x: horizontal axis.
        y: vertical axis.
        width: whole width in pixels; the drawing shrinks with the page.
        height: whole height in pixels.
        title: shown above, and read out by screen readers.
    """

    def __init__(self, x: Axis, y: Axis, width: int = 720, height: int = 300, title: str = "") -> None:
        self.x, self.y, self.width, self.height, self.title = x, y, width, height, title
        self._shapes: list[Callable[[Canvas], str]] = []
        self._series: dict[str, set[str]] = {}  # label -> what its legend shows; the position is the colour
        self._names: list[str] = []

    def line(self, xs: Sequence[float], ys: Sequence[float], label: str, dash: bool = False) -> None:
        """A line through the points, broken where a value is missing."""
        colour = self._colour(label, "dash" if dash else "line")
        points = list(zip(xs, ys, strict=True))
        self._shapes.append(lambda canvas: shapes.line(canvas, points, colour, dash))

    def steps(self, xs: Sequence[float], ys: Sequence[float], label: str) -> None:
        """A value that holds from its x until the next; the last one holds to the axis's end."""
        starts = list(zip(xs, ys, strict=True))
        ends = [*(float(x) for x in xs[1:]), max(self.x.high, float(xs[-1]))] if starts else []
        points = [spot for (x, y), end in zip(starts, ends, strict=True) for spot in ((x, y), (end, y))]
        colour = self._colour(label, "line")
        self._shapes.append(lambda canvas: shapes.line(canvas, points, colour, False))

    def points(
        self, xs: Sequence[float], ys: Sequence[float], label: str, tooltips: Sequence[str] | None = None
    ) -> None:
        """Markers, each with an optional text shown while pointing at it."""
        colour = self._colour(label, "points")
        marks = list(zip(xs, ys, tooltips if tooltips is not None else [""] * len(xs), strict=True))
        self._shapes.append(lambda canvas: shapes.markers(canvas, marks, colour))

    def names(self, xs: Sequence[float], ys: Sequence[float], texts: Sequence[str]) -> None:
        """Short texts beside points, above and to the left of them."""
        spots = list(zip(xs, ys, texts, strict=True))
        self._shapes.append(lambda canvas: shapes.names(canvas, spots))

    def band(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], label: str) -> None:
        """The area between two curves, such as an interval; give it the label of the line it belongs to, or its own."""
        colour = self._colour(label, "band")
        edges = list(zip(xs, lows, highs, strict=True))
        self._shapes.append(lambda canvas: shapes.band(canvas, edges, colour))

    def error_bars(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        lows: Sequence[float],
        highs: Sequence[float],
        horizontal: bool = False,
    ) -> None:
        """Intervals from ``lows`` to ``highs``, in the y direction or in the x direction."""
        if horizontal:
            ends = [((low, y), (high, y)) for y, low, high in zip(ys, lows, highs, strict=True)]
        else:
            ends = [((x, low), (x, high)) for x, low, high in zip(xs, lows, highs, strict=True)]
        self._shapes.append(lambda canvas: shapes.bars(canvas, ends, horizontal))

    def mark(self, x: float, text: str) -> None:
        """A vertical line with a text shown while pointing at it."""
        self._shapes.append(lambda canvas: shapes.mark(canvas, x, text))

    def y_names(self, names: Sequence[str]) -> None:
        """Shows categories at 0, 1, 2 .. on the vertical axis instead of numbers."""
        self._names = list(names)

    def svg(self, standalone: bool = False) -> str:
        """The drawing as an ``<svg>`` element; ``standalone`` makes it a file of its own, with its style inside."""
        legend_top = 26 if self.title else 8
        rows = self._legend_rows()
        top = legend_top + _LEGEND_ROW_PX * len(rows) + 6
        longest = max((min(len(text), _LONGEST_NAME) for _, text in self._y_ticks()), default=1)
        left, right, bottom = round(30 + _CHARACTER_PX * longest), 18, 46
        canvas = Canvas(self.x, self.y, max(40, self.width - left - right), max(40, self.height - top - bottom))
        parts = [self._frame(canvas, left, top)]
        # A nested svg clips to the plotting area without ids, which could collide on a page of several charts.
        parts.append(f'<svg x="{left}" y="{top}" width="{canvas.width}" height="{canvas.height}" overflow="hidden">')
        parts += [shape(canvas) for shape in self._shapes]
        parts.append("</svg>")
        if self.title:
            parts.append(f'<text class="gs-title" x="{left}" y="16">{html.escape(self.title)}</text>')
        parts += [_legend_row(row, left, legend_top + _LEGEND_ROW_PX * k) for k, row in enumerate(rows)]
        label = html.escape(self.title or f"{self.y.label} against {self.x.label}")
        head = f'<svg class="gs-chart" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{label}"'
        if not standalone:
            return f'{head} style="width:100%;max-width:{self.width}px;height:auto">{"".join(parts)}</svg>'
        size = f'xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}"'
        paper = f'<rect class="gs-paper" width="{self.width}" height="{self.height}"/>'
        return f"{head} {size}><style>{standalone_style()}</style>{paper}{''.join(parts)}</svg>\n"

    def _colour(self, label: str, kind: str) -> int:
        self._series.setdefault(label, set()).add(kind)
        return list(self._series).index(label) % COLOURS

    def _y_ticks(self) -> list[tuple[float, str]]:
        if self._names:
            return [(float(place), name) for place, name in enumerate(self._names)]
        return self.y.ticks(max(2, self.height // 48))

    def _legend_rows(self) -> list[list[_Entry]]:
        rows: list[list[_Entry]] = []
        used = math.inf
        for place, (label, kinds) in enumerate(self._series.items()):
            if not label:
                continue
            width = 40 + _CHARACTER_PX * len(label)
            if used + width > self.width - 90:
                rows.append([])
                used = 0.0
            rows[-1].append(_Entry(used, label, place % COLOURS, kinds))
            used += width
        return rows

    def _frame(self, canvas: Canvas, left: int, top: int) -> str:
        parts = []
        right, bottom, middle = left + canvas.width, top + canvas.height, top + canvas.height / 2
        for value, text in self._y_ticks():
            share = self.y.place(value)
            if share is None or not -1e-6 <= share <= 1 + 1e-6:
                continue
            y = bottom - canvas.height * share
            shown = html.escape(text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…")
            parts.append(f'<line class="gs-grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="gs-tick" x="{left - 7}" y="{y + 3.7:.1f}" text-anchor="end">{shown}</text>')
        for value, text in self.x.ticks(max(2, canvas.width // 80)):
            x = left + canvas.width * (self.x.place(value) or 0.0)
            parts.append(f'<line class="gs-axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text class="gs-tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
        parts.append(f'<line class="gs-axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(
            f'<text class="gs-label" x="{(left + right) / 2:.1f}" y="{bottom + 36}" text-anchor="middle">'
            f"{html.escape(self.x.label)}</text>"
            f'<text class="gs-label" x="13" y="{middle:.1f}" text-anchor="middle" '
            f'transform="rotate(-90 13 {middle:.1f})">{html.escape(self.y.label)}</text>'
        )
        return "".join(parts)


def _legend_row(row: Sequence[_Entry], left: int, top: float) -> str:
    parts = []
    for entry in row:
        x, y = left + entry.offset, top + 8
        if "band" in entry.kinds:
            parts.append(f'<rect class="gs-band gs-f{entry.colour}" x="{x:.1f}" y="{y - 5}" width="18" height="10"/>')
        if entry.kinds & {"line", "dash"}:
            dash = "" if "line" in entry.kinds else ' stroke-dasharray="5 4"'
            parts.append(f'<path class="gs-line gs-c{entry.colour}" d="M{x:.1f} {y}h18"{dash}/>')
        if "points" in entry.kinds:
            parts.append(shapes.marker(x + 9, y, entry.colour))
        parts.append(f'<text class="gs-tick" x="{x + 24:.1f}" y="{y + 4}">{html.escape(entry.label)}</text>')
    return "".join(parts)
