"""What can happen, in words and by weight: every event of the agent and its service as one sentence.

Used by the log, by ``explain`` on a journal of the past, and by the live view. What is not known here is told by its
name and details.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_LEVELS = {
    "backend_unavailable": logging.WARNING,
    "clock_jumped": logging.WARNING,
    "engine_unbuilt": logging.WARNING,
    "hard_limit": logging.ERROR,
    "mismatch": logging.WARNING,
    "over_budget": logging.WARNING,
    "policy_late": logging.WARNING,
    "recalibration_failed": logging.WARNING,
    "reload_refused": logging.ERROR,
    "sensor_failed": logging.WARNING,
    "table_drifted": logging.WARNING,
}
_SUFFIXES = {
    "_failed": logging.ERROR,
    "_hung": logging.ERROR,
    "_lost": logging.WARNING,
    "_stopped": logging.ERROR,
}


def level_of(name: str) -> int:
    """How loud an event is, as one of ``logging``'s levels."""
    by_suffix = next((level for suffix, level in _SUFFIXES.items() if name.endswith(suffix)), logging.INFO)
    return _LEVELS.get(name, by_suffix)


def is_fault(name: str) -> bool:
    """Whether an event is one that an operator should look at."""
    return level_of(name) >= logging.WARNING


def words(name: str, detail: Mapping[str, Any]) -> str:
    """One sentence for an event."""
    told = _SENTENCES.get(name)
    try:
        if told is not None:
            return told.format_map(detail) if isinstance(told, str) else told(detail)
    except (KeyError, TypeError, ValueError):  # from the journal of another version
        pass
    shown = str(detail["error"]) if detail.keys() == {"error"} else ", ".join(f"{k} {v}" for k, v in detail.items())
    return name.replace("_", " ") + (f": {shown}" if shown else "")


def _listening(detail: Mapping[str, Any]) -> str:
    places = [f"http://{detail['host']}:{detail['port']}"] if detail["host"] else []
    places += [f"unix:{detail['socket']}"] if detail["socket"] else []
    places += [f"native:{detail['native']}"] if detail.get("native") else []
    places += [f"grpc://{detail['host']}:{detail['grpc_port']}"] if detail.get("grpc_port") else []
    places += [f"grpc+unix:{detail['grpc_socket']}"] if detail.get("grpc_socket") else []
    return f"serving {detail['bundle']} at {' and '.join(places)}"


def _switch(detail: Mapping[str, Any]) -> str:
    origin = f"{detail['from']} → " if detail["from"] else "starting with "
    return f"{origin}{detail['to']}: {detail['reason']}"


def _reloaded(detail: Mapping[str, Any]) -> str:
    waiting = f"; only after a restart: {', '.join(detail['after_restart'])}" if detail["after_restart"] else ""
    return f"configuration reloaded, changed: {', '.join(detail['changed']) or 'nothing'}{waiting}"


def _engine(what: str) -> Callable[[Mapping[str, Any]], str]:
    def told(detail: Mapping[str, Any]) -> str:
        out = f"; out for {detail['backoff_s']:g} s" if detail["backoff_s"] else "; it stays in service"
        kind = f"{detail['backend']}, {detail['precision']}"
        return f"engine {detail['subnet']} ({kind}) {what}: {detail['error']}{out}"

    return told


def _restored(detail: Mapping[str, Any]) -> str:
    kept = [f"the hold of {detail['hold']}"] if detail["hold"] else []
    kept += ["the state of the policy"] if detail["policy"] else []
    return f"goes on with {' and '.join(kept)}"


_SENTENCES: dict[str, str | Callable[[Mapping[str, Any]], str]] = {
    "clock_jumped": "the wall clock jumped by {by_s:+g} s: it was set, or the machine slept",
    "dry_run": "dry run: decisions are told, not applied; {point} answers",
    "engine_built": "compiled {subnet} ({backend}, {precision}) in {ms:.0f} ms",
    "engine_failed": _engine("failed"),
    "engine_hung": _engine("hung"),
    "engine_loaded": "loaded {subnet} in {ms:.0f} ms",
    "engine_unbuilt": "{subnet} ({backend}, {precision}) cannot be compiled: {error}",
    "hard_limit": "hard limit: {error}; at most {point} until it is over",
    "hard_limit_left": "hard limit: {limit} is over",
    "hold": "hold: {subnet} for {for_s:.0f} s ({reason})",
    "journal_resumed": "the journal goes on; {dropped} records are missing from {stopped_s:g} s",
    "listening": _listening,
    "reloaded": _reloaded,
    "sensor_back": "{quantity} is known again",
    "sensor_lost": "{quantity} is unknown now: {why}",
    "state_restored": _restored,
    "status": lambda detail: f"status: {msgspec.json.encode(detail).decode()}",
    "stopped": "stopped: requests answered {requests}, failed {failed}, switches {switches}",
    "switch": _switch,
    "table_confirmed": "measured again, the table holds: {point}",
    "table_holds": lambda detail: f"as the table says again: {', '.join(detail['rows'])}",
    "table_remeasured": lambda detail: f"measured again, the table is renewed: {', '.join(detail['rows'])}",
    "would_switch": "would switch to {to}: {reason}",
}
