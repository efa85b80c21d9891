"""TensorRT-RTX: the same builder and runtime under another name, for GPUs from Turing on outside the data centre.

Two things differ. It installs from the ordinary package index; and it builds ahead of time, on a machine with or
without a GPU: an engine holds no code for one GPU, which the runtime makes when it loads it. So a stored engine fits
every GPU that this version knows, and its key names neither GPU nor driver.

* :class:`TensorRTRTXBackend`.
"""

from __future__ import annotations

from typing import ClassVar

from backends.base import CompileRequest
from backends.cuda import Gpu
from backends.gpu_network import Unsupported
from backends.tensorrt import TensorRTBackend
from subnets import Bundle, EngineError, UnavailableError


class TensorRTRTXBackend(TensorRTBackend):
    """Builds and loads engines with the ``tensorrt_rtx`` module."""

    name = "tensorrt-rtx"
    module: ClassVar[str] = "tensorrt_rtx"
    install: ClassVar[str] = "pip install 'gearshift[rtx]'"

    def precisions(self) -> tuple[str, ...]:
        """f32, f16 and bf16 as far as the GPU computes in them; without a GPU all of them, to build for another one.

        int8 is not among them: this flavour has no 8-bit convolution.
        """
        try:
            return super().precisions()
        except UnavailableError:
            return "f32", "f16", "bf16"

    def _check_gpu(self, gpu: Gpu) -> None:
        name = "SM{}{}".format(*gpu.capability)
        known = set(self._vendor().ComputeCapability.__members__) - {"NONE", "CURRENT"}
        if name not in known:
            raise UnavailableError(
                f"{self.module} does not know {gpu.name} (it knows {', '.join(sorted(known))}, this is {name}); "
                "use backend tensorrt or torch-cuda"
            )

    def _computes_int8(self) -> bool:
        return False

    def _convert(self, bundle: Bundle, request: CompileRequest, why: Unsupported) -> bytes:
        raise EngineError(
            f"{bundle.path}: '{request.subnet}' holds {why}, which cannot be put into TensorRT's terms; "
            "use another backend for this bundle"
        )

    def _identity(self) -> dict[str, str]:
        return {self.module: str(self._vendor().__version__)}
