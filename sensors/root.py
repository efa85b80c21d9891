"""The one seam through which sensors read files: everything below a root path, bounded, and without exceptions.

* :class:`Text`, :class:`Number`: what a file held, or None and why.
* :class:`Root`: reads and lists below a path; ``Root(Path("/"))`` is the machine, a recorded tree stands in for tests.

Knows nothing of what the files mean. Only regular files are read, and never more than a bounded part of them, so that
a FIFO or an endless file in a foreign tree can neither block nor fill memory.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from pathlib import Path

import msgspec

_TEXT_BYTES = 4096  # a sysfs attribute is at most one page
_HEAD_BYTES = 64 * 1024
_MAX_NAMES = 4096

_PLAIN_WORDS = {
    errno.ENOENT: "not there",
    errno.ENOTDIR: "not there",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EAGAIN: "not ready (EAGAIN)",
    errno.EINVAL: "refused by the driver (EINVAL)",
    errno.EISDIR: "not a regular file",
}


class Text(msgspec.Struct, frozen=True):
    """What a file held without surrounding white space and NULs; or None, and why."""

    text: str | None
    why: str = ""


class Number(msgspec.Struct, frozen=True):
    """A finite number; or None, and why."""

    value: float | None
    why: str = ""


class Root:
    """Everything below ``path``. Paths given to its methods are relative to it, like ``sys/class/thermal``."""

    def __init__(self, path: Path | str = "/") -> None:
        self.path = Path(path)

    def where(self, relative: str) -> str:
        """The full path, to tell a person where a value came from."""
        return str(self.path / relative)

    @property
    def is_machine(self) -> bool:
        """Whether this is the running machine itself rather than a recorded tree."""
        return self.path.resolve() == Path("/")

    def read_bytes(self, relative: str, limit: int) -> bytes:
        """At most ``limit`` bytes of a regular file: the one method to override in order to inject faults.

        Raises:
            OSError: as the system gave it.
        """
        # O_NONBLOCK keeps a FIFO from blocking open(); on a regular file it changes nothing.
        descriptor = os.open(self.path / relative, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EISDIR, "not a regular file")
            parts: list[bytes] = []
            while limit > 0 and (part := os.read(descriptor, limit)):
                parts.append(part)
                limit -= len(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def text(self, relative: str) -> Text:
        """A small file as text; more than 4096 bytes is refused, no attribute is that long."""
        found = self._read(relative, _TEXT_BYTES + 1)
        if found.text is not None and len(found.text) > _TEXT_BYTES:
            return Text(None, f"{self.where(relative)}: longer than {_TEXT_BYTES} bytes")
        return found

    def head(self, relative: str) -> Text:
        """The first 64 KiB of a file that may be long, such as ``proc/stat``."""
        return self._read(relative, _HEAD_BYTES)

    def number(self, relative: str, scale: float = 1.0) -> Number:
        """A small file as a finite number, multiplied by ``scale``."""
        found = self.text(relative)
        if found.text is None:
            return Number(None, found.why)
        try:
            value = float(found.text) * scale
        except ValueError:
            return Number(None, f"{self.where(relative)}: not a number: {found.text[:40]!r}")
        if not math.isfinite(value):
            return Number(None, f"{self.where(relative)}: not a finite number: {found.text[:40]!r}")
        return Number(value)

    def names(self, relative: str, pattern: str = "") -> tuple[str, ...]:
        """Names in a folder that match a regular expression whole, ``x2`` before ``x10``; none when unreadable."""
        try:
            with os.scandir(self.path / relative) as entries:
                found = [entry.name for _, entry in zip(range(_MAX_NAMES), entries, strict=False)]
        except OSError:
            return ()
        return tuple(sorted((name for name in found if not pattern or re.fullmatch(pattern, name)), key=_natural))

    def _read(self, relative: str, limit: int) -> Text:
        try:
            data = self.read_bytes(relative, limit)
        except OSError as error:
            plain = _PLAIN_WORDS.get(error.errno or 0) or error.strerror or type(error).__name__
            return Text(None, f"{self.where(relative)}: {plain}")
        except ValueError:  # a NUL in a file name
            return Text(None, f"{relative!r}: not a file name")
        return Text(data.decode("utf-8", errors="replace").replace("\0", " ").strip())


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key: digits count as numbers."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name) if part]
