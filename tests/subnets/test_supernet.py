"""Sorting changes nothing; a subnet is a slice; all subnets share their weights and none its batch-norm."""

import copy

import numpy as np
import pytest
import torch

from subnets.errors import InputError
from subnets.groups import trace
from subnets.joint import JointObjective
from subnets.spec import ChannelGroup, Ladder, Member, SubnetSpec, cuts, slice_tensor
from subnets.supernet import Supernet, extract, norm_tensors, open_network, sort_channels
from subnets.training import Recipe


def images(shape, count=3, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def random_scores(traced, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.width, generator=random) for group in traced.groups}


@pytest.fixture
def supernet(nets, random_ladder):
    network = nets.tiny()
    traced = trace(network, (1, 16, 16))
    return Supernet(network, traced.groups, random_ladder(traced.groups, seed=3))


@torch.no_grad()
def test_sorting_leaves_logits_unchanged_and_puts_important_channels_first(case):
    traced = trace(case.network, case.shape)
    scores = random_scores(traced)
    x = images(case.shape)
    before = case.network(x)
    first = traced.groups[0]
    weight = copy.deepcopy(case.network.get_parameter(f"{first.name}.weight"))
    sort_channels(case.network, traced.groups, scores)
    torch.testing.assert_close(case.network(x), before, atol=1e-4, rtol=0)
    best = int(scores[first.name].argmax())
    assert torch.equal(case.network.get_parameter(f"{first.name}.weight")[0], weight[best])
    assert not torch.equal(case.network.get_parameter(f"{first.name}.weight"), weight)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_each_subnet_of_the_supernet_equals_its_extracted_network(case, random_ladder, seed):
    traced = trace(case.network, case.shape)
    sort_channels(case.network, traced.groups, random_scores(traced, seed))
    ladder = random_ladder(traced.groups, seed)
    supernet = Supernet(case.network, traced.groups, ladder).eval()
    x = images(case.shape)
    for spec in ladder:
        plain = extract(case.network, traced.groups, spec)
        torch.testing.assert_close(supernet(x, spec.name), plain(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(supernet.extract(spec.name)(x), plain(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(supernet.subnet("s100")(x), case.network(x), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cutting_channels_equals_ignoring_them_downstream(case, random_ladder, seed):
    """The oracle cuts nothing: it sets to zero what layers read from the channels that go."""
    traced = trace(case.network, case.shape)
    spec = random_ladder(traced.groups, seed)[0]
    masked = copy.deepcopy(case.network)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    for group in traced.groups:
        for member in group.members:
            if member.axis == 1:
                tensors[member.tensor][:, spec.widths[group.name] * member.repeat :] = 0
    x = images(case.shape)
    torch.testing.assert_close(extract(case.network, traced.groups, spec)(x), masked(x), atol=1e-4, rtol=0)


def test_extracted_layers_declare_the_sizes_they_have(case, random_ladder):
    traced = trace(case.network, case.shape)
    plain = extract(case.network, traced.groups, random_ladder(traced.groups)[0])
    for module in plain.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, torch.nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert module.running_mean.shape == (module.num_features,)


def test_extracting_copies_and_leaves_the_network_as_it_was(nets, random_ladder):
    network = nets.tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    traced = trace(network, (1, 16, 16))
    small = extract(network, traced.groups, random_ladder(traced.groups)[0])
    with torch.no_grad():
        for value in small.parameters():
            value.fill_(9)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_subnet_is_a_view_of_the_shared_weights(supernet):
    for name in supernet.ladder.names:
        state = supernet.state_of(name)
        for tensor in ("conv1.weight", "layer3.0.conv2.weight", "fc.weight"):
            whole = getattr(supernet, f"shared/{tensor}".replace(".", "|"))
            assert state[tensor].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_a_step_on_one_subnet_changes_the_others_but_not_their_batch_norm(supernet):
    supernet.train()
    x, (small, _, full) = images((1, 16, 16), 8), supernet.ladder.names
    before = {name: {k: v.clone() for k, v in supernet.state_of(name).items()} for name in supernet.ladder.names}
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.5)
    supernet(x, small).logsumexp(1).mean().backward()
    optimizer.step()
    after = supernet.state_of(full)
    kept = cuts(supernet.groups, supernet.ladder.named(small))
    block = slice_tensor(torch.ones_like(after["layer1.0.conv1.weight"]), kept["layer1.0.conv1.weight"])
    changed = after["layer1.0.conv1.weight"] != before[full]["layer1.0.conv1.weight"]
    assert changed.any() and int(changed.sum()) <= block.numel()
    outside = torch.ones_like(changed)
    slice_tensor(outside, kept["layer1.0.conv1.weight"]).fill_(False)
    assert not changed[outside].any()
    private = [name for name in after if ".bn" in name or name.startswith("bn") or ".downsample.1." in name]
    assert len(private) == 4 * 9  # stem, two in each of three blocks, two shortcuts
    assert all(torch.equal(after[name], before[full][name]) for name in private)
    assert not torch.equal(supernet.state_of(small)["bn1.running_mean"], before[small]["bn1.running_mean"])
    assert not torch.equal(supernet.state_of(small)["bn1.weight"], before[small]["bn1.weight"])


def test_every_tensor_is_either_shared_or_private(supernet, nets):
    network = nets.tiny()
    names = {name for name, _ in network.named_parameters()} | {name for name, _ in network.named_buffers()}
    names = {name for name in names if not name.endswith("num_batches_tracked")}
    assert set(supernet.state_of("s0")) == names
    assert set(supernet.tensors()) == (names - norm_tensors(network)) | {
        f"{subnet}/{name}" for subnet in supernet.ladder.names for name in norm_tensors(network)
    }


def test_the_state_dict_restores_a_supernet_exactly(supernet, nets, random_ladder):
    other = nets.tiny(seed=9)
    twin = Supernet(other, supernet.groups, supernet.ladder)
    twin.load_state_dict(supernet.state_dict())
    x = images((1, 16, 16))
    for name in supernet.ladder.names:
        assert torch.equal(twin.eval()(x, name), supernet.eval()(x, name))


def test_an_objective_without_compilation_keeps_the_plain_tensor_names(supernet):
    recipe = Recipe(epochs=1, precision="f32", compile=False)
    module = JointObjective(supernet, recipe).module
    assert module is supernet
    assert "shared/conv1|weight" in module.state_dict() and "s0/bn1|running_mean" in module.state_dict()
    assert not any("_orig_mod" in name for name in module.state_dict())


def test_adopted_norms_belong_to_one_subnet_only(supernet):
    plain = supernet.extract("s0")
    with torch.no_grad():
        plain.bn1.running_mean.fill_(7)
    others = supernet.state_of("s1")["bn1.running_mean"].clone()
    supernet.adopt_norms("s0", plain)
    assert torch.all(supernet.state_of("s0")["bn1.running_mean"] == 7)
    assert torch.equal(supernet.state_of("s1")["bn1.running_mean"], others)


def test_unknown_subnets_and_widths_that_do_not_fit_are_refused(supernet, nets):
    with pytest.raises(InputError, match="'s33' is not in this bundle; it has s0, s1, s100"):
        supernet.subnet("s33")
    widths = {**supernet.ladder[0].widths, "conv1": 9}
    with pytest.raises(InputError, match="group 'conv1' needs 1 to 8 channels, has 9"):
        extract(nets.tiny(), supernet.groups, SubnetSpec("wide", widths))


class TestFromABundle:
    @torch.no_grad()
    def test_the_supernet_and_each_opened_network_answer_alike(self, tiny):
        supernet = Supernet.from_bundle(tiny).eval()
        x = images((1, 16, 16))
        for name in tiny.ladder.names:
            torch.testing.assert_close(open_network(tiny, name)(x), supernet(x, name), atol=1e-5, rtol=0)

    def test_tensors_come_back_as_they_are_in_the_file(self, tiny):
        there, back = tiny.tensors(), Supernet.from_bundle(tiny).tensors()
        assert there.keys() == back.keys()
        assert all(np.array_equal(there[name], back[name]) for name in there)

    def test_each_subnets_tensors_fit_its_extracted_network(self, tiny):
        supernet = Supernet.from_bundle(tiny)
        for name in tiny.ladder.names:
            expected = supernet.extract(name).state_dict()
            for tensor, value in tiny.tensors(name).items():
                assert np.array_equal(value, expected[tensor].numpy()), tensor

    @pytest.mark.parametrize("lost", ["fc.bias", "conv1.weight"])
    def test_a_missing_tensor_is_refused_even_where_no_group_names_it(self, tiny, resave, lost):
        without = {name: value for name, value in tiny.tensors().items() if name != lost}
        with pytest.raises(InputError, match=lost):
            Supernet.from_bundle(resave(tiny, without))

    def test_a_network_of_another_architecture_is_refused(self, tiny):
        wider = tiny.manifest.architecture.arguments | {"width": 16}
        changed = tiny.rewrite(architecture=type(tiny.manifest.architecture)(name="tinynet", arguments=wider))
        with pytest.raises(InputError, match="does not fit the architecture"):
            Supernet.from_bundle(changed)


class TestLadder:
    def spec(self, name, **widths):
        return SubnetSpec(name, widths)

    @pytest.mark.parametrize(
        ("rungs", "message"),
        [
            ([], "at least one"),
            ([("a", {"g": 2}), ("a", {"g": 3})], "names a subnet twice"),
            ([("a", {"g": 2}), ("b", {"h": 3})], "do not list the same channel groups"),
            ([("a", {"g": 3}), ("b", {"g": 2})], "not nested: group 'g' has 3 channels in 'a' and 2 in the larger 'b'"),
            ([("a", {"g": 0}), ("b", {"g": 2})], "keeps 0 channels"),
        ],
    )
    def test_what_is_no_ladder_is_refused(self, rungs, message):
        with pytest.raises(InputError, match=message):
            Ladder([SubnetSpec(name, widths) for name, widths in rungs])

    def test_it_is_a_sequence_with_names(self):
        rungs = [self.spec("a", g=1), self.spec("b", g=2)]
        ladder = Ladder(rungs)
        assert (len(ladder), list(ladder), ladder.names, ladder[-1]) == (2, rungs, ("a", "b"), rungs[1])
        assert ladder == Ladder(rungs) and hash(ladder) == hash(Ladder(rungs)) and ladder != rungs

    def test_a_cut_counts_repeated_entries_and_touches_only_named_axes(self):
        group = ChannelGroup(name="g", width=4, members=(Member("w", 1, 3), Member("b", 0)))
        kept = cuts([group], self.spec("a", g=2))
        assert kept == {"w": {1: 6}, "b": {0: 2}}
        whole = np.arange(24).reshape(2, 12)
        part = slice_tensor(whole, kept["w"])
        assert np.array_equal(part, whole[:, :6]) and np.shares_memory(part, whole)
        with pytest.raises(InputError, match="group 'g' needs 1 to 4 channels, has None"):
            cuts([group], self.spec("a"))
