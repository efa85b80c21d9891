"""The SVG elements charts are made of: lines, markers, bands, bars and marks. Knows nothing of legends and frames."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from calibration.axes import Axis

_LINE_POINTS_PER_PX = 4  # longer lines are thinned to each pixel's extremes
Spot = tuple[float, float]


class Canvas(NamedTuple):
    """The plotting area: where values lie on it, in pixels from its upper left corner."""

    x: Axis
    y: Axis
    width: int
    height: int

    def spot(self, x: float, y: float) -> Spot | None:
        """Pixels of a point, or None when it cannot be shown."""
        across, up = self.x.place(x), self.y.place(y)
        if across is None or up is None:
            return None
        # Far outside would overflow some renderers' coordinates; the area clips it anyway.
        return self.width * min(9.0, max(-9.0, across)), self.height * min(9.0, max(-9.0, 1 - up))


def line(canvas: Canvas, points: Sequence[Spot], colour: int, dash: bool) -> str:
    """A path through the points, broken where one cannot be shown."""
    style = f'class="gs-line gs-c{colour}"' + (' stroke-dasharray="5 4"' if dash else "")
    runs = _runs([canvas.spot(x, y) for x, y in points])
    return "".join(f'<path {style} d="{_path(_thinned(run, canvas.width))}"/>' for run in runs)


def _runs(spots: Iterable[Spot | None]) -> list[list[Spot]]:
    """Stretches without a gap."""
    runs: list[list[Spot]] = [[]]
    for spot in spots:
        if spot is not None:
            runs[-1].append(spot)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thinned(run: list[Spot], width: int) -> list[Spot]:
    """First, lowest, highest and last spot of each pixel column: looks the same, and stays small."""
    if len(run) <= _LINE_POINTS_PER_PX * width:
        return run
    kept: list[Spot] = []
    column: list[Spot] = []
    for spot in [*run, (math.inf, 0.0)]:
        if column and (math.isinf(spot[0]) or int(spot[0]) != int(column[0][0])):
            picks = {0, len(column) - 1}
            picks.add(min(range(len(column)), key=lambda k: column[k][1]))
            picks.add(max(range(len(column)), key=lambda k: column[k][1]))
            kept += [column[k] for k in sorted(picks)]
            column = []
        column.append(spot)
    return kept


def _path(run: Sequence[Spot]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run)


def markers(canvas: Canvas, marks: Sequence[tuple[float, float, str]], colour: int) -> str:
    """Points of one series: (x, y, tooltip)."""
    parts = []
    for x, y, text in marks:
        if (spot := canvas.spot(x, y)) is not None:
            title = f"<title>{html.escape(text)}</title>" if text else ""
            parts.append(marker(spot[0], spot[1], colour, title))
    return "".join(parts)


def marker(x: float, y: float, colour: int, title: str = "") -> str:
    """A circle, square, diamond or triangle: series differ in shape too, for eyes and printers without colour."""
    style = f'class="gs-point gs-f{colour}"'
    if colour % 4 == 0:
        return f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="4.4">{title}</circle>'
    outline = (
        "",
        f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8Z",
        f"M{x:.1f} {y - 5.4:.1f}l5.4 5.4l-5.4 5.4l-5.4 -5.4Z",
        f"M{x:.1f} {y - 5.2:.1f}l5 8.8h-10Z",
    )[colour % 4]
    return f'<path {style} d="{outline}">{title}</path>'


def names(canvas: Canvas, spots: Sequence[tuple[float, float, str]]) -> str:
    """Texts above and to the left of points, or to the right where the drawing would cut them off: (x, y, text)."""
    parts = []
    for x, y, text in spots:
        if (spot := canvas.spot(x, y)) is None:
            continue
        outside = spot[0] < 12 + 7 * len(text)
        side = f'x="{spot[0] + 8:.1f}"' if outside else f'x="{spot[0] - 8:.1f}" text-anchor="end"'
        parts.append(f'<text class="gs-name" {side} y="{max(10.0, spot[1] - 7):.1f}">{html.escape(text)}</text>')
    return "".join(parts)


def band(canvas: Canvas, edges: Sequence[tuple[float, float, float]], colour: int) -> str:
    """The area between (x, low) and (x, high)."""
    pairs = [(canvas.spot(x, low), canvas.spot(x, high)) for x, low, high in edges]
    parts: list[str] = []
    lower: list[Spot] = []
    upper: list[Spot] = []
    for low, high in [*pairs, (None, None)]:
        if low is not None and high is not None:
            lower.append(low)
            upper.append(high)
        elif lower:
            outline = _thinned(lower, canvas.width) + _thinned(upper, canvas.width)[::-1]
            parts.append(f'<path class="gs-band gs-f{colour}" d="{_path(outline)}Z"/>')
            lower, upper = [], []
    return "".join(parts)


def bars(canvas: Canvas, ends: Sequence[tuple[Spot, Spot]], horizontal: bool) -> str:
    """Intervals with end caps."""
    parts = []
    for low, high in ends:
        a, b = canvas.spot(*low), canvas.spot(*high)
        if a is None or b is None:
            continue
        cap = "m0 -3.5v7" if horizontal else "m-3.5 0h7"
        parts.append(
            f'<path class="gs-bar" d="M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}{cap}M{a[0]:.1f} {a[1]:.1f}{cap}"/>'
        )
    return "".join(parts)


def mark(canvas: Canvas, x: float, text: str) -> str:
    """A vertical line with a tooltip and a wide area to point at."""
    share = canvas.x.place(x)
    if share is None:
        return ""
    where = f'x1="{canvas.width * share:.1f}" x2="{canvas.width * share:.1f}" y1="0" y2="{canvas.height}"'
    title = f"<title>{html.escape(text)}</title>"
    return f'<g>{title}<line class="gs-mark" {where}/><line class="gs-hit" {where}/></g>'
