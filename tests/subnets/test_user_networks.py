"""Networks in the shapes that users bring go the whole way: grouped, proved, sampled, trained, opened and exported."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from subnets import architectures, from_pretrained
from subnets.allocation import Limits
from subnets.bundle import Architecture, Bundle
from subnets.errors import InputError
from subnets.groups import trace, trace_with
from subnets.proof import prove
from subnets.sampling import SampleOptions, sample
from subnets.spec import Ladder, SubnetSpec
from subnets.supernet import Supernet, extract, open_network, sort_channels

_spec = importlib.util.spec_from_file_location("user_networks", Path(__file__).with_name("user_networks.py"))
user_networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(user_networks)
IMAGE = (1, 16, 16)


@pytest.fixture(params=user_networks.SHAPES)
def shape(request, nets):
    """Each shape in turn: its name and a scrambled network of it in eval mode."""
    torch.manual_seed(0)
    return request.param, nets.scramble(user_networks.SHAPES[request.param]())


@pytest.fixture
def registered(monkeypatch):
    """Registers factories for one test alone."""
    monkeypatch.setattr(architectures, "_own", {})
    return architectures.register


@torch.no_grad()
def test_sorted_and_cut_it_answers_as_it_does_without_these_channels(shape, random_ladder):
    """The oracle cuts nothing: hooks set to zero what layers read from the channels that go."""
    _, network = shape
    traced = trace(network, IMAGE)
    x = torch.randn(3, *IMAGE)
    before = network(x).clone()
    sort_channels(network, traced.groups, {g.name: torch.rand(g.width) for g in traced.groups})
    torch.testing.assert_close(network(x), before, atol=1e-5, rtol=1e-5)
    spec = random_ladder(traced.groups, seed=5)[0]
    supernet = Supernet(network, traced.groups, Ladder([spec, SubnetSpec("s100", traced.full)])).eval()
    plain = extract(network, traced.groups, spec)
    torch.testing.assert_close(supernet(x, spec.name), plain(x), atol=1e-5, rtol=0)
    readers = {}
    for group in traced.groups:
        for member in group.members:
            if member.axis == 1:
                stop = member.start + group.width * member.repeat
                gone = readers.setdefault(member.tensor.removesuffix(".weight"), [])
                gone.append((member.start + spec.widths[group.name] * member.repeat, stop))

    def hide(ranges):
        def hook(module, inputs):
            image = inputs[0].clone()
            for start, stop in ranges:
                image[:, start:stop] = 0
            return (image,)

        return hook

    for name, ranges in readers.items():
        network.get_submodule(name).register_forward_pre_hook(hide(ranges))
    torch.testing.assert_close(plain(x), network(x), atol=1e-5, rtol=1e-5)


def test_the_plan_is_proved_and_the_network_left_as_it_was(shape, random_ladder):
    _, network = shape
    before = {name: value.clone() for name, value in network.state_dict().items()}
    traced = trace(network, IMAGE)
    prove(network, traced.groups, random_ladder(traced.groups, seed=1), IMAGE)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_from_the_network_to_a_bundle_and_back(shape, small_digits, tmp_path, registered):
    name, network = shape
    described = Architecture(name=f"mine:{name}")
    registered(described.name, user_networks.SHAPES[name])
    x = torch.randn(4, *IMAGE)
    with torch.no_grad():
        before = network(x).clone()
    options = SampleOptions(budgets=(0.4, 1.0), score="norm", limits=Limits(align=2, floor=0.2, last_floor=0.2))
    bundle = Bundle.open(sample(network, described, small_digits, options, tmp_path / "b").path)
    assert bundle.manifest.subnets[0].macs <= 0.4 * bundle.manifest.subnets[1].macs
    with torch.no_grad():
        torch.testing.assert_close(open_network(bundle, "s100")(x), before, atol=1e-4, rtol=1e-4)
        supernet = Supernet.from_bundle(bundle).eval()
        for subnet in bundle.ladder.names:
            plain = from_pretrained(bundle.path, subnet)
            torch.testing.assert_close(plain(x), supernet(x, subnet), atol=1e-5, rtol=0)
            entry = bundle.entry(subnet)
            assert sum(value.numel() for value in plain.parameters()) == entry.parameters


def test_gradients_of_a_subnet_reach_only_its_own_entries(nets):
    """Where a concatenation makes the slice a copy, training still reaches the shared weights."""
    network = nets.scramble(user_networks.DenseNet())
    traced = trace(network, IMAGE)
    spec = SubnetSpec("small", {name: max(1, width // 2) for name, width in traced.full.items()})
    supernet = Supernet(network, traced.groups, Ladder([spec, SubnetSpec("full", traced.full)])).train()
    supernet(torch.randn(4, *IMAGE), "small").logsumexp(1).sum().backward()
    gradient = getattr(supernet, "shared/transition|weight").grad[:8, :, 0, 0]
    kept = [k for part in range(4) for k in range(8 * part, 8 * part + 4)]  # half of the stem and of three layers
    assert bool((gradient[:, kept] != 0).all())
    gradient[:, kept] = 0
    assert not gradient.any()


class TestRefused:
    def test_channel_chunking(self, small_digits, tmp_path):
        with pytest.raises(
            InputError, match=r"channels cannot be followed through 'chunk' .* by their place"
        ) as refusal:
            sample(user_networks.Chunked(), Architecture(name="m:c"), small_digits, SampleOptions(), tmp_path / "b")
        assert "\n" not in str(refusal.value) and not (tmp_path / "b").exists()

    def test_a_width_written_into_the_code(self):
        with pytest.raises(InputError, match=r"'reshape' .* take the number of channels from its input"):
            trace(user_networks.KnowsItsWidth(), IMAGE)

    def test_a_wrong_plan_is_found_by_its_answers(self, nets):
        """Two axes swapped in one group: every shape still fits."""
        network = nets.tiny()
        traced = trace(network, IMAGE)
        ladder = Ladder([SubnetSpec("half", {n: w // 2 for n, w in traced.full.items()}), SubnetSpec("f", traced.full)])
        prove(network, traced.groups, ladder, IMAGE)
        forged = []
        for group in traced.groups:  # as if the first block's second batch-norm were not coupled to anything
            members = tuple(m for m in group.members if not m.tensor.startswith("layer1.0.bn2."))
            forged.append(type(group)(name=group.name, width=group.width, members=members, coupled=group.coupled))
        with pytest.raises(InputError, match="defeats the plan"):
            prove(network, forged, ladder, IMAGE)


class TestTorchPruning:
    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("torch_pruning")

    @pytest.mark.parametrize("name", ["vgg", "mobilenet", "squeeze-excite", "densenet"])
    def test_it_finds_what_the_graph_says(self, name, nets):
        make = user_networks.SHAPES[name]
        network = nets.scramble(make(tail=False) if name == "densenet" else make())
        theirs, ours = trace_with("torch-pruning", network, IMAGE), trace(network, IMAGE)
        assert {g.name: (g.width, set(g.members)) for g in theirs.groups} == {
            g.name: (g.width, set(g.members)) for g in ours.groups
        }
        assert [g.coupled for g in theirs.groups] == [g.coupled for g in ours.groups]
        random = np.random.default_rng(0)
        for _ in range(3):
            widths = {group: int(random.integers(1, width + 1)) for group, width in ours.full.items()}
            assert theirs.macs(widths) == ours.macs(widths)
            assert theirs.parameter_count(widths) == ours.parameter_count(widths)

    def test_a_network_that_fx_cannot_trace_is_sampled(self, nets, small_digits, tmp_path):
        class Branching(user_networks.Vgg):
            def forward(self, x):
                return super().forward(x if x.sum() > -1e30 else -x)

        options = SampleOptions(budgets=(0.5, 1.0), score="norm", grouper="torch-pruning", limits=Limits(align=2))
        network = nets.scramble(Branching())
        with pytest.raises(InputError, match="cannot be traced"):
            trace(network, IMAGE)
        bundle = sample(network, Architecture(name="m:b"), small_digits, options, tmp_path / "b")
        assert bundle.manifest.provenance["sampling"]["grouper"] == "torch-pruning"

    @pytest.mark.parametrize(
        ("make", "named"), [(user_networks.Chunked, "chunk"), (user_networks.KnowsItsWidth, "reshape")]
    )
    def test_what_it_misreads_is_refused_by_the_proof(self, make, named):
        network = make()
        traced = trace_with("torch-pruning", network, IMAGE)
        half = {name: max(1, width // 2) for name, width in traced.full.items()}
        ladder = Ladder([SubnetSpec("half", half), SubnetSpec("full", traced.full)])
        with pytest.raises(InputError, match=f"operation '{named}' defeats the plan") as refusal:
            prove(network, traced.groups, ladder, IMAGE)
        assert "\n" not in str(refusal.value)

    def test_a_grouped_convolution_is_refused_by_name(self):
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3),
            torch.nn.Conv2d(8, 8, 3, groups=2),
            torch.nn.Flatten(),
            torch.nn.Linear(8 * 144, 3),
        )
        with pytest.raises(InputError, match="layer '1' is a grouped convolution"):
            trace_with("torch-pruning", network, IMAGE)
