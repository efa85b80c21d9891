"""What happens, in words, with a priority, in the form that suits whoever reads it.

* :func:`configure`: where log lines go: colours on a terminal, ``<N>`` priorities for systemd's journal, time and level
  in a file, one JSON object a line for a collector.
* :func:`tell`: logs an event.

Standard library's ``logging`` throughout, so that what libraries say comes out in the same form.
"""

from __future__ import annotations

import datetime
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import msgspec

from agent.events import level_of, words

Form = Literal["auto", "text", "json"]
LOGGER = "gearshift"
# syslog(3): 3 error, 4 warning, 6 information, 7 debugging
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_STYLES = ((logging.ERROR, "red"), (logging.WARNING, "yellow"))


def tell(name: str, detail: Mapping[str, Any]) -> None:
    """Logs an event; safe from any thread."""
    if name == "closed" and detail.get("drained"):
        return  # "stopped" says it
    # A reason is an operator's free text: it must neither begin a line of its own nor move a terminal's cursor.
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words(name, detail))
    logging.getLogger(LOGGER).log(level_of(name), "%s", text, extra={"event": name, "detail": detail})


def goes_to_the_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether what is written to a stream ends in systemd's journal: ``$JOURNAL_STREAM`` names its device and inode."""
    device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def configure(
    form: Form = "auto", *, stream: TextIO | None = None, environment: Mapping[str, str] | None = None
) -> logging.Handler:
    """Sends all log lines of this process to a stream.

    Args:
        form: ``auto`` is text: with colours on a terminal, else with priorities or time and level.
        stream: stderr when left out.
        environment: ``os.environ`` when left out.

    Returns:
        The handler, in the place of any earlier one.
    """
    stream = stream or sys.stderr
    environment = os.environ if environment is None else environment
    journal = goes_to_the_journal(stream, environment)
    handler: logging.Handler
    if form != "json" and stream.isatty():
        handler = _Terminal(stream)
    else:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_Lines(as_json=form == "json", journal=journal))
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)  # of libraries
    logging.getLogger(LOGGER).setLevel(logging.INFO)
    return handler


class _Lines(logging.Formatter):
    """A record as one line, or several for a traceback; with a priority before each where the journal reads them."""

    def __init__(self, *, as_json: bool, journal: bool) -> None:
        super().__init__("%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s")
        self._as_json, self._journal = as_json, journal

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Local time with its zone, in milliseconds."""
        return datetime.datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines."""
        text = self._json(record) if self._as_json else super().format(record)
        if not self._journal:
            return text
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())

    def _json(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("event", "detail"):
            if hasattr(record, key):
                line[key] = getattr(record, key)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class _Terminal(logging.Handler):
    """Time of day and words, faults in colour."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        super().__init__()
        self._console = Console(file=stream, highlight=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record."""
        try:
            style = next((colour for level, colour in _STYLES if record.levelno >= level), None)
            time = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
            self._console.print(f"{time} {self.format(record)}", style=style, markup=False, soft_wrap=True)
        except Exception:  # as in logging's own handlers: a log line must not end the program
            self.handleError(record)
