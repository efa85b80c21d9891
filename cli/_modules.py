"""Options for networks of a user's own: ``--module`` and what describes their images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import nn

    from subnets.bundle import Architecture, Bundle
    from subnets.data import Dataset

_MODULE_HELP = "package.module:factory, code of yours that builds the full network; imported and run."


def module_option(function: Any) -> Any:
    """Adds ``--module`` to a command that may have to build a bundle's network; loads it before the command runs."""

    def load(ctx: click.Context, param: click.Parameter, spec: str | None) -> None:
        if spec is not None:
            from subnets.modules import use

            use(spec)

    return click.option("--module", expose_value=False, callback=load, help=_MODULE_HELP)(function)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    """What a user says of a network and its images, as given on the command line."""

    arch: str | None
    module: str | None
    input_shape: str | None
    mean: str | None
    std: str | None
    labels: str | None

    def image_size(self, default: int) -> int:
        """The side that image folders are cut to."""
        return self._shape()[1] if self.input_shape else default

    def describe(self, dataset: Dataset) -> Dataset:
        """The data as this network wants them: its own normalisation and names for the classes.

        Raises:
            InputError: a value is not a list of the right length, or the images are of another shape.
        """
        from subnets.errors import InputError

        channels = dataset.shape[0]
        if self.input_shape and dataset.shape != self._shape():
            raise InputError(f"--input-shape {self.input_shape}: the images of {dataset.name} are {dataset.shape}")
        changes: dict[str, Any] = {}
        for name, text in (("mean", self.mean), ("std", self.std)):
            if text is not None:
                changes[name] = _numbers(f"--{name}", text, channels, positive=name == "std")
        if self.labels is not None:
            file = Path(self.labels)
            listed = file.read_text(encoding="utf-8").splitlines() if file.is_file() else self.labels.split(",")
            names = tuple(name.strip() for name in listed if name.strip())
            if len(names) != len(dataset.classes):
                raise InputError(
                    f"--labels gives {len(names)} names; {dataset.name} has {len(dataset.classes)} classes"
                )
            changes["classes"] = names
        import msgspec

        return msgspec.structs.replace(dataset, **changes)

    def architecture(self, arguments: tuple[str, ...], dataset: Dataset) -> Architecture:
        """How to build the network: a family of ours by name, or the user's factory with exactly its own arguments.

        Raises:
            InputError: both or neither are given, an argument is wrong, or the module cannot be imported.
        """
        from cli._training import architecture
        from subnets.errors import InputError

        if (self.arch is None) == (self.module is None):
            raise InputError("give either --arch, one of Gearshift's networks, or --module, a network of your own")
        if self.arch is not None:
            return architecture(self.arch, arguments, dataset)
        import msgspec

        from subnets.modules import use

        spec = str(self.module)
        use(spec)
        described = architecture(spec, arguments, dataset)
        given = {text.partition("=")[0] for text in arguments}
        own = {name: value for name, value in described.arguments.items() if name in given}
        return msgspec.structs.replace(described, arguments=own)

    def bundle(self, checkpoint: Path | None, arguments: tuple[str, ...]) -> Bundle | None:
        """The bundle that CHECKPOINT is; None where it is none.

        Raises:
            InputError: it is damaged, or something that it brings along is given beside it.
        """
        from subnets.bundle import Bundle
        from subnets.errors import InputError
        from subnets.modules import use

        if checkpoint is None or not (checkpoint / "bundle.json").is_file():
            return None
        brings = ("arch", "input_shape", "mean", "std", "labels")
        given = [f"--{name.replace('_', '-')}" for name in brings if getattr(self, name) is not None]
        given += ["--argument"] * bool(arguments)
        if given:
            raise InputError(f"{checkpoint} is a bundle and brings its own {', '.join(given)}; leave that out")
        if self.module is not None:
            use(self.module)
        return Bundle.open(checkpoint)

    def network(self, checkpoint: Path | None, described: Architecture) -> nn.Module:
        """The trained network: with the checkpoint's weights, or with those the user's factory gives it.

        Raises:
            InputError: one of ours needs a checkpoint, or the checkpoint does not fit.
        """
        from subnets import architectures
        from subnets.errors import InputError
        from subnets.sampling import open_checkpoint

        if checkpoint is not None:
            return open_checkpoint(checkpoint, described)
        if self.module is None:
            raise InputError("CHECKPOINT is missing; only a factory of your own (--module) may bring its weights along")
        return architectures.build(described.name, **described.arguments).eval()

    def _shape(self) -> tuple[int, int, int]:
        from subnets.errors import InputError

        try:
            channels, height, width = (int(part) for part in str(self.input_shape).split(","))
        except ValueError:
            raise InputError(
                f"--input-shape '{self.input_shape}' is not CHANNELS,HEIGHT,WIDTH; write for example 3,32,32"
            ) from None
        return channels, height, width


def network_options(function: Any) -> Any:
    """Adds ``--arch``, ``--module`` and the description of the images; the command gets them as ``own``."""
    import functools

    fields = [field.name for field in dataclasses.fields(OwnNetwork)]

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        own = OwnNetwork(**{name: values.pop(name) for name in fields})
        return function(own=own, **values)

    for option in (
        click.option("--labels", metavar="A,B,...", help="Names of the classes, or a file with one a line."),
        click.option("--std", metavar="X,Y,...", help="Deviation per channel likewise.  [default: the data's own]"),
        click.option(
            "--mean", metavar="X,Y,...", help="Mean per channel the network was trained with, pixels in 0..1."
        ),
        click.option("--input-shape", metavar="C,H,W", help="What the network takes.  [default: the data's own]"),
        click.option("--module", help=_MODULE_HELP),
        click.option("--arch", help="One of Gearshift's networks, e.g. resnet20."),
    ):
        command = option(command)
    return command


def _numbers(option: str, text: str, count: int, *, positive: bool) -> tuple[float, ...]:
    import math

    from subnets.errors import InputError

    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(n) and (n > 0 or not positive) for n in numbers):
        what = "above 0" if positive else "finite"
        raise InputError(
            f"{option} '{text}' must be {count} numbers {what}, one per channel; write for example 0.5,0.5"
        )
    return numbers
