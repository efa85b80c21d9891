"""Backends: from a bundle's subnets to engines that answer on this device.

* :mod:`backends.base`: the contract. :mod:`backends.contract`: the tests every backend passes (needs pytest).
* :mod:`backends.registry`: backends by name. On the CPU :mod:`backends.openvino`, :mod:`backends.torch`; on a GPU
  :mod:`backends.tensorrt`, ``tensorrt_rtx``, ``torch_cuda``, with ``gpu_network``, ``torch_tensorrt`` (how their
  engines are made) and ``cuda`` (the driver).
* :mod:`backends.export`: portable files for a device without torch; :mod:`backends.quantize`: the same in 8 bits;
  :mod:`backends.portable`: ONNX, plain modules, Triton repositories.
* :mod:`backends.store`, ``cache``: artifacts on disk, and clearing them out; :mod:`backends.ir`: what they start from.
* :mod:`backends.requests`, ``runtime``: checks, and this machine.

Importing this package imports neither torch nor openvino. Knows nothing of measuring, choosing or serving.
"""

from backends.base import Artifact, Availability, Backend, CompileRequest, Engine, artifact_key, cache_path
from backends.registry import NAMES, all_backends, create

__all__ = [
    "NAMES",
    "Artifact",
    "Availability",
    "Backend",
    "CompileRequest",
    "Engine",
    "all_backends",
    "artifact_key",
    "cache_path",
    "create",
]
