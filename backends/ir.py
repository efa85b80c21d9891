"""The OpenVINO IR that an artifact is made from: the bundle's own export, or a fresh one.

f32, f16 and bf16 start from the same file, with weights in f16. int8 has one of its own, which was quantized where the
training images are (:mod:`backends.quantize`) and cannot be made on the way.

* :class:`IRBackend`: what backends that start from an IR share.
* :func:`place`: puts the IR into a folder, checked.

Knows nothing of what is made of it.
"""

from __future__ import annotations

import abc
import os
import shutil
from pathlib import Path
from typing import Any

from backends.base import CompileRequest
from backends.store import CachedBackend, E
from subnets import Bundle, InputError, UnavailableError
from subnets.bundle import sha256

MODEL, WEIGHTS = "model.xml", "model.bin"
_OPENVINO, _INT8 = "openvino", "openvino-int8"  # the formats of a bundle's exports


class IRBackend(CachedBackend[E]):
    """Makes artifacts from an IR, and offers int8 where the device computes in it and the bundle carries it."""

    def precisions_for(self, bundle: Bundle) -> tuple[str, ...]:
        """Those of :meth:`precisions`, and int8 if the device computes in it and all subnets have such exports."""
        if self._computes_int8() and all(bundle.export(name, _INT8) for name in bundle.ladder.names):
            return (*self.precisions(), "int8")
        return self.precisions()

    def _offered(self) -> tuple[str, ...]:
        return (*self.precisions(), "int8") if self._computes_int8() else self.precisions()

    def _sources(self, bundle: Bundle, request: CompileRequest) -> dict[str, Any]:
        return {"export": sorted(_files(bundle, request).values())}

    @abc.abstractmethod
    def _computes_int8(self) -> bool:
        """Whether 8-bit products are computed natively, with sums that cannot overflow."""


def place(bundle: Bundle, request: CompileRequest, folder: Path) -> Path:
    """Puts a request's IR into ``folder``, as :data:`MODEL` and :data:`WEIGHTS`; returns the file to open.

    The bundle's own files are linked where the file system allows it; a bundle without exports gets a fresh one.

    Raises:
        InputError: the bundle's files are missing or damaged, or it carries no int8 export.
        UnavailableError: it carries no export at all, and torch, which makes one, is missing.
    """
    files, first = _files(bundle, request), bundle.export(request.subnet, _format(request))
    if first is None:
        return _fresh(bundle, request, folder / MODEL)
    for name, expected in files.items():
        source, target = bundle.path / name, folder / (MODEL if bundle.path / name == first else WEIGHTS)
        if not source.resolve().is_relative_to(bundle.path.resolve()) or not source.is_file():
            raise InputError(f"{source}: named in bundle.json but not in the bundle; run 'gearshift export' again")
        try:
            os.link(source, target)  # artifacts of one subnet then share the file and its page cache
        except OSError:
            shutil.copyfile(source, target)  # another file system, or links are not allowed
        if sha256(target) != expected:
            raise InputError(f"{source}: damaged (its SHA-256 is not bundle.json's); run 'gearshift export' again")
    return folder / MODEL


def _files(bundle: Bundle, request: CompileRequest) -> dict[str, str]:
    """{file: SHA-256} of the bundle's export that a request starts from, empty where it carries none."""
    wanted = request.subnet, _format(request)
    return next(
        (dict(export.files) for export in bundle.manifest.exports if (export.subnet, export.format) == wanted), {}
    )


def _format(request: CompileRequest) -> str:
    return _INT8 if request.precision == "int8" else _OPENVINO


def _fresh(bundle: Bundle, request: CompileRequest, target: Path) -> Path:
    if request.precision == "int8":
        raise InputError(
            f"{bundle.path}: carries no int8 export of '{request.subnet}'; make one where its training images are: "
            "gearshift export BUNDLE --precision int8 --data DIR"
        )
    from backends.export import export_openvino

    try:
        return export_openvino(bundle, request.subnet, target)[0]
    except UnavailableError:
        raise UnavailableError(
            f"{bundle.path}: carries no openvino export of '{request.subnet}' and making one needs torch; "
            "run 'gearshift export' where torch is installed and copy the bundle again"
        ) from None
