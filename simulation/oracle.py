"""The oracle: what a clairvoyant could have reached on a trace, bounded from above and achieved from below.

    found = bound(table, trace, goals, plant, seed=..., control_period_s=..., queue_limit=..., drop_late=...)
    found.lp    no policy that keeps the hard limits has more expected right answers on time
    found.dp    reached by a script of decisions (``found.script``), replayed in the simulator
    found.gap   how far the first lies above the second, as a share of the second

Utility is the sum of accuracy over answers on time (:attr:`simulation.outcome.Outcome.accuracy_sum`). Hard limits are
the temperature limit, the power cap, and "last until" with its reserve; minimum accuracy is not one. A policy that
breaks a limit (:func:`simulation.scripts.broken`) may well have more. The upper bound is :mod:`simulation.fluid`'s,
the script :mod:`simulation.planning`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from calibration.table import Table
from policies.base import Goals, Policy
from simulation.fluid import Problem, upper_bound
from simulation.outcome import Outcome
from simulation.planning import achieved
from simulation.plant import Plant
from simulation.replay import COMPILED_FROM, simulate
from simulation.scripts import Step, broken
from simulation.sensors import SensorModel
from simulation.trace import Trace
from subnets.bundle import Strict

_RUNS = 20  # about so many replays a bound takes, at least: machine code pays sooner


class Bound(Strict, frozen=True, kw_only=True):
    """What could have been reached; in expected right answers on time."""

    lp: float
    dp: float | None  # None: no script was found that keeps the limits
    script: tuple[Step, ...] = ()  # of the dynamic program
    infeasible: str = ""  # why the goals' limits cannot be kept; lp and dp then ignore them

    @property
    def gap(self) -> float | None:
        """How far the linear program lies above the dynamic program, as a share of the latter."""
        return None if not self.dp else self.lp / self.dp - 1.0


def bound(
    table: Table,
    trace: Trace,
    goals: Goals,
    plant: Plant,
    *,
    seed: int = 0,
    control_period_s: float = 1.0,
    queue_limit: int = 1_000,
    drop_late: bool = False,
    drop_oldest: bool = False,
    charge_tolerance: float = 0.0,
    temperature_tolerance_c: float = 0.0,
    contenders: Sequence[Policy] = (),
    sensors: SensorModel | None = None,
    epochs: int = 720,
    compiled: bool | None = None,
) -> Bound:
    """The linear program's bound and the dynamic program's script, for one trace and seed.

    Args:
        table: as for :func:`simulation.replay.simulate`, like all that is not named here.
        trace: arrivals and environment.
        goals: their temperature limit, power cap, and "last until" with reserve are hard.
        plant: heat and battery.
        seed: of the service times; both programs know them.
        control_period_s: time between two decisions.
        queue_limit: requests that may wait.
        drop_late: as in the replays to compare with; likewise ``drop_oldest``.
        drop_oldest: see there.
        charge_tolerance: a charge so much below the reserve still counts as kept, for both programs.
        temperature_tolerance_c: so much above the temperature limit, likewise.
        contenders: policies that the dynamic program may copy, wholly or in parts; where they keep the limits, none of
            them has more than ``dp``.
        sensors: what the contenders see.
        epochs: parts of the trace within which prices and choices stay the same, at most.
        compiled: see :func:`simulation.replay.simulate`.

    Raises:
        InputError: an argument is out of range.
        UnavailableError: scipy is not installed.
    """
    if compiled is None:
        compiled = _RUNS * len(trace.arrivals_s) >= COMPILED_FROM and find_spec("numba") is not None

    def problem(limits: bool) -> Problem:
        return Problem(
            table,
            trace,
            goals,
            plant,
            seed=seed,
            period_s=control_period_s,
            queue_limit=queue_limit,
            charge_tolerance=charge_tolerance,
            temperature_tolerance_c=temperature_tolerance_c,
            limits=limits,
        )

    def simulated(policy: Policy) -> Outcome:
        return simulate(
            table,
            trace,
            policy,
            goals,
            plant,
            seed=seed,
            control_period_s=control_period_s,
            queue_limit=queue_limit,
            drop_late=drop_late,
            drop_oldest=drop_oldest,
            sensors=sensors,
            compiled=compiled,
        )

    def kept(outcome: Outcome) -> bool:
        return infeasible != "" or not broken(
            outcome, goals, charge_tolerance=charge_tolerance, temperature_tolerance_c=temperature_tolerance_c
        )

    infeasible, run = "", problem(True)
    found = upper_bound(run, epochs)
    if found is None:
        infeasible = _why(goals)
        run = problem(False)
        found = upper_bound(run, epochs)
        assert found is not None, "without limits doing nothing is always possible"
    lp, prices = found
    plan = achieved(
        run,
        table,
        prices,
        simulated,
        kept,
        drop_late=drop_late,
        drop_oldest=drop_oldest,
        compiled=compiled,
        epochs=epochs,
        contenders=contenders,
    )
    script, dp = ((), None) if plan is None else (plan[0], plan[1].accuracy_sum)
    return Bound(lp=lp, dp=dp, script=script, infeasible=infeasible)


def _why(goals: Goals) -> str:
    wishes = []
    if goals.temperature_limit_c is not None:
        wishes.append(f"a temperature of at most {goals.temperature_limit_c:g} °C")
    if goals.last_until_s is not None:
        wishes.append(f"a battery that lasts {goals.last_until_s:g} s with {100 * goals.reserve:g} % left")
    return f"no policy can keep {' and '.join(wishes)}, not even without answering"
