"""What ``pretrain``, ``sample`` and ``train`` share: options, the progress bar, and how a result was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from subnets.bundle import Architecture
    from subnets.data import Dataset
    from subnets.training import Progress, Recipe

DATA_HELP = "'digits', a cifar-10-batches-py folder, or a folder with train/ and val/."


def recipe_options(*, epochs: int, learning_rate: float) -> Callable[[Any], Any]:
    """Adds the options of a training recipe to a command."""

    def decorate(function: Any) -> Any:
        for option in (
            click.option("--seed", default=0, show_default=True),
            click.option("--compile/--no-compile", default=True, show_default=True, help="Compile the step."),
            click.option(
                "--precision",
                type=click.Choice(["bf16", "f32"]),
                help="Of the training step.  [default: bf16 where the device computes in it, else f32]",
            ),
            click.option("--batch-size", default=128, show_default=True),
            click.option("--learning-rate", default=learning_rate, show_default=True, help="The peak."),
            click.option("--epochs", default=epochs, show_default=True),
        ):
            function = option(function)
        return function

    return decorate


def device_option(function: Any) -> Any:
    """Adds ``--device``."""
    return click.option("--device", default="cpu", show_default=True, help="Where to compute: cpu or cuda.")(function)


def checked_device(name: str) -> str:
    """A device that torch can use here.

    Raises:
        UnavailableError: it cannot.
    """
    import torch

    from subnets.errors import InputError, UnavailableError

    if name not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is unknown; use 'cpu' or 'cuda'")
    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("torch sees no CUDA device here; leave --device out, or install torch for CUDA")
    torch.backends.cudnn.allow_tf32 = False  # what is said to be f32 is f32
    return name


def recipe(device: str, options: Mapping[str, Any]) -> Recipe:
    """The recipe of these options; a precision left out becomes what the device computes in natively.

    A processor without bf16 instructions takes several times as long in bf16 as in f32.

    Raises:
        InputError: a value makes no sense.
    """
    from backends.runtime import Processor
    from subnets.training import Recipe

    native = "bf16" if device == "cuda" or Processor.here().computes_bf16 else "f32"
    return Recipe(**{**options, "precision": options["precision"] or native}).check()


def argument_option(function: Any) -> Any:
    """Adds ``--argument NAME=VALUE``, an argument of the architecture."""
    return click.option(
        "--argument",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument of the architecture, e.g. shortcut=conv or width=16.",
    )(function)


def architecture(name: str, arguments: tuple[str, ...], dataset: Dataset) -> Architecture:
    """The described architecture for a data set.

    Raises:
        InputError: an argument is not NAME=VALUE.
    """
    from subnets.bundle import Architecture
    from subnets.errors import InputError

    values: dict[str, Any] = {"num_classes": len(dataset.classes), "in_channels": dataset.shape[0]}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise InputError(f"--argument '{text}' is not NAME=VALUE; write for example --argument shortcut=conv")
        values[key] = int(value) if value.isdecimal() else value
    return Architecture(name=name, arguments=values)


def record() -> dict[str, Any]:
    """Which command, machine and versions made a result."""
    import shlex
    import sys
    from datetime import UTC, datetime

    from calibration.host import fingerprint

    host = fingerprint(["torch"])
    return {
        "command": shlex.join(["gearshift", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": ", ".join(filter(None, [host.cpu, f"{host.cores} cores", host.accelerator])),
        "versions": {"python": host.python, **host.libraries},
    }


@contextmanager
def training_bar(title: str, *, shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """A progress bar fed by the training loop; nothing where it is not ``shown``."""
    from cli._output import progress

    if not shown:
        yield lambda state: None
        return
    with progress() as bar:
        task = bar.add_task(title, total=None)

        def on_step(state: Progress) -> None:
            text = f"{title}: epoch {state.epoch + 1}/{state.epochs}, loss {state.loss:.3f}"
            bar.update(task, total=state.steps, completed=state.step, description=text)

        yield on_step
