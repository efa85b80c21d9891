"""Living as a daemon: one instance, systemd's notifications, a state file that tells others where the agent listens.

Knows nothing of what the daemon does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

import msgspec

from subnets.bundle import write_atomically
from subnets.errors import InputError, UnavailableError

_STATE_FILE, _LOCK_FILE = "agent.json", "agent.lock"
_LOCK_TRIES = 5
SYSTEM_FOLDER = Path("/run/gearshift")
"""Where the agent of packaging/gearshift.service leaves its state."""


def runtime_folder() -> Path:
    """Where lock and state lie: ``$RUNTIME_DIRECTORY``, ``$XDG_RUNTIME_DIR/gearshift`` or ``~/.cache/gearshift``."""
    if directory := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(directory.split(":")[0])
    if directory := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(directory) / "gearshift"
    return Path.home() / ".cache" / "gearshift"


class RunningAgent(msgspec.Struct, frozen=True, kw_only=True):
    """Where an agent listens."""

    pid: int
    host: str = ""
    port: int = 0
    socket: str = ""
    native: str = ""  # path of the native socket, see docs/native.md
    grpc_port: int = 0  # at the same host; 0 = no gRPC over TCP
    grpc_socket: str = ""
    bundle: str = ""
    started_unix_s: float = 0.0


class Instance:
    """The lock that only one agent per runtime folder holds, with its state file; a context manager.

    The kernel frees the lock when the process ends, however it ends.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or runtime_folder()
        self._lock: IO[str] | None = None

    def __enter__(self) -> Instance:
        """Takes the lock.

        Raises:
            InputError: another agent has it, or the folder cannot be used.
        """
        path = self.folder / _LOCK_FILE
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = path.open("a+")
        except OSError as error:
            raise InputError(
                f"{path}: cannot be used ({error.strerror}); set RUNTIME_DIRECTORY to a writable folder"
            ) from None
        for left in reversed(range(_LOCK_TRIES)):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except OSError:
                if left:
                    time.sleep(0.05)  # it may only be find_running, which holds it for a moment
        self._lock.close()
        raise InputError(
            f"{path}: another agent runs here; see 'gearshift status', or set RUNTIME_DIRECTORY to run a second one"
        )

    def announce(self, running: RunningAgent) -> None:
        """Writes where the agent listens."""
        write_atomically(self.folder / _STATE_FILE, msgspec.json.encode(running) + b"\n")

    def __exit__(self, *exception: object) -> None:
        (self.folder / _STATE_FILE).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()


def find_running(folder: Path | None = None) -> RunningAgent:
    """The agent that holds the lock of a folder; of the user's own, or else of the system's, when none is given.

    Raises:
        UnavailableError: none runs.
    """
    folders = [folder or runtime_folder()]
    if folder is None and not os.environ.get("RUNTIME_DIRECTORY"):
        folders.append(SYSTEM_FOLDER)
    for place in folders:
        if (found := _running(place)) is not None:
            return found
    raise UnavailableError(f"no agent runs here ({folders[0]}); start one with 'gearshift run BUNDLE'")


def _running(folder: Path) -> RunningAgent | None:
    try:
        with (folder / _LOCK_FILE).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return msgspec.json.decode((folder / _STATE_FILE).read_bytes(), type=RunningAgent)
    except FileNotFoundError:
        pass
    except PermissionError:
        raise UnavailableError(
            f"{folder}: an agent may run there, but you may not look; become root or a member of its group"
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise UnavailableError(f"{folder / _STATE_FILE}: cannot be read ({error}); is the agent yours?") from None
    return None


def notify(*lines: str) -> bool:
    """Tells systemd, e.g. ``READY=1``; does nothing outside it.

    Returns:
        Whether a message was sent.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto("\n".join(lines).encode(), address)
        return True
    return False


def notify_reloading() -> None:
    """Tells systemd that a reload has begun; ``READY=1`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_wanted() -> bool:
    """Whether systemd wants to hear from this process."""
    pid = os.environ.get("WATCHDOG_PID")
    return bool(os.environ.get("WATCHDOG_USEC")) and (pid is None or pid == str(os.getpid()))
