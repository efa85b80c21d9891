"""``gearshift trace``: looks at a trace, or writes a generated one to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from simulation.trace import Floats, Trace

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 44


class _Group(click.Group):
    """Shows the generators and their options below the help; built only when it is asked for."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from simulation.generate import help_text

        formatter.write("\nGenerators, with their options and defaults:\n")
        for line in help_text().splitlines():
            formatter.write(f"  {line}\n")


@click.group("trace", cls=_Group)
def command() -> None:
    """Shows traces, and makes them.

    SPEC is a generator with options (poisson:rate=1,hours=24,seed=0) or a file: this project's CSV or JSON, a journal,
    Azure LLM inference, Azure Functions 2021, Azure VM noise, or SURFRAD sunshine. File options follow a colon:
    sun.dat:panel_w=5 or any.csv:speed=10,start_s=600,length_s=3600.
    """


@command.command("show")
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def show(specs: tuple[str, ...], json_file: str | None) -> None:
    """Summarises a trace; several are laid over each other, as 'simulate' does.

    \b
    Example:
      gearshift trace show diurnal:rate=2,hours=24 sun.dat:panel_w=5
    """
    from cli._output import console, emit_json
    from simulation.trace import load_all, summary

    trace = load_all(specs)
    if json_file:
        emit_json(json_file, summary(trace))
    if json_file != "-":
        _print(trace, console().print)


@command.command("make")
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where to write it, as JSON."
)
def make(specs: tuple[str, ...], out: Path) -> None:
    """Writes a trace to a file that 'simulate' and 'trace show' read back exactly.

    \b
    Example:
      gearshift trace make day:hours=0.1,rate=20,seed=3 --out day.json
    """
    from cli._output import console
    from simulation.trace import load_all, to_json
    from subnets.bundle import write_atomically
    from subnets.errors import InputError

    trace = load_all(specs)
    try:
        write_atomically(out, to_json(trace))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another place for --out") from None
    console().print(f"{out}: {len(trace.arrivals_s):,} arrivals over {trace.duration_s:,.0f} s", markup=False)


def _print(trace: Trace, out: object) -> None:
    import numpy as np

    from simulation.report import clock
    from simulation.trace import ENVIRONMENT, summary

    assert callable(out)
    facts = summary(trace)
    out(f"{trace.name}: {facts['arrivals']:,} arrivals over {clock(trace.duration_s)}", markup=False)
    edges = np.linspace(0.0, trace.duration_s, _WIDTH + 1)
    if len(trace.arrivals_s):
        counts = np.histogram(trace.arrivals_s, edges)[0] / (edges[1] - edges[0])
        out(f"  requests/s  {_spark(counts)}  mean {facts['rate_hz']:.3g}, most {counts.max():.3g}", markup=False)
        if facts["interarrival_cv2"] is not None:
            out(
                f"  burstiness  squared coefficient of variation {facts['interarrival_cv2']:.2f} (Poisson: 1)",
                markup=False,
            )
    for name in ENVIRONMENT:
        values = trace.environment(name, edges[:-1])
        own = getattr(trace, name)
        if values is not None:
            out(f"  {name:<11} {_spark(values)}  {own.min():.3g} to {own.max():.3g}", markup=False)


def _spark(values: Floats) -> str:
    low, high = min(0.0, float(values.min())), float(values.max())
    span = (high - low) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((float(value) - low) / span * len(_BARS)))] for value in values)
