"""The libraries, the processor and the memory as this process finds them.

* :func:`load_openvino`, :func:`openvino_core`: OpenVINO, imported on first use and without its telemetry.
* :func:`load_nncf`: NNCF, which quantizes, likewise. :func:`load_torch`: torch, or one sentence why not.
* :class:`Processor`: the model name and instruction-set flags that decide what is computed natively.
* :func:`resident_bytes`, :func:`growth`: resident memory, to measure what loading an engine adds.
* :func:`all_finite`: whether an array holds neither NaN nor infinity, in microseconds.

Knows nothing of bundles or engines.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from backends.base import Batch
from subnets import UnavailableError

_TELEMETRY = "openvino_telemetry"
_DOT_LIMIT = 8192  # elements; BLAS adds up so few in the calling thread, and wakes no others


@contextlib.contextmanager
def _without_telemetry(library: str) -> Iterator[None]:
    """Hides OpenVINO's telemetry package while ``library`` is imported, so that it takes its own silent stand-in.

    Importing OpenVINO or NNCF sends a usage event to their vendor unless ``openvino_telemetry`` cannot be imported. A
    device should not phone home unasked. A program that imported either of them before keeps what it had.
    """
    hide = _TELEMETRY not in sys.modules and library not in sys.modules
    if hide:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        if hide:
            del sys.modules[_TELEMETRY]


@functools.cache
def load_openvino() -> Any:
    """The ``openvino`` module, without its telemetry.

    Raises:
        UnavailableError: it is not installed or does not load here.
    """
    try:
        with _without_telemetry("openvino"):
            return importlib.import_module("openvino")
    except ImportError as error:
        raise UnavailableError(f"openvino does not import ({error}); try: pip install openvino") from None


@functools.cache
def openvino_core() -> Any:
    """One ``openvino.Core`` for the process, so that its CPU plugin is loaded once."""
    return load_openvino().Core()


@functools.cache
def load_nncf() -> Any:
    """The ``nncf`` module, without its telemetry and saying no more than its errors.

    Raises:
        UnavailableError: it is not installed.
    """
    load_openvino()  # first, so that its own import is silent too
    try:
        with _without_telemetry("nncf"):
            nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise UnavailableError(f"nncf does not import ({error}); try: pip install 'gearshift[quantize]'") from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def load_torch() -> Any:
    """The ``torch`` module.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UnavailableError(f"torch does not import ({error}); try: pip install 'gearshift[train]'") from None
    return torch


class Processor(msgspec.Struct, frozen=True):
    """A processor's model name and its instruction-set flags as the kernel lists them (empty where it does not)."""

    model: str
    flags: frozenset[str]

    @staticmethod
    def here(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
        """This machine's first processor; x86 calls the list ``flags``, ARM ``Features``."""
        fields: dict[str, str] = {}
        try:
            for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, value = line.partition(":")
                fields.setdefault(name.strip(), value.strip())
        except OSError:
            pass  # not Linux: no flags, so only f32 is offered
        listed = fields.get("flags") or fields.get("Features") or ""
        return Processor(fields.get("model name") or platform.machine(), frozenset(listed.split()))

    @property
    def computes_bf16(self) -> bool:
        """Has bf16 dot products: AVX512-BF16, AMX-BF16, or ARM's BF16 extension."""
        return not self.flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})

    @property
    def computes_f16(self) -> bool:
        """Has f16 arithmetic worth using: AMX-FP16 or ARM's half-precision vectors.

        AVX512-FP16 alone does not count: on such a processor f16 convolutions were slower than f32 ones.
        """
        return not self.flags.isdisjoint({"amx_fp16", "asimdhp"})

    @property
    def computes_int8(self) -> bool:
        """Has int8 dot products: AVX-VNNI, AVX512-VNNI, AMX-INT8, or ARM's dot product extension.

        Without them products are added in 16 bits, which is little faster than f32 and can overflow.
        """
        return not self.flags.isdisjoint({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"})


def usable_processors() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int | None:
    """Resident memory of this process in bytes, file mappings included; None where the system does not tell."""
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")  # exact, where statm lags behind
        return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Rss:"))
    except (OSError, StopIteration):
        pass
    try:
        return int(psutil.Process().memory_info().rss)
    except psutil.Error:
        return None


def growth(before: int | None) -> int | None:
    """Bytes of resident memory gained since ``before``; None where it cannot be told or nothing was."""
    now = resident_bytes()
    return now - before if now is not None and before is not None and now > before else None


def all_finite(values: Batch) -> bool:
    """Whether a flat f32 array holds neither NaN nor infinity.

    A sum stays finite only if every term was, so one pass that adds up settles nearly every case; only when the sum
    overflows (finite values near 1e38, or near 1e19 where squares are added) is each value looked at. Few values go
    to BLAS as their squares, many to ``einsum``, which adds with one thread and SIMD as fast as memory gives them; BLAS
    would wake threads for those, and ``sum`` takes three times as long. It is the array's own ``dot``, not ``numpy``'s
    function: right after an inference no code is in the nearest caches, and what runs least of it is quickest.
    """
    try:
        total = values.dot(values) if values.size <= _DOT_LIMIT else np.einsum("i->", values)
    except (RuntimeWarning, FloatingPointError):  # the squares overflowed, where a program makes errors of that
        total = math.inf
    return math.isfinite(total) or bool(np.isfinite(values).all())
