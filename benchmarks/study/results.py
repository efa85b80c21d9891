"""Writes ``docs/results.md`` and its pictures from the records, and from nothing else.

Every number comes from a file that the page names. What has not run yet is said in its place, with the command that
runs it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from calibration.statistics import half_width
from calibration.svg import Axis, Chart
from cli._norms import Norms, histogram
from subnets.bundle import Accuracy, Bundle, SubnetEntry, write_atomically
from subnets.errors import InputError

from .plan import STUDIES, Arm, Study
from .runs import Record, planned, read_record, record_path

DEVICES = ("cpu", "cuda")
SHIPPED = "resnet20-cifar10"
NINE = "resnet20-cifar10-9"
ASKED = (89.0, 91.0, 91.9, 92.2)  # of its subnets, smallest first, in per cent
_WHY = (
    "What was tried: 60 epochs of pretraining and 16 of joint training on two processor cores came to 87.80, 89.91, "
    "90.72 and 91.36. Then 100 epochs of pretraining on a GPU, which alone reach 92.54, and 24 of joint training on "
    "one core, with the full network, the smallest subnet and one of the two between them in each step: what ships. "
    "Why it is missed: most likely because joint training was short. It cost the full network 0.91 points of what "
    "pretraining had given; published recipes train jointly for 100 epochs and more. That is the next thing to try."
)
Found = dict[str, list[Record]]  # arm -> its records, by seed

_INTRODUCTION = """# Results

Written by `python -m benchmarks.study report` from the records under `benchmarks/results/study/`; do not edit. Each
number is top-1 accuracy on the official test split, in per cent. Epochs are fixed in `benchmarks/study/plan.py`, the
same for every arm of a study; nothing is chosen on the test split. With one seed the interval is the 95 % Wilson
interval of the test images; with several it is the 95 % t interval over seeds, of their mean.
"""


class Cell(msgspec.Struct, frozen=True):
    """An accuracy in per cent with its interval."""

    value: float
    low: float
    high: float
    seeds: int


def write(
    records: Path, page: Path, pictures: Path, studies: Sequence[Study] = STUDIES, bundles: Path | None = None
) -> list[Path]:
    """Writes the page and its pictures; gives their paths.

    Args:
        records: folder of the results.
        page: the Markdown file.
        pictures: folder of its pictures.
        studies: what to write about.
        bundles: folder of the bundles that ship, which the page begins with where it is given.

    Raises:
        InputError: a record is damaged.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    written, parts = [], [_INTRODUCTION]
    if bundles is not None:
        parts += [shipped(Bundle.open(bundles / SHIPPED)), nine(Bundle.open(bundles / NINE))]
    for study in studies:
        by_device = {device: read(records, study, device) for device in DEVICES}
        recorded = [device for device, found in by_device.items() if found]
        for device in recorded or ["cpu"]:  # what has run nowhere is said once, as planned for a CPU
            text, charts = section(study, device, by_device[device])
            for name, svg in charts.items():
                write_atomically(pictures / name, svg.encode())
                written.append(pictures / name)
            parts.append(text)
    norms, charts = norm_section(records / "norms")
    for name, svg in charts.items():
        write_atomically(pictures / name, svg.encode())
        written.append(pictures / name)
    parts.append(norms)
    write_atomically(page, ("\n".join(parts)).encode())
    return [page, *written]


def shipped(bundle: Bundle) -> str:
    """What the bundle that ships reaches, and what was asked of it."""
    lines = [f"## The bundle that ships: {bundle.name}", ""]
    lines += ["| subnet | MACs | share | accuracy | 95 % interval | asked | above it |", "| --- " * 7 + "|"]
    missed = []
    entries = bundle.manifest.subnets
    for entry, asked in zip(entries, ASKED, strict=True):
        found = _known(bundle, entry)
        share, above = entry.macs / entries[-1].macs, 100 * found.value - asked
        missed += [f"{entry.name} by {-above:.2f} points"] if above < 0 else []
        lines.append(
            f"| {entry.name} | {entry.macs / 1e6:.2f} M | {share:.1%} | {100 * found.value:.2f} "
            f"| {100 * found.low:.2f} to {100 * found.high:.2f} | {asked:.1f} | {above:+.2f} |"
        )
    said = f"Missed: {', '.join(missed)}. {_WHY}" if missed else "All of it is reached."
    how = f"How it was made is in [its card](../bundles/{bundle.name}/README.md), command by command."
    return "\n".join([*lines, "", said, "", how, ""])


def nine(bundle: Bundle) -> str:
    """What the bundle with the nine subnets of the paper's Figure 9 reaches; nothing was asked of its accuracy."""
    lines = [f"## The finer ladder that ships: {bundle.name}", ""]
    lines += ["| subnet | MACs | share | accuracy | 95 % interval |", "| --- " * 5 + "|"]
    entries = bundle.manifest.subnets
    for entry in entries:
        found = _known(bundle, entry)
        lines.append(
            f"| {entry.name} | {entry.macs / 1e6:.2f} M | {entry.macs / entries[-1].macs:.1%} "
            f"| {100 * found.value:.2f} | {100 * found.low:.2f} to {100 * found.high:.2f} |"
        )
    card = f"[its card](../bundles/{bundle.name}/README.md)"
    added, full_size = bundle.added()
    how = (
        f"Sampled from the full network of {SHIPPED} and trained on for a short while: {card}. What the smaller "
        f"subnets add to the full network is {sum(added.values()) / full_size:.1%} of its size."
    )
    return "\n".join([*lines, "", how, ""])


def _known(bundle: Bundle, entry: SubnetEntry) -> Accuracy:
    if entry.accuracy is None:
        raise InputError(f"{bundle.path}: the accuracy of '{entry.name}' is missing; run 'gearshift train' again")
    return entry.accuracy


def read(records: Path, study: Study, device: str) -> Found:
    """What is recorded of a study's present plan.

    Raises:
        InputError: a record is damaged.
    """
    found: Found = {}
    for arm in study.arms:
        plan = planned(study, arm, device)
        paths = sorted((records / study.name).glob(f"{arm.name}.seed*.{device}.json"))
        known = [record for path in paths if (record := read_record(path, plan)) is not None]
        if known:
            found[arm.name] = sorted(known, key=lambda record: record.seed)
    return found


def cell(records: Sequence[Record], subnet: int) -> Cell:
    """The accuracy of an arm's subnet, by its place on the ladder."""
    tests = [record.subnets[subnet].test for record in records]
    values = [100 * test.value for test in tests]
    if len(values) == 1:
        return Cell(values[0], 100 * tests[0].low, 100 * tests[0].high, 1)
    mean, half = statistics.mean(values), half_width(values)
    return Cell(mean, mean - half, mean + half, len(values))


def difference(ours: Sequence[Record], theirs: Sequence[Record], subnet: int) -> Cell | None:
    """Ours minus theirs in points, paired by seed; None without a common seed.

    With one seed the interval is that of two independent samples of test images: too wide, as the images are the same.
    """
    pairs = [(a, b) for a in ours for b in theirs if a.seed == b.seed]
    if not pairs:
        return None
    points = [100 * (a.subnets[subnet].test.value - b.subnets[subnet].test.value) for a, b in pairs]
    if len(points) > 1:
        mean, half = statistics.mean(points), half_width(points)
        return Cell(mean, mean - half, mean + half, len(points))
    widths = [(each.subnets[subnet].test.high - each.subnets[subnet].test.low) / 2 for each in pairs[0]]
    half = 100 * (widths[0] ** 2 + widths[1] ** 2) ** 0.5
    return Cell(points[0], points[0] - half, points[0] + half, 1)


def section(study: Study, device: str, found: Found) -> tuple[str, dict[str, str]]:
    """A study's part of the page, and its pictures by file name."""
    schedule = study.schedule(device)
    where = "" if device == "cpu" else f", {device}"
    lines = [f"## {study.name}: {study.network} on {study.data}{where}", "", study.question, ""]
    lines += [
        f"Every arm: {schedule.pretrain_epochs} epochs of pretraining, then {schedule.epochs}; "
        f"batch {schedule.batch_size}, peak learning rates {schedule.pretrain_rate:g} and {schedule.rate:g}. "
        f"A subnet trained alone from scratch has {schedule.pretrain_epochs + schedule.epochs} epochs.",
        "",
    ]
    for arm in study.arms:
        lines += _arm(study, arm, device, found.get(arm.name, []))
    charts = {}
    if found:
        name = f"results-{study.name}{'' if device == 'cpu' else '-' + device}.svg"
        charts[name] = _chart(study, found)
        lines += [f"![accuracy against MACs](pictures/{name})", ""]
        if any(subnet.latency_ms for records in found.values() for record in records for subnet in record.subnets):
            timed = name.replace(".svg", "-latency.svg")
            charts[timed] = _latency_chart(study, found)
            lines += [f"![accuracy against latency](pictures/{timed})", ""]
        lines += _claims(study, found)
        lines += _origins(study, device, found)
    return "\n".join(lines), charts


def _arm(study: Study, arm: Arm, device: str, records: Sequence[Record]) -> list[str]:
    lines = [f"### {study.name}/{arm.name}", "", f"{arm.what[0].upper()}{arm.what[1:]}.", ""]
    if not records:
        return [
            *lines,
            f"Not run yet: `python -m benchmarks.study run {study.name}/{arm.name} --{study.data} DIR`.",
            "",
        ]
    ladder = records[0].subnets
    timed = any(subnet.latency_ms for subnet in ladder)
    heading = "| subnet | MACs | share | parameters | accuracy | 95 % interval | seeds |"
    lines += [heading + (" latency |" if timed else ""), "| --- " * (8 if timed else 7) + "|"]
    for place, subnet in enumerate(ladder):
        found = cell(records, place)
        row = (
            f"| {subnet.name} | {subnet.macs / 1e6:.2f} M | {subnet.macs / records[0].full_macs:.1%} "
            f"| {subnet.parameters / 1e3:.1f} k | {found.value:.2f} | {found.low:.2f} to {found.high:.2f} "
            f"| {found.seeds} |"
        )
        if timed:
            row += f" {subnet.latency_ms:.3f} ms |" if subnet.latency_ms else " not measured |"
        lines.append(row)
    missing = [seed for seed in study.seeds if seed not in {record.seed for record in records}]
    lines.append("")
    if missing:
        lines += [f"Seeds not run yet: {', '.join(map(str, missing))}.", ""]
    return lines


def _claims(study: Study, found: Found) -> list[str]:
    """What the study's question comes to, as far as it is recorded."""
    lines: list[str] = []
    if "joint" in found:
        ours = found["joint"]
        for other in ("alone", "fine-tuned", "uniform", "slimmable", "us-nets"):
            if other in found:
                lines += [*_compared(f"joint minus {other}", ours, found[other]), ""]
        values = [cell(ours, place) for place in range(len(ours[0].subnets))]
        falls = [
            f"{small.name} to {large.name}"
            for small, large, a, b in zip(ours[0].subnets, ours[0].subnets[1:], values, values[1:], strict=False)
            if b.value < a.value
        ]
        said = "rises with every subnet" if not falls else f"falls from {', '.join(falls)}"
        lines += [f"Accuracy of `joint` {said}.", ""]
    if "base" in found:
        for name in found:
            ladder = [subnet.name for subnet in found[name][0].subnets]
            if name != "base" and ladder == [subnet.name for subnet in found["base"][0].subnets]:
                lines += [*_compared(f"{name} minus base", found[name], found["base"]), ""]
    if lines:
        lines = ["### What it says", "", *lines]
    return lines


def _compared(title: str, ours: Sequence[Record], theirs: Sequence[Record]) -> list[str]:
    parts = []
    for place, subnet in enumerate(ours[0].subnets):
        if place < len(theirs[0].subnets) and (found := difference(ours, theirs, place)):
            said = f"{subnet.name} {found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
            parts.append(said)
    seeds = len({a.seed for a in ours} & {b.seed for b in theirs})
    return [f"{title}, points, {seeds} {'seed' if seeds == 1 else 'seeds'}: {'; '.join(parts)}."] if parts else []


def _chart(study: Study, found: Found) -> str:
    points = {
        name: [(record.subnets[k].macs / 1e6, cell(records, k)) for k in range(len(record.subnets))]
        for name, records in found.items()
        for record in records[:1]
    }
    every = [spot for each in points.values() for spot in each]
    chart = Chart(
        Axis.around([x for x, _ in every], "MACs, millions"),
        Axis.around([y for _, spot in every for y in (spot.low, spot.high)], "top-1 accuracy, %"),
        height=360,
        title=f"{study.name}: {study.network} on {study.data}",
    )
    for name, each in points.items():
        xs = [x for x, _ in each]
        chart.line(xs, [spot.value for _, spot in each], name)
        chart.points(xs, [spot.value for _, spot in each], name)
        chart.error_bars(xs, [y.value for _, y in each], [y.low for _, y in each], [y.high for _, y in each])
    return chart.svg(standalone=True)


def _latency_chart(study: Study, found: Found) -> str:
    points = {
        name: [(subnet.latency_ms, cell(records, k).value) for k, subnet in enumerate(records[0].subnets)]
        for name, records in found.items()
    }
    every = [(x, y) for each in points.values() for x, y in each if x]
    chart = Chart(
        Axis.around([x for x, _ in every], "latency on OpenVINO, f32, batch 1, ms"),
        Axis.around([y for _, y in every], "top-1 accuracy, %"),
        title=f"{study.name}: accuracy against measured latency",
    )
    for name, each in points.items():
        known = [(x, y) for x, y in each if x]
        chart.line([x for x, _ in known], [y for _, y in known], name)
        chart.points([x for x, _ in known], [y for _, y in known], name)
    return chart.svg(standalone=True)


def _origins(study: Study, device: str, found: Found) -> list[str]:
    lines = ["### Where the numbers come from", ""]
    lines += ["| record | test images | machine | threads | commit | date | hours | command |", "| --- " * 8 + "|"]
    for name, records in found.items():
        for record in records:
            made = record.provenance
            path = record_path(Path("benchmarks/results/study"), study, study.arm(name), record.seed, device)
            machine = _machine(made["host"], device)
            lines.append(
                f"| `{path.as_posix()}` | {record.subnets[0].test.n} | {machine} | {made['threads']} "
                f"| {made['commit']} | {made['created'][:10]} | {record.wall_s / 3600:.2f} | `{made['command']}` |"
            )
    return [*lines, ""]


def _machine(host: Mapping[str, Any], device: str) -> str:
    return str(host["cpu"] if device == "cpu" else f"{host['accelerator']}, {host['cpu']}")


def norm_section(folder: Path) -> tuple[str, dict[str, str]]:
    """Norms of all channels before and after each recorded sparsity phase."""
    lines = ["## Channel norms before and after the sparsity phase", ""]
    charts = {}
    for path in sorted(folder.glob("*.json")):
        content: Mapping[str, Norms] = msgspec.json.decode(path.read_bytes())
        if "after" not in content:  # a run that is not over
            continue
        every = [norm for norms in content["after"].values() for norm in norms]
        name = f"results-norms-{path.stem}.svg"
        charts[name] = histogram(content["before"], content["after"])
        lines += [
            f"`benchmarks/results/study/norms/{path.name}`: "
            f"{sum(norm == 0 for norm in every)} of {len(every)} channels ended at zero.",
            "",
            f"![histogram of channel norms](pictures/{name})",
            "",
        ]
    if not charts:
        lines += ["Not run yet: `python -m benchmarks.study run ablations/paper --cifar10 DIR` pretrains with one.", ""]
    return "\n".join(lines), charts
