"""What the C library's malloc is told, where its defaults do not suit a process: glibc's alone can be told.

* :func:`keep_freed_memory`, for training: glibc maps each large block from the kernel and hands it back when it is
  freed, so a step that allocates the same hundred megabytes again and again pays for the same page faults each time.
* :func:`share_one_heap`, for daemons: glibc gives threads heaps of their own, and what one thread frees another does
  not use. Where engines come and go for months, each in whichever thread, all those heaps grow.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tells glibc to serve large blocks from the heap and to keep what is freed; for the rest of the process.

    Through the number of mapped blocks, not their threshold: mallopt takes an int, and refuses thresholds above half a
    heap in some versions. Memory in use never falls again, so this is for training runs alone.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    return _told((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))


def share_one_heap() -> bool:
    """Tells glibc to serve all threads from one heap; call before there are threads, for the rest of the process.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    return _told((_M_ARENA_MAX, 1))


def _told(*settings: tuple[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(what, value) for what, value in settings)
