"""What a policy sees, what it is asked for, what it answers: the values, and the one-method class.

* :class:`Conditions`: what the sensors and the queue say at one instant.
* :class:`Goals`: what the user wants kept.
* :class:`Decision`, :class:`SlackStep`: the operating point to use, and why.
* :class:`Policy`: conditions in, decision out.

``decide`` is pure apart from the policy's own state: same conditions in the same order, same decisions, in the agent
and in a replay alike. Time comes from ``conditions.time_s``, never from a clock. This module knows nothing of sensors,
engines or any particular policy.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, Literal, get_args

import msgspec

from calibration.table import Table
from subnets.errors import InputError


class Conditions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the sensors and the queue say at one instant; a field nobody can tell is None, never a made-up zero."""

    time_s: float  # seconds on the agent's monotonic clock, or trace time
    battery_charge: float | None = None  # state of charge, share 0..1
    battery_energy_j: float | None = None  # energy left
    battery_power_w: float | None = None  # drawn from the battery; negative while charging
    on_mains: bool | None = None
    temperature_c: float | None = None  # the hottest relevant zone
    throttled: bool | None = None  # the processor says it has slowed itself down
    power_w: float | None = None  # drawn by the measured domain
    cpu_load: float | None = None  # share 0..1 of all cores
    pressure: float | None = None  # PSI cpu "some" avg10, share 0..1
    arrival_rate_hz: float | None = None  # requests (of one image) per second, smoothed
    queue_depth: int | None = None  # requests waiting
    slowdown: float | None = None  # measured latency over the table's, smoothed; 1 = as calibrated
    miss_rate: float | None = None  # share of recent answers later than the deadline


Maximise = Literal["accuracy", "answers_per_joule"]


class Goals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user wants kept, and what is wanted as large as that allows. None = no such wish.

    ``answers_per_joule`` counts right answers: no rung above the one that gives most of them for a joule is used.
    """

    deadline_ms: float | None = None  # from arrival to answer
    deadline_percentile: float = 0.99  # share of the answers that should keep the deadline
    min_accuracy: float | None = None  # share 0..1; a floor under what every other wish may cost
    max_power_w: float | None = None  # of the measured domain, while a batch is being computed
    temperature_limit_c: float | None = None  # without one, only the processor's own throttling counts as heat
    last_until_s: float | None = None  # on the clock of Conditions.time_s
    reserve: float = 0.05  # state of charge to keep, share 0..1
    battery_capacity_j: float | None = None  # when the battery does not report energy itself
    switches_per_hour: int | None = None  # most switches in any hour; only going down may exceed it
    maximise: Maximise = "accuracy"

    def check(self) -> Goals:
        """Itself, when the wishes are possible and do not contradict each other.

        Raises:
            InputError: naming the wish and what it should be.
        """
        for name in ("deadline_ms", "max_power_w", "temperature_limit_c", "battery_capacity_j"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"goal {name} is {value}; give a number above 0, or leave it out")
        for name in ("min_accuracy", "reserve"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(f"goal {name} is {value}; give a share from 0 to below 1 (0.9 for 90 %)")
        if self.last_until_s is not None and not math.isfinite(self.last_until_s):
            raise InputError(f"goal last_until_s is {self.last_until_s}; give a time in seconds")
        if not 0.5 <= self.deadline_percentile < 1:
            raise InputError(
                f"goal deadline_percentile is {self.deadline_percentile}; give a share from 0.5 to below 1 "
                "(0.99 for 99 %)"
            )
        if self.switches_per_hour is not None and self.switches_per_hour < 1:
            raise InputError(
                f"goal switches_per_hour is {self.switches_per_hour}; give a whole number from 1, or choose the "
                "policy static, which never switches"
            )
        if self.maximise not in get_args(Maximise):
            raise InputError(f"goal maximise is '{self.maximise}'; give one of {', '.join(get_args(Maximise))}")
        return self


class SlackStep(msgspec.Struct, frozen=True):
    """With at least ``slack_ms`` left to the deadline, use this operating point.

    A point names its batch size: up to so many waiting requests are taken at once, earliest deadline first.
    """

    slack_ms: float
    point: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The operating point to use from now on (the ceiling), and why.

    Attributes:
        point: a row of the table.
        reason: one sentence for people, with numbers and units.
        bound: the constraint that kept a better point away: ``none``, ``deadline``, ``throughput``, ``thermal``,
            ``battery``, ``power``, ``accuracy`` (nothing reaches the wished accuracy), ``dwell`` (a wrapper holds
            still), ``hold`` or ``fallback``.
        urgent: waiting would break a limit that is being broken already or cannot be kept (throttled, over the
            temperature limit, energy gone, queue longer than the deadline). A wrapper must pass an urgent decision
            on at once when it goes down, and may ignore the word when it does not.
        slack_plan: ascending slack, and never a point more accurate than ``point``; lets a dispatcher go below the
            ceiling for one late batch without asking the policy. With less slack than the first step asks, the
            first step holds. Empty: always use ``point``.
    """

    point: str
    reason: str
    bound: str = "none"
    urgent: bool = False
    slack_plan: tuple[SlackStep, ...] = ()


class Policy(abc.ABC):
    """Chooses operating points. Subclasses live one in a file and register in :mod:`policies.registry`.

    A policy is built as ``Policy(goals, *, option=default, ...)``, a wrapper as ``Wrapper(inner, *, ...)``; both check
    their options then and raise :class:`~subnets.errors.InputError` with the offending value. What every policy keeps
    to is written down as tests in :class:`policies.contract.PolicyContract`.

    Attributes:
        name: the registry's name.
        looks_at: the fields of :class:`Conditions` that can change a decision, beside ``time_s``.
    """

    name: ClassVar[str]
    looks_at: tuple[str, ...] = ()

    @abc.abstractmethod
    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The operating point to use now.

        Args:
            conditions: what is known; any field may be None, and then must not bind.
            table: the rows to choose from; what is derived from it may be kept as long as the same object comes.
            current: the operating point in use, which need not be the last one decided (an operator may hold
                another), or None at the start.

        Returns:
            A decision whose point is a row of ``table``.

        Raises:
            InputError: the policy's options name rows that the table does not have.
        """

    def reset(self) -> None:  # noqa: B027 (optional: many policies have nothing to forget)
        """Forgets everything, as if newly built; a policy without state has nothing to do."""

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on as if nothing had happened; JSON types only, detached from the policy."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up a state that :meth:`state` of a policy with the same goals and options gave.

        Raises:
            InputError: it is not such a state.
        """
        if state:
            raise InputError(f"policy {self.name} keeps no state, but {sorted(state)} was given; leave it out")
