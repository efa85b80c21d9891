"""How long candidate widths take: measured once, kept in a file, looked up after that.

:class:`Lookup` is a cost like MACs, so that an allocation may spend milliseconds. What measures is handed in: this
module knows no engine. A file holds the measurements of one identity (network, backend, device, precision, host,
library version); of another one it is refused, since a millisecond elsewhere is another millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from subnets.bundle import Strict, write_atomically
from subnets.errors import InputError, MismatchError

SCHEMA = 1
Measure = Callable[[Mapping[str, int]], float]  # widths -> ms


class Measured(Strict, frozen=True, kw_only=True):
    """What the file holds."""

    schema: int
    identity: dict[str, str]
    groups: tuple[str, ...]
    ms: dict[str, float]  # "16-32-8", widths in the order of ``groups`` -> milliseconds


class Lookup:
    """Milliseconds by widths, measured when first asked for.

    Args:
        measure: times one set of widths on the device, in ms.
        identity: what makes measurements comparable.
        path: the file to read and add to; None keeps them in memory alone.

    Raises:
        InputError: the file is damaged.
        MismatchError: it is of another identity.
    """

    def __init__(self, measure: Measure, identity: Mapping[str, str], path: Path | None = None) -> None:
        self._measure, self._identity, self._path = measure, dict(identity), path
        self._groups: tuple[str, ...] = ()
        self._ms: dict[str, float] = {}
        self.measured = 0  # how many were not in the file
        if path is not None and path.exists():
            self._read(path)

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The latency of these widths in ms.

        Raises:
            MismatchError: the file is of a network with other channel groups.
            InputError: a measurement is no positive number.
        """
        groups = tuple(sorted(widths))
        if self._groups and groups != self._groups:
            raise MismatchError(f"{self._path}: measured on a network with other channel groups; name another file")
        self._groups = groups
        key = "-".join(str(widths[group]) for group in groups)
        if key not in self._ms:
            ms = self._measure(widths)
            if not 0 < ms < math.inf:
                raise InputError(f"widths {key} took {ms} ms, which is no latency; measure again")
            self._ms[key] = ms
            self.measured += 1
            self._write()
        return self._ms[key]

    def _read(self, path: Path) -> None:
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Measured)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a file of measured widths ({error}); delete it to measure again") from None
        if found.schema != SCHEMA:
            raise InputError(f"{path}: schema is {found.schema}, this version reads {SCHEMA}; delete it")
        if found.identity != self._identity:
            odd = sorted(k for k in found.identity | self._identity if found.identity.get(k) != self._identity.get(k))
            there, here = found.identity.get(odd[0], "not named"), self._identity.get(odd[0], "not named")
            raise MismatchError(
                f"{path}: measured with {odd[0]} '{there}', here it is '{here}'; name another file or delete it"
            )
        bad = next((key for key, ms in found.ms.items() if not 0 < ms < math.inf), None)
        if bad is not None:
            raise InputError(f"{path}: widths {bad} have {found.ms[bad]} ms; delete the file to measure again")
        self._groups, self._ms = found.groups, dict(found.ms)

    def _write(self) -> None:
        if self._path is None:
            return
        content = Measured(schema=SCHEMA, identity=self._identity, groups=self._groups, ms=self._ms)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
