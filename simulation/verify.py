"""Whether decisions repeat: the agent's journal is replayed against the same policies, bit for bit.

* :func:`verify_replay`, :func:`verify_recorded`: feed recorded conditions to a policy, given or named by the journal,
  and compare its decisions.
* :func:`elsewhere`: what was decided by another table and cannot be compared with this one.
"""

from __future__ import annotations

import hashlib

import msgspec

from calibration.table import Table
from policies.base import Goals, Policy
from simulation.journal import Journal, Recorded
from subnets.errors import InputError


class Mismatch(msgspec.Struct, frozen=True):
    """A decision that did not repeat."""

    time_s: float  # of the recorded conditions
    field: str
    recorded: str
    replayed: str


def verify_replay(journal: Journal, policy: Policy, table: Table) -> tuple[int, tuple[Mismatch, ...]]:
    """Whether the policy decides again as it did: point, reason and bound, compared exactly.

    At the start of each session the policy is reset and takes up the state that the session recorded. Where the
    policy gave no answer and the agent stepped in there is nothing to compare; what it was asked it is asked again all
    the same, for its state.

    Returns:
        How many decisions were compared, and the mismatches.

    Raises:
        InputError: the table lacks an operating point that the policy could choose from.
    """
    compared = 0
    mismatches = []
    for session in journal.sessions:
        policy.reset()
        if session.meta.policy is not None and session.meta.policy.state:
            policy.restore(session.meta.policy.state)
        shown = _shown(table, session.meta.points)
        for recorded in session.decisions:
            if recorded.asked:
                _as_recorded(policy, recorded, shown)
                continue
            if recorded.bound == "fallback":
                continue
            decision = policy.decide(recorded.conditions, shown, recorded.current)
            compared += 1
            for field in ("point", "reason", "bound"):
                was, now = getattr(recorded, field), getattr(decision, field)
                if was != now:
                    mismatches.append(Mismatch(recorded.conditions.time_s, field, was, now))
                    break
    return compared, tuple(mismatches)


def _as_recorded(policy: Policy, recorded: Recorded, table: Table) -> None:
    """Brings the policy into the state that it had after a decision that was never heard."""
    if recorded.asked == "forgot":
        policy.reset()
    elif recorded.asked == "late":
        before = policy.state()
        try:
            policy.decide(recorded.conditions, table, recorded.current)
        except Exception:  # as it did then; the agent gave it back its state
            policy.restore(before)


def verify_recorded(journal: Journal, table: Table) -> tuple[int, tuple[Mismatch, ...]]:
    """:func:`verify_replay` with the policies, options and goals that the journal itself names, session by session.

    Where some sessions were made with this very table, those that were made with others (:func:`elsewhere`) are left
    out: an agent may have measured rows again.

    Raises:
        InputError: a session does not say which policy was running, or there is no such policy.
    """
    from policies.registry import create

    compared = 0
    mismatches: list[Mismatch] = []
    left_out = elsewhere(journal, table)
    for number, session in enumerate(journal.sessions, 1):
        if session.meta.table_key in left_out:
            continue
        record = session.meta.policy
        if record is None:
            raise InputError(f"{journal.name}: session {number} does not name its policy; it cannot be verified")
        try:
            goals = msgspec.convert(session.meta.goals, Goals)
        except msgspec.ValidationError as error:
            raise InputError(f"{journal.name}: session {number} has goals that cannot be read ({error})") from None
        policy = create(record.name, goals, record.options)
        count, found = verify_replay(msgspec.structs.replace(journal, sessions=(session,)), policy, table)
        compared += count
        mismatches += found
    return compared, tuple(mismatches)


def elsewhere(journal: Journal, table: Table) -> dict[str, int]:
    """How many decisions were made with other tables than this one, by their keys; none where all were."""
    own = table_key(table)
    if all(session.meta.table_key != own for session in journal.sessions):
        return {}
    counts: dict[str, int] = {}
    for session in journal.sessions:
        if session.meta.table_key != own:
            counts[session.meta.table_key] = counts.get(session.meta.table_key, 0) + len(session.decisions)
    return counts


def table_key(table: Table) -> str:
    """What a journal calls a table."""
    return hashlib.sha256(msgspec.json.encode(table)).hexdigest()[:16]


def _shown(table: Table, points: tuple[str, ...]) -> Table:
    """The table as the policy saw it."""
    if not points:
        return table
    for point in points:
        table.row(point)
    return msgspec.structs.replace(table, rows=tuple(row for row in table.rows if row.point in points))
