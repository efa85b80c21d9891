"""Which axes are cut together, and what layers cost, for any widths."""

import pytest
import torch
from torch import nn

from subnets import architectures
from subnets.errors import InputError
from subnets.groups import trace, trace_with
from subnets.spec import Member, SubnetSpec
from subnets.supernet import extract

IMAGE = (1, 8, 8)


def hooked_macs(network, shape):
    """Multiply-accumulates counted while the network runs, layer by layer, from real shapes."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            per_output = module.weight.shape[1] * module.weight.shape[2] * module.weight.shape[3]
            total += output.numel() * per_output
        else:
            total += output.numel() * module.weight.shape[1]

    handles = [
        module.register_forward_hook(count) for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return total


def test_macs_and_parameters_of_every_subnet_equal_those_counted_in_the_extracted_network(case, random_ladder):
    traced = trace(case.network, case.shape)
    for spec in random_ladder(traced.groups, seed=4):
        plain = extract(case.network, traced.groups, spec)
        assert traced.macs(spec.widths) == hooked_macs(plain, case.shape)
        assert traced.parameter_count(spec.widths) == sum(value.numel() for value in plain.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "macs", "parameters"),
    [
        ("resnet20", {}, (3, 32, 32), 40.55e6, 269_722),
        ("resnet20", {"shortcut": "conv"}, (3, 32, 32), 40.81e6, 272_474),
        ("resnet18", {}, (3, 224, 224), 1_814_073_344, 11_689_512),
        ("resnet50", {}, (3, 224, 224), 4_089_184_256, 25_557_032),
    ],
)
def test_known_networks_have_their_published_cost(name, arguments, shape, macs, parameters):
    with torch.device("meta"):
        traced = trace(architectures.build(name, **arguments), shape)
    assert traced.macs(traced.full) == pytest.approx(macs, rel=2e-4)
    assert traced.parameter_count(traced.full) == parameters


def test_a_residual_stage_is_one_coupled_group_and_each_block_interior_one_of_its_own():
    traced = trace(architectures.build("resnet20"), (3, 16, 16))
    coupled = {group.name: group.width for group in traced.groups if group.coupled}
    assert coupled == {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}
    interiors = {group.name for group in traced.groups if not group.coupled}
    assert interiors == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)}
    norms = ("weight", "bias", "running_mean", "running_var")
    stage = set(traced.group("layer3.0.conv2").members)
    expected = {Member(f"layer3.{b}.conv2.weight", 0) for b in range(3)}
    expected |= {Member(f"layer3.{b}.bn2.{n}", 0) for b in range(3) for n in norms}
    expected |= {Member(f"layer3.{b}.conv1.weight", 1) for b in (1, 2)}
    expected |= {Member("layer3.0.downsample.select", 0), Member("fc.weight", 1)}
    assert stage == expected
    assert Member("layer3.0.downsample.select", 1) in traced.group("layer2.0.conv2").members


def test_a_conv_shortcut_belongs_to_the_stages_on_both_its_sides():
    traced = trace(architectures.build("resnet20", shortcut="conv"), (3, 16, 16))
    assert Member("layer2.0.downsample.0.weight", 1) in traced.group("conv1").members
    assert Member("layer2.0.downsample.0.weight", 0) in traced.group("layer2.0.conv2").members
    assert Member("layer2.0.downsample.1.running_var", 0) in traced.group("layer2.0.conv2").members


def test_a_flattened_feature_map_gives_each_channel_its_pixels(nets):
    traced = trace(nets.depthwise(), (1, 16, 16))
    members = traced.group("point").members
    assert Member("hidden.weight", 1, 16) in members and Member("flatten_norm.running_var", 0, 16) in members
    assert Member("point.weight", 0, 1) in members


def test_a_depthwise_convolution_extends_its_group(nets):
    traced = trace(nets.depthwise(), (1, 16, 16))
    stem = traced.group("stem")
    assert {Member("stem.weight", 0), Member("depthwise.weight", 0), Member("depthwise.bias", 0)} <= set(stem.members)
    assert Member("point.weight", 1) in stem.members
    assert "depthwise" not in traced.full


def test_input_channels_and_classes_are_in_no_group(case):
    traced = trace(case.network, case.shape)
    first, last = traced.layers[0].name, traced.layers[-1].name
    touched = {(member.tensor, member.axis) for group in traced.groups for member in group.members}
    assert (f"{first}.weight", 1) not in touched
    assert (f"{last}.weight", 0) not in touched and (f"{last}.bias", 0) not in touched


def test_tracing_leaves_the_training_mode_as_it_was(nets):
    network = nets.tiny()
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trace(network, (1, 16, 16))
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class _Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.same = nn.Conv2d(4, 4, 3, padding=1)
        self.body = body
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(self.body(self, self.conv(x)), 1), 1))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (lambda net, x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0]], 1), "chunk"),
        (lambda net, x: torch.cat([x, x], 1)[:, :4], "getitem"),
        (lambda net, x: x.view(-1, 4, 8, 8), "view"),
        (lambda net, x: torch.cat([x, x], 2), "cat"),
        (lambda net, x: nn.functional.pad(x, (0, 0, 0, 0, 1, -1)), "pad"),
        (lambda net, x: x * x.mean((1, 2, 3), keepdim=True), "mean"),
        (lambda net, x: x + net.same.bias[:, None, None], "same.bias"),
        (lambda net, x: x + x[:, :1], "getitem"),
        (lambda net, x: nn.functional.pixel_shuffle(x, 1), "pixel_shuffle"),
    ],
)
def test_an_operation_that_mixes_channels_is_refused_by_name(body, named):
    with pytest.raises(InputError, match=f"channels cannot be followed through '{named}'"):
        trace(_Net(body), IMAGE)


class _Odd(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.conv, self.odd, self.fc = nn.Conv2d(1, 4, 3, padding=1), layer, nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.odd(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 1, groups=2), nn.ConvTranspose2d(4, 4, 1), nn.Softmax(1), nn.GroupNorm(2, 4), nn.Linear(8, 8)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_cannot_be_cut_is_refused_by_name(layer):
    with pytest.raises(InputError, match=f"'{type(layer).__name__}'"):
        trace(_Odd(layer), IMAGE)


def test_a_layer_that_is_used_twice_is_refused():
    with pytest.raises(InputError, match="'same' uses weights a second time"):
        trace(_Net(lambda net, x: net.same(torch.relu(net.same(x)))), IMAGE)


def test_data_dependent_control_flow_is_refused():
    def body(net, x):
        return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="cannot be traced"):
        trace(_Net(body), IMAGE)


def test_what_keeps_channels_apart_is_followed():
    def body(net, x):
        x = nn.functional.avg_pool2d(nn.functional.silu(x + 1.0), 2)
        return (x + net.same(x)).relu().contiguous()

    traced = trace(_Net(body), IMAGE)
    assert [(group.name, group.coupled) for group in traced.groups] == [("conv", True)]
    with pytest.raises(KeyError):
        traced.group("same")


def test_a_product_with_a_gate_gives_both_the_same_channels_without_coupling_them():
    traced = trace(_Net(lambda net, x: x * torch.sigmoid(net.same(x.mean((2, 3), keepdim=True)))), IMAGE)
    assert [(group.name, group.coupled) for group in traced.groups] == [("conv", False)]
    assert {Member("same.weight", 0), Member("same.weight", 1), Member("fc.weight", 1)} <= set(traced.groups[0].members)


def test_what_changes_pixels_alone_is_followed():
    def body(net, x):
        x = nn.functional.pad(x, (1, 1, 1, 1))[:, :, ::2, 1:]
        x = nn.functional.interpolate(x, scale_factor=2.0)
        return x.mean((2, 3))[:, :, None, None] * x.amax((2, 3), keepdim=True)

    assert trace(_Net(body), IMAGE).full == {"conv": 4}


class _Concatenated(nn.Module):
    """The image itself, two layers' outputs and one of them again, then a depthwise layer with two outputs each."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 6, 1)
        self.norm, self.spread = nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.fc = nn.Linear(32 * 4, 3)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        x = self.spread(self.norm(torch.cat([a, x, b, a], 1)))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


def test_concatenated_groups_own_parts_of_an_axis():
    traced = trace(_Concatenated(), (2, 8, 8))
    assert traced.full == {"a": 4, "b": 6}
    norm = {m for g in traced.groups for m in g.members if m.tensor == "norm.weight"}
    assert norm == {Member("norm.weight", 0, 1, part) for part in ((0, 16), (6, 16), (12, 16))}
    assert {m for m in traced.group("b").members if m.tensor == "fc.weight"} == {
        Member("fc.weight", 1, 8, (6 * 8, 16 * 8))
    }
    assert {m for m in traced.group("b").members if m.tensor == "spread.weight"} == {
        Member("spread.weight", 0, 2, (12, 32))
    }


def test_what_concatenated_groups_cost_is_counted_in_the_extracted_network():
    network = _Concatenated()
    traced = trace(network, (2, 8, 8))
    for widths in ({"a": 1, "b": 6}, {"a": 3, "b": 2}, traced.full):
        plain = extract(network, traced.groups, SubnetSpec("s", widths))
        assert traced.macs(widths) == hooked_macs(plain, (2, 8, 8))
        assert traced.parameter_count(widths) == sum(value.numel() for value in plain.parameters())


def test_an_addition_of_channels_that_lie_differently_is_refused():
    class Uneven(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.fc = (
                nn.Conv2d(1, 4, 1),
                nn.Conv2d(1, 2, 1),
                nn.Conv2d(1, 2, 1),
                nn.Linear(4, 2),
            )

        def forward(self, x):
            return self.fc((self.a(x) + torch.cat([self.b(x), self.c(x)], 1)).mean((2, 3)))

    with pytest.raises(InputError, match="channels cannot be followed through 'add'"):
        trace(Uneven(), IMAGE)


def test_images_of_another_shape_are_refused(nets):
    with pytest.raises(InputError, match="does not take images of shape 3 x 16 x 16"):
        trace(nets.tiny(), (3, 16, 16))


def test_an_unknown_grouper_is_refused(nets):
    with pytest.raises(InputError, match="grouper 'magic' is unknown; use one of fx, torch-pruning"):
        trace_with("magic", nets.tiny(), (1, 16, 16))
