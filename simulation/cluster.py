"""A Dask cluster as an executor for the arena: shards travel there, results travel back. Needs dask's distributed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from subnets.errors import InputError, UnavailableError

_CONNECT_S = 10.0


@contextmanager
def connected(address: str) -> Iterator[Executor]:
    """The cluster whose scheduler listens at ``address``; its workers need the same version of this project.

    Raises:
        UnavailableError: dask is not installed here.
        InputError: nothing answers there.
    """
    try:
        import distributed
    except ImportError:
        raise UnavailableError("a cluster needs dask; install it with: pip install 'gearshift[cluster]'") from None
    try:
        client = _client(distributed, address)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers at '{address}' ({error}); give its address, e.g. tcp://host:8786"
        ) from None
    with client:
        yield client.get_executor(pure=False)


def _client(distributed: Any, address: str) -> Any:
    return distributed.Client(address, timeout=_CONNECT_S)
