"""A file of lines that grows, is compressed when told, and survives being killed or a full disk at any moment.

::

    journal.jsonl                              being written
    journal-000001-20260131T120000Z.jsonl.gz   older, compressed; the oldest are deleted beyond ``keep``

Knows nothing of what the lines say.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import time
from pathlib import Path
from typing import BinaryIO

_CHUNK = 65536


class RollingFile:
    """Appends lines; every method but :meth:`abandon` and :meth:`close` may raise ``OSError``.

    Args:
        folder: made when missing.
        keep: how many compressed files stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.path = folder, folder / "journal.jsonl"
        self.size = 0  # of whole lines
        self._keep = keep
        self._file: BinaryIO | None = None

    def append(self, content: bytes) -> None:
        """Writes whole lines; what an earlier run left goes on, without the line that its end may have torn."""
        if self._file is None:
            self._open()
        assert self._file is not None
        self._file.write(content)
        self._file.flush()
        self.size += len(content)

    def rotate(self) -> None:
        """Compresses the file under a name that sorts by age, then deletes the oldest beyond ``keep``.

        The number in the name decides, not the time: a wall clock may be set back.
        """
        if self._file is None:
            self._open()
        self.close()
        older = sorted(self.folder.glob(f"journal-{'[0-9]' * 6}-*.jsonl.gz"))
        number = int(older[-1].name.split("-")[1]) + 1 if older else 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.path.stat().st_mtime))
        target = self.folder / f"journal-{number:06d}-{stamp}.jsonl.gz"
        partial = target.with_suffix(".partial")
        try:
            with self.path.open("rb") as source, gzip.open(partial, "wb", compresslevel=6) as packed:
                while chunk := source.read(_CHUNK):
                    packed.write(chunk)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        # Killed before the next line, the partial file is thrown away; after it, it is all there is and is kept.
        self.path.unlink()
        partial.replace(target)
        self.size = 0
        for old in [*older, target][: -self._keep]:
            old.unlink(missing_ok=True)

    def abandon(self) -> None:
        """After a failure: closes the file and takes off what was written of a line, if that can be done."""
        self.close()
        with contextlib.suppress(OSError):
            _cut(self.path)

    def close(self) -> None:
        """Closes the file; the next append opens it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the disk is full: what could be written is written
                self._file.close()
            self._file = None

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob("journal-*.jsonl.partial"):  # killed while compressing
            if self.path.exists():
                partial.unlink(missing_ok=True)
            else:
                partial.replace(partial.with_suffix(".gz"))
        self.size = _cut(self.path) if self.path.exists() else 0
        self._file = self.path.open("ab")


def _cut(path: Path) -> int:
    """Takes off what follows a file's last whole line; the size that is left."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _CHUNK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
        if end < size:
            file.truncate(end)
        return end
