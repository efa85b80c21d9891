"""``gearshift simulate``: replays a trace against policies and compares what each achieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._units import JOULES, MILLISECONDS, SECONDS

if TYPE_CHECKING:
    from calibration.table import Table
    from policies.base import Goals
    from simulation.outcome import Outcome
    from simulation.plant import Plant

_BASELINES = ("largest", "smallest")


@click.command("simulate")
@click.argument("table_file", metavar="TABLE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--trace", "traces", multiple=True, required=True, metavar="SPEC", help="See 'gearshift trace --help'.")
@click.option(
    "--policy", "policies", multiple=True, metavar="NAME", help="Policy to try; composite when none is given."
)
@click.option("--only", is_flag=True, help="Leave out the baselines 'largest' and 'smallest'.")
@click.option(
    "--option", "options", multiple=True, metavar="[POLICY.]KEY=VALUE", help="An option of one or all policies."
)
@click.option("--deadline", type=MILLISECONDS, help="From arrival to answer, e.g. 50ms.")
@click.option("--deadline-percentile", type=float, default=0.99, show_default=True, help="Share that should keep it.")
@click.option("--min-accuracy", type=float, help="Share, e.g. 0.9.")
@click.option("--max-power", type=float, help="Watts.")
@click.option("--temperature-limit", type=float, help="Degrees Celsius.")
@click.option("--last-until", type=SECONDS, help="The battery must last so long into the trace, e.g. 8h.")
@click.option("--reserve", type=float, default=0.05, show_default=True, help="State of charge to keep.")
@click.option("--switches-per-hour", type=int, help="Most switches in any hour.")
@click.option(
    "--maximise",
    type=click.Choice(["accuracy", "answers_per_joule"]),
    default="accuracy",
    show_default=True,
    help="What is wanted as large as the goals allow.",
)
@click.option("--battery", type=JOULES, help="Run on a battery of this size, e.g. 20Wh.")
@click.option("--battery-start", type=float, default=1.0, show_default=True, help="State of charge at the start.")
@click.option(
    "--battery-tables", type=click.Path(file_okay=False, path_type=Path), help="Folder of PyBaMM circuit tables."
)
@click.option("--ambient", type=float, default=25.0, show_default=True, help="Air, where the trace does not say (°C).")
@click.option("--thermal-resistance", type=float, help="°C per watt; by default fits the table's highest power.")
@click.option("--thermal-capacity", type=float, help="Joules per °C; by default gives a time constant of 10 minutes.")
@click.option("--trip", type=float, help="Temperature at which the processor throttles (°C); default 85.")
@click.option("--unknown", multiple=True, metavar="FIELD", help="A condition no sensor tells, e.g. temperature_c.")
@click.option("--control-period", type=SECONDS, default=1.0, show_default=True, help="Between two decisions.")
@click.option("--queue-limit", type=click.IntRange(1), default=1000, show_default=True, help="Requests that may wait.")
@click.option("--drop-late", is_flag=True, help="Drop requests whose deadline passed before their turn.")
@click.option("--drop-oldest", is_flag=True, help="A full queue drops its oldest request, as a camera's does.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of service times and sensor noise.")
@click.option("--verify", is_flag=True, help="SPECs are parts of a journal, oldest first: check that decisions repeat.")
@click.option(
    "--bundle", type=click.Path(file_okay=False, path_type=Path), help="Check that the table is of this bundle."
)
@click.option("--force", is_flag=True, help="Use a table of another bundle all the same.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML report with timelines.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def command(
    table_file: Path,
    traces: tuple[str, ...],
    policies: tuple[str, ...],
    only: bool,
    options: tuple[str, ...],
    seed: int,
    verify: bool,
    bundle: Path | None,
    force: bool,
    report: Path | None,
    json_file: str | None,
    **settings: Any,
) -> None:
    """Replays traces against policies: queue, heat, battery, imperfect sensors.

    Several traces are laid over each other: arrivals from one, weather from another. Every policy sees the same
    requests and the same draws of service times, so differences come from decisions alone.

    \b
    Example:
      gearshift simulate table.json --trace day:hours=1,rate=5 --deadline 50ms
      gearshift simulate table.json --trace poisson:rate=1,hours=24 --trace sun.dat:panel_w=5 \\
          --policy composite --battery 20Wh --last-until 24h --report day.html
      gearshift simulate table.json --trace journal.jsonl --verify
    """
    from calibration.table import read

    table = read(table_file)
    if bundle is not None and not force:
        from subnets.bundle import Bundle

        opened = Bundle.open(bundle)
        table.check(bundle_key=opened.key, bundle_name=opened.name)
    if verify:
        _verify(table, traces, json_file)
        return
    from cli._output import console, emit_json
    from simulation.trace import load_all

    goals, trace = _goals(settings), load_all(traces)
    _warn(goals, table, trace, settings)
    names = list(dict.fromkeys([*(policies or ("composite",)), *(() if only else _BASELINES)]))
    outcomes = _run(table, trace, names, _options(options, names), goals, _plant(table, settings), seed, settings)
    if json_file:
        emit_json(json_file, {"policies": [{"name": name, **run.summary()} for name, run in outcomes.items()]})
    if report is not None:
        from simulation.report import html
        from subnets.bundle import write_atomically

        page = html(outcomes, trace=trace.name, table=table_file.name, seed=seed)
        write_atomically(report, page.encode())
    if json_file != "-":
        _print(console(), outcomes)


def _run(
    table: Table,
    trace: Any,
    names: Sequence[str],
    options: Mapping[str, dict[str, str]],
    goals: Goals,
    plant: Plant,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, Outcome]:
    from cli._output import progress
    from policies.registry import create
    from simulation.replay import simulate
    from simulation.sensors import SensorModel

    sensors = SensorModel(unknown=frozenset(settings["unknown"]))
    made = {name: create(name, goals, options[name]) for name in names}  # all of them before the first long run
    outcomes = {}
    with progress() as bar:
        for name, policy in made.items():
            task = bar.add_task(name, total=100)
            outcomes[name] = simulate(
                table,
                trace,
                policy,
                goals,
                plant,
                seed=seed,
                control_period_s=settings["control_period"],
                queue_limit=settings["queue_limit"],
                drop_late=settings["drop_late"],
                drop_oldest=settings["drop_oldest"],
                sensors=sensors,
                progress=lambda share, task=task: bar.update(task, completed=round(100 * share)),  # type: ignore[misc]
            )
    return outcomes


def _warn(goals: Goals, table: Table, trace: Any, settings: Mapping[str, Any]) -> None:
    """Says which goals cannot be kept; policies then give their best effort."""
    from cli._output import console
    from policies.feasible import contradictions

    battery_j = settings["battery"]
    found = contradictions(
        goals,
        table,
        battery_energy_j=None if battery_j is None else battery_j * settings["battery_start"],
        arrival_rate_hz=len(trace.arrivals_s) / trace.duration_s if trace.duration_s else None,
    )
    for sentence in found:
        console(stderr=True).print(f"warning: {sentence}", markup=False, highlight=False)


def _goals(settings: Mapping[str, Any]) -> Goals:
    from policies.base import Goals

    return Goals(
        deadline_ms=settings["deadline"],
        min_accuracy=settings["min_accuracy"],
        max_power_w=settings["max_power"],
        temperature_limit_c=settings["temperature_limit"],
        last_until_s=settings["last_until"],
        reserve=settings["reserve"],
        deadline_percentile=settings["deadline_percentile"],
        switches_per_hour=settings["switches_per_hour"],
        maximise=settings["maximise"],
    ).check()


def _plant(table: Table, settings: Mapping[str, Any]) -> Plant:
    from simulation.battery import Battery, read_tables
    from simulation.plant import Plant

    battery = None
    if settings["battery"] is not None:
        folder = settings["battery_tables"]
        like = None if folder is None else read_tables(folder)
        battery = Battery.of_energy(settings["battery"], like, settings["battery_start"])
    plant = Plant.for_table(table, battery, settings["ambient"])
    return plant.with_thermal(
        resistance_c_per_w=settings["thermal_resistance"],
        capacity_j_per_c=settings["thermal_capacity"],
        trip_c=settings["trip"],
    )


def _options(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    from subnets.errors import InputError

    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for text in texts:
        key, equals, value = text.partition("=")
        policy, dot, option = key.rpartition(".")
        if not equals or not option or (dot and policy not in found):
            raise InputError(
                f"--option '{text}': write policy.key=value with a policy of this run ({', '.join(names)})"
            )
        for name in [policy] if dot else names:
            found[name][option] = value
    return found


def _print(out: Any, outcomes: Mapping[str, Outcome]) -> None:
    from rich.table import Table
    from rich.text import Text

    from simulation.report import cells, clock, columns

    first = next(iter(outcomes.values()))
    # A terminal has room for the figures that decide; the report and the JSON have all of them.
    heads = [head for head in columns(outcomes) if head not in ("requests", "dropped", "p50 ms", "net J")]
    title = f"{first.requests:,} requests over {clock(first.duration_s)}"
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        shown.add_column(head, justify="left" if head == "policy" else "right", no_wrap=head != "battery")
    for name, run in outcomes.items():
        shown.add_row(*map(Text, cells(name, run, heads)))
    out.print(shown)
    for note in dict.fromkeys(note for run in outcomes.values() for note in run.notes):
        out.print(f"Note: {note}.", markup=False)


def _verify(table: Table, paths: Sequence[str], json_file: str | None) -> None:
    """Replays each session with the policy it recorded; exit code 1 when a decision differs."""
    from cli._output import console, emit_json
    from simulation.journal import read
    from simulation.verify import elsewhere, table_key, verify_recorded

    journal = read(paths)
    compared, mismatches = verify_recorded(journal, table)
    others = elsewhere(journal, table)
    made_with = {session.meta.table_key for session in journal.sessions} - {""}
    if json_file:
        emit_json(json_file, {"decisions": compared, "mismatches": mismatches, "other_tables": others})
    if json_file != "-":
        out = console()
        out.print(f"{compared:,} decisions replayed, {len(mismatches):,} differ", markup=False)
        for key, count in others.items():
            out.print(f"  {count:,} were made with table {key}; verify them with that one", markup=False)
        if made_with and table_key(table) not in made_with:
            said = f"none were made with this table but with {', '.join(sorted(made_with))}; verify them with that one"
            out.print(f"  {said}", markup=False)
        for miss in mismatches[:10]:
            said = f"{miss.time_s:.3f} s: {miss.field} was '{miss.recorded}', is '{miss.replayed}'"
            out.print(f"  {said}", markup=False)
    if mismatches:
        raise click.exceptions.Exit(1)
