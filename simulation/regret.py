"""Regret: how much of what a clairvoyant would have reached a policy missed.

Utility is the accuracy-weighted count of answers on time (:attr:`simulation.outcome.Outcome.accuracy_sum`). The linear
program of :mod:`simulation.oracle` bounds every policy from above, its dynamic program can be achieved. Where the
bound lies more than 3 % above the dynamic program it is too far from what is possible, and the latter is the measure.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from subnets.bundle import Strict

TRUSTED_GAP = 0.03


class Bounds(Strict, frozen=True, kw_only=True):
    """Expected correct answers on time of the two clairvoyants; ``dp`` is None where no script keeps the limits."""

    lp: float
    dp: float | None = None
    infeasible: str = ""  # why nobody can keep the limits; both then ignore them

    @property
    def keepable(self) -> bool:
        """Whether a clairvoyant was seen to keep every limit."""
        return self.dp is not None and not self.infeasible

    @property
    def gap(self) -> float | None:
        """How far the linear program lies above the dynamic program, as a share of the latter."""
        return None if not self.dp else self.lp / self.dp - 1.0

    @property
    def measure(self) -> float:
        """What regret is taken against."""
        return self.dp if self.dp and self.lp > (1.0 + TRUSTED_GAP) * self.dp else self.lp

    def raised(self, utilities: Iterable[float]) -> Bounds:
        """With what runs that kept the limits have reached: the clairvoyant could have done the same."""
        return msgspec.structs.replace(
            self, dp=max([*utilities, *([] if self.dp is None else [self.dp])], default=None)
        )

    def regret(self, utility: float) -> float:
        """The share of the measure that was missed; negative above it, 0 where nothing could be reached."""
        return 1.0 - utility / self.measure if self.measure > 0.0 else 0.0

    def regret_lp(self, utility: float) -> float:
        """The same against the linear program."""
        return 1.0 - utility / self.lp if self.lp > 0.0 else 0.0
