"""The training loop, plain or joint, and what surrounds it: order, augmentation, schedule, average, checkpoints.

* :class:`Recipe`: every number of a run, frozen and stored with its result.
* :class:`Objective`: what one step minimises; :class:`PlainObjective` here (one network, cross-entropy),
  ``JointObjective`` in :mod:`subnets.joint`, ``SparseObjective`` in :mod:`subnets.sparsity` round either.
* :func:`train`: runs a recipe, resumes from its checkpoint, keeps an exponential moving average of the weights; alone
  or in a team of processes (:mod:`subnets.team`).
* :func:`logits`, :func:`recalibrate`: evaluation and batch-norm statistics.

The image order and augmentation of an epoch depend on (seed, epoch) alone, so a resumed run sees what an
uninterrupted one would have seen. Runs where the objective's tensors are (CPU or another torch device).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from subnets.data import ArraySplit, Dataset, Images, Split
from subnets.errors import InputError
from subnets.passes import Pass
from subnets.pointwise import sound_gradients
from subnets.team import ALONE, Team

_CHUNK = 64  # batches that are augmented together on an accelerator
_LOOK = 50  # steps between two looks at the loss there, for each of which it must come to a halt


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
    sparsity: float = 0.0  # strength of the group lasso (subnets.sparsity); 0 = off
    sparsity_from: float = 0.7  # share of the run after which it acts

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
        if not 0 <= self.sparsity < math.inf:
            raise InputError(f"sparsity {self.sparsity} must be 0 (off) or above, and finite")
        if not 0 < self.sparsity_from < 1:
            raise InputError(f"sparsity from {self.sparsity_from} must lie between 0 and 1, a share of the run")
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


class Objective:
    """What one training step minimises; subclasses override :meth:`backward`.

    ``module`` holds every tensor that is trained, averaged and saved.
    """

    module: nn.Module

    def begin(self, average: Mapping[str, Tensor]) -> None:
        """Called once before the first step, also of a resumed run.

        Args:
            average: the moving average of ``module``'s tensors by name; it changes in place as the run goes on.
        """

    def backward(self, images: Tensor, labels: Tensor, share_done: float) -> Tensor:
        """Adds this batch's gradients and returns the loss (detached scalar).

        Args:
            images: [N, C, H, W], normalised.
            labels: [N].
            share_done: 0..1, how much of the run lies behind.
        """
        raise NotImplementedError

    def after_step(self, rate: float, share_done: float) -> None:
        """Called after the optimizer's step, before the average takes the new weights in.

        Args:
            rate: the step's learning rate.
            share_done: as the step's :meth:`backward` had it.
        """


class PlainObjective(Objective):
    """Cross-entropy of one network."""

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        self.module = network
        self._forward: Callable[[Tensor], Tensor] = torch.compile(network) if recipe.compile else network
        self._bf16 = recipe.precision == "bf16"
        self._pass = Pass(network, self._loss)

    def backward(self, images: Tensor, labels: Tensor, share_done: float) -> Tensor:
        """One forward and backward pass."""
        loss, _ = self._pass(images, labels)
        return loss

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._bf16):
            output = self._forward(images).float()
        return nn.functional.cross_entropy(output, labels), output


def to_tensor(images: np.ndarray[Any, np.dtype[np.uint8]], dataset: Dataset) -> Tensor:
    """uint8 [N, C, H, W] -> normalised float tensor of the same shape, channels last in memory."""
    return _normalised(torch.from_numpy(np.ascontiguousarray(images)), dataset)


def _normalised(images: Tensor, dataset: Dataset) -> Tensor:
    mean = torch.tensor(dataset.mean, device=images.device).view(-1, 1, 1)
    std = torch.tensor(dataset.std, device=images.device).view(-1, 1, 1)
    return images.float().div_(255.0).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


class _Draw(NamedTuple):
    """One batch by its numbers: which images, and where each row and column of them is read in the padded image."""

    indices: NDArray[np.int64]  # [n]
    rows: NDArray[np.int64]  # [n, H]
    columns: NDArray[np.int64]  # [n, W]


def _draws(
    split: Split, dataset: Dataset, size: tuple[int, int], batch_size: int, seed: int, epoch: int, team: Team
) -> Iterator[_Draw]:
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(split))
    count = min(batch_size, len(split))
    if count % team.count:
        raise InputError(f"a batch of {count} images cannot be shared by {team.count} processes; give a multiple")
    share = count // team.count
    mine = slice(team.rank * share, (team.rank + 1) * share)
    for start in range(0, len(order) - count + 1, count):
        shifts = random.integers(0, 2 * dataset.pad + 1, (2, count, 1))[:, mine]
        mirrored = (random.random(count) < 0.5)[mine] if dataset.flip else np.zeros(share, bool)
        rows, columns = shifts[0] + np.arange(size[0]), shifts[1] + np.arange(size[1])
        columns[mirrored] = columns[mirrored, ::-1]
        yield _Draw(order[start : start + count][mine], rows, columns)


def augmented(
    split: Split, dataset: Dataset, batch_size: int, seed: int, epoch: int, team: Team = ALONE
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, shifted and mirrored batches (all of the same size; the remainder is left out).

    In a team each process gets its own share of every batch; together they see what one alone would.

    Raises:
        InputError: a batch cannot be shared out equally.
    """
    for indices, rows, columns in _draws(split, dataset, dataset.shape[1:], batch_size, seed, epoch, team):
        images = _padded(split.read(indices), dataset.pad)
        picked = images[np.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        yield to_tensor(picked.transpose(0, 3, 1, 2), dataset), torch.from_numpy(split.labels[indices])


def _padded(images: Images, pad: int) -> Images:
    return np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad))) if pad else images


class Resident:
    """Images that lie on an accelerator and are shifted and mirrored there, so that it need not wait for the host.

    Args:
        split: held in memory; goes to the device whole.
        dataset: how its images are augmented and normalised.
        device: of torch.
    """

    def __init__(self, split: ArraySplit, dataset: Dataset, device: torch.device) -> None:
        self._split, self._dataset, self._device = split, dataset, device
        padded = _padded(split.images, dataset.pad).transpose(0, 2, 3, 1)
        self._images = torch.from_numpy(np.ascontiguousarray(padded)).to(device)
        self._labels = torch.from_numpy(split.labels).to(device)

    def augmented(self, batch_size: int, seed: int, epoch: int, team: Team = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of :func:`augmented`, on the device."""
        size = self._split.images.shape[2:]
        draws = _draws(self._split, self._dataset, size, batch_size, seed, epoch, team)
        while some := list(islice(draws, _CHUNK)):
            together = [np.concatenate(part) for part in zip(*some, strict=True)]
            indices, rows, columns = (torch.from_numpy(part).to(self._device) for part in together)
            picked = self._images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
            images = _normalised(picked.permute(0, 3, 1, 2), self._dataset)
            parts = len(some)
            yield from zip(images.chunk(parts), self._labels[indices].chunk(parts), strict=True)


class Checkpoint:
    """A run's state on disk; written whole or not at all.

    Args:
        path: the file.
        recipe: of the run; a checkpoint of another recipe is refused.
        options: what else must be the same, such as the objective's own numbers.
    """

    def __init__(self, path: Path, recipe: Recipe, options: Mapping[str, Any] | None = None) -> None:
        self.path, self.recipe, self.options = path, recipe, dict(options or {})

    def load(self) -> dict[str, Any] | None:
        """The state saved last, or None.

        Raises:
            InputError: the file is damaged or of another recipe.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch.load raises many kinds for a damaged file
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.path}: not a readable checkpoint ({why}); delete it to start over") from None
        if not isinstance(state, dict) or not isinstance(state.get("recipe"), dict):
            raise InputError(f"{self.path}: not a checkpoint of a training run; delete it to start over")
        # What a checkpoint of an earlier version does not name had its default (recipe) or is unknown (options).
        recipe = {**msgspec.to_builtins(Recipe(epochs=1)), **state["recipe"]}
        options = {**self.options, **state.get("options", {})}
        if (recipe, options) != (msgspec.to_builtins(self.recipe), self.options):
            raise InputError(f"{self.path}: this checkpoint is of another recipe; delete it or give the same options")
        return state

    def save(self, **state: Any) -> None:
        """Replaces what is on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        torch.save({**state, "recipe": msgspec.to_builtins(self.recipe), "options": self.options}, temporary)
        temporary.replace(self.path)


@sound_gradients()
def train(
    objective: Objective,
    dataset: Dataset,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    options: Mapping[str, Any] | None = None,
    team: Team = ALONE,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Runs ``recipe``; afterwards ``objective.module`` holds the averaged weights.

    Args:
        checkpoint: written after every epoch; when it is there, the run continues from it.
        options: the objective's own numbers; a checkpoint made with others is refused.
        team: the processes that share each batch; all must hold the same weights.
        on_step: called after every step.

    Raises:
        InputError: there are no training images, the checkpoint does not fit, or the loss is no longer a number.
    """
    if not len(dataset.train):
        raise InputError(f"data '{dataset.name}' has no training images; training needs some")
    module = objective.module
    device = next(module.parameters()).device
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
    store = Checkpoint(checkpoint, recipe, options) if checkpoint else None
    first, smooth = 0, math.nan
    if store and (state := store.load()):
        try:
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
            average = {name: state["average"][name].to(device) for name in average}
            first, smooth = state["epoch"] + 1, state["loss"]
        except (KeyError, ValueError, RuntimeError):
            raise InputError(f"{checkpoint}: this checkpoint is of another network; delete it to start over") from None
    objective.begin(average)
    values = [value for _, value in _floats(module)]
    host = device.type == "cpu"
    resident = Resident(dataset.train, dataset, device) if not host and isinstance(dataset.train, ArraySplit) else None
    step = first * per_epoch
    for epoch in range(first, recipe.epochs):
        module.train()
        order = (recipe.batch_size, recipe.seed, epoch, team)
        unseen: list[Tensor] = []
        for images, labels in resident.augmented(*order) if resident else augmented(dataset.train, dataset, *order):
            rate, share_done = recipe.rate(step, steps), step / steps
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            mean = objective.backward(images.to(device), labels.to(device), share_done)
            if team.count > 1:
                team.average([mean, *_reduced(module)])
            unseen.append(mean)
            if host or len(unseen) == _LOOK or (step + 1) % per_epoch == 0:
                for at, loss in enumerate(torch.stack(unseen).tolist(), step + 1 - len(unseen)):
                    if not math.isfinite(loss):
                        where = f"; the last good state is {checkpoint}" if store and epoch else ""
                        raise InputError(f"the loss is not a number at step {at}: lower the learning rate{where}")
                    smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
                unseen.clear()
            optimizer.step()
            objective.after_step(rate, share_done)
            step += 1
            _blend(average, values, min(recipe.average, step / (step + 10)))
            on_step(Progress(epoch=epoch, epochs=recipe.epochs, step=step, steps=steps, loss=smooth))
        if store and team.rank == 0:
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


def _reduced(module: nn.Module) -> Iterator[Tensor]:
    """What a team averages beside the loss: gradients, and the batch-norm statistics of its shares of the batch."""
    yield from (value.grad for value in module.parameters() if value.grad is not None)
    yield from (value for value in module.buffers() if value.is_floating_point())


@torch.no_grad()
def _blend(average: Mapping[str, Tensor], values: list[Tensor], decay: float) -> None:
    torch._foreach_lerp_(list(average.values()), values, 1 - decay)


@torch.no_grad()
def logits(network: Callable[[Tensor], Tensor], split: Split, dataset: Dataset, batch_size: int = 500) -> Tensor:
    """The network's answers for a whole split, f32: [N, classes]. The caller sets eval mode."""
    from subnets.data import batches

    device = _device(network)
    parts = [network(to_tensor(images, dataset).to(device)) for images, _ in batches(split, batch_size)]
    return torch.cat([part.float().cpu() for part in parts])


def _device(network: Callable[[Tensor], Tensor]) -> torch.device:
    return next(network.parameters()).device if isinstance(network, nn.Module) else torch.device("cpu")


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
        network(images.to(_device(network)))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    network.eval()
