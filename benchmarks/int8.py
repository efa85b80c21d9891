"""What 8 bits cost in accuracy: every subnet of the shipped bundle, quantized, on all of CIFAR-10's test images.

The bundle is copied and quantized by ``backends.quantize`` on images of the training split. Both forms are then run on
the same test images, so that the difference is paired: only images on which they disagree count, and its interval is
that of the paired proportions (Wald, with Agresti and Min's half a count added to either side).

int8 is computed exactly: the quantized steps are taken in f32 instead of by 8-bit kernels, whose sums a processor
without dot products keeps in 16 bits, where they can overflow. So the figure is that of the exported file, on whatever
machine; where the processor has 8-bit dot products, the kernels' own answers stand beside it.

    python benchmarks/int8.py --data cifar-10-batches-py > int8.json
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, provenance
from numpy.typing import NDArray

from backends.base import Batch
from backends.quantize import FORMAT, SAMPLES, add_int8_exports
from backends.runtime import Processor, openvino_core
from subnets.bundle import Bundle
from subnets.data import load

ALLOWED_POINTS = 1.0
_BATCH = 500
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}  # no 8-bit kernels
_NATIVE = {"INFERENCE_PRECISION_HINT": "f32"}


def main() -> None:
    """Quantizes, evaluates and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=ROOT / "bundles" / "resnet20-cifar10")
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.open(shutil.copytree(options.bundle, Path(folder) / "bundle"))
        data = load(options.data, image_size=bundle.input.height)
        bundle = add_int8_exports(bundle, data, options.samples)
        images = bundle.input.preprocess(data.test.read(np.arange(len(data.test))))
        labels = np.asarray(data.test.labels)
        points = [_point(bundle, name, images, labels) for name in bundle.ladder.names]
    document = {
        "what": "top-1 accuracy on the test split, int8 export against f32, the same images; lost is f32 less int8",
        "points": points,
        "n": len(labels),
        "samples": options.samples,
        "allowed_points": ALLOWED_POINTS,
        "shown": all(point["lost_points"] <= ALLOWED_POINTS for point in points),
        "native_kernels": Processor.here().computes_int8,
        "bundle": bundle.name,
        "bundle_key": bundle.key,
        **provenance(__file__, ["openvino", "nncf"]),
    }
    print(json.dumps(document, indent=1))


def _point(bundle: Bundle, subnet: str, images: Batch, labels: NDArray[Any]) -> dict[str, Any]:
    before = _answers(bundle, subnet, "openvino", images, _EXACT) == labels
    after = _answers(bundle, subnet, FORMAT, images, _EXACT) == labels
    only_before, only_after, n = int(np.sum(before & ~after)), int(np.sum(after & ~before)), len(labels)
    half = 1.96 * math.sqrt(only_before + only_after + 1 - (only_before - only_after) ** 2 / n) / n
    found = {
        "subnet": subnet,
        "f32": float(before.mean()),
        "int8": float(after.mean()),
        "lost_points": 100 * (only_before - only_after) / n,
        "lost_low_points": 100 * ((only_before - only_after) / n - half),
        "lost_high_points": 100 * ((only_before - only_after) / n + half),
        "right_in_f32_alone": only_before,
        "right_in_int8_alone": only_after,
    }
    if Processor.here().computes_int8:
        found["int8_by_kernels"] = float((_answers(bundle, subnet, FORMAT, images, _NATIVE) == labels).mean())
    return found


def _answers(bundle: Bundle, subnet: str, form: str, images: Batch, options: dict[str, str]) -> NDArray[Any]:
    model = openvino_core().read_model(bundle.export(subnet, form))
    model.reshape([_BATCH, *bundle.input.shape])
    compiled = openvino_core().compile_model(model, "CPU", options)
    parts = [compiled(images[start : start + _BATCH])[0].argmax(1) for start in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
