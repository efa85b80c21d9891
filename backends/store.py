"""Artifacts on disk: one directory a key, published whole, checked before every use.

::

    <cache>/<backend>/<key>/artifact.json   what it is, what it was built with, SHA-256 of every other file
                            ...             the backend's own files

* :class:`CachedBackend`: a backend that keeps its artifacts so; a subclass says what they depend on, makes and opens.
* :func:`staging`: a temporary directory beside the final one; gone afterwards unless published.
* :func:`sweep`: removes what killed builds left.
* :func:`publish`: hashes what was written, adds ``artifact.json`` and renames it into place.
* :func:`find`: a sound artifact of that key, or None; damage means rebuilding, never loading.
* :func:`check`: the same before loading, with the reason.
* :func:`read`: the artifact a directory holds.

Clearing it out is :mod:`backends.cache`'s. Knows nothing of engines; it moves and hashes files.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from backends import requests
from backends.base import Artifact, Backend, CompileRequest, Engine, artifact_key, cache_path
from subnets import Bundle, EngineError, UnavailableError
from subnets.bundle import sha256, write_atomically

SCHEMA = 1
RECORD = "artifact.json"
_MAX_RECORD_BYTES = 2**20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ABANDONED_S = 86_400.0  # a build that has not added a file for so long is not under way any more


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``artifact.json`` holds; ``identity`` is the library and device it was built with."""

    schema: int
    artifact: Artifact
    identity: dict[str, str]
    files: dict[str, str]


E = TypeVar("E", bound=Engine)


class CachedBackend(Backend, Generic[E]):
    """A backend whose artifacts lie in a cache: found there or made, and checked byte for byte before each use.

    Args:
        cache: where artifacts lie; by default :func:`backends.base.cache_path`.
    """

    pins: ClassVar[bool] = False  # whether it can bind threads to processors

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache_path(cache).absolute()

    def build(self, bundle: Bundle, request: CompileRequest) -> Artifact:
        """The artifact for a request, from the cache where it is there and sound.

        Raises:
            InputError: the subnet, precision, a batch size, the threads or pinning is not to be had, or what the bundle
                carries for it is damaged.
            UnavailableError: a library or device is missing, or the cache cannot be written.
            EngineError: the library refuses the network.
        """
        identity = self._identity()
        request = requests.checked(bundle, request, self._offered(), pinning=self.pins)
        key = artifact_key(bundle, request, backend=self.name, **self._sources(bundle, request), **identity)
        final = self.cache / self.name / key
        if (found := find(final, identity)) is not None:
            _note_use(final)
            return found
        sweep(final.parent)
        with staging(final) as temporary:
            artifact = Artifact(
                path=str(final),
                key=key,
                backend=self.name,
                device=self.device,
                request=request,
                input_shape=bundle.input.shape,
                classes=self._make(bundle, request, temporary),
            )
            return publish(temporary, artifact, identity)

    def load(self, artifact: Artifact) -> E:
        """An engine on an artifact, after checking every byte of it.

        Raises:
            EngineError: the artifact is damaged, or of another version of the library or another device, or there is
                too little memory for it.
            UnavailableError: a library or device is missing.
        """
        check(artifact, self._identity())
        _note_use(Path(artifact.path))
        return self._open(artifact)

    @abc.abstractmethod
    def _identity(self) -> dict[str, str]:
        """What an artifact is made with and for: library versions, processor or GPU."""

    def _offered(self) -> tuple[str, ...]:
        """The precisions that may be asked for."""
        return self.precisions()

    @abc.abstractmethod
    def _sources(self, bundle: Bundle, request: CompileRequest) -> dict[str, Any]:
        """What an artifact depends on besides the bundle's weights and ladder, the request and the identity."""

    @abc.abstractmethod
    def _make(self, bundle: Bundle, request: CompileRequest, folder: Path) -> int:
        """Writes the artifact's files into ``folder``; the number of classes."""

    @abc.abstractmethod
    def _open(self, artifact: Artifact) -> E:
        """The engine on a sound artifact."""


def _note_use(directory: Path) -> None:
    """Leaves the time of the last use, for who clears the cache; nobody else looks at it."""
    with contextlib.suppress(OSError):  # another user's cache, or one mounted read-only
        os.utime(directory)


@contextlib.contextmanager
def staging(final: Path) -> Iterator[Path]:
    """A temporary directory on the same file system as ``final``, removed at the end if still there.

    Raises:
        UnavailableError: the cache cannot be written, or the disk filled up meanwhile.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    except OSError as error:
        raise UnavailableError(
            f"{final.parent}: artifacts cannot be stored there ({error.strerror}); set GEARSHIFT_CACHE"
        ) from None
    try:
        yield temporary
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UnavailableError(
            f"{final.parent}: no room to store an artifact ({error.strerror}); "
            "free some, or set GEARSHIFT_CACHE to another disk"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path, now_s: float | None = None) -> None:
    """Removes from a backend's folder, a day later, what builds that were killed left there.

    Args:
        folder: ``<cache>/<backend>``.
        now_s: seconds since the epoch; for tests.
    """
    now_s = time.time() if now_s is None else now_s
    for directory in folder.glob(".*-*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
            if now_s - directory.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(directory, ignore_errors=True)


def publish(temporary: Path, artifact: Artifact, identity: Mapping[str, str]) -> Artifact:
    """Makes a staged directory the artifact at ``artifact.path``.

    Where another process published the same key meanwhile, its sound one is kept; a damaged one is replaced.
    """
    files = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
    # Without the path: a directory may be moved, and read() knows where it lies.
    nowhere = msgspec.structs.replace(artifact, path="")
    record = Record(schema=SCHEMA, artifact=nowhere, identity=dict(identity), files=files)
    write_atomically(temporary / RECORD, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    temporary.chmod(0o755)
    final = Path(artifact.path)
    while True:
        try:
            temporary.replace(final)  # fails where a directory with content is already there
            return artifact
        except OSError:
            if not final.exists():
                raise
        if (existing := find(final, identity)) is not None:
            return existing
        with staging(final) as grave, contextlib.suppress(FileNotFoundError):
            final.replace(grave / "damaged")


def read(directory: Path) -> Artifact:
    """The artifact a directory holds, with ``path`` being where it lies now; its files are not checked.

    Raises:
        EngineError: there is none or its record is damaged.
    """
    return _record(directory).artifact


def find(directory: Path, identity: Mapping[str, str]) -> Artifact | None:
    """The artifact at ``directory`` if it is whole, undamaged and of this identity."""
    try:
        artifact = read(directory)
        check(artifact, identity)
    except EngineError:
        return None
    return artifact


def check(artifact: Artifact, identity: Mapping[str, str]) -> None:
    """Makes sure an artifact is what it says it is, byte for byte.

    Raises:
        EngineError: it is missing, damaged, another one than ``artifact``, or built with another library or device.
    """
    directory = Path(artifact.path)
    record = _record(directory)
    if record.artifact != msgspec.structs.replace(artifact, path=str(directory)):
        raise EngineError(f"{directory}: holds artifact {record.artifact.key}, not {artifact.key}; build it again")
    for what, now in identity.items():
        if record.identity.get(what) != now:
            then = record.identity.get(what)
            raise EngineError(f"{directory}: built with {what} '{then}', here it is '{now}'; build it again")
    for name, expected in record.files.items():
        file = directory / name
        if Path(name).name != name or not file.is_file() or sha256(file) != expected:
            raise EngineError(f"{file}: missing or damaged; build it again")


def _record(directory: Path) -> Record:
    file = directory / RECORD
    try:
        if file.stat().st_size > _MAX_RECORD_BYTES:
            raise EngineError(f"{file}: larger than {_MAX_RECORD_BYTES} bytes, no record is; build it again")
        record = msgspec.json.decode(file.read_bytes(), type=Record)
    except OSError as error:
        raise EngineError(f"{directory}: no artifact there ({error.strerror}: {file.name}); build it again") from None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise EngineError(f"{file}: damaged ({error}); build it again") from None
    if record.schema != SCHEMA:
        raise EngineError(f"{file}: schema is {record.schema}, this version reads {SCHEMA}; build it again")
    return msgspec.structs.replace(record, artifact=msgspec.structs.replace(record.artifact, path=str(directory)))
