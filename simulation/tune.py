"""Tuning a policy's options: searched on some scenarios, judged on others.

* :class:`Span`, :func:`spans`: which options are searched, and between which values.
* :func:`search`: Optuna's tree-structured Parzen estimator over the arena, then the held-out comparison.
* :class:`Tuned`, :func:`snippet`: the result, and as lines for the agent's configuration.

The loss of a run is its regret, plus one where a limit was broken: no gain in accuracy may pay for a hot box. The
defaults are the first trial, so on the training scenarios nothing worse can come out; whether it holds, only the
held-out ones tell. Same seed, same result. Needs optuna.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import msgspec

from policies.base import Goals
from policies.registry import OptionInfo, create, describe
from simulation.arena import Contender, Contest, Played, Result, run
from simulation.resampling import Estimate, estimate
from subnets.bundle import Strict
from subnets.errors import InputError, UnavailableError

_FACTOR = 4.0  # a number is searched from its default over this to its default times this
_BISECTIONS = 30
_BROKEN = 1.0  # what a broken limit adds to the loss
_NUMBER, _WHOLE = "a number", "a whole number"

Value = float | int


class Span(Strict, frozen=True, kw_only=True):
    """One option's search range; equal bounds do not occur."""

    name: str
    low: float
    high: float
    whole: bool = False
    default: Value | None = None

    @property
    def log(self) -> bool:
        """Whether it is searched by factors rather than by differences."""
        return self.low > 0.0 and self.high / self.low >= 10.0


class Tuned(Strict, frozen=True, kw_only=True):
    """What was found, and what it is worth."""

    policy: str
    options: dict[str, Value]
    defaults: dict[str, Value | None]
    trials: int
    training_default: float  # mean loss over the training scenarios
    training_tuned: float
    held_out_default: float
    held_out_tuned: float
    gain: Estimate  # loss with the defaults minus loss with the found options, on held-out runs

    @property
    def holds(self) -> bool:
        """Whether the found options are better on what they were not searched on, beyond chance."""
        return self.gain.low > 0.0


def spans(policy: str, asked: Mapping[str, tuple[float, float]] | None = None) -> tuple[Span, ...]:
    """What to search: every number with a default above 0, as far as the policy takes the values, and what is asked.

    Raises:
        InputError: there is no such policy or option, or nothing to search.
    """
    create(policy, Goals())
    infos = {info.name: info for known in describe() if known.name == policy for info in known.options}
    asked = dict(asked or {})
    for name, (low, high) in asked.items():
        if name not in infos:
            raise InputError(f"policy {policy} has no option '{name}' to search; it takes {', '.join(infos)}")
        if not low < high or not (_takes(policy, infos[name], low) and _takes(policy, infos[name], high)):
            raise InputError(f"policy {policy}: '{name}' cannot be searched from {low:g} to {high:g}; see its meaning")
    found = []
    for info in infos.values():
        whole = info.type.startswith(_WHOLE)
        if info.name in asked:
            low, high = asked[info.name]
            found.append(Span(name=info.name, low=low, high=high, whole=whole, default=_value(info)))
        elif not info.shared and info.type in (_NUMBER, _WHOLE) and (value := _value(info)) is not None and value > 0:
            low, high = (_reach(policy, info, float(value), end) for end in (value / _FACTOR, value * _FACTOR))
            if whole:
                low, high = float(math.ceil(low)), float(math.floor(high))
            if low < high:
                found.append(Span(name=info.name, low=low, high=high, whole=whole, default=value))
    if not found:
        raise InputError(f"policy {policy} has no number to search; 'gearshift policies' lists the options")
    return tuple(found)


def search(
    policy: str,
    training: Contest,
    held_out: Contest,
    searched: Sequence[Span],
    folder: Path,
    *,
    trials: int,
    seed: int = 0,
    executor: Executor | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Tuned:
    """The best options found, and how they and the defaults do on held-out runs.

    Args:
        policy: its name.
        training: scenarios, traces and seeds to search on; its contenders do not matter.
        held_out: the same to judge on; a run's seeds and scenarios are its own.
        searched: from :func:`spans`.
        folder: keeps the runs, so that a killed search goes on quickly.
        trials: how many settings to try, the defaults among them.
        seed: of the search.
        executor: see :func:`simulation.arena.run`.
        progress: called with (trials done, least loss so far).

    Raises:
        UnavailableError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UnavailableError("tuning needs optuna; install it with: pip install 'gearshift[simulate]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({span.name: span.default for span in searched if span.default is not None})

    def losses(contest: Contest, options: Mapping[str, Value]) -> dict[str, list[float]]:
        contender = Contender.parse(f"{policy}:" + ",".join(f"{name}={value}" for name, value in options.items()))
        changed = msgspec.structs.replace(contest, contenders=(contender,), timelines=False)
        return _losses(run(changed, folder, executor=executor))

    def loss(trial: Any) -> float:
        return _mean(losses(training, {span.name: _suggested(trial, span) for span in searched}))

    least: list[float] = []

    def told(study: Any, trial: Any) -> None:
        least.append(study.best_value)
        if progress is not None:
            progress(len(least), study.best_value)

    study.optimize(loss, n_trials=trials, callbacks=[told])
    options: dict[str, Value] = {name: _short(value) for name, value in study.best_params.items()}
    before, after = losses(held_out, {}), losses(held_out, options)
    gains = [[a - b for a, b in zip(before[name], after[name], strict=True)] for name in before]
    return Tuned(
        policy=policy,
        options=options,
        defaults={span.name: span.default for span in searched},
        trials=trials,
        training_default=_mean(losses(training, {})),
        training_tuned=study.best_value,
        held_out_default=_mean(before),
        held_out_tuned=_mean(after),
        gain=estimate(gains),
    )


def snippet(tuned: Tuned) -> str:
    """Lines for the agent's configuration; says so in a comment where the gain did not hold."""
    gain = tuned.gain
    said = (
        f"# loss on held-out runs {tuned.held_out_default:.4f} with the defaults, {tuned.held_out_tuned:.4f} with "
        f"these; gain {gain.mean:.4f} ({gain.low:.4f} to {gain.high:.4f})"
    )
    lines = [said] if tuned.holds else [said, "# not better than the defaults beyond chance: keep these rather"]
    lines += ["[agent]", f'policy = "{tuned.policy}"', "", "[policy.options]"]
    for name, value in tuned.options.items():
        lines.append(f"{name} = {value!r}")
    return "\n".join(lines) + "\n"


def _losses(results: Sequence[Result]) -> dict[str, list[float]]:
    """By scenario, one a seed."""
    bounds = {(r.scenario, r.seed): r.bounds for r in results if not isinstance(r, Played)}
    found: dict[str, list[float]] = {}
    for result in results:
        if isinstance(result, Played):
            known = bounds.get((result.scenario, result.seed))
            outcome = result.outcome
            missed = known.regret(outcome.accuracy_sum) if known else 1.0 - (outcome.goodput or 0.0)
            found.setdefault(result.scenario, []).append(missed + _BROKEN * bool(result.broken))
    return found


def _mean(groups: Mapping[str, Sequence[float]]) -> float:
    return math.fsum(math.fsum(group) / len(group) for group in groups.values()) / len(groups)


def _suggested(trial: Any, span: Span) -> Value:
    if span.whole:
        whole: int = trial.suggest_int(span.name, int(span.low), int(span.high))
        return whole
    return _short(trial.suggest_float(span.name, span.low, span.high, log=span.log))


def _short(value: Value) -> Value:
    """Four significant digits: what is judged is what stands in the snippet."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _value(info: OptionInfo) -> float | int | None:
    return info.default if isinstance(info.default, float | int) and not isinstance(info.default, bool) else None


def _takes(policy: str, info: OptionInfo, value: float) -> bool:
    try:
        create(policy, Goals(), {info.name: int(value) if info.type.startswith(_WHOLE) else value})
    except InputError:
        return False
    return True


def _reach(policy: str, info: OptionInfo, default: float, end: float) -> float:
    """The value nearest to ``end`` that the policy takes, on the way from its default."""
    if info.type.startswith(_WHOLE):
        end = max(1.0, end)
    if _takes(policy, info, end):
        return end
    good, bad = default, end
    for _ in range(_BISECTIONS):
        middle = (good + bad) / 2.0
        good, bad = (middle, bad) if _takes(policy, info, middle) else (good, middle)
    return good
