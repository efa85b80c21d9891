"""Subnets in forms that leave Gearshift: ONNX files, plain modules, a model repository for Triton.

* :func:`export_onnx`, :func:`add_onnx_exports`: one ONNX file a subnet, its answers compared with the network's.
* :func:`add_module_exports`: one folder a subnet that :func:`subnets.from_pretrained` reads.
* :func:`write_triton`: one Triton model a subnet, with the OpenVINO or the ONNX Runtime backend.

Like :mod:`backends.export`, which writes OpenVINO's IR. Knows nothing of running engines. The model repositories agree
with Triton's own definition of a configuration; they have not yet been loaded by a Triton server.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from backends.runtime import load_torch, openvino_core
from subnets import Bundle, EngineError, InputError, UnavailableError
from subnets.bundle import sha256
from subnets.pretrained import save_module

ONNX, MODULE = "onnx", "module"  # formats of a bundle's exports
OPSET = 17
TOLERANCE = 1e-4  # of the largest logit: f32 on both sides, so what is left is the order of additions
TRITON_BACKENDS = {"openvino": "openvino", "onnxruntime": ONNX}  # Triton's name -> the export it runs
TRITON_MAX_BATCH = 32
_CHECKED_BATCH = 3


def export_onnx(bundle: Bundle, subnet: str, target: Path) -> list[Path]:
    """Writes a subnet as an ONNX file of opset :data:`OPSET`: f32 weights, batch-norm folded, any batch size.

    The input is called ``input`` (f32 [batch, C, H, W]), the output ``logits`` (f32 [batch, classes]).

    Returns:
        The file.

    Raises:
        InputError: there is no such subnet, or its network cannot be built.
        UnavailableError: torch, onnx or openvino is missing.
        EngineError: the file, read by OpenVINO, does not answer like the network.
    """
    torch = load_torch()
    try:
        import onnx  # noqa: F401  (torch's exporter needs it)
    except ImportError:
        raise UnavailableError("ONNX files need onnx; install it with: pip install 'gearshift[onnx]'") from None
    from subnets.supernet import open_network

    network = open_network(bundle, subnet)
    with warnings.catch_warnings():
        # The exporter that traces is deprecated, its successor takes minutes and one more package for the same file.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(2, *bundle.input.shape),),
            str(target),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    _check(bundle, subnet, network, target)
    return [target]


def add_onnx_exports(bundle: Bundle) -> Bundle:
    """Writes every subnet to ``exports/onnx/`` in the bundle and records the hashes; replaces older ones.

    Raises:
        as :func:`export_onnx`.
    """
    folder = bundle.path / "exports" / ONNX
    folder.mkdir(parents=True, exist_ok=True)
    for subnet in bundle.ladder.names:
        with tempfile.TemporaryDirectory(prefix=f".{subnet}-", dir=folder) as temporary:
            written = export_onnx(bundle, subnet, Path(temporary) / f"{subnet}.onnx")
            files = [file.replace(folder / file.name) for file in written]
        bundle = bundle.add_export(subnet, ONNX, files)
    return bundle


def add_module_exports(bundle: Bundle) -> Bundle:
    """Writes every subnet's own weights and specification to ``exports/module/``, and records the hashes.

    Needs no torch: it is needed where :func:`subnets.from_pretrained` builds the network.
    """
    for subnet in bundle.ladder.names:
        files = save_module(bundle, subnet, bundle.path / "exports" / MODULE / subnet)
        bundle = bundle.add_export(subnet, MODULE, files)
    return bundle


def write_triton(bundle: Bundle, repository: Path, backend: str = "openvino") -> list[Path]:
    """Writes a Triton model repository: one model a subnet, called ``<bundle>-<subnet>``, version 1.

    Takes the bundle's own exports; where it carries none, makes them, which needs torch. Other models in the repository
    stay as they are.

    Returns:
        The models' folders, smallest subnet first.

    Raises:
        InputError: the backend is unknown, an export is damaged, or something that is no model is in the way.
        UnavailableError, EngineError: as :func:`export_onnx` and :func:`backends.export.export_openvino`.
    """
    if backend not in TRITON_BACKENDS:
        raise InputError(f"Triton backend '{backend}' is unknown here; use one of {', '.join(TRITON_BACKENDS)}")
    repository.mkdir(parents=True, exist_ok=True)
    written = []
    for subnet in bundle.ladder.names:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{bundle.name}-{subnet}")
        model = repository / name
        if model.exists() and not (model / "config.pbtxt").is_file():
            raise InputError(f"{model}: exists and is no Triton model; choose another place for --out")
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=repository) as temporary:
            staged = Path(temporary) / name
            (staged / "1").mkdir(parents=True)
            _place(bundle, subnet, TRITON_BACKENDS[backend], staged / "1")
            (staged / "config.pbtxt").write_text(_config(bundle, name, backend, staged / "1"), encoding="utf-8")
            if bundle.labels:
                (staged / "labels.txt").write_text("\n".join(bundle.labels) + "\n", encoding="utf-8")
            if model.exists():
                model.rename(Path(temporary) / "old")
            staged.rename(model)
        written.append(model)
    return written


_MODEL_FILES = {"openvino": ("model.xml", "model.bin"), ONNX: ("model.onnx",)}


def _place(bundle: Bundle, subnet: str, format: str, folder: Path) -> None:
    """The export's files under the names that Triton looks for."""
    names = _MODEL_FILES[format]
    for export in bundle.manifest.exports:
        if (export.subnet, export.format) == (subnet, format):
            for (source, expected), name in zip(export.files.items(), names, strict=True):
                file = bundle.path / source
                if not file.is_file():
                    raise InputError(f"{file}: named in bundle.json but missing; run 'gearshift export' again")
                shutil.copyfile(file, folder / name)
                if sha256(folder / name) != expected:
                    raise InputError(
                        f"{file}: damaged (its SHA-256 is not bundle.json's); run 'gearshift export' again"
                    )
            return
    make: Callable[[Bundle, str, Path], list[Path]] = export_onnx
    if format == "openvino":
        from backends.export import export_openvino

        make = export_openvino
    make(bundle, subnet, folder / names[0])


def _config(bundle: Bundle, name: str, backend: str, folder: Path) -> str:
    """``config.pbtxt``; the shapes are read from the model itself."""
    model = openvino_core().read_model(folder / _MODEL_FILES[TRITON_BACKENDS[backend]][0])
    [image], [logits] = model.inputs, model.outputs
    dims = [side.get_length() for side in list(image.get_partial_shape())[1:]]
    classes = logits.get_partial_shape()[1].get_length()
    labels = '    label_filename: "labels.txt"\n' if bundle.labels else ""
    instances = "instance_group [\n  {\n    kind: KIND_CPU\n  }\n]\n" if backend == "openvino" else ""
    return (
        f'name: "{name}"\n'
        f'backend: "{backend}"\n'
        f"max_batch_size: {TRITON_MAX_BATCH}\n"
        "input [\n  {\n"
        f'    name: "{image.get_any_name()}"\n    data_type: TYPE_FP32\n    dims: {dims}\n'
        "  }\n]\n"
        "output [\n  {\n"
        f'    name: "{logits.get_any_name()}"\n    data_type: TYPE_FP32\n    dims: [{classes}]\n{labels}'
        "  }\n]\n"
        f"{instances}"
    )


def _check(bundle: Bundle, subnet: str, network: Any, file: Path) -> None:
    """Compares the file, as OpenVINO reads it, with the network it came from."""
    torch = load_torch()
    images = np.random.default_rng(0).standard_normal((_CHECKED_BATCH, *bundle.input.shape), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    found = openvino_core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]
    scale, error = float(np.abs(expected).max()), float(np.abs(found - expected).max())
    if not error <= TOLERANCE * scale:  # so written, NaN fails too
        raise EngineError(
            f"{bundle.path}: the ONNX export of '{subnet}' is off by {error:.3g} on logits up to {scale:.3g} "
            f"(at most {TOLERANCE:g} of that is allowed); export OpenVINO's IR instead and report the network"
        )
