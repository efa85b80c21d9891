"""What every command prints through: JSON to a file or stdout, a rich console, a progress bar on stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def emit_json(target: str, value: Any) -> None:
    """Writes ``value`` (JSON types or msgspec structs) to a file, or to stdout where ``target`` is ``-``.

    Raises:
        InputError: the file cannot be written.
    """
    import msgspec

    content = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    if target == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    from subnets.bundle import write_atomically
    from subnets.errors import InputError

    try:
        write_atomically(Path(target), content)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); give another place for --json") from None


def console(*, stderr: bool = False) -> Console:
    """A rich console."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def known_figures(values: Mapping[str, Any]) -> str:
    """The conditions that are known, four significant digits each, on one line; empty where none is."""
    known = {name: value for name, value in values.items() if value is not None and name != "time_s"}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in known.items()
    )


def progress() -> Progress:
    """A progress bar with time left, on stderr; silent where stderr is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    screen = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,  # else it leaves an empty line
    )
