"""What a calibration has finished so far, on disk, so that an interruption loses no finished round.

JSON Lines beside the table to be: one ``begin`` line that tells what is measured and how, then a line for each finished
accuracy, round, round of rests, and walk over the switches. A line is appended whole and synced; a torn last one, after
a kill or a power cut, is cut off when the file is opened again. The file goes when the table is written.

* :class:`Ledger`: that file. :class:`NoLedger`: keeps nothing. Knows nothing of measuring.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from calibration.table import disk_errors
from subnets.errors import InputError, MismatchError

SCHEMA = 1
SUFFIX = ".partial"
_MAX_BYTES = 2**30

T = TypeVar("T")


class Line(msgspec.Struct, frozen=True):
    """One finished thing: what kind, and its content."""

    kind: str
    value: Any


class NoLedger:
    """Keeps nothing: every calibration begins at the beginning."""

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Nothing to compare with."""

    def entries(self, kind: str, type_: type[T]) -> list[T]:
        """Nothing was finished before."""
        return []

    def append(self, kind: str, value: Any) -> None:
        """Nothing is kept."""


class Ledger(NoLedger):
    """The file; make it with :func:`opened_ledger`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._lines, self._end = _read(path, descriptor)

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Says what is measured and how; goes on only where the file says the same.

        Raises:
            MismatchError: it was begun for something else; names what differs.
            UnavailableError: the disk is full.
        """
        wanted = msgspec.json.decode(msgspec.json.encode({"schema": SCHEMA, **identity}))
        if not self._lines:
            self.append("begin", wanted)
            return
        found = self._lines[0].value
        if found != wanted:
            raise MismatchError(
                f"{self.path}: holds an interrupted calibration that is not this one ({_difference(found, wanted)}); "
                "finish it with what it was begun with, or start over with --fresh"
            )

    def entries(self, kind: str, type_: type[T]) -> list[T]:
        """What was finished of a kind before the file was opened, in order.

        Raises:
            InputError: a line is not what this version writes.
        """
        try:
            return [msgspec.convert(line.value, type_) for line in self._lines if line.kind == kind]
        except msgspec.ValidationError as error:
            raise InputError(f"{self.path}: damaged ({error}); start over with --fresh") from None

    def append(self, kind: str, value: Any) -> None:
        """Adds one finished thing; when it returns, not even a power cut loses it.

        Raises:
            UnavailableError: the disk is full; what was finished before stays.
        """
        content = msgspec.json.encode(Line(kind, value)) + b"\n"
        with disk_errors(self.path):
            try:
                _write_all(self._descriptor, content)
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._end)
                raise
        self._end += len(content)


@contextmanager
def opened_ledger(path: Path, *, fresh: bool = False) -> Iterator[Ledger]:
    """The ledger at a path, for one calibration at a time.

    Args:
        path: made when not there.
        fresh: forget what it holds.

    Raises:
        InputError: it cannot be written, is damaged, or another calibration is writing it.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{path}: another calibration is writing it; wait for it, or write elsewhere") from None
        if fresh:
            os.ftruncate(descriptor, 0)
        yield Ledger(path, descriptor)
    finally:
        if os.fstat(descriptor).st_size == 0:  # refused before it began
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _read(path: Path, descriptor: int) -> tuple[list[Line], int]:
    """The whole lines, and where they end; what was torn after them is cut off."""
    size = os.fstat(descriptor).st_size
    if size > _MAX_BYTES:
        raise InputError(f"{path}: larger than {_MAX_BYTES} bytes, no calibration is; start over with --fresh")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES)
    end = content.rfind(b"\n") + 1
    lines = []
    for number, text in enumerate(content[:end].splitlines(), 1):
        try:
            lines.append(msgspec.json.decode(text, type=Line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InputError(f"{path}: line {number} is damaged; start over with --fresh") from None
    if lines and (lines[0].kind != "begin" or not isinstance(lines[0].value, dict)):
        raise InputError(f"{path}: no interrupted calibration; start over with --fresh")
    if end < len(content):
        os.ftruncate(descriptor, end)
    return lines, end


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first thing that differs: ``settings.budget_s is 90.0, was 60.0``."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*wanted, *found]):
            if found.get(key) != wanted.get(key):
                return _difference(found.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
    return f"{name} is {_short(wanted)}, was {_short(found)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
