"""``gearshift doctor``: what this machine lets be read, from where, and what to do about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from backends.base import Backend
    from sensors import Diagnosis


@click.command("doctor")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    show_default=True,
    help="Read sensors below this folder: a recorded tree, or a host's / mounted in a container.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def command(root: Path, json_file: str | None) -> None:
    """Tells what can be read and run on this machine, and why not.

    Sensors feed the policies' conditions; meters give calibration its joules, the best one first; backends run the
    subnets. Nothing here is an error: what is missing stays unknown, and policies do without.

    \b
    Example:
      gearshift doctor
      gearshift doctor --json doctor.json
    """
    from backends.base import cache_path
    from backends.cache import size_bytes, stored
    from backends.registry import all_backends
    from cli._output import console, emit_json
    from sensors import diagnose, machine

    facts = machine(root)
    diagnoses = diagnose(root)
    backends = [_backend(backend) for backend in all_backends()]
    cache, artifacts = cache_path().absolute(), stored(cache_path())
    kept = {"path": str(cache), "artifacts": len(artifacts), "size_bytes": size_bytes(artifacts)}
    if json_file:
        emit_json(json_file, {"machine": facts, "readings": diagnoses, "backends": backends, "cache": kept})
    if json_file == "-":
        return
    memory = f"{facts.memory_bytes / 2**30:.1f} GiB" if facts.memory_bytes else "unknown"
    out = console()
    out.print(
        f"Processor: {facts.cpu or 'unknown'}, cores: {facts.cores or 'unknown'}, memory: {memory}\n", markup=False
    )
    for title, kind in (("Sensors", "sensor"), ("Energy meters, best first", "meter")):
        out.print(_table(title, [diagnosis for diagnosis in diagnoses if diagnosis.kind == kind]))
    out.print(_backend_table(backends))
    held = f"{kept['artifacts']} compiled engines, {size_bytes(artifacts) / 1e6:.1f} MB"
    out.print(f"Cache: {cache}, {held}; gearshift cache shows and clears it", markup=False, soft_wrap=True)


def _backend(backend: Backend) -> dict[str, object]:
    available = backend.available()
    precisions = list(backend.precisions()) if available.ok else []
    return {"name": backend.name, "ok": available.ok, "why": available.why, "precisions": precisions}


def _table(title: str, diagnoses: list[Diagnosis]) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    table.add_column("reading", no_wrap=True)
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column("from, or why not", overflow="fold")
    for diagnosis in diagnoses:
        note = diagnosis.where if diagnosis.ok and not diagnosis.why else diagnosis.why
        if diagnosis.remedy:
            note += f"\n→ {diagnosis.remedy}"
        now = Text(_now(diagnosis), style="green" if diagnosis.ok else "yellow")
        table.add_row(Text(diagnosis.name), now, Text(note))
    return table


def _now(diagnosis: Diagnosis) -> str:
    if not diagnosis.ok:
        return "unknown"
    if diagnosis.value is None:
        return "readable"
    if diagnosis.unit == "bool":
        return "yes" if diagnosis.value else "no"
    if diagnosis.unit == "share":
        return f"{diagnosis.value:.1%}"
    if diagnosis.unit == "Hz":
        return f"{diagnosis.value / 1e6:.0f} MHz"
    return f"{diagnosis.value:.4g} {diagnosis.unit}"


def _backend_table(backends: list[dict[str, object]]) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Backends", title_justify="left")
    table.add_column("backend", no_wrap=True)
    table.add_column("usable", no_wrap=True)
    table.add_column("precisions, or why not", overflow="fold")
    for backend in backends:
        precisions = ", ".join(backend["precisions"]) if isinstance(backend["precisions"], list) else ""
        usable = Text("yes", style="green") if backend["ok"] else Text("no", style="yellow")
        table.add_row(Text(str(backend["name"])), usable, Text(precisions or str(backend["why"])))
    return table
