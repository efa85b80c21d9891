"""What the engine benchmarks share: a ladder with random weights, intervals over rounds, and provenance.

* :func:`random_bundle`: nested subnets of a network with random weights, at given shares of its MACs, with exports.
* :func:`known_bundle`: that of ResNet-18 at 224 x 224, or the one that ships.
* :func:`to_measure`: which of the precisions asked for this machine has, and why not the others.
* :func:`verdicts`: what was shown, by precision. :func:`difference`: an interval for something that may be negative.
* :func:`provenance`: machine, versions, commit, command and date, for every result that is kept.

Random weights serve for latency: dense kernels take the same time whatever the numbers are.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the scripts run from a checkout, installed or not

import msgspec
import numpy as np

from backends.base import Backend
from calibration.host import fingerprint
from calibration.statistics import Interval, half_width
from subnets.bundle import SCHEMA, Architecture, Bundle, InputSpec, Manifest, SubnetEntry, save
from subnets.spec import Ladder, SubnetSpec

ROOT = Path(__file__).resolve().parent.parent
RESNET18_SHARES = (0.20, 0.40, 0.66, 1.0)  # of the full network's MACs
_LEAST_SHARE_OF_A_GROUP = 0.125
_RISE = 0.7, 1.1  # of the factors, from the first channel group to the last


def random_bundle(
    folder: Path, architecture: str, shares: Sequence[float], *, image: tuple[int, int, int], align: int
) -> Bundle:
    """As :func:`_random_bundle`, which makes it; kept among the temporary files, since making one takes a minute."""
    made_by = Path(__file__).read_bytes() + repr((architecture, tuple(shares), image, align)).encode()
    kept = Path(tempfile.gettempdir()) / "gearshift-benchmarks" / hashlib.sha256(made_by).hexdigest()[:16]
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as unfinished:
            _random_bundle(Path(unfinished) / "made", architecture, shares, image=image, align=align)
            (Path(unfinished) / "made").rename(kept)
    return Bundle.open(shutil.copytree(kept, folder))


def _random_bundle(
    folder: Path, architecture: str, shares: Sequence[float], *, image: tuple[int, int, int], align: int
) -> Bundle:
    """Writes a bundle of nested, non-uniform subnets with random weights, and its OpenVINO exports.

    Each channel group has a factor of its own, drawn once, and larger the deeper it lies, as in ladders sampled from
    trained networks; a subnet's widths are these factors times one number, chosen so that the MACs come nearest to its
    share. So ladders of the same architecture differ in nothing but ``align``:
    widths are its multiples, or for 1 odd numbers, the kind that engines pad.

    Args:
        folder: where the bundle goes.
        architecture: a name in :mod:`subnets.architectures`.
        shares: of the full network's MACs, smallest first.
        image: (channels, height, width).
        align: 16 or so for aligned widths, 1 for odd ones.
    """
    import torch

    from backends.export import add_exports
    from subnets import architectures
    from subnets.groups import trace
    from subnets.supernet import Supernet

    torch.manual_seed(0)
    network = architectures.build(architecture).eval()
    traced = trace(network, image)
    drawn = np.random.default_rng(0).uniform(0.7, 1.3, len(traced.full)) * np.linspace(*_RISE, len(traced.full))
    factors = dict(zip(traced.full, drawn, strict=True))
    ladder = Ladder([SubnetSpec(f"s{round(100 * share)}", _widths(traced, factors, share, align)) for share in shares])
    manifest = Manifest(
        schema=SCHEMA,
        name=f"{architecture}-random-{'odd' if align == 1 else f'x{align}'}",
        architecture=Architecture(name=architecture),
        input=InputSpec(channels=image[0], height=image[1], width=image[2], mean=(0.0,) * 3, std=(1.0,) * 3),
        labels=(),
        groups=traced.groups,
        subnets=tuple(
            SubnetEntry(
                name=spec.name,
                widths=dict(spec.widths),
                macs=traced.macs(spec.widths),
                parameters=traced.parameter_count(spec.widths),
            )
            for spec in ladder
        ),
        weights_sha256="",
    )
    return add_exports(save(folder, manifest, Supernet(network, traced.groups, ladder).tensors(), "# random weights\n"))


def known_bundle(network: str, folder: Path) -> Bundle:
    """``resnet18``: four subnets at 224 x 224 with random weights, aligned widths; ``resnet20``: that which ships."""
    if network == "resnet18":
        return random_bundle(folder / network, network, RESNET18_SHARES, image=(3, 224, 224), align=16)
    return Bundle.open(ROOT / "bundles" / "resnet20-cifar10")


def to_measure(backend: Backend, asked: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Of the precisions asked for, those that the processor computes in; and why each of the others is not measured."""
    native = backend.precisions()
    why = f"not native to this processor ({backend.available().why}); not measured here"
    return [name for name in asked if name in native], {name: why for name in asked if name not in native}


def verdicts(points: Sequence[Mapping[str, Any]], holds: Callable[[Mapping[str, Any]], bool]) -> dict[str, bool]:
    """By precision, whether every point of it is as asked."""
    kinds = dict.fromkeys(point["precision"] for point in points)
    return {kind: all(holds(point) for point in points if point["precision"] == kind) for kind in kinds}


def _widths(traced: Any, factors: Mapping[str, float], share: float, align: int) -> dict[str, int]:
    """Widths whose MACs come nearest to ``share`` of the full network's."""
    if share >= 1:
        return dict(traced.full)

    def at(scale: float) -> dict[str, int]:
        widths = {}
        for name, full in traced.full.items():
            wanted = max(_LEAST_SHARE_OF_A_GROUP, factors[name] * scale) * full
            width = round(wanted) | 1 if align == 1 else max(align, align * round(wanted / align))
            widths[name] = min(full, width)
        return widths

    target = share * traced.macs(traced.full)
    return min((at(scale) for scale in np.linspace(0.05, 1.5, 1000)), key=lambda w: abs(traced.macs(w) - target))


def difference(pooled: float, rounds: Sequence[float]) -> Interval:
    """``pooled`` with the t interval of the rounds' own values; may reach below zero."""
    width = half_width(rounds)
    return Interval(pooled, pooled - width, pooled + width)


def provenance(script: str, libraries: Sequence[str] = ("openvino",)) -> dict[str, Any]:
    """Where a result comes from: command, host, versions, date and commit."""
    return {
        "command": " ".join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]]),
        "versions": {name: metadata.version(name) for name in ("numpy", *libraries)},
        "host": msgspec.to_builtins(fingerprint(list(libraries))),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    return done.stdout.strip() or "unknown"
