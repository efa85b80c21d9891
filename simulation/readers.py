"""Trace files: which format a file is in, told by looking at it, and the reader of each.

=====================  ====================================================  ===================================
format                 recognised by                                         gives
=====================  ====================================================  ===================================
own CSV, arrivals      header ``arrival_s``, perhaps ``deadline_ms``         arrivals, deadlines
own CSV, environment   header ``time_s`` and any of ``ambient_c``,           environment
                       ``harvest_w``, ``slowdown``, ``on_mains``,
                       ``sensors_lost``
own JSON               an object with ``duration_s`` and ``arrivals_s``      all
journal                JSON Lines whose first line has kind ``meta``         arrivals, deadlines, slowdown,
                                                                             on_mains
Azure LLM inference    header with ``TIMESTAMP``                             arrivals
Azure Functions 2021   header with ``end_timestamp`` and ``duration``        arrivals (end - duration)
Azure VM noise         header with ``value`` and ``starttime``               slowdown (median / value)
SURFRAD                second line ``<lat> <lon> <elev> m version <n>``      harvest and ambient
=====================  ====================================================  ===================================

A path may carry options after a colon, ``sun.dat:panel_w=5,speed=24``. Every format takes ``speed`` (the same shape in
less time), ``start_s`` and ``length_s`` (a part of it, in the file's own time). What is wrong is named with its line.
"""

from __future__ import annotations

import difflib
import gzip
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from simulation import fields, recordings
from simulation.trace import ENVIRONMENT, MAX_ARRIVALS, MAX_STEPS, SCHEMA, Trace
from subnets.errors import InputError

MAX_FILE_BYTES = 512 * 2**20
_COMMON: dict[str, float] = {"speed": 1.0, "start_s": 0.0, "length_s": math.inf}
_OPTIONS = re.compile(r"^(?P<path>.+?):(?P<options>[a-z_0-9]+=[^:/]*)$")


class Format(msgspec.Struct, frozen=True):
    """One file format: its options with defaults, and its reader."""

    name: str
    options: Mapping[str, float]
    read: Callable[[Path, Mapping[str, float]], Trace]


def split_spec(spec: str) -> tuple[Path, dict[str, str]]:
    """``path[:key=value,...]`` as the path and its options."""
    found = _OPTIONS.match(spec)
    if not found or Path(spec).exists():
        return Path(spec), {}
    items = (item.partition("=") for item in found["options"].split(",") if item)
    return Path(found["path"]), {key: value for key, _, value in items}


def read(spec: str) -> Trace:
    """The trace in a file, whatever its format.

    Raises:
        InputError: no such file, an unknown format or option, or a damaged line.
    """
    path, given = split_spec(spec)
    if not path.is_file():
        raise InputError(f"{path}: no such trace file; 'gearshift trace make' writes one")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES} bytes; cut it into parts")
    found = recognise(path)
    options = {**_COMMON, **found.options}
    for key, text in given.items():
        if key not in options:
            near = difflib.get_close_matches(key, options, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(options)}"
            raise InputError(f"{path}: {found.name} has no option '{key}'; {hint}")
        options[key] = fields.number(text, f"{path}: option '{key}'")
    trace = found.read(path, options)
    if options["start_s"] or options["length_s"] < math.inf:
        trace = trace.cut(options["start_s"], options["length_s"])
    return trace if options["speed"] == 1.0 else trace.faster(options["speed"])


def recognise(path: Path) -> Format:
    """The format of a file, from its first two lines.

    Raises:
        InputError: it is none that can be read as a trace.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            first, second = (file.readline(4096).decode("utf-8", "replace").strip() for _ in range(2))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give another file") from None
    first = first.removeprefix("\ufeff")
    if not first:
        raise InputError(f"{path}: starts with an empty line or is empty; expected a trace")
    if first.startswith("{"):
        return _JOURNAL if path.name.endswith((".jsonl", ".jsonl.gz")) or '"kind":' in first[:200] else _JSON
    if path.suffix == ".gz":
        raise InputError(f"{path}: only journals are read compressed; unpack it first")
    if re.match(r"^\s*-?\d+\.\d+\s+-?\d+\.\d+\s+-?\d+\s*m\s+version\s+\d+", second):
        return _SURFRAD
    header = {name.strip() for name in first.split(",")}
    for names, found in _BY_HEADER:
        if names <= header:
            return found
    if any("OCV" in name or name in ("R0 [Ohm]", "R1 [Ohm]", "C1 [F]") for name in header):
        raise InputError(f"{path}: a battery table, not a trace; give its folder with --battery-tables")
    known = ", ".join(sorted(" and ".join(sorted(names)) for names, _ in _BY_HEADER))
    raise InputError(f"{path}: not a known trace format; a CSV needs a header with one of: {known}")


def _own_arrivals(path: Path, options: Mapping[str, float]) -> Trace:
    times: list[float] = []
    deadlines: list[float] = []
    last = 0.0
    for place, row in fields.rows(path, "arrival_s"):
        last = fields.ascending(place, last, fields.number(row["arrival_s"], f"{place}: arrival_s"), strict=False)
        times.append(last)
        text = row.get("deadline_ms")
        if text is not None:
            deadline = fields.number(text, f"{place}: deadline_ms") if text.strip() else math.inf
            if deadline <= 0:
                raise InputError(f"{place}: deadline_ms is {deadline:g}; expected above 0, or nothing")
            deadlines.append(deadline / 1000.0)
        if len(times) > MAX_ARRIVALS:
            break
    if deadlines and len(deadlines) < len(times):
        raise InputError(f"{path}: {len(deadlines)} of {len(times)} lines have a deadline_ms; fill the column")
    return fields.arrivals(path, times, deadlines or None)


def _own_environment(path: Path, options: Mapping[str, float]) -> Trace:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip() for name in file.readline().split(",")]
    unknown = [name for name in header if name not in ("time_s", *ENVIRONMENT)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], ENVIRONMENT, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(ENVIRONMENT)}"
        raise InputError(f"{path}: no such column '{unknown[0]}'; {hint}")
    columns: dict[str, list[float]] = {name: [] for name in header}
    last = -math.inf
    for place, row in fields.rows(path, *header):
        for name in header:
            text = row[name]
            if name in ("on_mains", "sensors_lost"):
                text = {"true": "1", "false": "0"}.get(text.strip().lower(), text)
            value = fields.number(text, f"{place}: {name}")
            if (name in ("harvest_w",) and value < 0) or (name == "slowdown" and value <= 0):
                raise InputError(
                    f"{place}: {name} is {value:g}; expected {'at least' if name != 'slowdown' else 'above'} 0"
                )
            columns[name].append(value)
        last = fields.ascending(place, last, columns["time_s"][-1], strict=True)
        if len(columns["time_s"]) > MAX_STEPS:
            raise InputError(f"{place}: more than {MAX_STEPS} lines; cut the file")
    arrays = {name: np.asarray(values, np.float64) for name, values in columns.items()}
    times = arrays.pop("time_s")
    if not len(times):
        raise InputError(f"{path}: holds no lines below the header; expected at least one")
    return fields.environment(path, times, arrays)


class _Json(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    name: str
    duration_s: float
    arrivals_s: list[float]
    times_s: list[float] | None = None
    ambient_c: list[float] | None = None
    harvest_w: list[float] | None = None
    slowdown: list[float] | None = None
    on_mains: list[float] | None = None
    sensors_lost: list[float] | None = None
    deadlines_s: list[float | None] | None = None


def _own_json(path: Path, options: Mapping[str, float]) -> Trace:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_Json)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InputError(f"{path}: not a trace in JSON form ({error}); write one with 'gearshift trace make'") from None
    if content.schema != SCHEMA:
        raise InputError(
            f"{path}: schema {content.schema}, expected {SCHEMA}; write it again with 'gearshift trace make'"
        )
    arrays = {
        name: None if (values := getattr(content, name)) is None else np.asarray(values, np.float64)
        for name in ("times_s", *ENVIRONMENT)
    }
    arrivals = np.asarray(content.arrivals_s, np.float64)
    if content.deadlines_s is not None:
        deadlines = [math.inf if value is None else value for value in content.deadlines_s]
        arrays["deadlines_s"] = np.asarray(deadlines, np.float64)
    try:
        return Trace(name=content.name, duration_s=content.duration_s, arrivals_s=arrivals, **arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _journal(path: Path, options: Mapping[str, float]) -> Trace:
    from simulation import journal

    return journal.trace(journal.read([path]))


_JSON = Format("the JSON form", {}, _own_json)
_JOURNAL = Format("a journal", {}, _journal)
_SURFRAD = Format("SURFRAD", {"panel_w": 10.0, "derate": 0.75}, recordings.surfrad)
_BY_HEADER: tuple[tuple[frozenset[str], Format], ...] = (
    (frozenset({"arrival_s"}), Format("an arrivals CSV", {}, _own_arrivals)),
    (frozenset({"time_s"}), Format("an environment CSV", {}, _own_environment)),
    (frozenset({"TIMESTAMP"}), Format("Azure LLM inference", {}, recordings.azure_llm)),
    (frozenset({"end_timestamp", "duration"}), Format("Azure Functions", {}, recordings.azure_functions)),
    (frozenset({"value", "starttime"}), Format("Azure VM noise", {"vm": 0.0, "period_s": 0.0}, recordings.vm_noise)),
)
