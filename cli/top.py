"""``gearshift top``: the running agent, live."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from cli._units import SECONDS

_GLANCE_S = 0.2  # between two looks at the keyboard and the terminal's size


@click.command("top")
@click.option("--once", is_flag=True, help="Show it once and end: for scripts and pipes.")
@click.option(
    "--interval", type=SECONDS, default="1s", show_default=True, metavar="DURATION", help="Between two looks."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it once as JSON; - for stdout."
)
def command(once: bool, interval: float, json_file: str | None) -> None:
    """Shows what the agent does and why: headroom to each limit, latency, the calibrated points, switches, faults.

    q or Ctrl-C ends it. It survives a restart of the agent.

    \b
    Example:
      gearshift top
      gearshift top --once
      gearshift top --json - | jq .latency
    """
    from agent.client import ask
    from cli._output import console, emit_json
    from subnets.errors import InputError

    if not once and json_file is None and not sys.stdout.isatty():
        raise InputError("top draws on a terminal, and this is none; give --once, or --json -")
    if not 0.1 <= interval <= 3600:
        raise InputError(f"--interval is {interval:g} s; give a time from 0.1 s to 1h")
    view = ask("GET", "/gearshift/view")
    if json_file:
        emit_json(json_file, view)
    elif once:
        from cli._top import screen

        out = console()
        for line in screen(view, out.width, 60):
            out.print(line, no_wrap=True, crop=False)
    else:
        _live(view, interval)


def _live(view: dict[str, Any], interval: float) -> None:
    """Draws until q, Ctrl-C or the end of input."""
    from rich.console import Group
    from rich.live import Live

    from agent.client import ask
    from cli._output import console
    from cli._top import screen
    from subnets.errors import GearshiftError

    out, notice, due_s, size = console(), "", 0.0, None
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(console=out, screen=True, auto_refresh=False) as live,
    ):
        while not pressed("q"):
            now_s = time.monotonic()
            if now_s >= due_s:
                due_s = now_s + interval
                try:
                    view, notice = _followed(view, ask("GET", "/gearshift/view"), notice)
                except GearshiftError as error:
                    seen = time.strftime("%H:%M:%S", time.localtime(view["unix_s"]))
                    notice = f" no answer since {seen}, trying again: {error} "
                size = None
            if size != (size := out.size):
                live.update(Group(*screen(view, size.width, size.height, notice)), refresh=True)


def _followed(before: dict[str, Any], view: dict[str, Any], notice: str) -> tuple[dict[str, Any], str]:
    """The new view, and what to say where another process gives it than before."""
    if view["instance"] != before["instance"]:
        return view, f" the agent was restarted; this one is up for {view['status']['uptime_s']:.0f} s "
    young = view["status"]["uptime_s"] < 60
    return view, notice if young and "restarted" in notice else ""


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits a moment and tells whether a key was pressed; the terminal's settings are put back."""
    import termios
    import tty

    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # input is no terminal: only Ctrl-C ends it
        yield _no_keys
        return

    def pressed(key: str) -> bool:
        ready, _, _ = select.select([descriptor], [], [], _GLANCE_S)
        if not ready:
            return False
        letters = os.read(descriptor, 64)
        return not letters or key.encode() in letters.lower()

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _no_keys(key: str) -> bool:
    time.sleep(_GLANCE_S)
    return False
