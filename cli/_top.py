"""What ``gearshift top`` shows, as lines of a given width and height: pure, from the view's JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.text import Text

_STEPS = "▁▂▃▄▅▆▇"  # never a full block, or lines would run into each other
_PARTS = " ▏▎▍▌▋▊▉"
_LEFT = 34  # columns of the picture beside the switches


def screen(view: dict[str, Any], width: int, height: int, notice: str = "") -> list[Text]:
    """At most ``height`` lines, none wider than ``width``.

    Args:
        view: as ``GET /gearshift/view`` gives it.
        width: columns.
        height: lines; from 24 on everything is there, with more there is more of it.
        notice: shown first, e.g. that the agent does not answer.
    """
    apart = [Text()] if height >= 28 else []
    lines = [*_head(view, width, notice), Text(), *_bars(view, width), *apart, *_sparks(view, width), Text()]
    tail = _tail(view, width, room=height - len(lines))
    block = height - len(lines) - len(tail)
    if block >= 5:
        lines += [*_beside(view, width, min(block, 16) - 1), Text()]
    return [_cut(line, width) for line in [*lines, *tail][:height]]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def _head(view: dict[str, Any], width: int, notice: str) -> list[Text]:
    status = view["status"]
    lines = [Text(notice, "black on yellow")] if notice else []
    state = status["state"]
    first = Text.assemble(
        (status["bundle"], "bold"),
        "  ",
        (state, "green" if state == "running" else "red" if state == "degraded" else "yellow"),
        ("  dry run" if status["dry_run"] else "", "yellow"),
        (f"  policy {status['policy']}, up {_span(status['uptime_s'])}", "dim"),
    )
    seen = time.strftime("%H:%M:%S", time.localtime(view["unix_s"]))
    first.truncate(max(0, width - len(seen) - 1), overflow="ellipsis", pad=True)
    lines.append(first + Text(" " + seen, "dim"))
    accuracy = status["expected_accuracy"]
    about = "" if accuracy is None else f"  {100 * accuracy:.2f} % expected accuracy"
    lines.append(Text.assemble((status["subnet"] or "no engine", "bold cyan"), about, (f"  {status['point']}", "dim")))
    why = Text.assemble(("why ", "dim"), status["reason"], (f"  (bound: {status['bound']})", "dim"))
    lines += _wrapped(why, width, 2)
    if status["hold"]:
        hold = status["hold"]
        left = f"held at {hold['subnet']} for {_span(hold['remaining_s'])} more: {hold['reason']}"
        lines.append(Text(left, "yellow"))
    return lines


def _wrapped(text: Text, width: int, most: int) -> list[Text]:
    """At most so many lines; the last one ends in an ellipsis where something is missing."""
    from rich.console import Console

    parts = list(text.wrap(Console(width=width), width))
    if len(parts) > most:
        rest = Text(" ").join(parts[most - 1 :])
        parts = [*parts[: most - 1], rest]
    return parts


def _bars(view: dict[str, Any], width: int) -> list[Text]:
    """The headrooms, all on one scale: a full bar is far from the limit, an empty one at it."""
    lines = []
    for one in view["headrooms"]:
        level, length = one["headroom"], max(10, min(30, width - 50))
        style = "dim" if level is None else "red" if level <= 0 else "yellow" if level < 0.15 else "green"
        full = "" if level is None else _bar(level, length)
        rest = ("·" if level is None else "░") * (length - len(full))
        bar = Text.assemble((full, style), (rest, "bright_black"))
        lines.append(Text.assemble(f"{one['name']:<9}", bar, " ", (one["says"], "red" if style == "red" else "")))
    return lines


def _bar(level: float, length: int) -> str:
    eighths = round(max(0.0, min(1.0, level)) * length * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_PARTS[rest] if rest else "")


def _sparks(view: dict[str, Any], width: int) -> list[Text]:
    """Latency, load and what else has a history, one line each."""
    latency, status, history = view["latency"], view["status"], view["history"]
    rate = (status["conditions"] or {}).get("arrival_rate_hz")
    tail = f"p{100 * latency['percentile']:g}"
    figures = f"median {_figure(latency['p50_ms'])} {tail} {_figure(latency['tail_ms'])}"
    figures += f" of {latency['deadline_ms']:g} ms" if latency["deadline_ms"] is not None else " ms"
    rows = [
        ("latency", figures, 2, latency["deadline_ms"]),
        ("load", f"{_figure(rate)} images/s, {status['queue_depth']} waiting", 6, None),
        ("power", f"{_figure(_last(history, 3))} W", 3, status["goals"]["max_power_w"]),
        ("heat", f"{_figure(_last(history, 4))} °C", 4, status["goals"]["temperature_limit_c"]),
    ]
    lines = []
    for name, words, column, limit in rows:
        values = [sample[column] for sample in history]
        if column in (3, 4) and not any(value is not None for value in values):
            continue
        line = Text.assemble(f"{name:<9}", f"{words:<36}")
        line.append_text(_spark(values, max(0, width - 46), limit))
        lines.append(line)
    return lines


def _last(history: Sequence[Sequence[Any]], column: int) -> float | None:
    return history[-1][column] if history else None


def _spark(values: Sequence[float | None], length: int, limit: float | None) -> Text:
    """One character a sample, the newest at the right; red from the limit on, blank where nothing is known."""
    shown = list(values)[-length:] if length else []
    known = [value for value in shown if value is not None]
    text = Text(" " * (length - len(shown)))
    if not known:
        return text
    least, high = min(known), max(known)
    low = 2 * least - high if least > high / 2 else min(0.0, least)  # a narrow range shows its shape
    for value in shown:
        if value is None:
            text.append(" ")
            continue
        share = (value - low) / (high - low) if high > low else 0.5 * (high > 0)
        style = "red" if limit is not None and value > limit else "cyan"
        text.append(_STEPS[min(6, int(share * 7))], style)
    return text


def _beside(view: dict[str, Any], width: int, rows: int) -> list[Text]:
    """The calibrated points as a picture, with the last switches beside it where there is room."""
    wide = width >= 76
    left = _pareto(view["points"], _LEFT if wide else width, rows)
    if not wide:
        return left
    right = [Text("last switches", "dim")]
    for switch in view["switches"][: rows - 1]:
        at = time.strftime("%H:%M:%S", time.localtime(switch["unix_s"]))
        origin = f"{switch['origin'].split('@')[0]} → " if switch["origin"] else ""
        right.append(Text.assemble((f"{at} ", "dim"), f"{origin}{switch['to'].split('@')[0]} ", switch["reason"]))
    right += [Text()] * (rows - len(right))
    lines = []
    for one, other in zip(left, right, strict=True):
        one.truncate(_LEFT, pad=True)
        lines.append(one + Text("  ") + other)
    return lines


def _pareto(points: Sequence[dict[str, Any]], width: int, rows: int) -> list[Text]:
    """Accuracy upwards, median latency to the right; the current point stands out, others outside memory are hollow."""
    left, high = 6, rows - 2  # columns of the scale; lines of the picture
    useful = [point for point in points if point["useful"] or point["current"]]
    across = width - left - 6
    title = Text("accuracy % over median latency, ms", "dim")
    times = [point["latency_p50_ms"] for point in useful]
    shares = [100 * point["accuracy"] for point in useful]
    if high < 2 or not useful:
        return [title, *[Text()] * (rows - 1)]
    span_x, span_y = max(times) - min(times) or 1.0, max(shares) - min(shares) or 1.0
    cells: list[list[tuple[str, str]]] = [[(" ", "")] * (width - left) for _ in range(high)]
    for point, time_ms, share in zip(useful, times, shares, strict=True):
        x = round((time_ms - min(times)) / span_x * across)
        y = round((max(shares) - share) / span_y * (high - 1))
        style = "bold cyan" if point["current"] else ""
        mark = "◉" if point["current"] else "●" if point["resident"] else "○"
        name = f"{mark} {point['subnet']}"
        if all(letter == " " for letter, _ in cells[y][x : x + len(name)]):
            cells[y][x : x + len(name)] = [(letter, style) for letter in name]
        else:
            cells[y][x] = (mark, style)
    lines = [title]
    for number, row in enumerate(cells):
        scale = f"{max(shares):5.1f}" if number == 0 else f"{min(shares):5.1f}" if number == high - 1 else " " * 5
        lines.append(Text.assemble((f"{scale} ", "dim"), *row))
    first, last = _figure(min(times)), _figure(max(times))
    lines.append(Text(" " * left + first + last.rjust(max(0, across + 2 - len(first))), "dim"))
    return lines


def _tail(view: dict[str, Any], width: int, room: int) -> list[Text]:
    """Faults, counters and keys."""
    lines = []
    faults = view["faults"][: max(1, min(3, room - 14))]
    for fault in faults:
        at = time.strftime("%H:%M:%S", time.localtime(fault["unix_s"]))
        times = f" ({fault['times']} times)" if fault["times"] > 1 else ""
        lines.append(Text(f"{at} {fault['words']}{times}", "red"))
    counters = view["status"]["counters"]
    always = ("requests", "late", "refused", "failed", "switches")
    told = [f"{name.replace('_', ' ')} {value}" for name, value in counters.items() if value or name in always]
    lines += _wrapped(Text(", ".join(told)), width, 2)
    journal = view["status"]["journal"]
    if journal and journal["stopped"]:
        lines.append(Text(f"journal stopped: {journal['stopped']}", "red"))
    return lines


def _span(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _figure(value: float | None) -> str:
    """Three significant digits, never in powers of ten; a dash where unknown."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
