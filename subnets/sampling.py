"""The whole way from a trained network to a bundle, and from a bundle to a better one.

* :func:`sample`: trace, score, allocate, sort once, give every subnet its batch-norm, write the bundle.
* :func:`fine_tune`: train all subnets of a bundle jointly, choose statistics on the validation split, write it back.
* :func:`evaluate`: accuracy of every subnet with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn

from subnets import architectures, importance
from subnets.allocation import Limits, Widths, allocate
from subnets.bundle import (
    SCHEMA,
    Accuracy,
    Architecture,
    Bundle,
    InputSpec,
    Manifest,
    SubnetEntry,
    save,
    wilson,
    write_atomically,
)
from subnets.data import Dataset, Split
from subnets.errors import InputError
from subnets.groups import Traced, trace_with
from subnets.joint import JointObjective, JointOptions
from subnets.private import rearranged
from subnets.proof import prove, prove_groups
from subnets.spec import SubnetSpec
from subnets.supernet import Supernet, extract, open_network, sort_channels
from subnets.team import ALONE, Team
from subnets.training import Progress, Recipe, accuracy, logits, recalibrate, to_tensor, train

Watch = Callable[[Progress], None]
_RECORD = "gearshift"  # key in a checkpoint's metadata
_IDLE: Watch = lambda progress: None  # noqa: E731 (a named default)
_HELD_OUT_IMAGES, _HELD_OUT_BATCH = 2048, 256


def open_checkpoint(path: Path, architecture: Architecture) -> nn.Module:
    """A user's trained network: safetensors, or a torch file of tensors only (never arbitrary pickle).

    Raises:
        InputError: the file is missing, damaged, holds more than tensors, or is of another architecture.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train one with 'gearshift pretrain'")
    network = architectures.build(architecture.name, **architecture.arguments)
    try:
        if path.suffix == ".safetensors":
            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # both readers raise many kinds for damaged files
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a checkpoint of plain tensors ({why}); save a state_dict again") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a state_dict; save network.state_dict()")
    architectures.load_weights(network, state, str(path))
    return network.eval()


def save_network(network: nn.Module, path: Path, record: dict[str, Any] | None = None) -> None:
    """Writes a plain network's state dict as safetensors, whole or not at all; ``record`` says how it was made."""
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    metadata = {_RECORD: msgspec.json.encode(record).decode()} if record else None
    write_atomically(path, serialise(state, metadata))


def checkpoint_record(path: Path) -> dict[str, Any]:
    """How a checkpoint was made, where :func:`save_network` wrote it down; else its file name alone."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_RECORD)
        if text:
            record: dict[str, Any] = msgspec.json.decode(text)
            return record
    return {"checkpoint": path.name}


def full_network(bundle: Bundle) -> nn.Module:
    """A bundle's full network as a plain one, to sample another ladder from.

    Raises:
        InputError: its largest subnet is not the full network, or its tensors do not fit its architecture.
    """
    largest = bundle.ladder[-1]
    if any(largest.widths[group.name] != group.width for group in bundle.manifest.groups):
        raise InputError(f"bundle '{bundle.name}' has lost its full network: '{largest.name}' is its largest subnet")
    return open_network(bundle, largest.name)


def as_bundled(bundle: Bundle, dataset: Dataset) -> Dataset:
    """The data as a bundle's networks take them: normalised its way, under its names of the classes.

    Raises:
        InputError: they are of another shape or number of classes.
    """
    check_data(bundle, dataset)
    spec = bundle.input
    return msgspec.structs.replace(dataset, mean=spec.mean, std=spec.std, classes=bundle.labels)


class SampleOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the ladder is chosen.

    ``normalise`` and ``per_mac`` are the score's and the allocation's own way where None (a threshold compares scores
    that are normalised by group). Without ``sort``, subnets keep the first channels as training left them.
    """

    budgets: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    score: str = "taylor"
    allocation: str = "greedy"
    limits: Limits = Limits()
    grouper: str = "fx"  # or "torch-pruning"
    normalise: str | None = None  # "none", "group" or "type": subnets.importance.normalised
    per_mac: bool | None = None
    sort: bool = True


def sample(
    network: nn.Module,
    architecture: Architecture,
    dataset: Dataset,
    options: SampleOptions,
    out: Path,
    *,
    name: str = "",
    latency_ms: Callable[[Widths], float] | None = None,
    device: str = "cpu",
    provenance: dict[str, Any] | None = None,
) -> Bundle:
    """Samples nested subnets from a trained network and writes them as a bundle.

    Args:
        network: trained, plain; its channels are sorted in place.
        architecture: how to build it again.
        dataset: scores and batch-norm statistics come from its training split.
        out: the bundle's directory.
        name: the bundle's name; by default the directory's.
        latency_ms: of given widths on the device, for allocation ``latency`` (:class:`subnets.latency.Lookup`).
        device: where scores, statistics and accuracy are computed, as torch names it.
        provenance: recorded in the bundle beside the options.

    Raises:
        InputError: the network cannot be traced or cut, an option is wrong, the classes do not fit, a split is empty.
    """
    for split in ("train", "test"):
        if not len(getattr(dataset, split)):
            raise InputError(f"data '{dataset.name}' has no {split} images; sampling needs some")
    architectures.take_any_layout(network)
    if logits(network.eval(), _first(dataset.test, 1), dataset).shape[1] != len(dataset.classes):
        raise InputError(f"the network's outputs do not match the {len(dataset.classes)} classes of {dataset.name}")
    traced = trace_with(options.grouper, network, dataset.shape)
    prove_groups(network, traced.groups, dataset.shape)
    normalise = options.normalise or ("group" if options.allocation == "threshold" else None)
    scores = importance.score(options.score, network.to(device), traced, dataset, normalise=normalise)
    network.cpu()
    if options.sort:
        sort_channels(network, traced.groups, scores)
        scores = {group: values.sort(descending=True).values for group, values in scores.items()}
    ladder = allocate(
        options.allocation,
        traced,
        scores,
        options.budgets,
        options.limits,
        per_mac=options.per_mac,
        loss=held_out_loss(network, traced, dataset) if options.allocation == "progressive" else None,
        latency_ms=latency_ms,
    )
    prove(network, traced.groups, ladder, dataset.shape)
    supernet = Supernet(network, traced.groups, ladder)
    for spec in ladder:
        plain = extract(network, traced.groups, spec)
        if spec.widths != traced.full:
            recalibrate(plain.to(device), dataset, batch_count=20)
        supernet.adopt_norms(spec.name, plain)
    manifest = Manifest(
        schema=SCHEMA,
        name=name or out.name,
        architecture=architecture,
        input=_input(dataset),
        labels=dataset.classes,
        groups=traced.groups,
        subnets=_entries(traced, ladder),
        weights_sha256="",
        provenance={"dataset": dataset.name, **(provenance or {}), "sampling": msgspec.to_builtins(options)},
    )
    measured = evaluate(supernet, dataset, "test", device)
    return save(out, _with_accuracy(manifest, measured), supernet.tensors(), card(_with_accuracy(manifest, measured)))


def held_out_loss(network: nn.Module, traced: Traced, dataset: Dataset) -> Callable[[Widths], float]:
    """The mean cross-entropy of a subnet on held-out training images, batch-norm on batch statistics.

    Args:
        network: channels already sorted; left alone.
        traced: its groups.
        dataset: up to 2,048 images of the validation split, or of the training split where that is empty.
    """
    split = dataset.validation if len(dataset.validation) else dataset.train
    size = min(_HELD_OUT_BATCH, len(split))
    held_out = []
    for start in range(0, min(_HELD_OUT_IMAGES, len(split)) - size + 1, size):  # whole batches: one image has no spread
        indices = torch.arange(start, start + size).numpy()
        held_out.append((to_tensor(split.read(indices), dataset), torch.from_numpy(split.labels[indices])))
    device = next(network.parameters()).device

    @torch.no_grad()
    def loss(widths: Widths) -> float:
        small = extract(network, traced.groups, SubnetSpec("candidate", dict(widths))).train()
        losses = [
            nn.functional.cross_entropy(small(images.to(device)).float(), labels.to(device))
            for images, labels in held_out
        ]
        return float(torch.stack(losses).mean())

    return loss


def fine_tune(
    bundle: Bundle,
    dataset: Dataset,
    recipe: Recipe,
    options: JointOptions | None = None,
    *,
    checkpoint: Path | None = None,
    team: Team = ALONE,
    device: str = "cpu",
    provenance: dict[str, Any] | None = None,
    on_step: Watch = _IDLE,
) -> Bundle:
    """Trains a bundle's subnets jointly and writes the result back; exports of the old weights are dropped.

    For each subnet the averaged or the recalibrated batch-norm statistics are kept, whichever is better on the
    validation split (recalibrated ones where that is empty); the test split is only reported. In a team the first
    process does this and writes; the others wait for it.

    Args:
        bundle: replaced on disk.
        dataset: its kind of images.
        recipe: the numbers of the run.
        options: the numbers of a joint step, and what each subnet has for itself from now on.
        checkpoint: written after every epoch; when it is there, the run continues from it.
        team: the processes that share each batch.
        device: where to train, as torch names it.
        provenance: recorded in the bundle beside recipe and options.
        on_step: called after every step.

    Raises:
        InputError: the data do not fit the bundle, or training fails.
    """
    check_data(bundle, dataset)
    options = (options or JointOptions()).check()
    supernet = rearranged(Supernet.from_bundle(bundle), affine=options.affine, heads=options.heads).to(device)
    objective = JointObjective(supernet, recipe.check(), options)
    numbers = msgspec.to_builtins(options)
    train(objective, dataset, recipe, checkpoint=checkpoint, options=numbers, team=team, on_step=on_step)
    if team.rank == 0:
        statistics = _choose_statistics(supernet, dataset, device)
        training = {
            "recipe": msgspec.to_builtins(recipe),
            **numbers,
            **({"processes": team.count} if team.count > 1 else {}),
            "statistics": statistics,
            **(provenance or {}),
        }
        _write_back(bundle, supernet, dataset, training, device)
    team.wait()
    return Bundle.open(bundle.path)


def _choose_statistics(supernet: Supernet, dataset: Dataset, device: str) -> dict[str, str]:
    """Keeps each subnet's averaged or its recalibrated statistics; which, by name."""
    statistics = {}
    for subnet in supernet.ladder.names:
        plain = supernet.extract(subnet).to(device)
        before = _top1(plain, dataset, dataset.validation)
        recalibrate(plain, dataset)
        better = _top1(plain, dataset, dataset.validation) >= before
        statistics[subnet] = "recalibrated" if better else "averaged"
        if better:
            supernet.adopt_norms(subnet, plain)
    return statistics


def _write_back(bundle: Bundle, supernet: Supernet, dataset: Dataset, training: dict[str, Any], device: str) -> None:
    earlier = sum(key.startswith("training") for key in bundle.manifest.provenance)
    made = {**bundle.manifest.provenance, f"training_{earlier + 1}" if earlier else "training": training}
    manifest = msgspec.structs.replace(bundle.manifest, exports=(), provenance=made)
    manifest = _with_accuracy(manifest, evaluate(supernet, dataset, "test", device))
    save(bundle.path, manifest, supernet.tensors(), card(manifest))


def evaluate(supernet: Supernet, dataset: Dataset, split: str, device: str = "cpu") -> dict[str, Accuracy]:
    """Accuracy of every subnet on a split (``test`` or ``validation``), f32."""
    images: Split = getattr(dataset, split)
    found = {}
    for subnet in supernet.ladder.names:
        share = _top1(supernet.extract(subnet).to(device), dataset, images)
        found[subnet] = wilson(round(share * len(images)), len(images), f"{dataset.name} {split}")
    return found


def check_data(bundle: Bundle, dataset: Dataset) -> None:
    """Refuses data a bundle's networks cannot take.

    Raises:
        InputError: image shape or number of classes differ.
    """
    if dataset.shape != bundle.input.shape or len(dataset.classes) != len(bundle.labels):
        raise InputError(
            f"data '{dataset.name}' has {len(dataset.classes)} classes of {dataset.shape} images; "
            f"bundle '{bundle.name}' takes {len(bundle.labels)} classes of {bundle.input.shape}; give its own data"
        )


def card(manifest: Manifest) -> str:
    """The bundle's model card, in Markdown."""
    rows = []
    for entry in manifest.subnets:
        measured = entry.accuracy
        text = f"{measured.value:.2%} ({measured.low:.2%} to {measured.high:.2%})" if measured else "not measured"
        rows.append(f"| {entry.name} | {entry.macs / 1e6:.2f} M | {entry.parameters / 1e3:.1f} k | {text} |")
    split = next((f" ({e.accuracy.split}, n = {e.accuracy.n})" for e in manifest.subnets if e.accuracy), "")
    notes = msgspec.json.format(msgspec.json.encode(manifest.provenance), indent=2).decode()
    shape = " x ".join(map(str, manifest.input.shape))
    return "\n".join(
        [
            f"# {manifest.name}",
            "",
            f"{len(manifest.subnets)} nested subnets of `{manifest.architecture.name}` in one weight set, "
            f"made with Gearshift. Input: {shape}, normalised with mean {list(manifest.input.mean)} and deviation "
            f"{list(manifest.input.std)} after scaling pixels to 0..1. Classes: {', '.join(manifest.labels[:20])}"
            + (" ..." if len(manifest.labels) > 20 else "")
            + ".",
            "",
            f"| subnet | MACs | parameters | accuracy{split} |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "Intervals are 95 % Wilson score intervals.",
            "",
            *_commands(manifest.provenance),
            "How it was made:",
            "",
            "```json",
            notes,
            "```",
            "",
        ]
    )


def _commands(provenance: dict[str, Any]) -> list[str]:
    made = list(_commands_of(provenance))
    return ["Commands:", "", "```sh", *made, "```", ""] if made else []


def _commands_of(provenance: dict[str, Any]) -> Iterator[str]:
    """In the order in which they were given; a bundle may have been made from another's network."""
    for step in provenance.values():
        if isinstance(step, dict):
            yield from [step["command"]] if "command" in step else _commands_of(step)


def _top1(network: nn.Module, dataset: Dataset, split: Split) -> float:
    return accuracy(logits(network, split, dataset), split) if len(split) else 0.0


def _first(split: Split, count: int) -> Split:
    from subnets.data import ArraySplit

    indices = torch.arange(count).numpy()
    return ArraySplit(split.read(indices), split.labels[indices])


def _input(dataset: Dataset) -> InputSpec:
    channels, height, width = dataset.shape
    return InputSpec(channels=channels, height=height, width=width, mean=dataset.mean, std=dataset.std)


def _entries(traced: Traced, ladder: Sequence[Any]) -> tuple[SubnetEntry, ...]:
    return tuple(
        SubnetEntry(
            name=spec.name,
            widths=dict(spec.widths),
            macs=traced.macs(spec.widths),
            parameters=traced.parameter_count(spec.widths),
        )
        for spec in ladder
    )


def _with_accuracy(manifest: Manifest, measured: dict[str, Accuracy]) -> Manifest:
    subnets = tuple(msgspec.structs.replace(entry, accuracy=measured[entry.name]) for entry in manifest.subnets)
    return msgspec.structs.replace(manifest, subnets=subnets)
