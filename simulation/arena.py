"""The arena: policies x scenarios x seeds, in parallel, resumable, each cell in a file named by the hash of its inputs.

::

    Contest ──► shards ──► any executor (processes here, Dask elsewhere) ──► cells ──► FOLDER/cells/<key>.json
                                                                               └──► simulation.standings

* :class:`Contender`: a policy with options, under the name it is shown by.
* :class:`Contest`: what is to be compared, on what.
* :class:`Played`, :class:`Bounded`: one cell's result, a policy's or the clairvoyants'.
* :func:`run`: all cells; what a former run has left is taken from its files.

Every policy of a scenario and seed meets the same arrivals and the same draws. A key hashes the table, the trace, the
seed, the contender and the source code of policies and simulation, so a result of other inputs or other code is never
taken for this one's; and nothing of when or where it was computed enters a result, so the same contest gives the same
files again. Knows nothing of progress bars and command lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from calibration.table import Table
from policies.base import Goals
from policies.registry import create, names
from policies.rungs import Where, rungs_of
from simulation import scenarios
from simulation.outcome import Outcome
from simulation.regret import Bounds
from simulation.replay import simulate
from simulation.scenarios import Scenario
from simulation.scripts import broken
from simulation.trace import Trace
from subnets.bundle import Strict, write_atomically
from subnets.errors import InputError

BEST_STATIC = "best-static"
CLAIRVOYANT = "clairvoyant"
# Source that no cell depends on.
_AFTERWARDS = {"arena_report.py", "cluster.py", "report.py", "resampling.py", "standings.py", "tune.py"}
_COPIED = ("composite", "mdp", "slackfit", "bandit", "pid", "battery")  # the dynamic program may follow parts of these
_MOST_PENDING = 64  # shards handed to an executor at a time


class Contender(Strict, frozen=True, kw_only=True):
    """A policy with its options. ``best-static`` is the best single rung in hindsight, run by run."""

    name: str  # as given, unique in a contest
    policy: str
    options: dict[str, str] = msgspec.field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> Contender:
        """``composite`` or ``composite:rho_max=0.8,dwell_s=5``.

        Raises:
            InputError: an option is not written as key=value.
        """
        policy, _, rest = text.partition(":")
        options = {}
        for item in filter(None, rest.split(",")):
            key, equals, value = item.partition("=")
            if not (key and equals):
                raise InputError(f"policy '{text}': '{item}' is no option; write {policy}:key=value,key=value")
            options[key] = value
        if policy == BEST_STATIC and options:
            raise InputError(f"policy '{text}': {BEST_STATIC} takes no options")
        return Contender(name=text, policy=policy, options=options)


def everyone() -> tuple[str, ...]:
    """All policies that need no options, and the best single rung."""
    return (*(name for name in names() if name != "static"), BEST_STATIC)


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared, on what.

    Raises:
        InputError: nothing to compare, or a name given twice.
    """

    table: Table
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    scenarios: tuple[str, ...] = ()  # generated ones
    traces: tuple[Trace, ...] = ()  # recorded ones
    duration_s: float | None = None  # of each run; None = what suits the table
    as_is: bool = False  # recorded loads are not brought to the table's capacity
    bounded: bool = True  # compute the clairvoyants too
    timelines: bool = True  # keep those of the first seed

    def __post_init__(self) -> None:
        if not self.contenders or not self.seeds or not (self.scenarios or self.traces):
            raise InputError("an arena needs at least one policy, one seed and one scenario or trace")
        for what, given in (
            ("policy", [contender.name for contender in self.contenders]),
            ("scenario", [*self.scenarios, *(trace.name for trace in self.traces)]),
            ("seed", [str(seed) for seed in self.seeds]),
        ):
            twice = next((name for name in given if given.count(name) > 1), None)
            if twice is not None:
                raise InputError(f"{what} '{twice}' is given twice; each counts once")
        if any(contender.name == CLAIRVOYANT for contender in self.contenders):
            raise InputError(f"'{CLAIRVOYANT}' is the bound that regret is taken against; name another policy")

    def check(self) -> Contest:
        """Itself, when every policy can be made and every scenario built.

        Raises:
            InputError: naming the policy, option or scenario.
        """
        goals = [self.scenario(source, self.seeds[0]).goals for source in self.sources]
        for contender in self.contenders:
            if contender.policy != BEST_STATIC:
                for wished in goals:
                    create(contender.policy, wished, contender.options)
        return self

    @property
    def sources(self) -> tuple[str | Trace, ...]:
        """Scenarios by name, then traces."""
        return (*self.scenarios, *self.traces)

    def scenario(self, source: str | Trace, seed: int) -> Scenario:
        """One of them, at a seed."""
        if isinstance(source, str):
            return scenarios.build(source, self.table, seed, self.duration_s)
        return scenarios.of_trace(source, self.table, seed, self.duration_s, as_is=self.as_is)


class Played(Strict, frozen=True, kw_only=True, tag="played"):
    """One policy on one scenario at one seed. The timeline is kept for the first seed only."""

    scenario: str
    seed: int
    policy: str
    outcome: Outcome
    broken: tuple[str, ...]  # hard limits, beyond what the sensors resolve
    degree_seconds: float | None  # above the limit, at the timeline's resolution
    lasted: bool | None  # whether the battery lasted, with its reserve; None = nobody wished it


class Bounded(Strict, frozen=True, kw_only=True, tag="bounded"):
    """What the clairvoyants reach on one scenario at one seed."""

    scenario: str
    seed: int
    bounds: Bounds


Result = Played | Bounded


class Cell(Strict, frozen=True, kw_only=True):
    """One result to compute: of a contender, or of the clairvoyants (None)."""

    key: str
    contender: Contender | None


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Cells of one scenario and seed: all that a worker needs, on whatever machine it runs."""

    contest: Contest  # without contenders of other shards or traces of other scenarios
    source: str | Trace
    seed: int
    cells: tuple[Cell, ...]
    timelines: bool


def run(
    contest: Contest,
    folder: Path,
    *,
    executor: Executor | None = None,
    cells_per_shard: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """All cells of a contest, in an order of their own whatever order they were computed in.

    Each cell is written to ``folder/cells`` as soon as it is known; a killed run resumes from there.

    Args:
        contest: what to compare.
        folder: where results are kept.
        executor: computes shards; None = here, one after the other.
        cells_per_shard: at most so many cells of one scenario and seed travel together.
        progress: called with (cells done, cells in all).

    Raises:
        InputError: a policy or scenario cannot be made.
    """
    contest.check()
    found: dict[str, Result] = {}
    order: list[str] = []
    todo: list[Shard] = []
    for shard in _shards(contest, cells_per_shard):
        missing = []
        for cell in shard.cells:
            order.append(cell.key)
            kept = _read(_file(folder, cell.key))
            if kept is None:
                missing.append(cell)
            else:
                found[cell.key] = kept
        if missing:
            todo.append(msgspec.structs.replace(shard, cells=tuple(missing)))

    def tell() -> None:
        if progress is not None:
            progress(len(found), len(order))

    tell()
    for pairs in _computed(todo, executor):
        for key, content in pairs:
            write_atomically(_file(folder, key), content)
            found[key] = _decoded(content)
        tell()
    return [found[key] for key in order]


def _computed(shards: Sequence[Shard], executor: Executor | None) -> Iterator[list[tuple[str, bytes]]]:
    """Each shard's results as they come; a failure cancels what has not begun."""
    if executor is None:
        yield from map(play, shards)
        return
    waiting = iter(shards)
    pending: set[Future[list[tuple[str, bytes]]]] = set()
    try:
        while True:
            while len(pending) < _MOST_PENDING and (shard := next(waiting, None)) is not None:
                pending.add(executor.submit(play, shard))
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in pending:
            future.cancel()


def play(shard: Shard) -> list[tuple[str, bytes]]:
    """Computes a shard: (key, result as JSON) of each cell. Runs in workers; reads and writes no files."""
    scenario = shard.contest.scenario(shard.source, shard.seed)
    found = []
    for cell in shard.cells:
        result: Result
        if cell.contender is None:
            result = Bounded(scenario=scenario.name, seed=shard.seed, bounds=bounds(scenario))
        else:
            result = _played(scenario, cell.contender, shard.timelines)
        found.append((cell.key, msgspec.json.encode(result)))
    return found


def bounds(scenario: Scenario) -> Bounds:
    """What the clairvoyants reach on a scenario, before :meth:`simulation.regret.Bounds.raised`."""
    from simulation import oracle

    found = oracle.bound(
        scenario.table,
        scenario.trace,
        scenario.goals,
        scenario.plant,
        seed=scenario.seed,
        control_period_s=scenario.control_period_s,
        queue_limit=scenario.queue_limit,
        drop_late=scenario.drop_late,
        charge_tolerance=scenario.charge_tolerance,
        temperature_tolerance_c=scenario.temperature_tolerance_c,
        contenders=[create(name, scenario.goals, {}) for name in _COPIED],
        sensors=scenario.sensors,
    )
    return Bounds(lp=found.lp, dp=found.dp, infeasible=found.infeasible)


def outcome_of(scenario: Scenario, contender: Contender) -> Outcome:
    """One policy on a scenario; for ``best-static`` the best rung that keeps the limits, else the best of all."""
    if contender.policy != BEST_STATIC:
        return _simulated(scenario, contender.policy, contender.options)
    runs = [_simulated(scenario, "static", {"point": point}) for point in rungs_of(scenario.table, Where()).points]
    return max(runs, key=lambda run: (not limits_broken(scenario, run), run.accuracy_sum))


def limits_broken(scenario: Scenario, outcome: Outcome) -> tuple[str, ...]:
    """The hard limits broken by more than the sensors resolve, see :func:`simulation.scripts.broken`."""
    return broken(
        outcome,
        scenario.goals,
        charge_tolerance=scenario.charge_tolerance,
        temperature_tolerance_c=scenario.temperature_tolerance_c,
    )


def _simulated(scenario: Scenario, policy: str, options: dict[str, str]) -> Outcome:
    return simulate(
        scenario.table,
        scenario.trace,
        create(policy, scenario.goals, options),
        scenario.goals,
        scenario.plant,
        seed=scenario.seed,
        control_period_s=scenario.control_period_s,
        queue_limit=scenario.queue_limit,
        drop_late=scenario.drop_late,
        sensors=scenario.sensors,
    )


def _played(scenario: Scenario, contender: Contender, timelines: bool) -> Played:
    outcome = outcome_of(scenario, contender)
    wished = scenario.goals.last_until_s is not None and outcome.battery_at_goal is not None
    limits = limits_broken(scenario, outcome)
    degree_seconds = _degree_seconds(outcome, scenario.goals)
    if not timelines:
        outcome = msgspec.structs.replace(outcome, timeline=None, switch_events=())
    return Played(
        scenario=scenario.name,
        seed=scenario.seed,
        policy=contender.name,
        outcome=outcome,
        broken=limits,
        degree_seconds=degree_seconds,
        lasted="battery" not in limits if wished else None,
    )


def _degree_seconds(outcome: Outcome, goals: Goals) -> float | None:
    line, limit_c = outcome.timeline, goals.temperature_limit_c
    if line is None or line.temperature_c is None or limit_c is None:
        return None
    spans = np.diff([*line.time_s, outcome.duration_s])
    return float(np.dot(spans, np.maximum(0.0, np.asarray(line.temperature_c) - limit_c)))


def _shards(contest: Contest, cells_per_shard: int) -> Iterator[Shard]:
    inputs = _digest([msgspec.json.encode(contest.table), _code().encode()])
    jobs: list[Contender | None] = [*([None] if contest.bounded else []), *contest.contenders]
    for source in contest.sources:
        shipped = msgspec.structs.replace(
            contest,
            contenders=contest.contenders[:1],
            scenarios=(source,) if isinstance(source, str) else (),
            traces=() if isinstance(source, str) else (source,),
        )
        played_on = _digest([inputs.encode(), _identity(source), repr((contest.duration_s, contest.as_is)).encode()])
        for seed in contest.seeds:
            timelines = contest.timelines and seed == contest.seeds[0]
            cells = []
            for contender in jobs:
                what = msgspec.json.encode((played_on, seed, contender, timelines), order="sorted")
                cells.append(Cell(key=_digest([what]), contender=contender))
            for start in range(0, len(cells), cells_per_shard):
                yield Shard(
                    contest=shipped,
                    source=source,
                    seed=seed,
                    cells=tuple(cells[start : start + cells_per_shard]),
                    timelines=timelines,
                )


def _identity(source: str | Trace) -> bytes:
    if isinstance(source, str):
        return source.encode()
    fields = [getattr(source, name) for name in source.__struct_fields__]
    return _digest([v.tobytes() if isinstance(v, np.ndarray) else repr(v).encode() for v in fields]).encode()


def _digest(parts: Sequence[bytes]) -> str:
    """A hash in which no part can run into the next."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()[:32]


@cache
def _code() -> str:
    """A hash of the source of everything that decides or simulates."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(file for package in ("policies", "simulation") for file in (root / package).glob("*.py"))
    deciding = [file for file in files if file.name not in _AFTERWARDS]
    return _digest([part for file in deciding for part in (file.name.encode(), file.read_bytes())])


def _file(folder: Path, key: str) -> Path:
    return folder / "cells" / f"{key}.json"


def _read(file: Path) -> Result | None:
    """A result of a former run; None where there is none, or the file is damaged."""
    try:
        return _decoded(file.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def _decoded(content: bytes) -> Result:
    found: Result = msgspec.json.decode(content, type=Result)
    return found
