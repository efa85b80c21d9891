"""What every backend checks: a compile request before building, a batch before answering.

Knows nothing of any library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from backends.base import Artifact, CompileRequest
from backends.runtime import usable_processors
from subnets import Bundle, InputError

MAX_BATCH_SIZE = 1024  # engines are for latency; beyond this a batch is a mistake


def checked(
    bundle: Bundle, request: CompileRequest, precisions: Sequence[str], *, pinning: bool = False
) -> CompileRequest:
    """The request with its batch sizes sorted and each once, so that equal requests have equal keys.

    Args:
        bundle: whose subnet it is.
        request: what was asked for.
        precisions: those that the backend offers here.
        pinning: whether the backend can pin threads to processors.

    Raises:
        InputError: the subnet, the precision, a batch size, the number of threads or pinning is not to be had.
    """
    bundle.entry(request.subnet)
    if request.precision not in precisions:
        raise InputError(
            f"precision '{request.precision}' is not native to this processor; it offers {', '.join(precisions)}"
        )
    sizes = tuple(sorted(set(request.batch_sizes)))
    if not sizes or sizes[0] < 1 or sizes[-1] > MAX_BATCH_SIZE:
        raise InputError(f"batch sizes {list(request.batch_sizes)}: give at least one, each 1 to {MAX_BATCH_SIZE}")
    if not 1 <= request.threads <= usable_processors():
        raise InputError(
            f"threads {request.threads}: this process may use {usable_processors()} processors; give 1 to that many"
        )
    if request.pinned and not pinning:
        raise InputError("pinned threads are not to be had from this backend; leave 'pinned' out")
    return msgspec.structs.replace(request, batch_sizes=sizes)


def refusal(artifact: Artifact, batch: Any) -> InputError:
    """Why a batch of the wrong type, dtype or shape is refused, in one sentence."""
    if not isinstance(batch, np.ndarray):
        return InputError(f"the batch is a {type(batch).__name__}; give a numpy float32 array [N, C, H, W]")
    if batch.dtype != np.float32:
        return InputError(f"the batch is {batch.dtype}; give float32 (the bundle's input specification preprocesses)")
    shape = ", ".join(map(str, artifact.input_shape))
    sizes = " or ".join(map(str, artifact.request.batch_sizes))
    return InputError(f"the batch has shape {list(batch.shape)}; this engine takes [N, {shape}] with N = {sizes}")


def not_finite() -> InputError:
    """The refusal of a batch with NaN or infinity in it."""
    return InputError("the batch holds NaN or infinity; an image must be finite numbers")
