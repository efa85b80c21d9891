"""Keeps big activation tensors from being mapped and unmapped in every training step.

glibc's malloc maps each large block from the kernel and hands it back when it is freed, so a training step that
allocates the same hundred megabytes again and again pays for the same page faults again and again.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tells glibc to serve large blocks from the heap and to keep what is freed; for the rest of the process.

    Through the number of mapped blocks, not their threshold: mallopt takes an int, and refuses thresholds above half a
    heap in some versions. Memory in use never falls again, so this is for training runs alone.

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))
