"""The demo's steps before and after its day: making the bundle, measuring it, drawing what happened.

* :func:`trained_bundle`: trains, samples and trains jointly on the digits (needs torch).
* :func:`shipped_bundle`: the digits bundle that comes with Gearshift, where torch is not installed.
* :func:`measured`: exports where needed, compiles and calibrates on this machine.
* :func:`summary`, :func:`report`, :func:`pictures`: the numbers as JSON types, the page, the README's pictures.
"""

from __future__ import annotations

import html
import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from backends.base import Backend
from calibration.table import Row, Table, frontier
from cli.day import Day, Played
from simulation.outcome import Outcome
from subnets import Bundle
from subnets.errors import UnavailableError

Tell = Callable[[str, float, float], None]  # what, done, total

BATCH_SIZE = 64
_WIDTH = 16
_BUDGETS = (0.12, 0.25, 0.5, 1.0)


def torch_installed() -> bool:
    """Whether training can be shown."""
    return importlib.util.find_spec("torch") is not None


def shipped_bundle(folder: Path) -> Bundle:
    """A copy in ``folder`` of the digits bundle that lies in the checkout or came with the installation.

    Raises:
        UnavailableError: neither is there.
    """
    for place in (
        Path(__file__).resolve().parents[1] / "bundles",
        Path(sys.prefix) / "share" / "gearshift" / "bundles",
    ):
        if (place / "digits" / "bundle.json").is_file():
            shutil.copytree(place / "digits", folder, dirs_exist_ok=True)
            return Bundle.open(folder)
    raise UnavailableError("the shipped digits bundle is not here; install torch to train one: pip install torch")


def trained_bundle(folder: Path, tell: Tell) -> Bundle:
    """Trains a small network on the digits, samples four nested subnets and trains them jointly."""
    import torch

    from subnets import architectures
    from subnets.allocation import Limits
    from subnets.bundle import Architecture
    from subnets.data import digits
    from subnets.sampling import SampleOptions, fine_tune, sample
    from subnets.training import PlainObjective, Progress, Recipe, train

    def watch(what: str) -> Callable[[Progress], None]:
        return lambda progress: tell(what, progress.step, progress.steps)

    data = digits()
    recipe = Recipe(epochs=20, batch_size=64, learning_rate=0.1, precision="f32", compile=False, seed=1)
    torch.manual_seed(recipe.seed)
    described = Architecture(name="tinynet", arguments={"width": _WIDTH})
    network = architectures.build(described.name, **described.arguments)
    train(PlainObjective(network, recipe), data, recipe, on_step=watch("training the network"))
    options = SampleOptions(budgets=_BUDGETS, limits=Limits(align=4, floor=0.05, last_floor=0.125))
    bundle = sample(network, described, data, options, folder, name="digits")
    joint = Recipe(epochs=14, batch_size=64, learning_rate=0.05, precision="f32", compile=False, seed=1)
    return fine_tune(bundle, data, joint, on_step=watch("training all subnets jointly"))


def measured(bundle: Bundle, backend: Backend, tell: Tell) -> Table:
    """The calibration table of the bundle on this machine: f32, one request = a sheet of images."""
    from calibration.measure import Settings, calibrate
    from sensors import meters

    return calibrate(
        bundle,
        [backend],
        precisions=("f32",),
        batch_sizes=(BATCH_SIZE,),
        settings=Settings(budget_s=15.0),
        meters=meters(),
        on_progress=tell,
    )


def summary(bundle: Bundle, table: Table, played: Played, replayed: Mapping[str, Outcome]) -> dict[str, Any]:
    """What ``--json`` writes."""
    subnets = []
    for entry in bundle.manifest.subnets:
        row = next(row for row in table.rows if row.subnet == entry.name)
        subnets.append(
            {
                "name": entry.name,
                "macs": entry.macs,
                "parameters": entry.parameters,
                "accuracy": row.accuracy,
                "accuracy_low": row.accuracy_low,
                "accuracy_high": row.accuracy_high,
                "latency_p50_ms": row.latency_p50_ms,
                "latency_p50_low_ms": row.latency_p50_low_ms,
                "latency_p50_high_ms": row.latency_p50_high_ms,
                "batch_size": row.batch_size,
                "energy_j": row.energy_j,
                "energy_low_j": row.energy_low_j,
                "energy_high_j": row.energy_high_j,
                "energy_source": row.energy_source,
            }
        )
    return {
        "subnets": subnets,
        "switches": played.switches,
        "requests": played.requests,
        "failed": played.failed,
        "late": played.late,
        "images": played.images,
        "accuracy": played.correct / played.images if played.images else None,
        "share_of_images": {name: count / max(1, played.images) for name, count in played.subnet_images.items()},
        "policies": [{"name": name, **outcome.summary()} for name, outcome in replayed.items()],
    }


def report(table: Table, day: Day, played: Played, replayed: Mapping[str, Outcome]) -> str:
    """One self-contained page: the Pareto picture, the day, the policies beside each other."""
    from calibration.svg import page, table_html
    from simulation.report import cells, columns

    heads = columns(replayed)
    switches = [[day.hour(s["time_s"]), s["from"], s["to"], s["reason"]] for s in played.switches]
    accuracy = f"{played.correct / played.images:.2%}" if played.images else "unknown"
    told = (
        f"<p>{played.requests:,} requests of {day.batch_size} real test images, {played.failed} failed, "
        f"{played.late} late; {accuracy} of {played.images:,} answers were right. Engines, answers and decisions are "
        "real; temperature and charge come from a simulated box driven by the answers given.</p>"
    )
    notes = "".join(f"<p>Note: {html.escape(note)}.</p>" for note in day.notes)
    sections = [
        ("Accuracy against latency", pareto(table).svg()),
        ("The day", told + notes + "".join(chart.svg() for chart in timeline(table, day, played))),
        ("Each switch", table_html(["time of day", "from", "to", "why"], switches)),
        (
            "The same day under other policies",
            "<p>Replayed in the simulator.</p>"
            + table_html(heads, [cells(name, outcome, heads) for name, outcome in replayed.items()]),
        ),
    ]
    return page("Gearshift: a compressed day", sections)


def pareto(table: Table) -> Any:
    """Accuracy against the median latency of one sheet, with intervals."""
    from calibration.svg import Axis, Chart

    rows = sorted(table.rows, key=lambda row: row.macs)
    latencies = [row.latency_p50_ms for row in rows]
    accuracies = [100 * row.accuracy for row in rows]
    lows, highs = [100 * row.accuracy_low for row in rows], [100 * row.accuracy_high for row in rows]
    chart = Chart(
        Axis.around([0.0, *latencies], f"median latency of {rows[0].batch_size} images, ms", zero=True),
        Axis.around([*lows, *highs], "accuracy, %"),
        title="Accuracy against latency",
    )
    chart.line(latencies, accuracies, "")
    chart.error_bars(latencies, accuracies, lows, highs)
    for row, latency, accuracy in zip(rows, latencies, accuracies, strict=True):
        chart.points([latency], [accuracy], row.subnet, tooltips=[f"{row.point}: {_words(row)}"])
    return chart


def dominated(table: Table) -> list[str]:
    """Subnets that another one beats in both accuracy and latency, as measured."""
    useful = {row.point for row in frontier(table.rows)}
    return [row.subnet for row in sorted(table.rows, key=lambda row: row.macs) if row.point not in useful]


def millijoules(row: Row) -> str:
    """Gross energy per image with its bounds, e.g. ``0.29 (0.08-0.74)``."""
    if row.energy_j is None or row.energy_low_j is None or row.energy_high_j is None:
        return "unknown"
    return f"{1e3 * row.energy_j:.2g} ({1e3 * row.energy_low_j:.2g}-{1e3 * row.energy_high_j:.2g})"


def _words(row: Row) -> str:
    return f"{row.accuracy:.2%}, {row.latency_p50_ms:.2f} ms"


def timeline(table: Table, day: Day, played: Played) -> list[Any]:
    """Charts over the time of day: the subnet in use with each switch, load, temperature, charge."""
    from calibration.svg import Axis, Chart

    def hours(seconds: float) -> float:
        return seconds / day.duration_s * 24

    span = Axis(0.0, 24.0, "hour of the day")
    rows = sorted(table.rows, key=lambda row: row.macs)
    rank = {row.point: float(place) for place, row in enumerate(rows)}
    records = [record for record in played.records if record["time_s"] <= day.duration_s]
    times = [hours(record["time_s"]) for record in records]
    gears = Chart(span, Axis(-0.5, len(rows) - 0.5, ""), height=90 + 30 * len(rows), title="Subnet in use")
    gears.y_names([row.subnet for row in rows])
    gears.steps(times, [rank[record["point"]] for record in records], "")
    for switch in played.switches:
        what = f"{day.hour(switch['time_s'])} {switch['from']} to {switch['to']}: {switch['reason']}"
        gears.mark(hours(switch["time_s"]), what)
    charts = [gears]
    edges = [step * day.duration_s / 96 for step in range(97)]
    counts = _histogram(day.sheets_s, edges)
    loads = Chart(span, Axis.around([0.0, *counts], "requests/s", zero=True), height=170, title="Load")
    loads.steps([hours(edge) for edge in edges[:-1]], counts, "")
    charts.append(loads)
    if records:
        temperatures = [record["temperature_c"] for record in records]
        limit = day.goals.temperature_limit_c or 0.0
        heat = Chart(span, Axis.around([*temperatures, limit], "°C"), height=170, title="Temperature and its limit")
        heat.line(times, temperatures, "box")
        heat.line([0.0, 24.0], [limit, limit], "limit", dash=True)
        charge = Chart(span, Axis(0.0, 100.0, "%"), height=170, title="Battery")
        charge.line(times, [100 * record["charge"] for record in records], "")
        charts += [heat, charge]
    return charts


def _histogram(times_s: tuple[float, ...], edges: list[float]) -> list[float]:
    import numpy as np

    counts, _ = np.histogram(times_s, edges)
    return [float(count) / (edges[1] - edges[0]) for count in counts]


def pictures(table: Table, day: Day, played: Played, folder: Path) -> list[Path]:
    """Writes ``pareto.svg`` and the day's charts as SVG files."""
    from subnets.bundle import write_atomically

    charts = {"pareto": pareto(table)}
    charts |= dict(zip(("subnet", "load", "temperature", "battery"), timeline(table, day, played), strict=False))
    files = []
    for name, chart in charts.items():
        files.append(folder / f"{name}.svg")
        write_atomically(files[-1], chart.svg(standalone=True).encode())
    return files
