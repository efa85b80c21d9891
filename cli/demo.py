"""``gearshift demo``: the whole story on the digits, live."""

from __future__ import annotations

from pathlib import Path

import click

_COLUMNS = ("policy", "on time", "accuracy", "correct", "switches", "peak °C", "battery")


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("gearshift-demo"),
    show_default=True,
    help="Where the bundle, the table and report.html go.",
)
@click.option("--seconds", default=36.0, show_default=True, help="Length of the compressed day.")
@click.option("--no-train", is_flag=True, help="Start from the shipped bundle even where torch is installed.")
@click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Also write the charts as SVG here.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write the numbers as JSON."
)
def command(out: Path, seconds: float, no_train: bool, pictures: Path | None, json_file: str | None) -> None:
    """Train, sample, compile, calibrate and run, on real images and without network, in a few minutes.

    A small network learns the digits; four nested subnets are sampled from it and trained in one weight set; each is
    compiled with OpenVINO and measured here; then the agent answers real requests while a compressed day plays:
    battery draining, box heating, load in bursts.

    \b
    gearshift demo
    gearshift demo --no-train --json -
    """
    from rich.table import Table as RichTable

    from backends.registry import create
    from calibration import table as tables
    from calibration import wording
    from cli import day as days
    from cli import story
    from cli._output import console, emit_json, progress
    from cli.bundle import print_bundle
    from simulation.report import cells, columns
    from subnets.bundle import write_atomically
    from subnets.data import digits
    from subnets.errors import InputError

    if not 10 <= seconds <= 3600:
        raise InputError(f"--seconds {seconds:g} is not between 10 and 3600")
    screen = console(stderr=json_file == "-")
    out.mkdir(parents=True, exist_ok=True)

    if no_train or not story.torch_installed():
        why = "--no-train was given" if no_train else "torch is not installed"
        screen.print(f"[bold]1. The bundle[/bold]: {why}, so this starts from the shipped digits bundle.")
        bundle = story.shipped_bundle(out / "bundle")
    else:
        screen.print("[bold]1. Training[/bold] a small network on 1,000 real digits, then four nested subnets in it.")
        with progress() as bar:
            tasks = {}

            def tell(what: str, done: float, total: float) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done)

            bundle = story.trained_bundle(out / "bundle", tell)
    print_bundle(bundle, screen)

    screen.print("\n[bold]2. Compiling and calibrating[/bold] each subnet with OpenVINO on this machine.")
    backend = create("openvino")
    with progress() as bar:
        task = bar.add_task("calibrating", total=None)
        table = story.measured(
            bundle, backend, lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
        )
    tables.write(table, out / "table.json")
    shown = RichTable(title=f"OpenVINO f32, {story.BATCH_SIZE} images a request", title_justify="left")
    for column in ("subnet", "MACs", "accuracy, %", "median latency", "mJ per image"):
        shown.add_column(column, justify="left" if column == "subnet" else "right")
    for row in sorted(table.rows, key=lambda row: row.macs):
        right = f"{100 * row.accuracy:.1f} ({100 * row.accuracy_low:.1f}-{100 * row.accuracy_high:.1f})"
        shown.add_row(row.subnet, f"{row.macs / 1e6:.2f} M", right, wording.latency(row), story.millijoules(row))
    screen.print(shown)
    idle = story.dominated(table)
    if idle:
        screen.print(f"No policy will choose {', '.join(idle)}: another subnet here is as accurate and faster.")
    screen.print(f"Energy is from {wording.source_in_words(table.power_source)}.")

    day = days.plan(table, duration_s=seconds)
    for note in day.notes:
        screen.print(f"Note: {note}.")
    screen.print(
        f"\n[bold]3. A compressed day[/bold] ({seconds:g} s): {len(day.sheets_s):,} requests, deadline "
        f"{day.goals.deadline_ms:.0f} ms, at most {day.goals.temperature_limit_c:g} °C, battery to last until midnight."
    )
    data = digits()
    with progress() as bar:
        task = bar.add_task("00:00", total=seconds)

        def switched(at_s: float, before: str | None, after: str, reason: str) -> None:
            names = [str(point).partition("@")[0] for point in (before, after)]
            bar.console.print(f"  {day.hour(at_s)}  [bold]{names[0]} -> {names[1]}[/bold]  {reason}")

        played = days.play(
            bundle,
            {backend.name: backend},
            day,
            bundle.input.preprocess(data.test.read(range(len(data.test)))),
            data.test.labels,
            on_switch=switched,
            on_time=lambda at_s: bar.update(task, completed=min(at_s, seconds), description=day.hour(at_s)),
        )

    screen.print("\n[bold]4. What came of it[/bold]")
    shares = ", ".join(
        f"{name} {played.subnet_images.get(name, 0) / max(1, played.images):.0%}" for name in bundle.ladder.names
    )
    screen.print(
        f"{played.requests:,} requests: {played.failed} failed, {played.late} later than the deadline; "
        f"{played.correct / max(1, played.images):.2%} of {played.images:,} images right; {len(played.switches)} "
        f"switches. Answered by: {shares}."
    )
    replayed = days.compare(day)
    heads = [head for head in columns(replayed) if head in _COLUMNS]
    compared = RichTable(title="The same day replayed in the simulator", title_justify="left")
    for head in heads:
        compared.add_column(head, justify="left" if head == heads[0] else "right")
    for name, outcome in replayed.items():
        compared.add_row(*cells(name, outcome, heads))
    screen.print(compared)
    write_atomically(out / "report.html", story.report(table, day, played, replayed).encode())
    if pictures:
        story.pictures(table, day, played, pictures)
    if json_file:
        emit_json(json_file, story.summary(bundle, table, played, replayed))
    screen.print(f"Pictures and every switch: {out / 'report.html'}")
