"""What is private to a subnet: rearranging changes no answer, and a bundle carries it."""

import pytest
import torch

from subnets.bundle import Bundle
from subnets.groups import trace
from subnets.joint import JointOptions
from subnets.private import head_tensors, private_tensors, rearranged
from subnets.sampling import fine_tune
from subnets.supernet import Supernet, norm_tensors, open_network
from subnets.training import Recipe

QUICK = Recipe(epochs=1, batch_size=64, learning_rate=0.02, precision="f32", compile=False)


@pytest.fixture
def supernet(nets, random_ladder):
    network = nets.tiny()
    traced = trace(network, (1, 16, 16))
    return Supernet(network, traced.groups, random_ladder(traced.groups)).eval()


def test_the_head_is_the_layer_that_gives_the_logits(nets):
    network = nets.depthwise()
    assert head_tensors(network, trace(network, (1, 16, 16)).groups) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("affine", ["private", "shared"])
@pytest.mark.parametrize("heads", [False, True])
def test_rearranging_changes_no_answer_and_names_what_is_private(supernet, affine, heads):
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    found = rearranged(supernet, affine=affine, heads=heads).eval()
    with torch.no_grad():
        for name in supernet.ladder.names:
            assert torch.equal(found(x, name), supernet(x, name))
            torch.testing.assert_close(found.extract(name)(x), supernet(x, name), atol=1e-5, rtol=1e-5)
    norms = norm_tensors(supernet.extract("s1"))
    kept = norms if affine == "private" else {name for name in norms if "running" in name}
    assert private_tensors(found) == kept | ({"fc.weight", "fc.bias"} if heads else set())


def test_where_nothing_changes_the_same_supernet_comes_back_and_heads_stay(supernet):
    assert rearranged(supernet, affine="private", heads=False) is supernet
    headed = rearranged(supernet, affine="private", heads=True)
    assert rearranged(headed, affine="private", heads=False) is headed


def test_a_shared_affine_is_the_full_networks(supernet):
    with torch.no_grad():
        supernet._get("s0/bn1.weight").fill_(7.0)
    found = rearranged(supernet, affine="shared", heads=False)
    width = found.ladder.named("s0").widths["conv1"]
    assert torch.equal(found.state_of("s0")["bn1.weight"], supernet.state_of("s100")["bn1.weight"][:width])


def test_heads_are_trained_saved_counted_and_opened(tiny, small_digits):
    before, size = tiny.added()
    tuned = fine_tune(tiny, small_digits, QUICK, JointOptions(heads=True))
    reopened = Bundle.open(tiny.path)
    heads = sum(10 * spec.widths["layer3.0.conv2"] + 10 for spec in reopened.ladder[:-1])
    assert reopened.added() == ({**before, "heads": heads}, size)
    assert tuned.manifest.provenance["training_2"]["heads"] is True
    small, full = (open_network(reopened, name).fc.weight.detach() for name in ("s30", "s100"))
    assert not torch.equal(small, full[:, : small.shape[1]])
    supernet = Supernet.from_bundle(reopened).eval()
    x = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(open_network(reopened, "s30")(x), supernet(x, "s30"), atol=1e-5, rtol=1e-5)


def test_a_shared_affine_is_saved_once_and_opened_by_every_subnet(tiny, small_digits):
    fine_tune(tiny, small_digits, QUICK, JointOptions(affine="shared", soft=1.0, middle=1))
    reopened = Bundle.open(tiny.path)
    assert {name.rpartition(".")[2] for name in reopened.tensors() if "/" in name} == {"running_mean", "running_var"}
    small, full = (open_network(reopened, name).bn1.weight for name in ("s30", "s100"))
    assert torch.equal(small, full[: len(small)])
