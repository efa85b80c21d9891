"""``gearshift export``: subnets as portable files inside their bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli._modules import module_option


@click.command("export")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--format",
    "format",
    type=click.Choice(["openvino", "onnx", "module", "triton"]),
    default="openvino",
    show_default=True,
    help="module: weights for subnets.from_pretrained. triton: a model repository, at --out.",
)
@click.option(
    "--precision",
    type=click.Choice(["f16", "int8"]),
    default="f16",
    show_default=True,
    help="f16: weights that engines of f32, f16 and bf16 start from. int8: quantized, for engines of int8.",
)
@click.option("--data", help="For int8, 'digits' or a folder of images with a train/ part, to find ranges on.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="For triton, the model repository.")
@click.option("--triton-backend", type=click.Choice(["openvino", "onnxruntime"]), default="openvino", show_default=True)
@click.option("--samples", type=click.IntRange(1), help="For int8, how many training images.  [default: 300]")
@module_option
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the list as JSON; - for stdout.",
)
def command(
    bundle: Path,
    format: str,
    precision: str,
    data: str | None,
    out: Path | None,
    triton_backend: str,
    samples: int | None,
    json_file: str | None,
) -> None:
    """Writes every subnet of BUNDLE in a form that a device reads without torch.

    The files go to exports/ inside the bundle; each is checked against the network it came from. f16 needs torch; int8
    needs nncf (the extra 'quantize') and starts from the f16 files. Other exports stay as they are.

    onnx needs torch and the extra 'onnx'. triton writes one model a subnet to --out, from the bundle's own exports
    where it has them.

    \b
    Example:
      gearshift export bundles/resnet20
      gearshift export bundles/resnet20 --precision int8 --data data/cifar-10-batches-py
      gearshift export bundles/resnet20 --format onnx
      gearshift export bundles/resnet20 --format triton --out models
      gearshift export bundles/resnet20 --json -
    """
    from rich.table import Table

    from cli._output import console, emit_json
    from subnets.bundle import Bundle

    opened = Bundle.open(bundle)
    if format != "openvino" and (precision, data, samples) != ("f16", None, None):
        raise click.UsageError("--precision, --data and --samples go with --format openvino only")
    if (format == "triton") != (out is not None):
        raise click.UsageError("--format triton needs --out, the model repository, and no other format takes it")
    if out is not None:
        from backends.portable import write_triton

        models = write_triton(opened, out, triton_backend)
    elif format != "openvino":
        from backends import portable

        exported = {"onnx": portable.add_onnx_exports, "module": portable.add_module_exports}[format](opened)
    elif precision == "int8":
        from backends.quantize import FORMAT, SAMPLES, add_int8_exports
        from subnets.data import load

        if data is None:
            raise click.UsageError("--precision int8 needs --data: quantization finds ranges on training images")
        format = FORMAT
        exported = add_int8_exports(opened, load(data, image_size=opened.input.height), samples or SAMPLES)
    else:
        from backends.export import add_exports

        if data is not None or samples is not None:
            raise click.UsageError("--data and --samples go with --precision int8 only")
        exported = add_exports(opened)
    rows: list[dict[str, Any]]
    if out is not None:
        rows = [
            {
                "subnet": subnet,
                "format": format,
                "file": str(model),
                "bytes": sum(file.stat().st_size for file in model.rglob("*") if file.is_file()),
            }
            for subnet, model in zip(opened.ladder.names, models, strict=True)
        ]
    else:
        rows = [
            {
                "subnet": export.subnet,
                "format": export.format,
                "file": next(iter(export.files)),
                "bytes": sum((exported.path / name).stat().st_size for name in export.files),
            }
            for export in exported.manifest.exports
            if export.format == format
        ]
    if json_file:
        emit_json(json_file, {"exports": rows})
    if json_file == "-":
        return
    table = Table("subnet", "file")
    table.add_column("size, kB", justify="right")
    for row in rows:
        table.add_row(row["subnet"], row["file"], f"{row['bytes'] / 1000:.0f}")
    console().print(table)
