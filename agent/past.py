"""A decision of the past, found in the journal's files: what was decided at a time, under which conditions and goals.

Reads one file of the journal, whichever covers that time, compressed or not. Knows nothing of the running agent.
"""

from __future__ import annotations

import gzip
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from agent import events as happened
from agent.journal import BatchLine, DecisionLine, EventLine, Meta, SwitchLine
from agent.values import Explanation
from policies.base import Goals
from subnets.errors import InputError

_SHORTLY_S = 60.0  # events so long before are told too
_MOST_EVENTS = 8
_PATIENCE = 3.0  # a decision counts for so many control periods
_LEAST_PATIENCE_S = 5.0
_Line = BatchLine | DecisionLine | EventLine | Meta | SwitchLine


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided at a time.

    Attributes:
        explanation: the decision; its ``faults`` are those of the events shortly before.
        goals: that were to be kept, on the clock of its conditions.
        points: operating points that could be chosen.
        bundle_key: of the table.
        file: where it stands.
        events: (Unix time, words) of what happened shortly before.
    """

    explanation: Explanation
    goals: Goals
    points: tuple[str, ...]
    bundle_key: str
    file: str
    events: tuple[tuple[float, str], ...]


def find(folder: Path, unix_s: float) -> Past:
    """The decision that held at a time.

    Raises:
        InputError: there is no journal, or it does not cover that time; says what it covers.
    """
    files = [*sorted(folder.glob("journal-*.jsonl.gz"), key=_age), folder / "journal.jsonl"]
    starts = [(start, file) for file in files if (start := _first_s(file)) is not None]
    if not starts:
        raise InputError(f"{folder}: holds no journal; give its folder with --journal")
    before = [file for start, file in starts if start <= unix_s]
    if not before:
        raise InputError(f"{folder}: the journal begins at {_when(starts[0][0])}, it does not cover {_when(unix_s)}")
    found = _search(before[-1], unix_s)
    if found is None and len(before) > 1:  # between the end of one file and the first decision of the next
        found = _search(before[-2], unix_s)
    if found is None:
        raise InputError(f"{before[-1]}: holds no decision before {_when(unix_s)}")
    if isinstance(found, float):
        raise InputError(
            f"{folder}: nothing was decided at {_when(unix_s)}; the last decision before it is of {_when(found)}"
        )
    return found


def _age(file: Path) -> tuple[str, str]:
    number, _, stamp = file.name.removeprefix("journal-").partition("-")
    return number, stamp


def _first_s(file: Path) -> float | None:
    """When a file begins; None where it is missing or empty."""
    for line in _lines(file):
        return line.t_unix_ns / 1e9
    return None


def _search(file: Path, unix_s: float) -> Past | float | None:
    """The decision at a time; the time of the last one where that is too long before; None where there is none."""
    meta: Meta | None = None
    run: list[DecisionLine] = []  # equal decisions in a row: the first and the last two
    ticks = 0
    events: deque[tuple[float, str, bool]] = deque(maxlen=_MOST_EVENTS)
    for line in _lines(file):
        if line.t_unix_ns / 1e9 > unix_s:
            break
        if isinstance(line, Meta):
            meta = line
        elif isinstance(line, EventLine):
            words = happened.words(line.name, line.detail)
            events.append((line.t_unix_ns / 1e9, words, happened.is_fault(line.name)))
        elif isinstance(line, SwitchLine):
            detail = {"from": line.from_, "to": line.to, "reason": line.reason}
            events.append((line.t_unix_ns / 1e9, happened.words("switch", detail), False))
        elif isinstance(line, DecisionLine):
            if run and _gist(run[-1]) == _gist(line):
                run, ticks = [run[0], *run[1:][-1:], line], ticks + 1
            else:
                run, ticks = [line], 1
    if not run or meta is None:
        return None
    last_s = run[-1].t_unix_ns / 1e9
    period_s = (run[-1].t_unix_ns - run[-2].t_unix_ns) / 1e9 if len(run) > 1 else 0.0
    if unix_s - last_s > max(_LEAST_PATIENCE_S, _PATIENCE * period_s):
        return last_s
    recent = [event for event in events if event[0] >= unix_s - _SHORTLY_S]
    return Past(
        explanation=_explanation(run, ticks, tuple(words for _, words, fault in recent if fault)),
        goals=msgspec.convert(meta.goals, Goals),
        points=meta.points,
        bundle_key=meta.bundle_key,
        file=str(file),
        events=tuple((when, words) for when, words, _ in recent),
    )


def _explanation(run: list[DecisionLine], ticks: int, faults: tuple[str, ...]) -> Explanation:
    line = run[-1]
    return Explanation(
        since_unix_s=run[0].t_unix_ns / 1e9,
        until_unix_s=line.t_unix_ns / 1e9,
        ticks=ticks,
        decided=line.point,
        applied=line.applied or line.point,
        reason=line.reason,
        bound=line.bound,
        applied_why=line.applied_why,
        applied_bound=line.applied_bound,
        conditions=line.conditions,
        faults=faults,
    )


def _gist(line: DecisionLine) -> tuple[str, str, str, str]:
    return line.point, line.applied, line.bound, line.applied_bound


def _lines(file: Path) -> Iterator[_Line]:
    """The lines that can be read, in order; a torn one is passed over."""
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Line)
    try:
        with _opened(file) as content:
            for line in content:
                try:
                    yield decoder.decode(line)
                except msgspec.MsgspecError:
                    continue
    except (EOFError, zlib.error):  # the end of a damaged file
        return
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}); are you the agent's user?") from None


def _opened(file: Path) -> BinaryIO:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _when(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
