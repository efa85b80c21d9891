"""The joint objective: what each step sums, and which subnets it takes."""

import copy

import pytest
import torch
from torch import nn

from subnets.errors import InputError
from subnets.groups import trace
from subnets.joint import JointObjective, JointOptions
from subnets.spec import Ladder, SubnetSpec
from subnets.supernet import Supernet
from subnets.teachers import teacher
from subnets.training import Recipe

RECIPE = Recipe(epochs=1, precision="f32", compile=False)


def ladder_of(traced, rungs):
    return Ladder(
        [
            SubnetSpec(f"s{k}", {g.name: max(1, g.width * k // rungs) for g in traced.groups})
            for k in range(1, rungs + 1)
        ]
    )


@pytest.fixture
def make(nets):
    def supernet(rungs=3):
        network = nets.tiny()
        traced = trace(network, (1, 16, 16))
        return Supernet(network, traced.groups, ladder_of(traced, rungs)).train()

    return supernet


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(2)
    return torch.randn(6, 1, 16, 16, generator=random), torch.randint(0, 10, (6,), generator=random)


def grads(module):
    return {
        name: value.grad.clone() if value.grad is not None else torch.zeros_like(value)
        for name, value in module.named_parameters()
    }


def test_gradients_are_the_sum_of_those_of_plain_networks_trained_apart(make, batch):
    """Independent: each subnet as a plain network of its own; its gradients are padded back and added by hand."""
    supernet, (images, labels) = make(), batch
    plain = {name: supernet.extract(name).train() for name in supernet.ladder.names}
    teacher = plain["s3"](images)
    loss = nn.functional.cross_entropy(teacher, labels)
    losses = [loss]
    loss.backward()
    soft = nn.functional.softmax(teacher, 1).detach()
    for name in ("s1", "s2"):
        answer = plain[name](images)
        distilled = -(soft * nn.functional.log_softmax(answer, 1)).sum(1).mean()
        losses.append(0.7 * distilled + 0.3 * nn.functional.cross_entropy(answer, labels))
        losses[-1].backward()
    found = JointObjective(supernet, RECIPE, JointOptions(soft=0.7)).backward(images, labels, 0.0)
    assert float(found) == pytest.approx(sum(float(loss.detach()) for loss in losses) / 3, rel=1e-5)
    assert not found.requires_grad
    joint = grads(supernet)
    for key, gradient in joint.items():
        owner, _, tensor = key.replace("|", ".").partition("/")
        expected = torch.zeros_like(gradient)
        for name, network in plain.items():
            if owner in ("shared", name):
                part = network.get_parameter(tensor).grad
                expected[tuple(slice(0, length) for length in part.shape)] += part
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_the_teacher_learns_from_labels_alone(make, batch):
    """The full subnet's private batch-norm sees only its own loss: no gradient comes back through the soft target."""
    supernet, (images, labels) = make(2), batch
    alone = copy.deepcopy(supernet.extract("s2")).train()
    nn.functional.cross_entropy(alone(images), labels).backward()
    JointObjective(supernet, RECIPE, JointOptions(soft=1.0)).backward(images, labels, 0.0)
    private = grads(supernet)["s2/bn1|weight"]
    torch.testing.assert_close(private, alone.bn1.weight.grad, atol=1e-6, rtol=1e-4)


def test_smallest_and_largest_are_in_every_step_and_each_middle_one_in_some(make):
    objective = JointObjective(make(5), RECIPE, JointOptions(middle=1))
    chosen = [objective._chosen(step / 60) for step in range(60)]
    assert all(names[0] == "s1" and len(names) == 2 and "s5" not in names for names in chosen)
    assert {names[1] for names in chosen} == {"s2", "s3", "s4"}


@pytest.mark.parametrize(("middle", "expected"), [(0, {"s1"}), (None, {"s1", "s2", "s3"}), (9, {"s1", "s2", "s3"})])
def test_a_step_runs_as_many_middle_subnets_as_asked(make, batch, middle, expected):
    supernet = make(4)
    JointObjective(supernet, RECIPE, JointOptions(middle=middle)).backward(*batch, 0.5)
    touched = {key.partition("/")[0] for key, value in supernet.named_parameters() if value.grad is not None}
    assert touched == {"shared", "s4", *expected}


def test_the_choice_depends_on_seed_and_step_alone(make):
    supernet = make(5)
    steps = [step / 77 for step in range(40)]
    first, again = (JointObjective(supernet, RECIPE, JointOptions(middle=1)) for _ in range(2))
    whole = [first._chosen(step) for step in steps]
    assert [again._chosen(step) for step in steps[20:]] == whole[20:]  # as a resumed run would
    other = JointObjective(supernet, Recipe(epochs=1, precision="f32", compile=False, seed=1), JointOptions(middle=1))
    assert [other._chosen(step) for step in steps] != whole


@pytest.mark.parametrize("rungs", [1, 2])
def test_short_ladders_train_too(make, batch, rungs):
    loss = JointObjective(make(rungs), RECIPE, JointOptions(middle=1)).backward(*batch, 0.0)
    assert torch.isfinite(loss)


def test_bf16_forwards_give_nearly_the_same_gradients_in_f32(make, batch):
    exact, rough = make(2), make(2)
    JointObjective(exact, RECIPE).backward(*batch, 0.0)
    JointObjective(rough, Recipe(epochs=1, precision="bf16", compile=False)).backward(*batch, 0.0)
    a, b = grads(exact)["shared/fc|weight"], grads(rough)["shared/fc|weight"]
    assert b.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99


def test_a_negative_number_of_subnets_is_refused(make):
    with pytest.raises(InputError, match="middle -1"):
        JointObjective(make(3), RECIPE, JointOptions(middle=-1))


def test_without_distillation_every_subnet_learns_from_labels_and_no_teacher_is_asked(make, batch):
    """Slimmable networks' step: the gradients of plain networks, each trained on the labels."""
    supernet, (images, labels) = make(), batch
    plain = {name: supernet.extract(name).train() for name in supernet.ladder.names}
    for network in plain.values():
        nn.functional.cross_entropy(network(images), labels).backward()
    objective = JointObjective(supernet, RECIPE, JointOptions(soft=0.0))
    objective._teacher = None
    objective.backward(images, labels, 0.0)
    expected = sum(
        torch.nn.functional.pad(network.fc.weight.grad, (0, 32 - network.fc.weight.shape[1]))
        for network in plain.values()
    )
    torch.testing.assert_close(grads(supernet)["shared/fc|weight"], expected, atol=1e-5, rtol=1e-4)


def test_a_frozen_teacher_answers_as_the_full_network_did_before(make, batch):
    supernet, (images, _) = make(), batch
    before = supernet.extract("s3")(images).softmax(1).detach()
    frozen = teacher("frozen", supernet)
    with torch.no_grad():
        for value in supernet.parameters():
            value.add_(0.1)
    torch.testing.assert_close(frozen.target(images, torch.zeros(6, 10)), before)


def test_an_averaged_teacher_answers_with_the_averages_as_they_change(make, batch):
    supernet, other, (images, _) = make(), make(), batch
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(0.9)
    average = {name: value.clone() for name, value in supernet.state_dict().items()}
    averaged = teacher("averaged", supernet)
    averaged.begin(average)
    live = torch.zeros(6, 10)
    first = averaged.target(images, live)
    torch.testing.assert_close(first, supernet.extract("s3")(images).softmax(1).detach())
    for name, value in other.state_dict().items():
        average[name].copy_(value)
    second = averaged.target(images, live)
    torch.testing.assert_close(second, other.extract("s3")(images).softmax(1).detach())
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["frozen", "averaged"])
def test_small_subnets_learn_what_their_teacher_says(make, batch, kind):
    """Only the target differs: the small subnet's gradient is that of a plain network taught the same."""
    supernet, (images, labels) = make(2), batch
    told = torch.eye(10)[torch.arange(6)]
    small = supernet.extract("s1").train()
    nn.functional.cross_entropy(small(images), told).backward()
    objective = JointObjective(supernet, RECIPE, JointOptions(soft=1.0, teacher=kind))
    objective.begin(supernet.state_dict())
    objective._teacher.target = lambda images, live: told
    objective.backward(images, labels, 0.0)
    torch.testing.assert_close(grads(supernet)["s1/bn1|weight"], small.bn1.weight.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"middle": -1}, "middle -1"),
        ({"full_weight": 0.0}, "full weight 0.0"),
        ({"soft": 1.5}, "soft 1.5"),
        ({"teacher": "strict"}, "teacher 'strict' is unknown; use one of live, frozen, averaged"),
        ({"affine": "none"}, "affine 'none' is unknown; use one of private, shared"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        JointOptions(**wrong).check()
