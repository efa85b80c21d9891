"""Subnets in 8 bits: post-training quantization of a bundle's OpenVINO exports with NNCF.

* :func:`calibration_images`: training images on which the ranges of activations are found.
* :func:`quantize_openvino`: one export quantized and looked over.
* :func:`add_int8_exports`: does so for every subnet and records the files in the bundle.

Weights become 8 bits symmetric per output channel, activations 8 bits symmetric per tensor (Jacob et al. 2018), and
biases are corrected, layer after layer, for the shift that rounding brings (Nagel et al. 2019, section 4.2). NNCF's
faster correction, which looks at each layer alone, cost the narrowest CIFAR-10 subnet twice as much accuracy on
validation images. What is lost is measured afterwards, per subnet: ``gearshift evaluate --precision int8``.

Needs nncf and openvino, and torch only where the bundle has no OpenVINO exports yet; a device needs openvino alone to
run the files. Knows nothing of accuracy or speed.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Batch
from backends.export import add_exports
from backends.runtime import load_nncf, load_openvino, openvino_core
from subnets import Bundle, EngineError, InputError
from subnets.bundle import sha256
from subnets.data import Dataset

FORMAT = "openvino-int8"
SAMPLES = 300
MAX_DEVIATION = 0.5
"""Root mean square change of the logits, over that of the logits, beyond which a file is taken for broken."""
_CHECKED = 32


def calibration_images(bundle: Bundle, dataset: Dataset, samples: int = SAMPLES) -> Batch:
    """Preprocessed images drawn from the training split, the same on every run; never validation or test images.

    Returns:
        f32 [n, C, H, W], n being ``samples`` or all there are.

    Raises:
        InputError: there are no training images, or they do not fit the bundle.
    """
    if samples < 1:
        raise InputError(f"samples {samples} is too few; give at least 1, {SAMPLES} is usual")
    available = len(dataset.train)
    if not available:
        raise InputError(f"data '{dataset.name}' has no training images; quantization needs some")
    chosen = np.random.Generator(np.random.PCG64(8)).choice(available, min(samples, available), replace=False)
    pixels = dataset.train.read(np.sort(chosen))
    if pixels.shape[1:] != bundle.input.shape:
        raise InputError(
            f"images of '{dataset.name}' are {list(pixels.shape[1:])}, bundle '{bundle.name}' takes "
            f"{list(bundle.input.shape)}; give the data it was trained on"
        )
    return bundle.input.preprocess(pixels)


def quantize_openvino(bundle: Bundle, subnet: str, images: Batch, target: Path) -> list[Path]:
    """Writes a subnet's OpenVINO export with int8 weights and activations as ``target`` (``.xml``) and its ``.bin``.

    Args:
        bundle: must carry the subnet's ``openvino`` export.
        subnet: which.
        images: f32 [n, C, H, W]; the ranges of activations are found on them.
        target: the file to write.

    Returns:
        The files, the one to open first.

    Raises:
        InputError: the bundle has no such export, or it cannot be read.
        UnavailableError: nncf or openvino is missing.
        EngineError: the quantized network answers nothing like the original.
    """
    source = bundle.export(subnet, "openvino")
    if source is None:
        raise InputError(f"{bundle.path}: carries no openvino export of '{subnet}'; run 'gearshift export' first")
    nncf, ov = load_nncf(), load_openvino()
    for export in bundle.manifest.exports:
        if (export.subnet, export.format) == (subnet, "openvino"):
            for name, expected in export.files.items():
                if not (bundle.path / name).is_file() or sha256(bundle.path / name) != expected:
                    raise InputError(f"{bundle.path / name}: missing or damaged; run 'gearshift export' again")
    try:
        model = openvino_core().read_model(source)
    except RuntimeError:
        raise InputError(f"{source}: cannot be read; run 'gearshift export' again") from None
    samples = nncf.Dataset([image[np.newaxis] for image in images])
    with contextlib.redirect_stdout(io.StringIO()):  # it draws progress bars
        quantized = nncf.quantize(
            model,
            samples,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(images),
            fast_bias_correction=False,
        )
    ov.save_model(quantized, target, compress_to_fp16=True)
    _check(bundle, subnet, model, target, images[:_CHECKED])
    return [target, target.with_suffix(".bin")]


def add_int8_exports(bundle: Bundle, dataset: Dataset, samples: int = SAMPLES) -> Bundle:
    """Writes every subnet's int8 IR to ``exports/openvino-int8/`` and records hashes and origin; replaces older ones.

    Raises:
        as :func:`calibration_images` and :func:`quantize_openvino`.
    """
    images = calibration_images(bundle, dataset, samples)
    load_nncf()
    if any(bundle.export(subnet, "openvino") is None for subnet in bundle.ladder.names):
        bundle = add_exports(bundle)
    folder = bundle.path / "exports" / FORMAT
    folder.mkdir(parents=True, exist_ok=True)
    for subnet in bundle.ladder.names:
        with tempfile.TemporaryDirectory(prefix=f".{subnet}-", dir=folder) as temporary:
            written = quantize_openvino(bundle, subnet, images, Path(temporary) / f"{subnet}.xml")
            files = [file.replace(folder / file.name) for file in written]
        bundle = bundle.add_export(subnet, FORMAT, files)
    origin = {"data": dataset.name, "split": "train", "samples": len(images), "nncf": metadata.version("nncf")}
    return bundle.rewrite(provenance={**bundle.manifest.provenance, "int8": origin})


def _check(bundle: Bundle, subnet: str, original: Any, file: Path, images: Batch) -> None:
    """Compares the saved file with what it was made from: a guard against broken files, no judgement of accuracy."""
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    expected = openvino_core().compile_model(original, "CPU", options)(images)[0]
    found = openvino_core().compile_model(file, "CPU", options)(images)[0]
    deviation = float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
    if not deviation <= MAX_DEVIATION:  # so written, NaN fails too
        raise EngineError(
            f"{bundle.path}: the int8 export of '{subnet}' changes the logits by {deviation:.0%} of their size (at "
            f"most {MAX_DEVIATION:.0%} is allowed); give more --samples or leave int8 out"
        )
