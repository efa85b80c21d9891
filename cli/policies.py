"""``gearshift policies``: what there is to choose from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from policies.registry import OptionInfo


@click.command("policies")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the list as JSON to a file, '-' for stdout.",
)
def command(json_file: str | None) -> None:
    """List the policies, the conditions each looks at, and its options with their defaults.

    \b
    Examples:
      gearshift policies
      gearshift policies --json - | jq '.policies[].name'
    """
    from cli._output import console, emit_json
    from policies.registry import describe

    policies = describe()
    if json_file is not None:
        emit_json(json_file, {"policies": policies})
        return
    from rich.table import Table

    shown = Table(show_lines=True)
    shown.add_column("policy", style="bold", no_wrap=True)
    shown.add_column("what it does")
    shown.add_column("looks at", no_wrap=True)
    shown.add_column("options", ratio=1)
    for policy in policies:
        own = [_words(option) for option in policy.options if not option.shared]
        shown.add_row(policy.name, policy.summary, "\n".join(policy.looks_at), "\n".join(own))
    screen = console()
    screen.print(shown)
    screen.print("Every policy also takes:")
    for option in policies[0].options:
        if option.shared:
            screen.print(f"  {_words(option)}")


def _words(option: OptionInfo) -> str:
    default = "" if option.default is None else f" = {option.default}"
    return f"{option.name}{default}: {option.meaning}"
