"""Subnets as OpenVINO IR: portable files that a device reads without torch.

* :func:`export_openvino`: traces one subnet, saves it with f16 weights and checks the saved file's answers.
* :func:`add_exports`: does so for every subnet and records the files in the bundle.

The check: on seeded random images, in f32 arithmetic, every logit of the saved file lies within :data:`TOLERANCE`
times the largest logit of the torch network's. What it leaves room for is rounding the weights to f16 (a relative
2**-11, 4.9e-4, each), not a mistake in the conversion: a wrong batch-norm or a permuted channel is off by far more.

Needs torch and openvino; knows nothing of compiling or running engines.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from backends.runtime import load_openvino, load_torch, openvino_core
from subnets import Bundle, EngineError

TOLERANCE = 5e-3
_CHECKED_BATCH = 8


def export_openvino(bundle: Bundle, subnet: str, target: Path) -> list[Path]:
    """Writes a subnet as ``target`` (``.xml``) and the ``.bin`` beside it: f16 weights, any batch size.

    The input is called ``input`` (f32 [N, C, H, W]), the output ``logits`` (f32 [N, classes]).

    Returns:
        The files, the one to open first.

    Raises:
        InputError: there is no such subnet, or the bundle does not fit its architecture.
        UnavailableError: torch or openvino is missing.
        EngineError: the converted network does not answer like the original.
    """
    torch, ov = load_torch(), load_openvino()
    from subnets.supernet import open_network

    network = open_network(bundle, subnet)  # in eval mode: a network in training mode would convert without complaint
    with warnings.catch_warnings():
        # OpenVINO traces with torch.jit, which torch has deprecated.
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        model = ov.convert_model(
            network, example_input=torch.zeros(1, *bundle.input.shape), input=[-1, *bundle.input.shape]
        )
    model.inputs[0].get_tensor().set_names({"input"})
    model.outputs[0].get_tensor().set_names({"logits"})
    ov.save_model(model, target, compress_to_fp16=True)
    _check(bundle, subnet, network, target)
    return [target, target.with_suffix(".bin")]


def add_exports(bundle: Bundle) -> Bundle:
    """Writes every subnet's IR to ``exports/openvino/`` in the bundle and records its hashes; replaces older ones.

    Raises:
        as :func:`export_openvino`.
    """
    folder = bundle.path / "exports" / "openvino"
    folder.mkdir(parents=True, exist_ok=True)
    for subnet in bundle.ladder.names:
        with tempfile.TemporaryDirectory(prefix=f".{subnet}-", dir=folder) as temporary:
            written = export_openvino(bundle, subnet, Path(temporary) / f"{subnet}.xml")
            files = [file.replace(folder / file.name) for file in written]
        bundle = bundle.add_export(subnet, "openvino", files)
    return bundle


def _check(bundle: Bundle, subnet: str, network: Any, file: Path) -> None:
    """Compares the saved file with the network it came from."""
    torch = load_torch()
    images = np.random.default_rng(0).standard_normal((_CHECKED_BATCH, *bundle.input.shape), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    compiled = openvino_core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(images)[0]
    scale = float(np.abs(expected).max())
    error = float(np.abs(found - expected).max())
    if not error <= TOLERANCE * scale:  # so written, NaN fails too
        raise EngineError(
            f"{bundle.path}: the OpenVINO export of '{subnet}' is off by {error:.3g} on logits up to {scale:.3g} "
            f"(at most {TOLERANCE:g} of that is allowed); use the torch backend for it and report the architecture"
        )
