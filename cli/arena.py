"""``gearshift arena``: policies x scenarios x seeds, in parallel, with regret against a clairvoyant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._units import SECONDS

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from calibration.table import Table
    from simulation.arena import Contest
    from simulation.standings import Standings
    from simulation.trace import Trace

_DASK_SHARD = 64  # cells of one scenario and seed that travel together


@click.command("arena")
@click.argument("table_file", metavar="TABLE")
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="Generated scenario; default all.")
@click.option("--trace", "traces", multiple=True, metavar="FILE|DIR", help="Recorded load, or a folder of them.")
@click.option("--policy", "policies", multiple=True, metavar="NAME[:KEY=VALUE,..]", help="Contender; default all.")
@click.option("--reference", metavar="NAME", help="Compare the others with this one; composite when it takes part.")
@click.option("--seeds", type=click.IntRange(1), default=10, show_default=True, help="Runs of each scenario.")
@click.option("--duration", type=SECONDS, help="Of each run; by default what gives some 400,000 requests.")
@click.option("--as-is", is_flag=True, help="Do not bring recorded loads to the table's capacity.")
@click.option("--no-oracle", is_flag=True, help="Leave out the clairvoyant: quicker, and no regret.")
@click.option("--workers", type=click.IntRange(1), help="Processes; one a core by default.")
@click.option("--dask", metavar="ADDRESS", help="Compute on this Dask cluster instead, e.g. tcp://host:8786.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder; resumes what it holds."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def command(
    table_file: str,
    scenarios: tuple[str, ...],
    traces: tuple[str, ...],
    policies: tuple[str, ...],
    reference: str | None,
    seeds: int,
    duration: float | None,
    as_is: bool,
    no_oracle: bool,
    workers: int | None,
    dask: str | None,
    out: Path,
    json_file: str | None,
) -> None:
    """Plays policies against each other on scenarios scaled to TABLE, and says which one to use.

    TABLE is a calibration table, or 'synthetic-gpu' for a made-up one. Every policy of a scenario and seed meets the
    same requests. Results are kept in --out as they come: a killed run goes on from there. The report is
    --out/arena.html.

    \b
    Example:
      gearshift arena table.json --out arena
      gearshift arena table.json --policy composite --policy composite:rho_max=0.8 --scenario burst --out burst
      gearshift arena table.json --trace traces/arrivals --seeds 20 --dask tcp://head:8786 --out cluster
    """
    from cli._output import console, emit_json, progress
    from simulation.arena import run
    from simulation.arena_report import html
    from simulation.standings import standings
    from simulation.synthetic import NAME
    from subnets.bundle import write_atomically

    contest = _contest(table_file, scenarios, traces, policies, range(seeds), duration, as_is, not no_oracle)
    with _cluster(dask) if dask else workers_of(workers) as executor, progress() as bar:
        task = bar.add_task("arena", total=None)
        results = run(
            contest,
            out,
            executor=executor,
            cells_per_shard=_DASK_SHARD if dask else 1,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    found = standings(results, reference)
    synthetic = table_file == NAME
    page = html(found, results, table=contest.table.bundle_name, synthetic=synthetic, seeds=contest.seeds)
    write_atomically(out / "arena.html", page.encode())
    emit_json(str(out / "arena.json"), found.to_json())
    if json_file:
        emit_json(json_file, found.to_json())
    if json_file != "-":
        _print(console(), found, out, synthetic)


def _contest(
    table_file: str,
    scenarios: tuple[str, ...],
    traces: tuple[str, ...],
    policies: tuple[str, ...],
    seeds: range,
    duration_s: float | None,
    as_is: bool,
    bounded: bool,
) -> Contest:
    from simulation.arena import Contender, Contest, everyone
    from simulation.scenarios import usable

    table = open_table(table_file)
    return Contest(
        table=table,
        contenders=tuple(Contender.parse(text) for text in policies or everyone()),
        seeds=tuple(seeds),
        scenarios=scenarios or (() if traces else usable(table)),
        traces=recorded(traces),
        duration_s=duration_s,
        as_is=as_is,
        bounded=bounded,
    )


def open_table(name: str) -> Table:
    """The table in a file, or the made-up one by its name."""
    from calibration.table import read
    from simulation.synthetic import NAME, synthetic_table

    return synthetic_table() if name == NAME else read(name)


def recorded(specs: tuple[str, ...]) -> tuple[Trace, ...]:
    """The traces of files, and of all files in folders in order of name; named by their file.

    Raises:
        InputError: a folder is empty, or a file is not a trace with arrivals.
    """
    import msgspec

    from simulation.trace import load
    from subnets.errors import InputError

    found = []
    for spec in specs:
        files = [spec]
        if Path(spec).is_dir():
            files = [str(file) for file in sorted(Path(spec).iterdir()) if file.is_file() and file.name[0] != "."]
            if not files:
                raise InputError(f"{spec}: an empty folder; give a folder of traces, or a trace")
        for file in files:
            found.append(msgspec.structs.replace(load(file), name=Path(file).name))
    return tuple(found)


@contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    from simulation.cluster import connected

    with connected(address) as executor:
        yield executor


@contextmanager
def workers_of(workers: int | None) -> Iterator[Executor | None]:
    """So many processes on this machine, by default one a core; None for one worker, which is this process."""
    import os

    count = workers or len(os.sched_getaffinity(0))
    if count == 1:
        yield None
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # One worker a processor: their linear algebra must not take the others'.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Spawned, not forked: the progress bar already has a thread.
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _print(out: Any, found: Standings, folder: Path, synthetic: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from simulation.arena_report import cells, heads, verdict

    # A terminal has room for the figures that decide; the report and the JSON have all of them.
    columns = [head for head in heads(found) if head not in ("accuracy", "peak °C", "°C s over")]
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        shown.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for standing in found.policies:
        shown.add_row(*map(Text, cells(standing, columns)))
    out.print(shown)
    if synthetic:
        out.print("The table is made up: nothing in it was measured.", markup=False)
    out.print(verdict(found), markup=False)
    for loss in found.losses:
        out.print(
            f"On {loss.scenario} {loss.winner} does better than {found.reference}, by "
            f"{100 * loss.difference:.2f} percentage points.",
            markup=False,
        )
    out.print(f"Report: {folder / 'arena.html'}", markup=False)
