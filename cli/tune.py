"""``gearshift tune``: searches a policy's options on some traces and judges them on others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli._units import SECONDS

if TYPE_CHECKING:
    from simulation.arena import Contest
    from simulation.tune import Span

_HELD_OUT_SEED = 1000  # generated scenarios are judged at seeds from here on


@click.command("tune")
@click.argument("policy")
@click.option("--table", "table_file", required=True, metavar="TABLE", help="Calibration table, or 'synthetic-gpu'.")
@click.option("--trace", "traces", multiple=True, metavar="FILE|DIR", help="Recorded load to search on, or a folder.")
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="Generated scenario to search on.")
@click.option("--held-out", "others", multiple=True, metavar="NAME|FILE|DIR", help="Scenario or trace to judge on.")
@click.option("--search", "asked", multiple=True, metavar="KEY=LOW:HIGH", help="Range of an option; may be repeated.")
@click.option("--trials", type=click.IntRange(2), default=50, show_default=True, help="Settings to try.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each scenario.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the search.")
@click.option("--duration", type=SECONDS, help="Of each run; by default what gives some 400,000 requests.")
@click.option("--no-oracle", is_flag=True, help="Minimise the answers missed instead of the regret.")
@click.option("--workers", type=click.IntRange(1), help="Processes; one a core by default.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder; resumes what it holds."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def command(
    policy: str,
    table_file: str,
    traces: tuple[str, ...],
    scenarios: tuple[str, ...],
    others: tuple[str, ...],
    asked: tuple[str, ...],
    trials: int,
    seeds: int,
    seed: int,
    duration: float | None,
    no_oracle: bool,
    workers: int | None,
    out: Path,
    json_file: str | None,
) -> None:
    """Searches POLICY's options for the least regret, and prints them as lines for the agent's configuration.

    What is found is judged on what it was not searched on: --held-out where it is given; else the last third of every
    recorded trace, and generated scenarios at other seeds. Without --trace and --scenario all scenarios are used.

    \b
    Example:
      gearshift tune composite --table table.json --trace traces/arrivals --out tuned
      gearshift tune composite --table table.json --scenario burst --search rho_max=0.4:0.95 --out tuned
    """
    import msgspec

    from cli._output import console, emit_json, progress
    from cli.arena import workers_of
    from simulation.tune import search, snippet, spans
    from subnets.bundle import write_atomically

    training, held_out = _contests(policy, table_file, traces, scenarios, others, seeds, duration, not no_oracle)
    searched = spans(policy, _ranges(asked))
    with workers_of(workers) as executor, progress() as bar:
        task = bar.add_task(policy, total=trials)
        tuned = search(
            policy,
            training,
            held_out,
            searched,
            out,
            trials=trials,
            seed=seed,
            executor=executor,
            progress=lambda done, least: bar.update(task, completed=done, description=f"{policy}, loss {least:.4f}"),
        )
    write_atomically(out / "policy.toml", snippet(tuned).encode())
    if json_file:
        emit_json(json_file, {**msgspec.to_builtins(tuned), "holds": tuned.holds, "searched": _shown(searched)})
    if json_file != "-":
        console().print(snippet(tuned), markup=False, end="", soft_wrap=True)


def _contests(
    policy: str,
    table_file: str,
    traces: tuple[str, ...],
    scenarios: tuple[str, ...],
    others: tuple[str, ...],
    seeds: int,
    duration_s: float | None,
    bounded: bool,
) -> tuple[Contest, Contest]:
    import msgspec

    from cli.arena import open_table, recorded
    from simulation.arena import Contender, Contest
    from simulation.scenarios import SCENARIOS, usable

    table = open_table(table_file)
    loads = recorded(traces)
    names = scenarios or (() if traces else usable(table))
    training = Contest(
        table=table,
        contenders=(Contender.parse(policy),),
        seeds=tuple(range(seeds)),
        scenarios=names,
        traces=loads if others else tuple(load.cut(0.0, load.duration_s * 2 / 3) for load in loads),
        duration_s=duration_s,
        bounded=bounded,
    )
    held_out = msgspec.structs.replace(
        training,
        seeds=tuple(range(_HELD_OUT_SEED, _HELD_OUT_SEED + seeds)),
        scenarios=tuple(name for name in others if name in SCENARIOS) if others else names,
        traces=recorded(tuple(name for name in others if name not in SCENARIOS))
        if others
        else tuple(load.cut(load.duration_s * 2 / 3, load.duration_s) for load in loads),
    )
    return training.check(), held_out.check()


def _ranges(texts: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    from subnets.errors import InputError

    found = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        low, colon, high = rest.partition(":")
        try:
            found[name] = float(low), float(high)
        except ValueError:
            equals = ""
        if not (name and equals and colon):
            raise InputError(f"--search '{text}': write KEY=LOW:HIGH, e.g. rho_max=0.4:0.9")
    return found


def _shown(searched: tuple[Span, ...]) -> dict[str, list[float]]:
    return {span.name: [span.low, span.high] for span in searched}
