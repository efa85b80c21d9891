"""The training loop: order, schedule, averages, resuming, and batch-norm statistics."""

import math
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from subnets import architectures, training
from subnets.data import ArraySplit, Dataset
from subnets.errors import InputError
from subnets.groups import trace
from subnets.joint import JointObjective, JointOptions
from subnets.spec import Ladder, SubnetSpec
from subnets.supernet import Supernet
from subnets.team import Team
from subnets.training import (
    Objective,
    PlainObjective,
    Recipe,
    accuracy,
    augmented,
    logits,
    recalibrate,
    to_tensor,
    train,
)


def plan(**changes):
    return Recipe(**{"epochs": 2, "batch_size": 8, "precision": "f32", "compile": False, "warmup": 0.1, **changes})


@pytest.fixture
def noise():
    random = np.random.default_rng(0)

    def split(count):
        images = random.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8)
        return ArraySplit(images, random.integers(0, 3, count))

    parts = {"train": split(36), "validation": split(6), "test": split(6)}
    return Dataset(name="noise", classes=("a", "b", "c"), mean=(0.5,), std=(0.25,), pad=1, flip=True, **parts)


def tinynet():
    torch.manual_seed(1)
    return architectures.build("tinynet", num_classes=3, width=4)


def joint(recipe, middle=1):
    network = tinynet()
    traced = trace(network, (1, 16, 16))
    widths = [{g.name: g.width * k // 4 for g in traced.groups} for k in (1, 2, 3, 4)]
    ladder = Ladder([SubnetSpec(f"s{k}", w) for k, w in enumerate(widths)])
    return JointObjective(Supernet(network, traced.groups, ladder), recipe, JointOptions(middle=middle))


def plain(recipe):
    return PlainObjective(tinynet(), recipe)


PROGRAM = """
import os, signal, sys
from pathlib import Path
import msgspec
import torch
torch.set_num_threads(1)
from subnets import architectures
from subnets.allocation import Limits, allocate
from subnets.data import ArraySplit, digits
from subnets.groups import trace
from subnets.importance import norm_scores
from subnets.joint import JointObjective, JointOptions
from subnets.supernet import Supernet
from subnets.training import Recipe, train

full = digits()
few = msgspec.structs.replace(full, train=ArraySplit(full.train.images[:64], full.train.labels[:64]))
recipe = Recipe(epochs=3, batch_size=32, learning_rate=0.05, precision="f32", compile=False)

def run(checkpoint, kill_at=0):
    torch.manual_seed(0)
    network = architectures.build("tinynet", width=4)
    traced = trace(network, (1, 16, 16))
    ladder = allocate("uniform", traced, {}, [0.3, 0.6, 1.0], Limits(align=1))
    options = JointOptions(teacher="averaged", middle=0)
    objective = JointObjective(Supernet(network, traced.groups, ladder), recipe, options)
    def on_step(progress):
        if progress.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    train(objective, few, recipe, checkpoint=checkpoint, on_step=on_step)
    return objective.module.state_dict()

place = Path(sys.argv[1])
if not place.exists():
    run(place, kill_at=5)  # the last step but one of three epochs of two
assert torch.load(place, weights_only=True)["epoch"] == 1
killed, through = run(place), run(None)
assert all(torch.equal(through[name], killed[name]) for name in through)
print("EQUAL")
"""


def test_a_run_that_was_killed_and_started_again_ends_with_the_same_bits(root, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run.checkpoint")]
    first, second = (subprocess.run(command, cwd=root, check=False, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, first.stderr) == (-signal.SIGKILL, "")
    assert second.stdout == "EQUAL\n", second.stderr


class Stopped(Exception):
    pass


@pytest.mark.parametrize("make", [plain, joint])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(noise, tmp_path, make):
    recipe = plan(epochs=3, learning_rate=0.05)
    through = make(recipe)
    train(through, noise, recipe)

    def stop(progress):
        if progress.step == 10:  # in the third of three epochs of four steps
            raise Stopped

    first, second = make(recipe), make(recipe)
    with pytest.raises(Stopped):
        train(first, noise, recipe, checkpoint=tmp_path / "run.checkpoint", on_step=stop)
    steps = []
    train(second, noise, recipe, checkpoint=tmp_path / "run.checkpoint", on_step=steps.append)
    assert [state.step for state in steps] == [9, 10, 11, 12]
    expected = through.module.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in second.module.state_dict().items())


def test_progress_counts_steps_and_the_first_loss_is_the_objectives_own(noise):
    recipe, seen = plan(learning_rate=1e-9), []
    objective = plain(recipe)
    images, labels = next(augmented(noise.train, noise, 8, 0, 0))
    expected = float(nn.functional.cross_entropy(tinynet().train()(images), labels).detach())
    train(objective, noise, recipe, on_step=seen.append)
    assert [(state.epoch, state.step) for state in seen] == [(k // 4, k + 1) for k in range(8)]
    assert {(state.epochs, state.steps) for state in seen} == {(2, 8)}
    assert seen[0].loss == pytest.approx(expected, rel=1e-5)
    assert not objective.module.training


class _Scripted(nn.Module):
    """One weight whose gradient is always 1 and one buffer that counts."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros(()))


class _Script(Objective):
    def __init__(self, losses=()):
        self.module, self.losses = _Scripted(), list(losses)

    def backward(self, images, labels, share_done):
        self.module.weight.sum().backward()
        self.module.seen += 1
        return torch.tensor(self.losses.pop(0) if self.losses else 1.0)


def test_the_average_of_the_weights_follows_its_closed_form(noise):
    recipe = plan(epochs=3, learning_rate=0.5, momentum=0.0, average=0.7, weight_decay=0.0)
    objective = _Script()
    train(objective, noise, recipe)
    weight, average, counted = 0.0, 0.0, 0.0
    for step in range(12):
        weight -= recipe.rate(step, 12)
        decay = min(0.7, (step + 1) / (step + 11))
        average = decay * average + (1 - decay) * weight
        counted = decay * counted + (1 - decay) * (step + 1)
    assert float(objective.module.weight.detach()) == pytest.approx(average, rel=1e-5)
    assert float(objective.module.seen) == pytest.approx(counted, rel=1e-5)


def test_without_an_average_the_last_weights_stay(noise):
    recipe = plan(epochs=1, learning_rate=0.5, momentum=0.0, average=0.0)
    objective = _Script()
    train(objective, noise, recipe)
    assert float(objective.module.weight.detach()) == pytest.approx(-sum(recipe.rate(step, 4) for step in range(4)))
    assert float(objective.module.seen) == 4


def test_weight_decay_spares_biases_and_batch_norm(noise):
    class Two(_Scripted):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(2, 2))

    objective = _Script()
    objective.module = Two()
    objective.module.weight.data.fill_(1.0)
    objective.backward = lambda *ignored: (
        (0 * sum(p.sum() for p in objective.module.parameters())).backward() or (torch.tensor(1.0))
    )
    recipe = plan(epochs=1, learning_rate=0.1, momentum=0.0, average=0.0, weight_decay=0.5)
    train(objective, noise, recipe)
    shrunk = math.prod(1 - 0.5 * recipe.rate(step, 4) for step in range(4))
    assert float(objective.module.weight.detach()) == 1.0
    torch.testing.assert_close(objective.module.matrix.detach(), torch.full((2, 2), shrunk))


def test_the_rate_warms_up_linearly_and_falls_to_zero_along_a_cosine():
    recipe = plan(learning_rate=0.4, warmup=0.1)
    assert [recipe.rate(step, 40) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert recipe.rate(4, 40) == pytest.approx(0.4)
    assert recipe.rate(22, 40) == pytest.approx(0.2)
    assert recipe.rate(13, 40) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert recipe.rate(40, 40) == pytest.approx(0.0)
    assert 0 < recipe.rate(39, 40) < 1e-3
    assert recipe.rate(0, 1) == pytest.approx(0.4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_state(noise, tmp_path, bad):
    place = tmp_path / "run.checkpoint"
    with pytest.raises(InputError, match=r"not a number at step 1: lower the learning rate$"):
        train(_Script([1.0, bad]), noise, plan(), checkpoint=place)
    assert not place.exists()
    with pytest.raises(InputError, match=f"at step 5: lower the learning rate; the last good state is {place}"):
        train(_Script([1.0] * 5 + [bad]), noise, plan(), checkpoint=place)
    assert torch.load(place, weights_only=True)["epoch"] == 0


class TestCheckpoints:
    @pytest.fixture
    def place(self, noise, tmp_path):
        recipe = plan(epochs=1)
        train(plain(recipe), noise, recipe, checkpoint=tmp_path / "run.checkpoint")
        return tmp_path / "run.checkpoint"

    def test_one_of_another_recipe_is_refused(self, noise, place):
        with pytest.raises(InputError, match=f"{place}: this checkpoint is of another recipe"):
            train(plain(plan(seed=1)), noise, plan(epochs=1, seed=1), checkpoint=place)

    def test_one_with_other_options_is_refused(self, noise, place):
        recipe = plan(epochs=1)
        train(plain(recipe), noise, recipe, checkpoint=place, options={"middle": 1})  # which the file did not know
        place.unlink()
        train(plain(recipe), noise, recipe, checkpoint=place, options={"middle": 1})
        with pytest.raises(InputError, match="of another recipe"):
            train(plain(recipe), noise, recipe, checkpoint=place, options={"middle": 2})

    def test_one_from_before_there_was_a_sparsity_phase_goes_on_where_there_is_none(self, noise, place):
        state = torch.load(place, weights_only=True)
        del state["recipe"]["sparsity"], state["recipe"]["sparsity_from"], state["options"]
        torch.save(state, place)
        steps, recipe = [], plan(epochs=1)
        train(plain(recipe), noise, recipe, checkpoint=place, on_step=steps.append)
        assert steps == []  # it was whole
        sparse = plan(epochs=1, sparsity=1e-3)
        with pytest.raises(InputError, match="of another recipe"):
            train(plain(sparse), noise, sparse, checkpoint=place)

    def test_one_of_another_network_is_refused(self, noise, place):
        with pytest.raises(InputError, match=f"{place}: this checkpoint is of another network"):
            train(_Script(), noise, plan(epochs=1), checkpoint=place)

    def test_a_truncated_one_is_refused(self, noise, place):
        place.write_bytes(place.read_bytes()[:400])
        with pytest.raises(InputError, match=f"{place}: not a readable checkpoint"):
            train(plain(plan(epochs=1)), noise, plan(epochs=1), checkpoint=place)

    def test_another_torch_file_is_refused(self, noise, place):
        torch.save({"weight": torch.zeros(1)}, place)
        with pytest.raises(InputError, match=f"{place}: not a checkpoint of a training run"):
            train(plain(plan(epochs=1)), noise, plan(epochs=1), checkpoint=place)

    def test_a_pickle_with_code_is_refused_and_not_run(self, noise, place, tmp_path):
        import pickle

        class Evil:
            def __reduce__(self):
                import os

                return os.system, (f"touch {tmp_path}/owned",)

        place.write_bytes(pickle.dumps(Evil(), protocol=2))
        with pytest.raises(InputError, match="not a readable checkpoint"):
            train(plain(plan(epochs=1)), noise, plan(epochs=1), checkpoint=place)
        assert not (tmp_path / "owned").exists()


class TestOrder:
    def batch_list(self, noise, **changes):
        arguments = {"batch_size": 8, "seed": 3, "epoch": 5, **changes}
        return [(images.numpy(), labels.numpy()) for images, labels in augmented(noise.train, noise, **arguments)]

    def test_it_depends_on_seed_and_epoch_alone(self, noise):
        first, again = self.batch_list(noise), self.batch_list(noise)
        assert len(first) == 4  # 36 images; four are left out
        assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
        for changed in (self.batch_list(noise, seed=4), self.batch_list(noise, epoch=6)):
            assert not np.array_equal(first[0][0], changed[0][0])

    def test_each_image_is_some_shift_and_mirror_of_one_not_seen_before_in_the_epoch(self, noise):
        padded = np.pad(noise.train.images, ((0, 0), (0, 0), (1, 1), (1, 1)))
        variants = {}
        for index in range(36):
            for row in range(3):
                for column in range(3):
                    crop = padded[index, :, row : row + 16, column : column + 16]
                    variants[crop.tobytes()] = variants[crop[:, :, ::-1].tobytes()] = index
        seen, kinds = [], set()
        for images, labels in self.batch_list(noise):
            pixels = np.round((images * 0.25 + 0.5) * 255).astype(np.uint8)
            for image, label in zip(pixels, labels, strict=True):
                seen.append(variants[np.ascontiguousarray(image).tobytes()])
                kinds.add(image.tobytes() == noise.train.images[seen[-1]].tobytes())
                assert label == noise.train.labels[seen[-1]]
        assert len(set(seen)) == len(seen) == 32 and kinds == {True, False}

    @pytest.mark.parametrize("team", [Team(), Team(1, 2)])
    @pytest.mark.parametrize("changes", [{}, {"pad": 0, "flip": False}])
    def test_images_that_lie_on_a_device_come_in_the_same_batches(self, noise, changes, team, monkeypatch):
        monkeypatch.setattr(training, "_CHUNK", 3)  # four batches: one whole chunk, one begun
        data = msgspec.structs.replace(noise, **changes)
        resident = training.Resident(data.train, data, torch.device("cpu"))
        ours, theirs = resident.augmented(8, 3, 5, team), augmented(data.train, data, 8, 3, 5, team)
        pairs = list(zip(ours, theirs, strict=True))
        assert len(pairs) == 4 and len(pairs[0][0][1]) == 8 // team.count
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)
        assert all(a[0].is_contiguous(memory_format=torch.channels_last) for a, _ in pairs)

    def test_without_augmentation_images_come_as_they_are(self, noise):
        still = msgspec.structs.replace(noise, pad=0, flip=False)
        images, labels = next(augmented(still.train, still, 100, 0, 0))
        assert images.shape == (36, 1, 16, 16)  # a batch is never larger than the split
        order = [
            next(k for k in range(36) if torch.equal(to_tensor(noise.train.images[k : k + 1], noise)[0], image))
            for image in images
        ]
        assert sorted(order) == list(range(36)) and np.array_equal(noise.train.labels[order], labels.numpy())

    def test_no_training_images_are_refused(self, noise):
        empty = msgspec.structs.replace(noise, train=ArraySplit(noise.train.images[:0], noise.train.labels[:0]))
        with pytest.raises(InputError, match="no training images"):
            train(plain(plan()), empty, plan())


def test_recalibrated_statistics_are_the_plain_mean_of_batch_statistics(noise):
    network = tinynet()
    with torch.no_grad():
        network.bn1.running_mean.fill_(50.0)
    means, variances = [], []

    def watch(module, inputs):
        means.append(inputs[0].detach().mean((0, 2, 3)))
        variances.append(inputs[0].detach().transpose(0, 1).flatten(1).var(1, unbiased=True))

    handle = network.layer2[0].bn1.register_forward_pre_hook(watch)
    recalibrate(network, noise, batch_count=5, batch_size=12)
    handle.remove()
    assert len(means) == 5  # two passes: three batches an epoch
    norm = network.layer2[0].bn1
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), atol=1e-5, rtol=1e-4)
    assert norm.momentum == 0.1 and not network.training


def test_recalibration_touches_statistics_only(noise):
    network = tinynet()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    recalibrate(network, noise, batch_count=2, batch_size=12)
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())


def test_logits_cover_the_split_in_order_and_accuracy_counts_hits(noise):
    network = tinynet().eval()
    whole, parts = (logits(network, noise.train, noise, batch_size=size) for size in (100, 7))
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
    hits = [int(np.argmax(row)) == label for row, label in zip(whole.numpy(), noise.train.labels, strict=True)]
    assert accuracy(whole, noise.train) == pytest.approx(sum(hits) / 36)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs 0 is too small"),
        ({"batch_size": 0}, "batch_size 0 is too small"),
        ({"precision": "f16"}, "'f16' is unknown; use 'bf16' or 'f32'"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"learning_rate": float("nan")}, "must be above 0"),
        ({"learning_rate": float("inf")}, "finite"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"sparsity": -1e-4}, "sparsity -0.0001 must be 0"),
        ({"sparsity": float("inf")}, "finite"),
        ({"sparsity_from": 1.0}, "sparsity from 1.0 must lie between 0 and 1"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        plan(**wrong).check()
