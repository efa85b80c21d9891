"""Self-contained HTML pages and the style sheet of charts, light and dark by the reader's colour scheme.

* :func:`page`, :func:`table_html`: one document that loads nothing from anywhere.
* :func:`style`, :func:`standalone_style`: the style of pages, and of charts saved as files of their own.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

_LIGHT = {
    "ink": "#1d2430",
    "soft": "#5d6675",
    "rule": "#e3e7ed",
    "paper": "#ffffff",
    "s0": "#2468b2",
    "s1": "#d2691e",
    "s2": "#2a8a5b",
    "s3": "#a2408f",
    "s4": "#8a6d00",
    "s5": "#0f8a9d",
    "s6": "#c23b4a",
    "s7": "#6557b8",
}
_DARK = {
    "ink": "#e6e9ef",
    "soft": "#9aa4b5",
    "rule": "#2c3442",
    "paper": "#141922",
    "s0": "#6aa9ec",
    "s1": "#f0995a",
    "s2": "#5fc796",
    "s3": "#dc85cb",
    "s4": "#d3b545",
    "s5": "#57c6d6",
    "s6": "#f08391",
    "s7": "#a99cf0",
}
COLOURS = 8  # series colours above
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"


def _rules(colours: Mapping[str, str]) -> str:
    """The drawing's style; ``colours`` holds literal colours, or references to custom properties."""
    series = "".join(
        f".gs-c{k}{{stroke:{colours[f's{k}']}}}.gs-f{k}{{fill:{colours[f's{k}']}}}" for k in range(COLOURS)
    )
    return (
        f".gs-chart text{{font:11px {_FONT};fill:{colours['soft']}}}"
        f".gs-chart .gs-title{{font-size:13px;font-weight:600;fill:{colours['ink']}}}"
        f".gs-chart .gs-label{{font-size:12px;fill:{colours['ink']}}}"
        f".gs-chart .gs-name{{fill:{colours['ink']};font-weight:600}}"
        f".gs-grid{{stroke:{colours['rule']}}}.gs-axis{{stroke:{colours['soft']}}}.gs-paper{{fill:{colours['paper']}}}"
        f".gs-line{{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}}.gs-band{{opacity:.18}}"
        f".gs-point{{stroke:{colours['paper']};stroke-width:1}}.gs-bar{{stroke:{colours['soft']};fill:none}}"
        f".gs-mark{{stroke:{colours['soft']};stroke-dasharray:2 3}}.gs-hit{{stroke:transparent;stroke-width:9}}{series}"
    )


def standalone_style() -> str:
    """Literal colours: some viewers of .svg files know no custom properties."""
    return f"{_rules(_LIGHT)}@media(prefers-color-scheme:dark){{{_rules(_DARK)}}}"


def style() -> str:
    """The style sheet of :func:`page`, for a page that builds its own frame round charts and tables."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in c.items()) for c in (_LIGHT, _DARK))
    return (
        f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"body{{margin:0 auto;max-width:960px;padding:28px 20px 60px;background:var(--paper);color:var(--ink);"
        f"font:15px/1.55 {_FONT}}}h1{{font-size:25px;margin:0 0 4px}}"
        "h2{font-size:17px;margin:34px 0 8px;padding-top:14px;border-top:1px solid var(--rule)}"
        "h3{font-size:14px;margin:18px 0 4px}p,li{max-width:75ch}.soft{color:var(--soft)}code{font-size:13px}"
        ".scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}"
        "th{color:var(--soft);font-weight:600;text-align:left;border-bottom:1px solid var(--soft)}"
        "th,td{padding:4px 12px 4px 0;white-space:nowrap}td{border-bottom:1px solid var(--rule)}"
        "th.n,td.n{text-align:right}" + _rules({name: f"var(--{name})" for name in _LIGHT})
    )


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole HTML document that loads nothing from anywhere.

    Args:
        title: plain text.
        sections: (heading as plain text, body as HTML) in order; an empty heading adds none.
    """
    body = "".join((f"<h2>{html.escape(heading)}</h2>" if heading else "") + content for heading, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{style()}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def table_html(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; cells are escaped, and columns of numbers (as far as they are known) are aligned to the right."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    numeric = [
        bool(cells) and all(row[k].lstrip("+-±<≥≤ ")[:1].isdigit() or row[k] in ("", "unknown") for row in cells)
        for k in range(len(columns))
    ]

    def line(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if right else ''}>{html.escape(text)}</{tag}>"
            for text, right in zip(texts, numeric, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in cells)
    return (
        f'<div class="scroll"><table><thead><tr>{line("th", columns)}</tr></thead><tbody>{body}</tbody></table></div>'
    )
