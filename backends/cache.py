"""What lies in the artifacts' cache, and clearing out what nobody has used for a while.

Nothing goes unasked but what a killed build left half written (:func:`backends.store.sweep`). An artifact that went is
built again when it is needed, which takes seconds; an engine that has one loaded goes on, since its files stay until it
lets them go.

* :class:`Stored`: one artifact; :func:`stored`: all of them; :func:`size_bytes`: the disk space they take.
* :func:`prune`: removes those unused for so long.

Knows nothing of engines.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from backends import store
from backends.registry import NAMES
from subnets import EngineError, UnavailableError


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One artifact's directory; ``unused_s`` since it was last built, found or loaded."""

    path: str
    backend: str
    subnet: str  # empty, as is the precision, where its record is damaged
    precision: str
    size_bytes: int
    unused_s: float


def stored(cache: Path, now_s: float | None = None) -> list[Stored]:
    """Every artifact in a cache, the longest unused first; none where there is no cache.

    Args:
        cache: the folder of :func:`backends.base.cache_path`.
        now_s: seconds since the epoch; for tests.
    """
    now_s = time.time() if now_s is None else now_s
    found = []
    for directory in _directories(cache):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look into
            found.append(_stored(directory, now_s))
    return sorted(found, key=lambda one: -one.unused_s)


def size_bytes(artifacts: Iterable[Stored]) -> int:
    """Bytes of their files; a file that several of them link to counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for one in artifacts:
        with contextlib.suppress(OSError):
            sizes |= {(file.st_dev, file.st_ino): file.st_size for file in map(Path.stat, Path(one.path).iterdir())}
    return sum(sizes.values())


def prune(cache: Path, unused_s: float, now_s: float | None = None) -> list[Stored]:
    """Removes the artifacts that nothing has used for longer than ``unused_s`` seconds, and what killed builds left.

    Returns:
        What went.

    Raises:
        UnavailableError: a directory cannot be removed.
    """
    gone = [one for one in stored(cache, now_s) if one.unused_s > unused_s]
    for one in gone:
        _remove(Path(one.path))
    for name in NAMES:
        store.sweep(cache / name, now_s)
    return gone


def _directories(cache: Path) -> list[Path]:
    folders = [cache / name for name in NAMES]
    entries = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return sorted(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _stored(directory: Path, now_s: float) -> Stored:
    try:
        request = store.read(directory).request
        subnet, precision = request.subnet, request.precision
    except EngineError:
        subnet = precision = ""
    return Stored(
        path=str(directory),
        backend=directory.parent.name,
        subnet=subnet,
        precision=precision,
        size_bytes=sum(file.stat().st_size for file in directory.iterdir()),
        unused_s=max(0.0, now_s - directory.stat().st_mtime),
    )


def _remove(directory: Path) -> None:
    """Out of the way first, so that nobody finds half an artifact."""
    away = directory.with_name(f".{directory.name}-removed")
    try:
        directory.replace(away)
        shutil.rmtree(away)
    except FileNotFoundError:
        pass  # another process was faster
    except OSError as error:
        raise UnavailableError(f"{directory}: cannot be removed ({error.strerror}); remove it as its owner") from None
