"""What a run is made with, as the journal's header and as what a kept state must fit to.

Knows nothing of threads or files.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from typing import Any

import msgspec

from agent.journal import Meta
from agent.state import PolicyState
from calibration.table import Table
from policies.base import Goals, Policy


class RunRecord:
    """Bundle, table, policy and goals of a run.

    Args:
        bundle: its name.
        table: as it was given; the journal names its key.
        shown: the part of it that the policy sees.
        options: what the policy was made with.
        version: of the program.
        clock: name of the agent's clock.
        dry_run: whether decisions are only told.
    """

    def __init__(
        self,
        bundle: str,
        table: Table,
        shown: Table,
        options: Mapping[str, Any],
        *,
        version: str,
        clock: str,
        dry_run: bool,
    ) -> None:
        self.options = dict(options)
        self._bundle, self._version, self._clock, self._dry_run = bundle, version, clock, dry_run
        self.retable(table, shown)

    def retable(self, table: Table, shown: Table) -> None:
        """Another table is in use from now on."""
        self.table_key = hashlib.sha256(msgspec.json.encode(table)).hexdigest()[:16]
        self._bundle_key, self._points = table.bundle_key, tuple(row.point for row in shown.rows)

    def meta(self, policy: Policy, state: Mapping[str, Any], goals: Goals) -> Meta:
        """The journal's header; ``state`` is the policy's before the first decision that follows."""
        return Meta(
            version=self._version,
            bundle=self._bundle,
            bundle_key=self._bundle_key,
            table_key=self.table_key,
            policy={"name": policy.name, "options": self.options, "state": state},
            goals=msgspec.to_builtins(goals),
            host=platform.node(),
            points=self._points,
            dry_run=self._dry_run,
            clock=self._clock,
        )

    def policy_state(self, policy: Policy, state: Mapping[str, Any], goals: Goals) -> PolicyState:
        """The policy's state with what it is good for."""
        return PolicyState(
            table_key=self.table_key,
            name=policy.name,
            options=self.options,
            goals={k: v for k, v in msgspec.to_builtins(goals).items() if k != "last_until_s"},
            state=dict(state),
        )
