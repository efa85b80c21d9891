"""Base of the policies whose whole state is one record."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from policies.base import Policy
from policies.memory import dump, load

M = TypeVar("M", bound=msgspec.Struct)


class Remembering(Policy, Generic[M]):
    """Keeps a record in ``self._memory`` and makes the policy's state of it. Subclasses call :meth:`_remember` once."""

    _memory: M

    def _remember(self, kind: type[M]) -> None:
        """Begins with an empty record of this kind."""
        self._kind = kind
        self._memory = kind()

    def reset(self) -> None:
        """Forgets everything."""
        self._memory = self._kind()

    def state(self) -> dict[str, Any]:
        """The record as JSON types."""
        return dump(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved record."""
        self._memory = load(self._kind, state, self.name)
