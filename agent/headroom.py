"""How far the agent is from each limit, on one scale: battery, heat, power and latency beside each other.

::

    headroom = (limit - value) / (limit - reference)

1 is far away, 0 at the limit, below 0 beyond it. The reference is 25 °C for heat, a full battery for the charge, and 0
for watts and milliseconds. This is what is *measured now*, for people to look at; what a policy expects of each rung it
works out for itself (:mod:`policies.headroom`). Unknown is None with the reason.
"""

from __future__ import annotations

import msgspec

from policies.base import Conditions, Goals
from policies.wording import duration

REFERENCE_C = 25.0


class Headroom(msgspec.Struct, frozen=True, kw_only=True):
    """One constraint.

    Attributes:
        name: ``battery``, ``thermal``, ``power`` or ``latency``.
        value, limit: in ``unit``; None where unknown or not asked for.
        headroom: 1 far from the limit, 0 at it, negative beyond; None where that cannot be said.
        says: the same in words, or why it is unknown.
    """

    name: str
    value: float | None
    limit: float | None
    unit: str
    headroom: float | None
    says: str


def headrooms(goals: Goals, conditions: Conditions | None, latency_ms: float | None) -> tuple[Headroom, ...]:
    """Battery, thermal, power and latency, always all four in this order.

    Args:
        goals: the limits.
        conditions: what the sensors said last; None before the first reading.
        latency_ms: the goals' percentile of recent answers, from arrival; None without any.
    """
    seen = conditions or Conditions(time_s=0.0)
    return (
        _battery(goals, seen),
        _up_to("thermal", seen.temperature_c, goals.temperature_limit_c, "°C", "no thermometer here", REFERENCE_C),
        _up_to("power", seen.power_w, goals.max_power_w, "W", "no power meter here"),
        _up_to("latency", latency_ms, goals.deadline_ms, "ms", "no answers lately"),
    )


def _up_to(
    name: str, value: float | None, limit: float | None, unit: str, unknown: str, reference: float = 0.0
) -> Headroom:
    """A quantity that must stay below its limit."""
    left = None if value is None or limit is None else (limit - value) / max(limit - reference, 1e-9)
    if value is None:
        says = unknown + ("" if limit is None else f"; the limit is {limit:g} {unit}")
    elif limit is None:
        says = f"{_figure(value)} {unit}, no limit asked for"
    else:
        says = f"{_figure(value)} of {limit:g} {unit}"
    return Headroom(name=name, value=value, limit=limit, unit=unit, headroom=left, says=says)


def _battery(goals: Goals, seen: Conditions) -> Headroom:
    """The charge above the reserve; where it has to last until a time, the power it allows for that long."""
    charge, unit = seen.battery_charge, "%"
    if seen.on_mains:
        level = "" if charge is None else f", {100 * charge:.0f} %"
        value = None if charge is None else 100 * charge
        return Headroom(name="battery", value=value, limit=None, unit=unit, headroom=1.0, says=f"on mains{level}")
    energy_j = seen.battery_energy_j
    if energy_j is None and charge is not None and goals.battery_capacity_j is not None:
        energy_j = charge * goals.battery_capacity_j
    until_s, draws_w = goals.last_until_s, seen.battery_power_w
    if until_s is not None and energy_j is not None and draws_w is not None and until_s > seen.time_s:
        full_j = goals.battery_capacity_j or (energy_j / charge if charge else energy_j)
        allowed_w = max(0.0, energy_j - goals.reserve * full_j) / (until_s - seen.time_s)
        left = min(1.0, 1 - draws_w / allowed_w) if allowed_w > 0 else -1.0
        says = f"draws {_figure(draws_w)} W, {_figure(allowed_w)} W would last {duration(until_s - seen.time_s)}"
        level = "" if charge is None else f"{100 * charge:.0f} %, "
        return Headroom(name="battery", value=draws_w, limit=allowed_w, unit="W", headroom=left, says=level + says)
    if charge is None:
        return Headroom(name="battery", value=None, limit=None, unit=unit, headroom=None, says="no battery here")
    left = (charge - goals.reserve) / (1 - goals.reserve)
    says = f"{100 * charge:.0f} %, reserve {100 * goals.reserve:g} %"
    return Headroom(name="battery", value=100 * charge, limit=100 * goals.reserve, unit=unit, headroom=left, says=says)


def _figure(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
