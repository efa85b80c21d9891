"""Backends: from a bundle's subnets to engines that answer on this device.

* :mod:`backends.base`: the contract. :mod:`backends.contract`: the tests every backend passes (needs pytest).
* :mod:`backends.registry`: backends by name. :mod:`backends.openvino`, :mod:`backends.torch`: the backends.
* :mod:`backends.export`: portable files for a device without torch.
* :mod:`backends.store`, ``requests``, ``runtime``: artifacts on disk, checks, and this machine.

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
