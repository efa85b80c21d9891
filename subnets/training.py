"""The training loop, plain or joint, and what surrounds it: order, augmentation, schedule, average, checkpoints.

* :class:`Recipe`: every number of a run, frozen and stored with its result.
* :class:`Objective`: what one step minimises; :class:`PlainObjective` here (one network, cross-entropy),
  ``JointObjective`` in :mod:`subnets.joint`.
* :func:`train`: runs a recipe, resumes from its checkpoint, keeps an exponential moving average of the weights.
* :func:`logits`, :func:`recalibrate`: evaluation and batch-norm statistics.

The image order and augmentation of an epoch depend on (seed, epoch) alone, so a resumed run sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from subnets.data import Dataset, Split
from subnets.errors import InputError


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of one training run.

    Raises:
        InputError: from :meth:`check`, when a value makes no sense.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1  # the peak, after a linear warm-up; then a cosine to zero
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 5e-4  # convolutions and linear layers only
    warmup: float = 0.05  # share of all steps
    average: float = 0.999  # decay per step of the moving average of the weights; 0 = off
    precision: str = "bf16"  # autocast; batch-norm and loss stay f32
    compile: bool = True
    seed: int = 0

    def check(self) -> Recipe:
        """Itself, when every value is usable."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is too small; give at least 1")
        if self.precision not in ("bf16", "f32"):
            raise InputError(f"training precision '{self.precision}' is unknown; use 'bf16' or 'f32'")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning rate {self.learning_rate} must be above 0 and finite")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; give 0 or more")
        return self

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at ``step`` of ``steps``."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands, after every step."""

    epoch: int  # 0-based
    epochs: int
    step: int  # steps done in all
    steps: int
    loss: float  # smoothed


class Objective(Protocol):
    """What one training step minimises."""

    @property
    def module(self) -> nn.Module:
        """Holds every tensor that is trained, averaged and saved."""

    def backward(self, images: Tensor, labels: Tensor, share_done: float) -> Tensor:
        """Adds this batch's gradients and returns the loss (detached scalar).

        Args:
            images: [N, C, H, W], normalised.
            labels: [N].
            share_done: 0..1, how much of the run lies behind.
        """


class PlainObjective:
    """Cross-entropy of one network."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.module = network
        self._forward: Callable[[Tensor], Tensor] = torch.compile(network) if recipe.compile else network
        self._bf16 = recipe.precision == "bf16"

    def backward(self, images: Tensor, labels: Tensor, share_done: float) -> Tensor:
        """One forward and backward pass."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            output = self._forward(images)
        loss = nn.functional.cross_entropy(output.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def to_tensor(images: np.ndarray[Any, np.dtype[np.uint8]], dataset: Dataset) -> Tensor:
    """uint8 [N, C, H, W] -> normalised float tensor of the same shape, channels last in memory."""
    mean = torch.tensor(dataset.mean).view(-1, 1, 1)
    std = torch.tensor(dataset.std).view(-1, 1, 1)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float().div_(255.0)
    return pixels.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def augmented(
    split: Split, dataset: Dataset, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, shifted and mirrored batches (all of the same size; the remainder is left out)."""
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(split))
    size = min(batch_size, len(split))
    for start in range(0, len(order) - size + 1, size):
        indices = order[start : start + size]
        images = split.read(indices)
        count, _, height, width = images.shape
        if dataset.pad:
            pad = dataset.pad
            images = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        shifts = random.integers(0, 2 * dataset.pad + 1, (2, count, 1))
        rows, columns = shifts[0] + np.arange(height), shifts[1] + np.arange(width)
        if dataset.flip:
            mirrored = random.random(count) < 0.5
            columns[mirrored] = columns[mirrored, ::-1]
        picked = images[np.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        yield to_tensor(picked.transpose(0, 3, 1, 2), dataset), torch.from_numpy(split.labels[indices])


class Checkpoint:
    """A run's state on disk; written whole or not at all."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe

    def load(self) -> dict[str, Any] | None:
        """The state saved last, or None.

        Raises:
            InputError: the file is damaged or of another recipe.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
        except Exception as error:  # torch.load raises many kinds for a damaged file
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.path}: not a readable checkpoint ({why}); delete it to start over") from None
        if not isinstance(state, dict) or "recipe" not in state:
            raise InputError(f"{self.path}: not a checkpoint of a training run; delete it to start over")
        if state["recipe"] != msgspec.to_builtins(self.recipe):
            raise InputError(f"{self.path}: this checkpoint is of another recipe; delete it or give the same options")
        return state

    def save(self, **state: Any) -> None:
        """Replaces what is on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        torch.save({**state, "recipe": msgspec.to_builtins(self.recipe)}, temporary)
        temporary.replace(self.path)


def train(
    objective: Objective,
    dataset: Dataset,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Runs ``recipe``; afterwards ``objective.module`` holds the averaged weights.

    Args:
        checkpoint: written after every epoch; when it is there, the run continues from it.
        on_step: called after every step.

    Raises:
        InputError: there are no training images, the checkpoint does not fit, or the loss is no longer a number.
    """
    if not len(dataset.train):
        raise InputError(f"data '{dataset.name}' has no training images; training needs some")
    module = objective.module
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
    )
    per_epoch = max(1, len(dataset.train) // min(recipe.batch_size, len(dataset.train)))
    steps = recipe.epochs * per_epoch
    average = {name: value.detach().clone() for name, value in _floats(module)}
    store = Checkpoint(checkpoint, recipe) if checkpoint else None
    first, smooth = 0, math.nan
    if store and (state := store.load()):
        try:
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            average, first, smooth = state["average"], state["epoch"] + 1, state["loss"]
        except (KeyError, ValueError, RuntimeError):
            raise InputError(f"{checkpoint}: this checkpoint is of another network; delete it to start over") from None
    step = first * per_epoch
    for epoch in range(first, recipe.epochs):
        module.train()
        for images, labels in augmented(dataset.train, dataset, recipe.batch_size, recipe.seed, epoch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, steps)
            optimizer.zero_grad()
            loss = float(objective.backward(images, labels, step / steps))
            if not math.isfinite(loss):
                where = f"; the last good state is {checkpoint}" if store and epoch else ""
                raise InputError(f"the loss is not a number at step {step}: lower the learning rate{where}")
            optimizer.step()
            step += 1
            _blend(average, module, min(recipe.average, step / (step + 10)))
            smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
            on_step(Progress(epoch=epoch, epochs=recipe.epochs, step=step, steps=steps, loss=smooth))
        if store:
            store.save(
                module=module.state_dict(),
                optimizer=optimizer.state_dict(),
                average=average,
                epoch=epoch,
                loss=smooth,
            )
    if recipe.average:
        module.load_state_dict({**module.state_dict(), **average})
    module.eval()


def _floats(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in module.state_dict().items() if value.is_floating_point())


@torch.no_grad()
def _blend(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    names, values = zip(*_floats(module), strict=True)
    torch._foreach_lerp_([average[name] for name in names], list(values), 1 - decay)


@torch.no_grad()
def logits(network: Callable[[Tensor], Tensor], split: Split, dataset: Dataset, batch_size: int = 500) -> Tensor:
    """The network's answers for a whole split, f32: [N, classes]. The caller sets eval mode."""
    from subnets.data import batches

    return torch.cat([network(to_tensor(images, dataset)).float() for images, _ in batches(split, batch_size)])


def accuracy(outputs: Tensor, split: Split) -> float:
    """Share of ``outputs`` [N, classes] whose largest entry is the label: 0..1."""
    return float((outputs.argmax(1) == torch.from_numpy(split.labels)).float().mean())


@torch.no_grad()
def recalibrate(network: nn.Module, dataset: Dataset, *, batch_count: int = 50, batch_size: int = 256) -> None:
    """Replaces batch-norm statistics by the plain mean over augmented training batches (US-Nets, section 3.2).

    Takes ``batch_count`` batches, or three passes over a smaller training split.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
    network.train()
    passes = (augmented(dataset.train, dataset, batch_size, 7, epoch) for epoch in range(3))
    for images, _ in islice(chain.from_iterable(passes), batch_count):
        network(images)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    network.eval()
