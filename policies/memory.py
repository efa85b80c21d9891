"""What policies remember: small mutable records that travel as JSON, and the smoothing they share.

Every policy with state keeps it in one ``msgspec.Struct``; :func:`dump` and :func:`load` make ``state()`` and
``restore()`` of it, so that a record from a file is checked before it is believed.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from subnets.errors import InputError

M = TypeVar("M", bound=msgspec.Struct)


class Smoothed(msgspec.Struct, forbid_unknown_fields=True):
    """An exponential average over irregular samples: a sample ``dt`` after the last weighs ``1 - exp(-dt / tau)``."""

    value: float | None = None
    time_s: float = 0.0

    def update(self, sample: float, time_s: float, tau_s: float) -> float:
        """Takes a sample in and gives the average; time that runs backwards starts the average anew."""
        elapsed = time_s - self.time_s
        if self.value is None or elapsed < 0:
            self.value = sample
        else:
            self.value += (1.0 - math.exp(-elapsed / tau_s)) * (sample - self.value)
        self.time_s = time_s
        return self.value


class LongMean(msgspec.Struct, forbid_unknown_fields=True):
    """A plain mean over time at first, an exponential one with time constant ``tau`` once that much has been seen."""

    value: float | None = None
    time_s: float = 0.0
    seen_s: float = 0.0

    def update(self, sample: float, time_s: float, tau_s: float) -> float:
        """Takes a sample in and gives the mean; time that runs backwards starts the mean anew."""
        elapsed = time_s - self.time_s
        if self.value is None or elapsed < 0:
            self.value, self.seen_s = sample, 0.0
        elif elapsed > 0:
            self.seen_s = min(self.seen_s + elapsed, tau_s)
            self.value += min(1.0, elapsed / self.seen_s) * (sample - self.value)
        self.time_s = time_s
        return self.value


def dump(memory: msgspec.Struct) -> dict[str, Any]:
    """The record as JSON types, detached from it."""
    state: dict[str, Any] = msgspec.to_builtins(memory)
    return state


def load(kind: type[M], state: dict[str, Any], policy: str) -> M:
    """The record that :func:`dump` was given.

    Raises:
        InputError: ``state`` is not such a record.
    """
    try:
        return msgspec.convert(state, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"the saved state of policy {policy} does not fit ({error}); start without it") from None
