"""What there is to run: studies, their arms, epochs and seeds, as data.

An arm is one way to come by a ladder of subnets. Within a study all arms have the same pretrained network (per seed),
the same number of epochs after it, and the same recipe; a network that is trained alone from scratch has both together.
Change an epoch here and everything runs anew: a record knows the plan it was made by.
"""

from __future__ import annotations

import msgspec

from subnets.allocation import Limits
from subnets.joint import JointOptions
from subnets.sampling import SampleOptions
from subnets.training import Recipe

WAYS = ("joint", "alone", "fine-tuned")


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How long: epochs of pretraining and of what comes after, with their peak learning rates."""

    pretrain_epochs: int
    pretrain_rate: float
    epochs: int
    rate: float
    batch_size: int = 128
    precision: str = "bf16"
    compile: bool = True

    def pretraining(self, seed: int, sparsity: float) -> Recipe:
        """Of the network that all arms of a seed share."""
        return self._recipe(self.pretrain_epochs, self.pretrain_rate, seed, sparsity)

    def training(self, seed: int) -> Recipe:
        """Of what follows, joint or each subnet by itself."""
        return self._recipe(self.epochs, self.rate, seed)

    def from_scratch(self, seed: int) -> Recipe:
        """Of a subnet that is trained alone from scratch: as many epochs as the others have in all."""
        return self._recipe(self.pretrain_epochs + self.epochs, self.pretrain_rate, seed)

    def _recipe(self, epochs: int, rate: float, seed: int, sparsity: float = 0.0) -> Recipe:
        return Recipe(
            epochs=epochs,
            learning_rate=rate,
            batch_size=self.batch_size,
            precision=self.precision,
            compile=self.compile,
            sparsity=sparsity,
            seed=seed,
        )


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One way to come by the subnets."""

    name: str
    what: str
    sampling: SampleOptions
    joint: JointOptions = JointOptions()
    way: str = "joint"  # or "alone" (each subnet from scratch), "fine-tuned" (each cut from the pretrained network)
    match: str = ""  # the arm whose subnets' MACs are this one's budgets, so that both cost the same
    sparsity: float = 0.0  # of the pretraining
    latency: bool = False  # measure the subnets' latency on OpenVINO, too


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """Arms that are compared with each other."""

    name: str
    question: str
    network: str
    data: str  # "cifar10" or "imagenette"
    arms: tuple[Arm, ...]
    cpu: Schedule  # where there is no accelerator
    accelerator: Schedule
    seeds: tuple[int, ...] = (0, 1, 2)  # the first comes first; more where a claim rests on less than half a point
    image_size: int = 224  # for image folders

    def schedule(self, device: str) -> Schedule:
        """For that device."""
        return self.cpu if device == "cpu" else self.accelerator

    def arm(self, name: str) -> Arm:
        """The arm of that name (KeyError where there is none)."""
        return {arm.name: arm for arm in self.arms}[name]


_QUARTERS = (0.25, 0.5, 0.75, 1.0)
_NINE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_PAPERS_SHARES = (0.2, 0.4, 0.66, 1.0)
_OURS = SampleOptions(budgets=_QUARTERS, limits=Limits(align=8))
_UNIFORM = SampleOptions(budgets=_QUARTERS, allocation="uniform", limits=Limits(align=1), sort=False)
_EVERY = JointOptions()
_SLIMMABLE = JointOptions(soft=0.0)
_US_NETS = JointOptions(soft=1.0, affine="shared", middle=2)
# By arithmetic, not tuned: over the last 30 % of 10 epochs all proximal steps together take 0.8 to 1.6 off a norm.
_SPARSITY = 2.6e-3

# Sized to two cores.
_CIFAR_CPU = Schedule(pretrain_epochs=10, pretrain_rate=0.2, epochs=4, rate=0.05)
_CIFAR_SHORT = Schedule(pretrain_epochs=10, pretrain_rate=0.2, epochs=2, rate=0.04)
# Sized to seven minutes of one data-centre GPU for all arms and seeds that are recorded.
_CIFAR_LONG = Schedule(pretrain_epochs=12, pretrain_rate=0.4, epochs=10, rate=0.1, batch_size=256, compile=False)
_IMAGES_CPU = Schedule(pretrain_epochs=20, pretrain_rate=0.1, epochs=10, rate=0.05, batch_size=64)
_IMAGES_LONG = Schedule(pretrain_epochs=100, pretrain_rate=0.1, epochs=60, rate=0.05, batch_size=64)


def _but(**changes: object) -> SampleOptions:
    return msgspec.structs.replace(_OURS, **changes)


def _controls(sampling: SampleOptions, uniform: SampleOptions) -> tuple[Arm, ...]:
    """The arms of a study of joint training against its controls."""
    return (
        Arm(name="joint", what="ours: non-uniform widths, all subnets in one weight set", sampling=sampling),
        Arm(name="uniform", what="the same training, but uniform widths", sampling=uniform, match="joint"),
        Arm(
            name="slimmable",
            what="slimmable networks: uniform, labels only",
            sampling=uniform,
            joint=_SLIMMABLE,
            match="joint",
        ),
        Arm(
            name="us-nets",
            what="universally slimmable: uniform, distillation only, shared affine, sandwich with two in the middle",
            sampling=uniform,
            joint=_US_NETS,
            match="joint",
        ),
        Arm(name="alone", what="our widths, each subnet trained alone from scratch", sampling=sampling, way="alone"),
        Arm(
            name="fine-tuned",
            what="our widths, each subnet cut from the pretrained network and trained on alone",
            sampling=sampling,
            way="fine-tuned",
        ),
    )


_PER_MS = _but(allocation="latency", budgets=(0.55, 0.7, 0.85, 1.0))
_PAPER = _but(score="norm", allocation="threshold", limits=Limits(align=1))

STUDIES: tuple[Study, ...] = (
    Study(
        name="nine",
        question="Are nine nested subnets of one weight set monotone in accuracy? (the paper's Figure 9)",
        network="resnet20",
        data="cifar10",
        cpu=_CIFAR_CPU,
        accelerator=_CIFAR_LONG,
        arms=(
            Arm(
                name="joint",
                what="nine subnets in one weight set; smallest, largest and two between them in each step",
                sampling=_but(budgets=_NINE, limits=Limits(align=4)),
                joint=JointOptions(middle=2),
            ),
            Arm(
                name="paper",
                what="the same, sampled as the paper does: group lasso, norms, one threshold",
                sampling=msgspec.structs.replace(_PAPER, budgets=_NINE),
                joint=JointOptions(middle=2),
                sparsity=_SPARSITY,
            ),
        ),
    ),
    Study(
        name="four",
        question="Is a subnet of the joint weight set as good as the same one trained alone, and better than uniform?",
        network="resnet20",
        data="cifar10",
        cpu=_CIFAR_CPU,
        accelerator=_CIFAR_LONG,
        arms=_controls(_OURS, _UNIFORM),
    ),
    Study(
        name="ablations",
        question="What does each part of the method contribute?",
        network="resnet20",
        data="cifar10",
        cpu=_CIFAR_SHORT,
        accelerator=_CIFAR_LONG,
        arms=(
            Arm(name="base", what="Taylor scores, greedy by loss per MAC, sorted, distilled", sampling=_OURS),
            Arm(name="score-norm", what="scores: group L2 norm", sampling=_but(score="norm")),
            Arm(
                name="score-norm-sparse",
                what="scores: group L2 norm after a sparsity phase",
                sampling=_but(score="norm"),
                sparsity=_SPARSITY,
            ),
            Arm(name="score-scale", what="scores: batch-norm's scale", sampling=_but(score="scale")),
            Arm(name="score-noise", what="scores: trainable noise", sampling=_but(score="noise")),
            Arm(name="by-type", what="Taylor scores normalised by type of layer", sampling=_but(normalise="type")),
            Arm(name="not-per-mac", what="greedy by score alone, not per MAC", sampling=_but(per_mac=False)),
            Arm(name="threshold", what="one global threshold", sampling=_but(allocation="threshold")),
            Arm(
                name="paper",
                what="the paper: group lasso, norms, one threshold",
                sampling=_PAPER,
                sparsity=_SPARSITY,
            ),
            Arm(
                name="progressive",
                what="progressive search with re-selection, nominated by noise",
                sampling=_but(score="noise", allocation="progressive"),
            ),
            Arm(
                name="per-ms",
                what="greedy by loss per measured ms, budgets in ms",
                sampling=_PER_MS,
                latency=True,
            ),
            Arm(name="unsorted", what="channels as training left them", sampling=_but(sort=False)),
            Arm(name="no-distillation", what="labels only", sampling=_OURS, joint=JointOptions(soft=0.0)),
            Arm(
                name="teacher-frozen",
                what="the pretrained network as the teacher",
                sampling=_OURS,
                joint=JointOptions(teacher="frozen"),
            ),
            Arm(
                name="teacher-averaged",
                what="the averaged full network as the teacher",
                sampling=_OURS,
                joint=JointOptions(teacher="averaged"),
            ),
            Arm(
                name="shared-affine",
                what="batch-norm's scale and shift shared (statistics private)",
                sampling=_OURS,
                joint=JointOptions(affine="shared"),
            ),
            Arm(name="heads", what="a classifier of its own for each", sampling=_OURS, joint=JointOptions(heads=True)),
            Arm(
                name="nine",
                what="nine subnets instead of four, two of the middle ones in each step",
                sampling=_but(budgets=_NINE, limits=Limits(align=4)),
                joint=JointOptions(middle=2),
            ),
            Arm(
                name="interiors",
                what="only channels inside blocks are cut",
                sampling=_but(budgets=(0.3, 0.5, 0.75, 1.0), limits=Limits(align=4, space="interiors")),
            ),
            Arm(
                name="stages-30",
                what="stages, too, at the same budgets (interiors cannot reach a quarter)",
                sampling=_but(budgets=(0.3, 0.5, 0.75, 1.0), limits=Limits(align=4)),
            ),
        ),
    ),
    Study(
        name="imagenette",
        question="Does it hold for ResNet-18 on ten classes of ImageNet?",
        network="resnet18",
        data="imagenette",
        image_size=128,
        cpu=_IMAGES_CPU,
        accelerator=_IMAGES_LONG,
        arms=_controls(
            SampleOptions(budgets=_PAPERS_SHARES, limits=Limits(align=16)),
            SampleOptions(budgets=_PAPERS_SHARES, allocation="uniform", limits=Limits(align=1), sort=False),
        ),
    ),
    Study(
        name="per-ms",
        question="At equal measured latency on OpenVINO: is allocating milliseconds better than allocating MACs?",
        network="resnet20",
        data="cifar10",
        cpu=_CIFAR_CPU,
        accelerator=_CIFAR_LONG,
        arms=(
            Arm(name="per-mac", what="greedy by loss per MAC, budgets in MACs", sampling=_OURS, latency=True),
            Arm(
                name="per-ms",
                what="greedy by loss per measured ms, budgets in ms",
                sampling=_PER_MS,
                latency=True,
            ),
        ),
    ),
)


def study(name: str) -> Study:
    """The study of that name (KeyError where there is none)."""
    return {each.name: each for each in STUDIES}[name]
