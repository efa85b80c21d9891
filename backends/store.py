"""Artifacts on disk: one directory a key, published whole, checked before every use.

::

    <cache>/<backend>/<key>/artifact.json   what it is, what it was built with, SHA-256 of every other file
                            ...             the backend's own files

* :func:`stored`: what a backend's ``build`` comes to: the artifact of a key, made where there is no sound one.
* :func:`staging`: a temporary directory beside the final one; gone afterwards unless published.
* :func:`publish`: hashes what was written, adds ``artifact.json`` and renames it into place.
* :func:`find`: a sound artifact of that key, or None; damage means rebuilding, never loading.
* :func:`check`: the same before loading, with the reason.
* :func:`read`: the artifact a directory holds.

Knows nothing of engines; it moves and hashes files.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from backends.base import Artifact, Backend, CompileRequest
from subnets import Bundle, EngineError, UnavailableError
from subnets.bundle import sha256, write_atomically

SCHEMA = 1
RECORD = "artifact.json"
_MAX_RECORD_BYTES = 2**20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``artifact.json`` holds; ``identity`` is the library and device it was built with."""

    schema: int
    artifact: Artifact
    identity: dict[str, str]
    files: dict[str, str]


def stored(
    cache: Path,
    backend: Backend,
    bundle: Bundle,
    request: CompileRequest,
    key: str,
    identity: Mapping[str, str],
    make: Callable[[Path], int],
) -> Artifact:
    """The artifact of a key: the one in the cache, if it is sound, else a new one.

    Args:
        cache: where artifacts lie.
        backend: whose artifact it is.
        bundle: what is built from.
        request: checked.
        key: of all that the artifact depends on, see :func:`backends.base.artifact_key`.
        identity: library and device it is built with.
        make: writes the backend's own files into the directory it is given, and returns the number of classes.

    Raises:
        UnavailableError: the cache cannot be written.
    """
    final = cache / backend.name / key
    if (found := find(final, identity)) is not None:
        return found
    with staging(final) as temporary:
        artifact = Artifact(
            path=str(final),
            key=key,
            backend=backend.name,
            device=backend.device,
            request=request,
            input_shape=bundle.input.shape,
            classes=make(temporary),
        )
        return publish(temporary, artifact, identity)


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
