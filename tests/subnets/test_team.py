"""Two gloo processes against one: the same gradients, the same run."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from subnets.data import ArraySplit, Dataset
from subnets.errors import InputError
from subnets.groups import trace
from subnets.joint import JointObjective, JointOptions
from subnets.spec import Ladder, SubnetSpec
from subnets.supernet import Supernet
from subnets.team import ALONE, Team, joined
from subnets.training import Recipe, augmented, train

RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.05, precision="f32", compile=False, seed=4)


class Plain(nn.Module):
    """No batch-norm: the gradient of a batch is the mean of its shares' gradients."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class Normed(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.fc(torch.relu(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3)))


def noise():
    random = np.random.default_rng(0)
    split = ArraySplit(random.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8), random.integers(0, 3, 20))
    parts = {"train": split, "validation": split, "test": split}
    return Dataset(name="noise", classes=("a", "b", "c"), mean=(0.5,), std=(0.3,), pad=1, flip=True, **parts)


def objective(network, recipe=RECIPE):
    torch.manual_seed(1)
    traced = trace(network().eval(), (1, 8, 8))
    ladder = Ladder([SubnetSpec(f"s{k}", {g.name: k for g in traced.groups}) for k in (2, 4, 6, 8)])
    torch.manual_seed(1)
    return JointObjective(Supernet(network(), traced.groups, ladder), recipe, JointOptions(middle=1))


def state_after_training(network, team=ALONE, checkpoint=None):
    made = objective(network)
    train(made, noise(), RECIPE, team=team, checkpoint=checkpoint)
    return made.module.state_dict()


def gradients(made):
    return {name: value.grad for name, value in made.module.named_parameters() if value.grad is not None}


def in_a_process_of_a_team(folder):
    """What each of the two processes runs."""
    exchanges = []
    reduce = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda *given: (exchanges.append(1), reduce(*given))[1]
    with joined() as team:
        assert team.count == 2
        for network in (Plain, Normed):
            state = state_after_training(network, team, folder / f"{network.__name__}.checkpoint")
            torch.save(state, folder / f"{network.__name__}.{team.rank}.pt")
        made = objective(Normed)
        images, labels = next(augmented(noise().train, noise(), 8, 4, 0, team))
        made.backward(images, labels, 0.0)
        team.average(gradients(made).values())
        torch.save(gradients(made), folder / f"gradients.{team.rank}.pt")
        team.wait()
    # one a step: two runs of two epochs of two steps, and the one above
    assert len(exchanges) == 2 * 2 * 2 + 1, exchanges


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Both processes' results, as files in a folder."""
    import socket

    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        "import importlib.util, pathlib, sys, torch; torch.set_num_threads(1);"
        "spec = importlib.util.spec_from_file_location('two', sys.argv[1]);"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "module.in_a_process_of_a_team(pathlib.Path(sys.argv[2]))"
    )
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared["GLOO_SOCKET_IFNAME"] = "lo"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, __file__, str(folder)],
            env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    return folder


def load(folder, name):
    return torch.load(folder / name, weights_only=True)


def test_a_team_without_batch_norm_trains_as_one_process_does(two):
    alone = state_after_training(Plain)
    for rank in range(2):
        for name, value in load(two, f"Plain.{rank}.pt").items():
            torch.testing.assert_close(value, alone[name], atol=1e-6, rtol=1e-5)


def test_with_batch_norm_gradients_are_the_mean_over_the_shares_of_the_batch(two):
    """Of one process that runs both shares, one after the other."""
    shares = []
    for rank in range(2):
        made = objective(Normed)
        images, labels = next(augmented(noise().train, noise(), 8, 4, 0, Team(rank, 2)))
        made.backward(images, labels, 0.0)
        shares.append(gradients(made))
    found = [load(two, f"gradients.{rank}.pt") for rank in range(2)]
    for name in shares[0]:
        expected = (shares[0][name] + shares[1][name]) / 2
        torch.testing.assert_close(found[0][name], expected, atol=1e-7, rtol=1e-5)
        assert torch.equal(found[0][name], found[1][name])


def test_all_processes_hold_the_same_weights_and_statistics(two):
    for network in ("Plain", "Normed"):
        first, second = (load(two, f"{network}.{rank}.pt") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_shares_together_are_the_batch_that_one_process_sees():
    dataset = noise()
    whole = list(augmented(dataset.train, dataset, 8, 3, 1))
    shares = [list(augmented(dataset.train, dataset, 8, 3, 1, Team(rank, 4))) for rank in range(4)]
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([share[step][0] for share in shares]), images)
        assert torch.equal(torch.cat([share[step][1] for share in shares]), labels)


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(InputError, match="a batch of 8 images cannot be shared by 3 processes"):
        next(augmented(noise().train, noise(), 8, 0, 0, Team(0, 3)))


def test_without_torchrun_one_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as team:
        assert team is ALONE
        value = torch.ones(3)
        team.average([value])
        team.wait()
        assert torch.equal(value, torch.ones(3))
