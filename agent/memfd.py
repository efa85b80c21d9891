"""Memory shared with clients of the native path, taken in such a way that a client cannot hurt the agent with it.

A client passes the descriptor of a memfd. Before it is mapped, the kernel must vouch that it cannot shrink
(``F_SEAL_SHRINK``): touching a mapping beyond a file's end kills the process. Batches are copied out before an engine
sees them, so a client that writes on meanwhile spoils nothing but its own answer.

* :class:`Budget`: bytes that all clients together may make the agent hold.
* :class:`Mapping`: one client's memfd, checked and mapped.
* :class:`Arrays`: one connection's private arrays, reused from request to request.

Knows nothing of frames, sockets or the agent.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading

import numpy as np
from numpy.typing import NDArray

from agent.wire import ALIGNMENT
from backends.base import Batch
from subnets.errors import Busy, InputError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Budget:
    """Counts bytes against a limit, for several threads.

    Args:
        limit_bytes: how many may be taken at a time.
        parent: pays as well; its limit holds for all its children together.
    """

    def __init__(self, limit_bytes: int, parent: Budget | None = None) -> None:
        self.limit_bytes, self._parent = limit_bytes, parent
        self._taken_bytes = 0
        self._mutex = threading.Lock()

    @property
    def taken_bytes(self) -> int:
        """How many are taken now."""
        return self._taken_bytes

    def take(self, size_bytes: int) -> None:
        """Takes bytes.

        Raises:
            Busy: fewer are left.
        """
        with self._mutex:
            left = self.limit_bytes - self._taken_bytes
            if size_bytes > left:
                whose = "all clients together" if self._parent is None else "one client"
                raise Busy(
                    f"{size_bytes} bytes of memory are asked for, {left} of {self.limit_bytes} are left for {whose} "
                    "(native_memory); release regions, or try again later"
                )
            if self._parent is not None:
                self._parent.take(size_bytes)
            self._taken_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Gives bytes back."""
        with self._mutex:
            self._taken_bytes -= size_bytes
        if self._parent is not None:
            self._parent.give(size_bytes)


class Mapping:
    """A client's memfd, mapped until :meth:`close`.

    Args:
        descriptor: stays the caller's, who may close it at once.
        size_bytes: what the client says it holds.
        budget: pays for it.

    Raises:
        InputError: no memfd, not sealed, or of another size.
        Busy: it does not fit the budget.
    """

    def __init__(self, descriptor: int, size_bytes: int, budget: Budget) -> None:
        _check(descriptor, size_bytes)
        budget.take(size_bytes)
        self.size_bytes, self._budget = size_bytes, budget
        try:
            self._map = mmap.mmap(descriptor, size_bytes)
        except (OSError, ValueError) as error:  # sealed against writing, or no address space
            budget.give(size_bytes)
            raise InputError(
                f"the region of {size_bytes} bytes cannot be mapped ({error}); leave it writable"
            ) from None
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def check(self, offset: int, size_bytes: int) -> None:
        """Whether a part may be read or written.

        Raises:
            InputError: it does not lie inside, or begins at an odd place.
        """
        if offset % ALIGNMENT or offset + size_bytes > self.size_bytes:
            raise InputError(
                f"{size_bytes} bytes from {offset} in a region of {self.size_bytes}; give an offset inside that "
                f"{ALIGNMENT} divides"
            )

    def floats(self, offset: int, count: int) -> NDArray[np.float32]:
        """``count`` numbers from byte ``offset`` on, after :meth:`check`: shared, and the client may change them."""
        return self._bytes[offset : offset + 4 * count].view(np.float32)

    def write(self, offset: int, values: Batch) -> None:
        """Writes numbers from byte ``offset`` on.

        Raises:
            InputError: they do not lie inside, or the region is closed.
        """
        target = self._bytes[offset : offset + values.nbytes]
        if target.nbytes != values.nbytes:
            raise InputError(f"{values.nbytes} bytes from {offset} do not lie in the region, or it was released")
        np.copyto(target.view(np.float32), values.reshape(-1))

    def close(self) -> None:
        """Unmaps it; once."""
        self._bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):  # a view is still held somewhere: unmapped with it
            self._map.close()
        self._budget.give(self.size_bytes)


def _check(descriptor: int, size_bytes: int) -> None:
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)  # first: only memory has them, and asking it never blocks
    except OSError:
        seals = None
    # Huge pages are refused: their supply is limited, and a fault that finds none left kills the process, too.
    if seals is None or os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        raise InputError("the descriptor is no memfd of ordinary pages; make one with memfd_create(MFD_ALLOW_SEALING)")
    if seals & _SEALS != _SEALS:
        raise InputError("the memfd may still change its size; seal it with F_SEAL_SHRINK and F_SEAL_GROW first")
    found_bytes = os.fstat(descriptor).st_size
    if size_bytes < 1 or found_bytes != size_bytes:
        raise InputError(f"the memfd has {found_bytes} bytes, the frame says {size_bytes}; say its size")


class Arrays:
    """Private arrays for batches of one shape at a time. Used by one connection's threads.

    Args:
        shape: (channels, height, width).
        budget: pays for them.
    """

    def __init__(self, shape: tuple[int, int, int], budget: Budget) -> None:
        self._shape, self._budget = shape, budget
        self._images = 0  # of the arrays kept
        self._kept: list[Batch] = []
        self._mutex = threading.Lock()
        self._closed = False

    def take(self, images: int) -> Batch:
        """An array [images, channels, height, width] with anything in it.

        Raises:
            Busy: the budget is used up.
        """
        with self._mutex:
            if images != self._images:
                self._drop()
                self._images = images
            if self._kept:
                return self._kept.pop()
        size_bytes = 4 * images * self._shape[0] * self._shape[1] * self._shape[2]
        self._budget.take(size_bytes)
        return np.empty((images, *self._shape), np.float32)

    def give(self, array: Batch) -> None:
        """Takes an array back for later."""
        with self._mutex:
            if len(array) == self._images and not self._closed:
                self._kept.append(array)
                return
        self._budget.give(array.nbytes)

    def close(self) -> None:
        """Frees what is kept, and what is given back later."""
        with self._mutex:
            self._closed = True
            self._drop()

    def _drop(self) -> None:
        self._budget.give(sum(array.nbytes for array in self._kept))
        self._kept.clear()
