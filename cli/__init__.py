"""The ``gearshift`` command. Each subcommand is one file that parses, calls and renders; it is imported when used.

:data:`COMMANDS` maps a command's name to its file and its one-line help, so that ``gearshift --help`` imports nothing.
"""

from __future__ import annotations

import importlib
import sys

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("cli.demo", "The whole story, live, in a few minutes."),
    "pretrain": ("cli.pretrain", "Train a network from scratch."),
    "sample": ("cli.sample", "Sample nested subnets from a trained network."),
    "train": ("cli.train", "Train a bundle's subnets jointly."),
    "evaluate": ("cli.evaluate", "Measure the accuracy of each subnet."),
    "bundle": ("cli.bundle", "Show or verify a bundle."),
    "export": ("cli.export", "Put portable exports into a bundle."),
    "calibrate": ("cli.calibrate", "Measure latency, power and accuracy here."),
    "verify": ("cli.verify", "Measure again whether a table still holds."),
    "table": ("cli.table", "Show, compare, merge or export tables."),
    "simulate": ("cli.simulate", "Replay traces against policies."),
    "arena": ("cli.arena", "Play policies against each other and a clairvoyant."),
    "tune": ("cli.tune", "Search a policy's options on traces."),
    "trace": ("cli.trace", "Show or make traces."),
    "policies": ("cli.policies", "List the policies and their options."),
    "run": ("cli.run", "Run the resident agent."),
    "status": ("cli.status", "What the running agent does, and why."),
    "top": ("cli.top", "The running agent, live: limits, latency, switches."),
    "explain": ("cli.explain", "Why the last decisions were taken."),
    "hold": ("cli.hold", "Hold one subnet for a while."),
    "release": ("cli.release", "Release a hold."),
    "config": ("cli.config", "Check, compare or write a configuration."),
    "cache": ("cli.cache", "Show or clear the compiled engines kept here."),
    "doctor": ("cli.doctor", "What this machine can measure and run."),
}


class LazyGroup(click.Group):
    """A group that imports a command's file when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the story."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Click's own, with a nearest name for a typing error."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gearshift")
def gearshift() -> None:
    """One network, several gears: nested subnets that are switched while the battery drains and the box heats up.

    \b
    gearshift demo                                    see it work
    gearshift calibrate bundles/resnet20-cifar10      measure a bundle here
    gearshift run bundles/resnet20-cifar10            serve it
    """


def main() -> None:
    """Runs the command line; our own errors become one sentence and exit code 2."""
    try:
        code = gearshift.main(standalone_mode=False)  # click returns what ctx.exit() was given
    except (click.Abort, KeyboardInterrupt):
        click.echo("Aborted.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        from subnets.errors import GearshiftError

        if isinstance(error, GearshiftError):
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        if isinstance(error, ImportError) and error.name == "torch":
            click.echo("Error: this step needs torch; install it with: pip install 'gearshift[train]'", err=True)
            sys.exit(2)
        if isinstance(error, OSError) and error.filename is not None:
            click.echo(f"Error: {error.filename}: {error.strerror}; check the place and its permissions", err=True)
            sys.exit(2)
        raise
    sys.exit(code if isinstance(code, int) else 0)
