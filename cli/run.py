"""``gearshift run``: the resident agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("run")
@click.argument("bundle", required=False, type=click.Path(file_okay=False))
@click.option(
    "--table", type=click.Path(dir_okay=False), help="Calibration table; default: ./<bundle's name>.table.json."
)
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="A TOML file.")
@click.option("--policy", help="Which policy decides, see 'gearshift policies'.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the policy.")
@click.option("--backend", help="Only this backend's operating points.")
@click.option("--precision", help="Only operating points of this precision.")
@click.option("--threads", type=int, help="Only operating points with so many threads.")
@click.option("--memory-budget", help="For all resident engines together, e.g. 250MB.")
@click.option("--deadline", help="From arrival to answer, e.g. 50ms.")
@click.option("--min-accuracy", type=float, help="Share, e.g. 0.9.")
@click.option("--max-power", type=float, help="Watts.")
@click.option("--temperature-limit", type=float, help="Degrees Celsius.")
@click.option("--last-until", help="The battery must last so long, 8h or 18:00.")
@click.option("--host", help="Where to listen, an address of this machine only; default 127.0.0.1.")
@click.option("--port", type=int, help="Default 8700; 0 = any free one.")
@click.option("--socket", help="Listen on this Unix socket too.")
@click.option("--native", help="Listen here for neighbours on the device (agent.client), the fastest way.")
@click.option("--grpc-port", type=int, help="Serve gRPC too, at this port; 0 = any free one.")
@click.option("--grpc-socket", help="Serve gRPC on this Unix socket.")
@click.option("--journal", type=click.Path(file_okay=False), help="Record conditions, decisions and answers here.")
@click.option("--dry-run", is_flag=True, help="Tell decisions without acting on them.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    help="Of the log on stderr; auto: colours on a terminal, priorities for systemd's journal.",
)
@click.option("--force", is_flag=True, help="Use a table of another bundle or machine all the same.")
def command(
    bundle: str | None,
    config_file: Path | None,
    options: tuple[str, ...],
    dry_run: bool,
    force: bool,
    max_power: float | None,
    temperature_limit: float | None,
    **settings: Any,
) -> None:
    """Answers requests with the subnet that battery, heat and load allow, until SIGTERM or Ctrl-C.

    SIGHUP reads the configuration again; goals and policy are taken up at once. SIGUSR1 logs the status.

    \b
    Example:
      gearshift calibrate bundles/digits
      gearshift run bundles/digits --deadline 50ms --temperature-limit 80
      curl localhost:8700/v2/models/digits
    """
    import os

    from agent import config, logs
    from agent.service import Service

    flags = {_KEYS.get(name, f"agent.{name}"): value for name, value in settings.items()}
    flags |= {
        "agent.bundle": bundle,
        "agent.dry_run": dry_run or None,
        "goals.max_power_w": max_power,
        "goals.temperature_limit_c": temperature_limit,
        "policy.options": _options(options),
    }

    def read() -> config.Config:
        return config.load(config_file, environment=os.environ, flags=flags)

    first = read()
    logs.configure(first.agent.log_format)
    Service(first, force=force, reload=read, tell=logs.tell).run()


_KEYS = {
    "deadline": "goals.deadline",
    "min_accuracy": "goals.min_accuracy",
    "last_until": "goals.last_until",
    "host": "serve.host",
    "port": "serve.port",
    "socket": "serve.socket",
    "native": "serve.native",
    "grpc_port": "serve.grpc_port",
    "grpc_socket": "serve.grpc_socket",
}


def _options(texts: tuple[str, ...]) -> dict[str, str] | None:
    from subnets.errors import InputError

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--option '{text}': write KEY=VALUE, see 'gearshift policies'")
        found[key] = value
    return found or None
