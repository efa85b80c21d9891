"""A subnet to a serialized TensorRT engine by way of torch-tensorrt, for networks the direct way cannot express.

:mod:`backends.gpu_network` knows the operations of the built-in families and a few more. For any other network that
torch can export, torch-tensorrt's dynamo converters do the same job from the torch module. The result is a plain
serialized engine like the other, so only building needs torch and torch-tensorrt (2.13).

* :func:`convert`.

Precision is that of the module's own types, since the dynamo path ignores ``enabled_precisions``. The converter's own
engine cache stays off: its key leaves out the shapes of weights, so all subnets of one bundle would share an entry.
There is no int8: its quantize operations need a further library.
"""

from __future__ import annotations

from typing import Any

from backends.base import CompileRequest
from backends.runtime import load_torch
from subnets import Bundle, EngineError


def convert(bundle: Bundle, request: CompileRequest, converter: Any, device: str = "cuda") -> bytes:
    """The serialized engine of one subnet; one optimization profile spans all batch sizes.

    Args:
        bundle: whose subnet it is.
        request: f32, f16 or bf16.
        converter: the ``torch_tensorrt`` module.
        device: where torch puts the network.

    Raises:
        InputError: the bundle does not fit its architecture.
        UnavailableError: torch is missing.
        EngineError: torch cannot export the network, or the converter refuses it.
    """
    torch = load_torch()
    from subnets.supernet import open_network

    kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[request.precision]
    network = open_network(bundle, request.subnet).to(device, kind)

    class Typed(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is imported inside
        """f32 in, f32 out, the network's own type between."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Any) -> Any:
            return self.network(images.to(kind)).float()

    smallest, largest = request.batch_sizes[0], request.batch_sizes[-1]
    shape = bundle.input.shape
    if smallest == largest:
        dynamic: Any = None
        spec = converter.Input(shape=(largest, *shape), dtype=torch.float32)
    else:
        dynamic = ({0: torch.export.Dim("batch", min=smallest, max=largest)},)
        spec = converter.Input(
            min_shape=(smallest, *shape),
            opt_shape=(largest, *shape),
            max_shape=(largest, *shape),
            dtype=torch.float32,
        )
    try:
        with torch.no_grad():
            example = torch.zeros(largest, *shape, device=device)
            program = torch.export.export(Typed().eval(), (example,), dynamic_shapes=dynamic)
            engine: bytes = converter.dynamo.convert_exported_program_to_serialized_trt_engine(
                program,
                arg_inputs=[spec],
                require_full_compilation=True,
                disable_tf32=True,
                immutable_weights=True,
                cache_built_engines=False,
                reuse_cached_engines=False,
            )
    except Exception as error:  # torch.export and the converters raise classes of many kinds
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(f"{bundle.path}: torch-tensorrt does not convert '{request.subnet}': {cause}") from None
    return engine
