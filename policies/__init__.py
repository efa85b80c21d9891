"""Policies: conditions and a calibration table in, a decision with its reason out.

Here live the contract (:mod:`policies.base`), the policies, one class a file, the wrappers that damp them, and the
registry that creates them by name. Everything is pure: no clock, no sensor, no engine, no file. Reading sensors is
``sensors``', acting is ``agent``'s, trying policies out on traces ``simulation``'s.

=================================================  ================================================================
:mod:`~policies.smallest`, ``largest``, ``static``  always the same
:mod:`~policies.throughput`                        load, deadline, backlog; gives the slack plan
:mod:`~policies.thermal`                           headroom to the temperature limit, throttling
:mod:`~policies.battery`                           a power budget that lasts until a given time
:mod:`~policies.power`                             a cap on the power at work
:mod:`~policies.strictest`                         the lowest ceiling of several policies
:mod:`~policies.hysteresis`, ``dwell``             wrappers: votes in a row; shortest stay, switches per hour
:mod:`~policies.composite`                         the default: all of the above together
:mod:`~policies.contract`                          the tests that any policy must pass (needs pytest, hypothesis)
=================================================  ================================================================

Shared parts: ``rungs`` (which rows), ``watts`` (power of a rung), ``queueing``, ``hull``, ``slack``, ``memory``,
``wrapper``, ``wording``.
"""

from policies.base import Conditions, Decision, Goals, Policy, SlackStep
from policies.registry import create, names

__all__ = ["Conditions", "Decision", "Goals", "Policy", "SlackStep", "create", "names"]
