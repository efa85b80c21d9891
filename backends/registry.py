"""Backends by name. Each lives in a module of its own that is imported when it is asked for.

* :func:`create`: one backend.
* :func:`all_backends`: every backend, usable here or not; ask each whether it is ``available()``.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import cast

from backends.base import Backend
from subnets import InputError

# name: (module, class), the one to prefer first
_BACKENDS = {
    "openvino": ("backends.openvino", "OpenVINOBackend"),
    "tensorrt": ("backends.tensorrt", "TensorRTBackend"),
    "tensorrt-rtx": ("backends.tensorrt_rtx", "TensorRTRTXBackend"),
    "torch-cuda": ("backends.torch_cuda", "TorchCudaBackend"),
    "torch": ("backends.torch", "TorchBackend"),
}

NAMES = tuple(_BACKENDS)


def create(name: str, cache: Path | None = None) -> Backend:
    """The backend of that name; it may still say that it is not available.

    Raises:
        InputError: there is none of that name.
    """
    if name not in _BACKENDS:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(NAMES)}"
        raise InputError(f"backend '{name}' is unknown; {hint}")
    module, cls = _BACKENDS[name]
    return cast(Backend, getattr(importlib.import_module(module), cls)(cache))


def all_backends(cache: Path | None = None) -> list[Backend]:
    """Every backend, the preferred one first."""
    return [create(name, cache) for name in NAMES]
