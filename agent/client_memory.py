"""The client's side of shared memory: arrays that the agent can read where they are.

An :class:`Arena` is one memfd, cut into equal slots; a slot holds one batch and room for its logits. It is sealed
against changing its size, which the agent insists on. :class:`Buffers` hands slots out as arrays and takes each back
when nobody refers to its array any more. Knows nothing of sockets and frames.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.wire import ALIGNMENT
from subnets.errors import InputError

if TYPE_CHECKING:  # numpy takes longer to import than all the rest; a program that only asks later waits for it later
    import numpy as np
    from numpy.typing import NDArray

_SLOTS, _ARENA_BYTES = 4, 16 * 2**20  # so many slots, or as many as fit so many bytes


class Arena:
    """One memfd.

    Args:
        number: which region it is.
        images: of the batch in each slot.
        image_bytes: of one image.
        logits_bytes: of its logits.
    """

    def __init__(self, number: int, images: int, image_bytes: int, logits_bytes: int) -> None:
        self.number, self.images, self.image_bytes = number, images, image_bytes
        self.logits_offset = _aligned(images * image_bytes)
        self.logits_stride = _aligned(logits_bytes)
        self.slot_bytes = self.logits_offset + images * self.logits_stride
        self.slots = max(1, min(_SLOTS, _ARENA_BYTES // self.slot_bytes))
        self.size_bytes = self.slots * self.slot_bytes
        self.free = list(range(self.slots))
        self.descriptor = os.memfd_create("gearshift", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.size_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self.map = mmap.mmap(self.descriptor, self.size_bytes)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the descriptor; the memory lives on while an array in it does."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()


class Place(NamedTuple):
    """Where a batch lies that the agent can read in place."""

    arena: Arena
    input_offset: int
    logits_offset: int


class Buffers:
    """Hands out arrays in shared memory.

    Args:
        shape: (channels, height, width).
        classes: how many logits an image has.
        max_arenas: how many memfds there may be.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, max_arenas: int) -> None:
        self._shape, self._classes, self._max_arenas = shape, classes, max_arenas
        self._image_floats = shape[0] * shape[1] * shape[2]
        self._arenas: list[Arena] = []
        self._places: dict[
            int, tuple[Arena, int, int]
        ] = {}  # by id of the array that owns a slot: arena, slot, address
        self._next = 1

    def take(self, images: int) -> tuple[NDArray[np.float32], Arena | None]:
        """An array [images, channels, height, width], and the arena that had to go for it, if one had to.

        Raises:
            InputError: as many arenas as there may be are all in use.
        """
        import numpy as np

        arena = next((a for a in self._arenas if a.images == images and a.free), None)
        gone = None
        if arena is None:
            gone = self._make_room()
            arena = Arena(self._next, images, 4 * self._image_floats, 4 * self._classes)
            self._next += 1
            self._arenas.append(arena)
        slot = arena.free.pop()
        count, offset = images * self._image_floats, slot * arena.slot_bytes
        owner = np.frombuffer(arena.map, np.float32, count, offset)
        key = id(owner)
        self._places[key] = arena, slot, owner.__array_interface__["data"][0]
        weakref.finalize(owner, self._freed, key).atexit = False
        return owner.reshape(images, *self._shape), gone

    def find(self, batch: NDArray[np.float32]) -> Place | None:
        """Where a batch lies, if it is (a part of) an array of :meth:`take` that the agent can read as it is."""
        found = self._places.get(id(batch.base))
        if found is None or not batch.flags.c_contiguous:
            return None
        arena, slot, address = found
        inside: int = batch.__array_interface__["data"][0] - address
        if inside % ALIGNMENT:
            return None
        start = slot * arena.slot_bytes
        # Each image has its own place for logits: parts of one buffer may be under way together.
        logits_offset = start + arena.logits_offset + inside // arena.image_bytes * arena.logits_stride
        return Place(arena, start + inside, logits_offset)

    def logits(self, place: Place, images: int) -> NDArray[np.float32]:
        """A copy of the logits [images, classes] that the agent has put beside a batch."""
        import numpy as np

        found = np.frombuffer(place.arena.map, np.float32, images * self._classes, place.logits_offset)
        return found.reshape(images, self._classes).copy()

    def close(self) -> None:
        """Hands out no more; arrays that are in use stay usable."""
        for arena in self._arenas:
            arena.close()
        self._arenas.clear()

    def _make_room(self) -> Arena | None:
        if len(self._arenas) < self._max_arenas:
            return None
        for arena in self._arenas:
            if len(arena.free) == arena.slots:
                self._arenas.remove(arena)
                arena.close()
                return arena
        raise InputError(
            f"{self._max_arenas} regions of shared memory are in use, the agent takes no more; let go of some buffers, "
            "or use buffers of one size"
        )

    def _freed(self, key: int) -> None:
        arena, slot, _ = self._places.pop(key)
        arena.free.append(slot)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def as_batch(batch: Any, shape: tuple[int, int, int], max_images: int) -> NDArray[np.float32]:
    """The batch, contiguous.

    Raises:
        InputError: no float32 [N, channels, height, width], or too many images.
    """
    import numpy as np

    wanted = f"float32 [N, {', '.join(map(str, shape))}]"
    if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
        found = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, np.ndarray) else type(batch).__name__
        raise InputError(f"a batch must be {wanted}, this is {found}; preprocess and convert it first")
    if batch.ndim != 4 or batch.shape[1:] != shape or not 1 <= len(batch) <= max_images:
        raise InputError(f"a batch must be {wanted} with N from 1 to {max_images}, this has {list(batch.shape)}")
    return np.ascontiguousarray(batch)
