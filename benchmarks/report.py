"""Writes ``docs/benchmarks.md`` from the recorded results, so that no figure there is typed by hand.

Every JSON document under ``benchmarks/results/`` that says ``what`` it is gets a section: what was measured, with which
command, where and at which commit, what was asked and whether it was shown, and its figures as tables. How a document
looks follows from its form alone, so a new benchmark needs nothing here:

* a list of objects is a table, an object of objects too; an object of plain values is one line;
* ``x``, ``x_low`` and ``x_high`` (with the unit last: ``x_us``, ``x_low_us``) are one column with its interval;
* ``shown`` is the verdict, one for all or one by name; ``not_measured`` names what this machine could not show.

    python -m benchmarks.report
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_ORIGIN = {"what", "command", "versions", "host", "created", "commit", "bundle", "bundle_key"}
_VERDICT = {"shown", "not_measured"}
_MOST_COLUMNS, _MOST_ROWS, _DEEPEST = 12, 40, 4
_HEAD = """# Benchmarks

Written by `python -m benchmarks.report` from the records under `benchmarks/results/`; do not edit. Each section says
what was measured, by which command, on which machine and commit. Brackets hold 95 % intervals. Where something was
asked, it says whether it was shown; what missed is here as well.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page and prints where it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args(arguments)
    options.out.write_text(page(options.results), encoding="utf-8")
    print(options.out)


def page(folder: Path) -> str:
    """The page of all documents in a folder."""
    documents = {}
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("what"), str):
            documents[file.stem] = found
    contents = [f"* [{name}](#{name}): {_verdict_in_short(one)}" for name, one in documents.items()]
    sections = [section(name, one) for name, one in documents.items()]
    return "\n".join([_HEAD, *contents, "", *sections]).rstrip() + "\n"


def section(name: str, document: Mapping[str, Any]) -> str:
    """One document as Markdown."""
    lines = [f"## {name}", "", f"{_sentence(document['what'])}", ""]
    lines += [*_verdict(document), *_origin(document)]
    rest = {key: value for key, value in document.items() if key not in _ORIGIN | _VERDICT}
    lines += _object(rest, 3)
    return "\n".join(lines).rstrip() + "\n"


def _verdict(document: Mapping[str, Any]) -> list[str]:
    shown = document.get("shown")
    lines = []
    if isinstance(shown, bool):
        lines.append("**Shown.**" if shown else "**Not shown.**")
    elif isinstance(shown, dict):
        lines += [f"* {key}: **{'shown' if value else 'not shown'}**" for key, value in shown.items()]
    lines += [f"* {key}: {reason}" for key, reason in (document.get("not_measured") or {}).items()]
    return [*lines, ""] if lines else []


def _verdict_in_short(document: Mapping[str, Any]) -> str:
    shown = document.get("shown")
    verdicts = shown if isinstance(shown, dict) else {"": shown} if isinstance(shown, bool) else {}
    words = [f"{key} {'shown' if value else 'not shown'}".strip() for key, value in verdicts.items()]
    words += [f"{key} not measured" for key in document.get("not_measured") or {}]
    return ", ".join(words) or "recorded"


def _origin(document: Mapping[str, Any]) -> list[str]:
    host = document.get("host") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (document.get("versions") or {}).items())
    where = f"{host['cpu']}, {host['cores']} cores" if "cpu" in host else ""
    if host.get("accelerator"):
        where += f", {host['accelerator']}"
    commit = f"commit {document['commit']}" if "commit" in document else ""
    bundle = f"bundle {document['bundle']}" if "bundle" in document else ""
    parts = [where, host.get("system", ""), versions, bundle, commit, document.get("created", "")]
    lines = [f"    {document['command']}", ""] if "command" in document else []
    return [*lines, ", ".join(part for part in parts if part) + ".", ""]


def _object(value: Mapping[str, Any], level: int) -> list[str]:
    """Plain values on one line, then everything else under headings."""
    plain = _columns([{key: one for key, one in value.items() if _is_plain(one)}])
    lines = [f"{'; '.join(f'{_words(name)}: {_cell(value, name)}' for name in plain)}.", ""] if plain else []
    for key, one in value.items():
        if _is_plain(one) or level > _DEEPEST:
            continue
        body = _nested(one, level)
        if body:
            lines += [f"{'#' * level} {_words(key)}", "", *body]
    return lines


def _nested(value: Any, level: int) -> list[str]:
    if isinstance(value, dict):
        if value and all(isinstance(one, dict) and any(map(_is_plain, one.values())) for one in value.values()):
            if all(map(_is_plain, (leaf for one in value.values() for leaf in one.values()))):
                return _table([{"": name, **one} for name, one in value.items()])
            return [line for name, one in value.items() for line in _titled(str(name), one, level)]
        return _object(value, level + 1)
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        lines = _table(value)
        for one in value:  # what does not fit into a row
            deeper = {key: inner for key, inner in one.items() if _is_rows(inner)}
            if deeper:
                title = ", ".join(str(leaf) for leaf in one.values() if isinstance(leaf, str)) or _first(one)
                lines += [
                    line for key, rows in deeper.items() for line in _titled(f"{title}: {_words(key)}", rows, level)
                ]
        return lines
    return []


def _titled(title: str, value: Any, level: int) -> list[str]:
    body = _object(value, level + 2) if isinstance(value, dict) else _nested(value, level + 1)
    return [f"{'#' * (level + 1)} {title}", "", *body] if body and level < _DEEPEST else []


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = _columns(rows)[:_MOST_COLUMNS]
    if not names:
        return []
    lines = ["| " + " | ".join(_words(name) for name in names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    lines += ["| " + " | ".join(_cell(row, name) for name in names) + " |" for row in rows[:_MOST_ROWS]]
    more = [f"{len(rows) - _MOST_ROWS} more in the record."] if len(rows) > _MOST_ROWS else []
    return [*lines, "", *([*more, ""] if more else [])]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The plain columns of rows, without the bounds that stand beside their values."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_plain(value))
    bounds = {bound for name in names for bound in _bounds(name) if bound in names}
    return [name for name in names if name not in bounds]


def _bounds(name: str) -> Iterator[str]:
    """``x_low_us`` and ``x_high_us`` for ``x_us``; ``x_low`` and ``x_high`` for ``x``."""
    stem, _, unit = name.rpartition("_")
    for end in ("low", "high"):
        yield f"{name}_{end}"
        if stem:
            yield f"{stem}_{end}_{unit}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    text = _plain(row.get(name))
    known = [row[bound] for bound in _bounds(name) if isinstance(row.get(bound), int | float)]
    return f"{text} ({_plain(known[0])} to {_plain(known[1])})" if len(known) == 2 else text


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, list):
        return " x ".join(_plain(one) for one in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):  # a shape or a pair; longer lists are samples
        return 0 < len(value) <= 4 and all(isinstance(one, int | float | type(None)) for one in value)
    return value is None or isinstance(value, str | int | float)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _first(row: Mapping[str, Any]) -> str:
    name = next(iter(_columns([row])), "")
    return f"{_words(name)} {_cell(row, name)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


if __name__ == "__main__":
    main()
