"""System shared memory: named regions of ``/dev/shm`` that a client made, filled and registered.

Regions are read and written through their file descriptor and never mapped: the file is its client's, who may cut it
short at any time, and touching a mapping beyond the end would kill the process, where a short read is one refused
request. It also gives every request a picture of its own, which the client cannot change while it is answered. The
price is one copy (0.1 ms for 602 KB).

Off unless the configuration says so: whoever may talk to the server can have any object in ``/dev/shm`` that the
server's user may open read as an image or overwritten with logits.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.model import NotFound, TooMany, Unsupported
from subnets.errors import InputError

FOLDER = Path("/dev/shm")
_KEY = re.compile(r"/?([A-Za-z0-9_-][A-Za-z0-9._-]*)")
_MAX_NAME = 128


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """One registered region, as the protocol tells it: bytes ``offset`` to ``offset + byte_size`` of ``key``."""

    name: str
    key: str
    offset: int
    byte_size: int


class Regions:
    """The registered regions. Safe from several threads.

    Args:
        enabled: whether regions may be registered at all.
        max_regions: how many at a time.
        max_bytes: of all together.
        folder: where keys lie.
    """

    def __init__(self, *, enabled: bool, max_regions: int = 64, max_bytes: int = 2**30, folder: Path = FOLDER) -> None:
        self.enabled = enabled
        self._max_regions, self._max_bytes, self._folder = max_regions, max_bytes, folder
        self._regions: dict[str, tuple[Region, int]] = {}  # name -> (region, file descriptor)
        self._mutex = threading.Lock()

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens a region that exists.

        Args:
            name: what requests call it.
            key: its object below ``/dev/shm``, with or without a leading slash.
            offset: where it begins there, in bytes.
            byte_size: its length.

        Raises:
            InputError: the name is taken, or the key cannot be opened or holds fewer bytes.
            TooMany: a limit is reached.
            Unsupported: shared memory is off.
        """
        if not self.enabled:
            raise Unsupported(
                "shared memory is off; set shared_memory = true under [serve], or send tensors in the body"
            )
        if not name or len(name) > _MAX_NAME:
            raise InputError(f"a shared memory region needs a name of 1 to {_MAX_NAME} characters")
        # The limits come first: numbers of a client's are compared before anything is done with them.
        if offset < 0 or byte_size < 1 or offset + byte_size > 2**62:
            raise InputError(f"shared memory region '{name}': offset {offset} and byte_size {byte_size} make no sense")
        with self._mutex:
            if name in self._regions:
                raise InputError(f"shared memory region '{name}' already in manager; unregister it first")
            if len(self._regions) >= self._max_regions:
                raise TooMany(f"{self._max_regions} shared memory regions are registered; unregister some first")
            taken = sum(region.byte_size for region, _ in self._regions.values())
            if taken + byte_size > self._max_bytes:
                raise TooMany(
                    f"shared memory region '{name}' of {byte_size} bytes would make {taken + byte_size} bytes in all, "
                    f"at most {self._max_bytes} are taken; unregister some first"
                )
            descriptor = self._open(name, key, offset + byte_size)
            self._regions[name] = (Region(name=name, key=key, offset=offset, byte_size=byte_size), descriptor)

    def _open(self, name: str, key: str, needed: int) -> int:
        found = _KEY.fullmatch(key)
        if found is None or found[1].startswith("sem.") or len(found[1]) > 255:  # a semaphore is not ours to overwrite
            raise InputError(
                f"shared memory region '{name}': key {key[:80]!r} is not taken; use letters, digits, '.', '_' and '-'"
            )
        unable = f"Unable to open shared memory region: '{key}'"
        try:
            descriptor = os.open(self._folder / found[1], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InputError(f"{unable} ({error.strerror}); create it first") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{unable} (it is no shared memory object)")
            if status.st_size < needed:
                raise InputError(
                    f"shared memory region '{name}' ends at byte {needed}, '{key}' has {status.st_size}; "
                    "make it larger first"
                )
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def status(self, name: str | None = None) -> list[Region]:
        """One region, or all in order of registration.

        Raises:
            NotFound: no such region.
        """
        with self._mutex:
            if not name:
                return [region for region, _ in self._regions.values()]
            return [self._find(name)[0]]

    def unregister(self, name: str | None = None) -> None:
        """Forgets one region, or all; one that is not registered is no error, as in Triton."""
        with self._mutex:
            for gone in [name] if name else list(self._regions):
                found = self._regions.pop(gone, None)
                if found is not None:
                    os.close(found[1])

    def close(self) -> None:
        """Forgets all."""
        self.unregister()

    def check(self, name: str, offset: int, byte_size: int) -> None:
        """Whether a part lies within a region, before work is done for it.

        Raises:
            NotFound: no such region.
            InputError: it does not.
        """
        with self._mutex:
            self._part(name, offset, byte_size)

    def read(self, name: str, offset: int, byte_size: int) -> NDArray[np.uint8]:
        """A part's bytes, uint8 [byte_size], the caller's own.

        Raises:
            NotFound: no such region.
            InputError: the part lies outside it, or its client has cut it short.
        """
        with self._mutex:  # held while reading, or the descriptor could be closed and be another file's by now
            descriptor, start = self._part(name, offset, byte_size)
            content = np.empty(byte_size, np.uint8)
            done = os.preadv(descriptor, [content.data], start)
        if done != byte_size:
            raise InputError(f"shared memory region '{name}' has become shorter than it was registered")
        return content

    def write(self, name: str, offset: int, content: memoryview | bytes) -> None:
        """Writes a part.

        Raises:
            NotFound: no such region.
            InputError: the part lies outside it, or cannot be written.
        """
        view = memoryview(content).cast("B")
        with self._mutex:
            descriptor, start = self._part(name, offset, view.nbytes)
            try:
                if os.fstat(descriptor).st_size < start + view.nbytes:  # or writing would make the file longer
                    raise InputError(f"shared memory region '{name}' has become shorter than it was registered")
                done = os.pwrite(descriptor, view, start)
            except OSError as error:
                raise InputError(f"shared memory region '{name}' cannot be written ({error.strerror})") from None
        if done != view.nbytes:
            raise InputError(f"shared memory region '{name}' cannot be written in full; is the memory full?")

    def _find(self, name: str) -> tuple[Region, int]:
        found = self._regions.get(name)
        if found is None:
            raise NotFound(f"Unable to find shared memory region: '{name[:80]}'; register it first")
        return found

    def _part(self, name: str, offset: int, byte_size: int) -> tuple[int, int]:
        """(descriptor, position in the file)."""
        region, descriptor = self._find(name)
        if offset < 0 or byte_size < 0 or offset + byte_size > region.byte_size:
            raise InputError(
                f"Invalid offset + byte size for shared memory region: '{name}' has {region.byte_size} bytes, "
                f"asked for are {byte_size} from {offset}"
            )
        return descriptor, region.offset + offset
