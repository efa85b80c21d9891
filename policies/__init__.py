"""Policies: conditions and a calibration table in, a decision with its reason out.

Here live the contract (:mod:`policies.base`), the policies, one class a file, the wrappers that damp them, and the
registry that creates them by name. Everything is pure: no clock, no sensor, no engine, no file. Reading sensors is
``sensors``', acting is ``agent``'s, trying policies out on traces ``simulation``'s.

=====================================================  ============================================================
:mod:`~policies.smallest`, ``largest``, ``static``      always the same
:mod:`~policies.throughput`                            load, deadline, backlog
:mod:`~policies.thermal`                               temperature, forecast by a model that is identified on the way
:mod:`~policies.battery`                               an energy budget that lasts until a given time
:mod:`~policies.power`                                 a cap on the power at work
:mod:`~policies.ladder`, ``aimd``, ``pid``             thresholds; additive increase; a power budget by control theory
:mod:`~policies.slackfit`, ``maxacc``, ``maxbatch``    slack plans over (subnet, batch)
:mod:`~policies.effective`, ``alert``, ``mdp``         expected accuracy: by queue, by filter, by solved queue
:mod:`~policies.lyapunov`, ``bandit``                  prices for limits; learning what the table gets wrong
:mod:`~policies.strictest`                             the lowest ceiling of several policies
:mod:`~policies.hysteresis`, ``dwell``                 wrappers: votes in a row; shortest stay, switches per hour
:mod:`~policies.slowdown`, ``fast``                    wrappers: a filtered slowdown; the solved queue's plan
:mod:`~policies.composite`                             the default: ceiling for heat, battery and power; plan below it
:mod:`~policies.feasible`                              which goals a table cannot keep
:mod:`~policies.contract`                              the tests that any policy must pass (needs pytest, hypothesis)
=====================================================  ============================================================

Shared parts: ``rungs`` (which rows), ``load``, ``watts``, ``heat``, ``budget``, ``headroom`` (what a rung does),
``queueing``, ``lindley``, ``queueplan`` (the queue), ``crowd``, ``hull``, ``kalman``, ``slack``, ``fitting``,
``memory``, ``wrapper``, ``wording``.
"""

from policies.base import Conditions, Decision, Goals, Policy, SlackStep
from policies.registry import create, names

__all__ = ["Conditions", "Decision", "Goals", "Policy", "SlackStep", "create", "names"]
