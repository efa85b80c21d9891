"""A place for a Unix socket: whatever a killed process left there is cleared away, nothing else is."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from subnets.errors import InputError


@contextlib.contextmanager
def claimed(path: Path, option: str) -> Iterator[None]:
    """Makes place at ``path``; what the body binds there is for owner and group only, from the first moment.

    Args:
        path: where to listen.
        option: of ``gearshift run`` that names the path, for errors.

    Raises:
        InputError: something else is there, another process listens, or the body cannot bind.
    """
    elsewhere = f"give another place for {option}"
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise InputError(f"{path}: exists and is not a socket; {elsewhere}")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) != errno.ECONNREFUSED:  # also where it listens for another kind
                    raise InputError(f"{path}: another process listens there; {elsewhere}")
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o117)
        try:
            yield
        finally:
            os.umask(before)
    except OSError as error:
        raise InputError(f"{path}: cannot listen there ({error}); {elsewhere}") from None
