"""Runs one arm with one seed and records it: pretrain (once a seed), sample, train, evaluate.

Everything lies under two folders: records, small JSON that is kept, and work, what a stopped run goes on from
(pretrained networks, bundles, checkpoints). A record holds the plan it was made by; one made by another plan is stale.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from common import provenance
from torch import nn

from cli._norms import NormRecord
from cli._widths import lookup, timer
from subnets import architectures
from subnets.bundle import Accuracy, Architecture, Bundle, Strict, wilson, write_atomically
from subnets.data import Dataset, Split
from subnets.errors import InputError
from subnets.groups import trace
from subnets.sampling import evaluate, fine_tune, open_checkpoint, sample, save_network
from subnets.sparsity import SparseObjective
from subnets.supernet import Supernet, extract, open_network
from subnets.training import Objective, PlainObjective, Progress, Recipe, accuracy, logits, train

from .plan import Arm, Schedule, Study

SCHEMA = 1
_LATENCY_TURNS = 5


class SubnetResult(Strict, frozen=True, kw_only=True):
    """One subnet of an arm."""

    name: str
    widths: dict[str, int]
    macs: int
    parameters: int
    test: Accuracy
    validation: Accuracy | None = None
    latency_ms: float | None = None


class Record(Strict, frozen=True, kw_only=True):
    """What came of one arm with one seed."""

    schema: int
    study: str
    arm: str
    seed: int
    device: str
    plan: dict[str, Any]  # network, data, schedule and arm, as they were
    full_macs: int
    subnets: tuple[SubnetResult, ...]
    pretrained: Accuracy | None  # the network that all began with, on the test split
    wall_s: float  # of this arm, without the pretraining that arms share
    provenance: dict[str, Any]


def planned(study: Study, arm: Arm, device: str) -> dict[str, Any]:
    """What a record must have been made by to count."""
    sizes = {"image_size": study.image_size} if study.data == "imagenette" else {}
    plan = {"network": study.network, "data": study.data, **sizes, "schedule": study.schedule(device), "arm": arm}
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(plan))  # as a record on disk has it
    return made


def record_path(records: Path, study: Study, arm: Arm, seed: int, device: str) -> Path:
    """Where that record lies."""
    return records / study.name / f"{arm.name}.seed{seed}.{device}.json"


def read_record(path: Path, plan: dict[str, Any]) -> Record | None:
    """The record at ``path``; None where there is none, or one of another plan.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a record of the study ({error}); delete it and run the arm again") from None
    return found if (found.schema, found.plan) == (SCHEMA, plan) else None


class Runner:
    """Runs arms of one study.

    Args:
        study: what to run.
        dataset: its images.
        records: folder of the results.
        work: folder of what is unfinished.
        device: cpu or cuda; decides the schedule, too.
        on_step: called after every training step with what is being trained.
    """

    def __init__(
        self,
        study: Study,
        dataset: Dataset,
        *,
        records: Path,
        work: Path,
        device: str = "cpu",
        on_step: Callable[[str, Progress], None] = lambda what, progress: None,
    ) -> None:
        self.study, self.dataset, self.records, self.work, self.device = study, dataset, records, work, device
        self._on_step = on_step
        self._schedule: Schedule = study.schedule(device)
        arguments = {"num_classes": len(dataset.classes), "in_channels": dataset.shape[0]}
        self._architecture = Architecture(name=study.network, arguments=arguments)

    def run(self, arm: Arm, seed: int) -> Record:
        """The arm's record: made now, unless it is there."""
        plan = planned(self.study, arm, self.device)
        path = record_path(self.records, self.study, arm, seed, self.device)
        if (found := read_record(path, plan)) is not None:
            return found
        network, share = self._pretrained(seed, arm.sparsity)
        place = self.work / self.study.name / f"{arm.name}-{seed}-{_digest(plan)}"
        place.mkdir(parents=True, exist_ok=True)
        clock = Stopwatch(place / "seconds")
        with clock.running():
            bundle = self._sampled(network, arm, place)
            test, validation = self._trained(bundle, arm, seed, place, clock)
        latency = self._latency_ms(bundle, arm)
        subnets = tuple(
            SubnetResult(
                name=entry.name,
                widths=dict(entry.widths),
                macs=entry.macs,
                parameters=entry.parameters,
                test=test[entry.name],
                validation=validation.get(entry.name),
                latency_ms=latency.get(entry.name),
            )
            for entry in bundle.manifest.subnets
        )
        record = Record(
            schema=SCHEMA,
            study=self.study.name,
            arm=arm.name,
            seed=seed,
            device=self.device,
            plan=plan,
            full_macs=bundle.manifest.subnets[-1].macs,
            subnets=subnets,
            pretrained=share,
            wall_s=clock.seconds(),
            provenance={
                **provenance(__file__, ["torch"]),
                "command": f"python -m benchmarks.study run {self.study.name}/{arm.name} "
                f"--{self.study.data} DIR --seed {seed}" + ("" if self.device == "cpu" else f" --device {self.device}"),
                "threads": torch.get_num_threads(),
            },
        )
        write_atomically(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        shutil.rmtree(place)
        return record

    def _pretrained(self, seed: int, sparsity: float) -> tuple[nn.Module, Accuracy]:
        """The network that all arms of a seed begin with, and its accuracy; trained when first asked for, unless it is
        kept with the records (a small one is, so that arms can be added later)."""
        recipe = self._schedule.pretraining(seed, sparsity)
        key = _digest([self._architecture, self.dataset.name, self.dataset.shape, recipe, self.device])
        name = f"{self.study.network}-{self.dataset.name}-{key}.safetensors"
        path = self.records / "pretrained" / name
        if not path.exists():
            path = self.work / "pretrained" / name
        if not path.exists():
            torch.manual_seed(seed)
            network = architectures.build(self._architecture.name, **self._architecture.arguments)
            norms = self.records / "norms" / f"{self.study.network}-{self.dataset.name}-seed{seed}-{key}.json"
            self._train(network, recipe, path.with_suffix(".checkpoint"), f"{self.study.network}, pretraining", norms)
            save_network(network, path)
            path.with_suffix(".checkpoint").unlink()
        network = open_checkpoint(path, self._architecture)
        share = _accuracy(network.to(self.device), self.dataset, "test")
        return network.cpu(), share

    def _sampled(self, network: nn.Module, arm: Arm, place: Path) -> Bundle:
        if (place / "bundle" / "bundle.json").exists():
            return Bundle.open(place / "bundle")
        latency_ms = None
        if arm.sampling.allocation == "latency":
            traced = trace(network, self.dataset.shape)
            path = self.work / f"{self.study.network}-{self.dataset.name}.widths.json"
            latency_ms = lookup(
                network,
                self._architecture,
                traced,
                self.dataset,
                backend="openvino",
                precision="f32",
                threads=1,
                path=path,
            )
        options = arm.sampling
        if arm.match:
            twin = self._sampled(copy.deepcopy(network), self.study.arm(arm.match), place / "twin").manifest.subnets
            options = msgspec.structs.replace(options, budgets=tuple(each.macs / twin[-1].macs for each in twin))
        return sample(
            network,
            self._architecture,
            self.dataset,
            options,
            place / "bundle",
            latency_ms=latency_ms,
            device=self.device,
        )

    def _trained(
        self, bundle: Bundle, arm: Arm, seed: int, place: Path, clock: Stopwatch
    ) -> tuple[dict[str, Accuracy], dict[str, Accuracy]]:
        """Accuracy of every subnet on the test and the validation split, after training."""
        if arm.way == "joint":
            recipe = self._schedule.training(seed)
            # What fine_tune writes back says that it is done; a run killed before goes on from the checkpoint.
            if "training" not in bundle.manifest.provenance:
                bundle = fine_tune(
                    bundle,
                    self.dataset,
                    recipe,
                    arm.joint,
                    checkpoint=place / "checkpoint",
                    device=self.device,
                    on_step=self._watch(f"{self.study.name}/{arm.name}", clock),
                )
            supernet = Supernet.from_bundle(bundle)
            found = {split: evaluate(supernet, self.dataset, split, self.device) for split in self._splits()}
            return found["test"], found.get("validation", {})
        results: dict[str, dict[str, Accuracy]] = {"test": {}, "validation": {}}
        for spec in bundle.ladder:
            file = place / f"{spec.name}.safetensors"
            if arm.way == "alone":
                torch.manual_seed(seed)
                fresh = architectures.build(self._architecture.name, **self._architecture.arguments)
                network, recipe = extract(fresh, bundle.manifest.groups, spec), self._schedule.from_scratch(seed)
                _reset(network)
            else:
                network, recipe = open_network(bundle, spec.name), self._schedule.training(seed)
            if file.exists():
                from safetensors.torch import load_file

                network.load_state_dict(load_file(file))
            else:
                what = f"{self.study.name}/{arm.name} {spec.name}"
                self._train(network, recipe, file.with_suffix(".checkpoint"), what, clock=clock)
                save_network(network, file)
            for split in self._splits():
                results[split][spec.name] = _accuracy(network.eval().to(self.device), self.dataset, split)
        return results["test"], results["validation"]

    def _splits(self) -> list[str]:
        return [split for split in ("test", "validation") if len(getattr(self.dataset, split))]

    def _train(
        self,
        network: nn.Module,
        recipe: Recipe,
        checkpoint: Path,
        what: str,
        norms: Path | None = None,
        clock: Stopwatch | None = None,
    ) -> None:
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective: Objective = PlainObjective(network, recipe)
        watch = self._watch(what, clock)
        if recipe.sparsity and norms:
            traced = trace(network, self.dataset.shape)
            objective = SparseObjective(objective, traced, recipe)
            seen = NormRecord(network, traced, recipe, norms)
            shown = watch

            def watch(progress: Progress) -> None:
                shown(progress)
                seen.on_step(progress)

        train(objective, self.dataset, recipe, checkpoint=checkpoint, on_step=watch)
        if recipe.sparsity and norms:
            seen.finish()
        network.cpu()

    def _watch(self, what: str, clock: Stopwatch | None) -> Callable[[Progress], None]:
        epoch = -1

        def on_step(progress: Progress) -> None:
            nonlocal epoch
            if clock and progress.epoch != epoch:
                epoch = progress.epoch
                clock.lap()
            self._on_step(what, progress)

        return on_step

    def _latency_ms(self, bundle: Bundle, arm: Arm) -> dict[str, float]:
        """Latency of every subnet through OpenVINO, f32, one thread, batch 1: medians over turns."""
        if not arm.latency:
            return {}
        import statistics

        from backends.registry import create

        network = open_network(bundle, bundle.ladder.names[-1])
        traced = trace(network, self.dataset.shape)
        measure = timer(create("openvino"), network, self._architecture, traced, self.dataset, "f32", 1)
        turns = [[measure(spec.widths) for spec in bundle.ladder] for _ in range(_LATENCY_TURNS)]
        medians = (statistics.median(times) for times in zip(*turns, strict=True))
        return dict(zip(bundle.ladder.names, medians, strict=True))


class Stopwatch:
    """Seconds of work that survive a kill: written down at every lap."""

    def __init__(self, path: Path) -> None:
        self._path, self._started = path, time.monotonic()

    def seconds(self) -> float:
        """All laps so far."""
        return float(self._path.read_text()) if self._path.exists() else 0.0

    def lap(self) -> None:
        """Adds the time since the last lap."""
        now = time.monotonic()
        write_atomically(self._path, f"{self.seconds() + now - self._started:.1f}".encode())
        self._started = now

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts from here, and the last lap when it ends well."""
        self._started = time.monotonic()
        yield
        self.lap()


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:10]


def _accuracy(network: nn.Module, dataset: Dataset, split: str) -> Accuracy:
    images: Split = getattr(dataset, split)
    share = accuracy(logits(network, images, dataset), images)
    return wilson(round(share * len(images)), len(images), f"{dataset.name} {split}")


def _reset(network: nn.Module) -> None:
    """Fresh weights for a narrow network: as its architecture draws them, but for its own widths."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear | nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
