"""What identifies this machine, read from files and package metadata; imports no backend library."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil

from calibration.table import Host

# Distribution whose version changes what a backend compiles.
LIBRARIES = {
    "openvino": "openvino",
    "torch": "torch",
    "torch-cuda": "torch",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
_ON_NVIDIA = {"torch-cuda", "tensorrt", "tensorrt-rtx"}


def fingerprint(backends: Iterable[str] | None = None, *, root: Path = Path("/")) -> Host:
    """This machine.

    Args:
        backends: names whose library versions matter; all known ones by default. Versions compare only where both
            hosts list a library, so a table should list no more than its rows need.
        root: where ``proc`` and ``sys`` are found; ``/`` except in tests.
    """
    names = LIBRARIES if backends is None else [name for name in backends if name in LIBRARIES]
    libraries = {}
    for name in sorted(set(names)):
        try:
            libraries[LIBRARIES[name]] = metadata.version(LIBRARIES[name])
        except metadata.PackageNotFoundError:
            continue
    if _ON_NVIDIA & set(names) and (driver := _driver(root)):
        libraries["nvidia-driver"] = driver
    return Host(
        cpu=_cpu(root),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=libraries,
        accelerator=_accelerator(root),
    )


def _cpu(root: Path) -> str:
    """x86 names its model; ARM gives a board name at best, else implementer and part numbers."""
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    if fields.get("model name"):
        return fields["model name"]
    if board := _text(root / "proc/device-tree/model").strip("\0\n "):
        return board
    parts = [fields[name] for name in ("CPU implementer", "CPU part") if name in fields]
    return " ".join(parts) or platform.machine()


def _accelerator(root: Path) -> str:
    """Models of the NVIDIA processors whose driver is loaded, or nothing."""
    models = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        for line in _text(path).splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                models.append(value.strip())
    return ", ".join(models)


def _driver(root: Path) -> str:
    """The version of the NVIDIA kernel module, or nothing."""
    match = re.search(r"Kernel Module\s.*?(\d+\.[\d.]+)", _text(root / "proc/driver/nvidia/version"))
    return match[1] if match else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
