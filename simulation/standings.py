"""What an arena's results say: one line a policy, one a scenario, and who beats whom.

* :class:`Standing`: a policy over all its runs.
* :class:`Row`: a scenario, with the clairvoyants' gap and each policy's regret.
* :class:`Comparison`: a policy against the reference, run by run.
* :class:`Standings`, :func:`standings`: all of it; :func:`bounds_of`: the clairvoyants that regret is taken against.

Regret counts what was answered right and on time, against :attr:`simulation.regret.Bounds.measure`. A policy that broke
a limit may come out ahead of the bound, which keeps it; so whoever broke a limit in any run ranks below all who did
not. A limit counts in a run when it could be kept there: the dynamic program or any of the policies did.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import msgspec

from simulation.arena import Bounded, Played, Result
from simulation.outcome import Outcome
from simulation.regret import Bounds
from simulation.resampling import Estimate, estimate, holm
from subnets.bundle import Strict
from subnets.errors import InputError

LIMITS = ("temperature", "battery", "power")
SIGNIFICANT = 0.05
LEAST_LOSS = 0.001  # a tenth of a percentage point; less is not worth telling
Run = tuple[str, int]  # scenario and seed


class Standing(Strict, frozen=True, kw_only=True):
    """One policy over all runs. None = nobody knows, or nobody wished it."""

    name: str
    outcome: Outcome  # all runs merged, without timelines
    scenarios: int
    regret: Estimate | None  # mean over scenarios
    regret_lp: float | None  # the same mean against the linear program alone
    regret_median: float | None  # of the median scenario
    regret_worst: float | None  # of the worst scenario
    joules_per_correct: float | None
    switches_per_hour: float
    degree_seconds: float | None
    hits: int  # runs in which the battery lasted as wished
    feasible: int  # runs in which it could
    violations: int  # runs in which a limit was broken that could be kept

    @property
    def attainment(self) -> float | None:
        """Share of all requests answered by their deadline."""
        return self.outcome.on_time / self.outcome.requests if self.outcome.requests else None

    def to_json(self) -> dict[str, Any]:
        """As JSON types, with the figures of :meth:`simulation.outcome.Outcome.summary`."""
        interval = self.regret
        return {
            "name": self.name,
            "regret": None if interval is None else interval.mean,
            "regret_low": None if interval is None else interval.low,
            "regret_high": None if interval is None else interval.high,
            "regret_lp": self.regret_lp,
            "regret_median": self.regret_median,
            "regret_worst": self.regret_worst,
            "attainment": self.attainment,
            "joules_per_correct": self.joules_per_correct,
            "switches_per_hour": self.switches_per_hour,
            "degree_seconds": self.degree_seconds,
            "target_hits": self.hits,
            "target_feasible": self.feasible,
            "violations": self.violations,
            "runs": self.outcome.runs,
            **self.outcome.summary(),
        }


class Row(Strict, frozen=True, kw_only=True):
    """One scenario: means over its seeds."""

    name: str
    runs: int
    lp: float | None  # expected correct answers on time
    dp: float | None
    gap: float | None  # of the linear program above the dynamic program
    regret: dict[str, float]  # by policy; empty without bounds
    quality: dict[str, float]  # expected correct answers on time, as a share of all requests
    switches_per_hour: dict[str, float]
    violations: dict[str, int]


class Comparison(Strict, frozen=True, kw_only=True):
    """How much more a policy misses than the reference, paired by run; above 0 the reference is better."""

    name: str
    difference: Estimate  # in regret, or in quality where there are no bounds
    p_holm: float  # corrected for the number of comparisons

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``undecided``, as a word about the policy."""
        if self.p_holm >= SIGNIFICANT:
            return "undecided"
        return "worse" if self.difference.mean > 0.0 else "better"


class Loss(Strict, frozen=True, kw_only=True):
    """A scenario on which a policy that kept the limits did better than the reference."""

    scenario: str
    winner: str
    difference: float  # how much more the reference missed


class Standings(Strict, frozen=True, kw_only=True):
    """All that is to be reported, best policy first."""

    reference: str
    bounded: bool
    policies: tuple[Standing, ...]
    scenarios: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    losses: tuple[Loss, ...]

    @property
    def winner(self) -> str:
        """The policy with the least regret on the median scenario among those that broke no limit."""
        return self.policies[0].name

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "policies": [standing.to_json() for standing in self.policies],
            "reference": self.reference,
            "winner": self.winner,
            "scenarios": msgspec.to_builtins(self.scenarios),
            "comparisons": [
                {**msgspec.to_builtins(comparison), "verdict": comparison.verdict} for comparison in self.comparisons
            ],
            "losses": msgspec.to_builtins(self.losses),
        }


def standings(results: Sequence[Result], reference: str | None = None) -> Standings:
    """What the results of a contest say.

    Args:
        results: as :func:`simulation.arena.run` gives them.
        reference: the policy that others are compared with; None = ``composite`` where it takes part, else the winner.

    Raises:
        InputError: the reference does not take part.
    """
    played: dict[str, dict[Run, Played]] = {}
    for result in results:
        if isinstance(result, Played):
            played.setdefault(result.policy, {})[result.scenario, result.seed] = result
    runs, bounds = list(next(iter(played.values()))), bounds_of(results)
    bounded = all(run in bounds for run in runs)
    kept = {run: [set(LIMITS) - set(of[run].broken) for of in played.values()] for run in runs}
    possible = {run: set(LIMITS) if run in bounds and bounds[run].keepable else set().union(*kept[run]) for run in runs}
    wished = {run: any(of[run].lasted is not None for of in played.values()) for run in runs}
    feasible = {run: wished[run] and "battery" in possible[run] for run in runs}

    def missed(cell: Played) -> float:
        if not bounded:
            return 1.0 - (cell.outcome.goodput or 0.0)
        return bounds[cell.scenario, cell.seed].regret(cell.outcome.accuracy_sum)

    def broken(cell: Played) -> bool:
        return bool(possible[cell.scenario, cell.seed] & set(cell.broken))

    made = [_standing(name, of, bounds if bounded else {}, feasible, missed, broken) for name, of in played.items()]
    median = {name: _middle(missed, of) for name, of in played.items()}
    made.sort(key=lambda standing: (standing.violations > 0, median[standing.name], standing.name))
    if reference is None:
        reference = "composite" if "composite" in played else made[0].name
    if reference not in played:
        raise InputError(f"the reference '{reference}' does not take part; there are {', '.join(played)}")
    rows = tuple(
        _row(name, played, bounds if bounded else {}, missed, broken)
        for name in dict.fromkeys(scenario for scenario, _ in runs)
    )
    return Standings(
        reference=reference,
        bounded=bounded,
        policies=tuple(made),
        scenarios=rows,
        comparisons=_comparisons(reference, played, missed),
        losses=_losses(reference, rows),
    )


def bounds_of(results: Sequence[Result]) -> dict[Run, Bounds]:
    """The clairvoyants of each run; one who knows the future could have done what any policy did within the limits."""
    reached: dict[Run, list[Played]] = {}
    for result in results:
        if isinstance(result, Played):
            reached.setdefault((result.scenario, result.seed), []).append(result)
    return {
        (found.scenario, found.seed): found.bounds.raised(
            cell.outcome.accuracy_sum
            for cell in reached.get((found.scenario, found.seed), ())
            if found.bounds.infeasible or not cell.broken
        )
        for found in results
        if isinstance(found, Bounded)
    }


def _by_scenario(of: Mapping[Run, Played], value: Callable[[Played], float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for (scenario, _), cell in of.items():
        found.setdefault(scenario, []).append(value(cell))
    return found


def _middle(missed: Callable[[Played], float], of: Mapping[Run, Played]) -> float:
    return statistics.median(math.fsum(group) / len(group) for group in _by_scenario(of, missed).values())


def _standing(
    name: str,
    of: Mapping[Run, Played],
    bounds: Mapping[Run, Bounds],
    feasible: Mapping[Run, bool],
    missed: Callable[[Played], float],
    broken: Callable[[Played], bool],
) -> Standing:
    cells = list(of.values())
    outcome = reduce(Outcome.merge, [cell.outcome for cell in cells])
    outcome = msgspec.structs.replace(outcome, timeline=None, switch_events=())
    groups = _by_scenario(of, missed)
    means = [math.fsum(group) / len(group) for group in groups.values()]
    degrees = [cell.degree_seconds for cell in cells if cell.degree_seconds is not None]
    lp: dict[str, list[float]] = {}
    if bounds:
        lp = _by_scenario(of, lambda cell: bounds[cell.scenario, cell.seed].regret_lp(cell.outcome.accuracy_sum))
    energy_j = outcome.energy_j if outcome.energy_j is not None else outcome.net_energy_j
    return Standing(
        name=name,
        outcome=outcome,
        scenarios=len(groups),
        regret=estimate(list(groups.values())) if bounds else None,
        regret_lp=math.fsum(math.fsum(group) / len(group) for group in lp.values()) / len(lp) if lp else None,
        regret_median=statistics.median(means) if bounds else None,
        regret_worst=max(means) if bounds else None,
        joules_per_correct=energy_j / outcome.accuracy_sum if energy_j is not None and outcome.accuracy_sum else None,
        switches_per_hour=3600.0 * outcome.switches / outcome.duration_s,
        degree_seconds=math.fsum(degrees) if degrees else None,
        hits=sum(bool(cell.lasted) for cell in cells),
        feasible=sum(feasible[run] for run in of),
        violations=sum(map(broken, cells)),
    )


def _row(
    name: str,
    played: Mapping[str, Mapping[Run, Played]],
    bounds: Mapping[Run, Bounds],
    missed: Callable[[Played], float],
    broken: Callable[[Played], bool],
) -> Row:
    mine = {policy: [cell for cell in of.values() if cell.scenario == name] for policy, of in played.items()}
    count = len(next(iter(mine.values())))
    found = [value for (scenario, _), value in bounds.items() if scenario == name]
    lp = math.fsum(value.lp for value in found) / count if found else None
    dps = [value.dp for value in found if value.dp is not None]
    dp = math.fsum(dps) / count if dps and len(dps) == count else None
    return Row(
        name=name,
        runs=count,
        lp=lp,
        dp=dp,
        gap=lp / dp - 1.0 if lp is not None and dp else None,
        regret={policy: math.fsum(map(missed, cells)) / count for policy, cells in mine.items()} if found else {},
        quality={policy: math.fsum(c.outcome.goodput or 0.0 for c in cells) / count for policy, cells in mine.items()},
        switches_per_hour={
            policy: 3600.0 * sum(c.outcome.switches for c in cells) / math.fsum(c.outcome.duration_s for c in cells)
            for policy, cells in mine.items()
        },
        violations={policy: sum(map(broken, cells)) for policy, cells in mine.items()},
    )


def _comparisons(
    reference: str, played: Mapping[str, Mapping[Run, Played]], missed: Callable[[Played], float]
) -> tuple[Comparison, ...]:
    others = [name for name in played if name != reference]
    base = {run: missed(cell) for run, cell in played[reference].items()}
    differences = [
        estimate(list(_by_scenario(played[name], lambda cell: missed(cell) - base[cell.scenario, cell.seed]).values()))
        for name in others
    ]
    corrected = holm([difference.p for difference in differences])
    return tuple(
        Comparison(name=name, difference=difference, p_holm=p)
        for name, difference, p in zip(others, differences, corrected, strict=True)
    )


def _losses(reference: str, rows: Sequence[Row]) -> tuple[Loss, ...]:
    found = []
    for row in rows:
        value = row.regret or {policy: 1.0 - quality for policy, quality in row.quality.items()}
        fair = {policy: missed for policy, missed in value.items() if not row.violations[policy]}
        winner = min(fair, key=lambda policy: (fair[policy], policy), default=reference)
        if winner != reference and value[reference] - fair[winner] >= LEAST_LOSS:
            found.append(Loss(scenario=row.name, winner=winner, difference=value[reference] - fair[winner]))
    return tuple(sorted(found, key=lambda loss: -loss.difference))
