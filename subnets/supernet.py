"""One weight set, sorted once; every subnet a slice of it.

* :func:`sort_channels`: permutes every coupled tensor by importance; the network answers as before.
* :func:`extract`: a plain network of one subnet's widths, with copies of its weights.
* :class:`Supernet`: the shared weights and each subnet's private batch-norm; runs a subnet on views, without copies.
* :func:`open_network`, :meth:`Supernet.from_bundle`: the same from a bundle.

Knows nothing of how widths were chosen or how weights are trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from subnets import architectures
from subnets.bundle import Architecture, Bundle
from subnets.errors import InputError
from subnets.importance import Scores
from subnets.spec import ChannelGroup, Kept, Ladder, SubnetSpec, cuts, own_entries, slice_tensor

_Norm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def sort_channels(network: nn.Module, groups: Sequence[ChannelGroup], scores: Scores) -> None:
    """Reorders channels by falling score, in place; logits stay what they were (up to rounding)."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for group in groups:
        order = scores[group.name].argsort(descending=True, stable=True)
        for member in group.members:
            own = own_entries(tensors[member.tensor], member, group.width)
            index = order
            if member.repeat > 1:
                index = (order[:, None] * member.repeat + torch.arange(member.repeat)).flatten()
            own.copy_(own.index_select(member.axis, index))


@torch.no_grad()
def extract(network: nn.Module, groups: Sequence[ChannelGroup], spec: SubnetSpec) -> nn.Module:
    """A plain network with the first channels of each group, its own copies of their weights, in eval mode.

    Raises:
        InputError: the spec does not fit the groups.
    """
    kept = cuts(groups, spec)
    small = copy.deepcopy(network).eval()
    for prefix, module in small.named_modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            full = f"{prefix}.{name}" if prefix else name
            if full in kept:
                cut = slice_tensor(value.detach(), kept[full]).clone()
                replacement = nn.Parameter(cut) if isinstance(value, nn.Parameter) else cut
                setattr(module, name, replacement)
        _resize(module)
    return small


def _resize(module: nn.Module) -> None:
    """Makes the layer's declared sizes agree with its weight's."""
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels > 1:  # depthwise, one or more outputs a channel
            channels = module.weight.shape[0] * module.groups // module.out_channels
            module.groups, module.in_channels, module.out_channels = channels, channels, module.weight.shape[0]
        elif module.groups == 1:
            module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _Norm) and module.running_mean is not None:
        module.num_features = module.running_mean.shape[0]


def norm_tensors(network: nn.Module) -> set[str]:
    """Names of the batch-norm tensors, the part each subnet has for itself."""
    names = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if isinstance(module, _Norm)
        for name in names
        if getattr(module, name, None) is not None
    }


class Supernet(nn.Module):
    """The shared weights at full width and, per subnet, what is private to it: as a rule its batch-norm.

    A subnet runs as ``functional_call`` of a narrow template on views of the shared weights, so one optimizer step on
    any subnet is seen by all. Under ``torch.compile`` the slicing becomes part of the graph.

    Args:
        network: the full network, channels already sorted.
        groups: its channel groups.
        ladder: the subnets.
        norms: per subnet ``{tensor name: value}`` of what is private; by default the full network's, cut to size.
        private: names of the tensors that each subnet has for itself; by default all of batch-norm.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[ChannelGroup],
        ladder: Ladder,
        norms: Mapping[str, Mapping[str, Tensor]] | None = None,
        private: Set[str] | None = None,
    ) -> None:
        super().__init__()
        self.groups, self.ladder = tuple(groups), ladder
        private = norm_tensors(network) if private is None else private
        buffers = dict(network.named_buffers())
        tensors = {**dict(network.named_parameters()), **buffers}
        self._private_names = tuple(name for name in tensors if name in private)
        self._shared_names = tuple(n for n in tensors if n not in private and not n.endswith("num_batches_tracked"))
        for name in self._shared_names:
            self._add(f"shared/{name}", tensors[name], buffer=name in buffers)
        self._kept: dict[str, dict[str, dict[int, Kept]]] = {}
        templates: dict[str, nn.Module] = {}
        for spec in ladder:
            kept = self._kept[spec.name] = cuts(self.groups, spec)
            for name in self._private_names:
                given = norms[spec.name][name] if norms else slice_tensor(tensors[name], kept.get(name, {}))
                self._add(f"{spec.name}/{name}", given, buffer=name in buffers)
            template = extract(network, self.groups, spec)
            for module in template.modules():
                if isinstance(module, _Norm):
                    module.num_batches_tracked = None
            templates[spec.name] = template.to("meta")
        # Templates give structure and hold no memory; in a dict they are no part of the module tree.
        self._templates = templates

    def _add(self, key: str, value: Tensor, *, buffer: bool) -> None:
        key = key.replace(".", "|")  # torch allows no dots in names
        value = value.detach().clone()
        if buffer:
            self.register_buffer(key, value)
        else:
            self.register_parameter(key, nn.Parameter(value))

    def _get(self, key: str) -> Tensor:
        value: Tensor = getattr(self, key.replace(".", "|"))
        return value

    def state_of(self, subnet: str) -> dict[str, Tensor]:
        """One subnet's tensors under the plain network's names; shared ones are views."""
        kept = self._kept[subnet]
        shared = {name: slice_tensor(self._get(f"shared/{name}"), kept.get(name, {})) for name in self._shared_names}
        return shared | {name: self._get(f"{subnet}/{name}") for name in self._private_names}

    def forward(self, x: Tensor, subnet: str) -> Tensor:
        """x [N, C, H, W] -> logits [N, classes] of that subnet."""
        template = self._templates[subnet].train(self.training)
        return functional_call(template, self.state_of(subnet), (x,))  # type: ignore[no-any-return]

    def subnet(self, name: str) -> Callable[[Tensor], Tensor]:
        """One subnet as a function of the batch."""
        self.ladder.named(name)
        return lambda x: self(x, name)

    def extract(self, subnet: str) -> nn.Module:
        """One subnet as a plain network with its own copies, in eval mode."""
        module = copy.deepcopy(self._templates[subnet]).to_empty(device="cpu").eval()
        for norm in module.modules():
            if isinstance(norm, _Norm):
                norm.num_batches_tracked = torch.tensor(0)
        _fill(module, self.state_of(subnet))
        return module

    def adopt_norms(self, subnet: str, network: nn.Module) -> None:
        """Takes a subnet's batch-norm tensors from an extracted network."""
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        with torch.no_grad():
            for name in self._private_names:
                self._get(f"{subnet}/{name}").copy_(state[name])

    def tensors(self) -> dict[str, Any]:
        """Everything as numpy arrays, named as in a bundle."""
        shared = {name: self._get(f"shared/{name}") for name in self._shared_names}
        private = {
            f"{spec.name}/{name}": self._get(f"{spec.name}/{name}")
            for spec in self.ladder
            for name in self._private_names
        }
        return {name: value.detach().cpu().contiguous().numpy() for name, value in {**shared, **private}.items()}

    @staticmethod
    def from_bundle(bundle: Bundle) -> Supernet:
        """The supernet a bundle holds.

        Raises:
            InputError: its tensors do not fit its architecture.
        """
        network = _full_network(bundle)
        tensors = {name: torch.from_numpy(value) for name, value in bundle.tensors().items()}
        private = {name.partition("/")[2] for name in tensors if "/" in name} or norm_tensors(network)
        _fill(network, {name: value for name, value in tensors.items() if "/" not in name}, elsewhere=private)
        norms: dict[str, dict[str, Tensor]] = {name: {} for name in bundle.ladder.names}
        for name, value in tensors.items():
            subnet, slash, inner = name.partition("/")
            if slash:
                norms[subnet][inner] = value
        for subnet, found in norms.items():
            for name in sorted(private - found.keys()):
                raise InputError(f"tensor '{subnet}/{name}' is missing in {bundle.path}; get the bundle again")
        return Supernet(network, bundle.manifest.groups, bundle.ladder, norms, private)


def _full_network(bundle: Bundle) -> nn.Module:
    architecture = bundle.manifest.architecture
    return architectures.build(architecture.name, **architecture.arguments)


def assemble(
    architecture: Architecture, groups: Sequence[ChannelGroup], spec: SubnetSpec, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """A plain network of one subnet's widths that holds copies of ``tensors``, in eval mode.

    Raises:
        InputError: the architecture cannot be built here, or the tensors do not fit it.
    """
    network = extract(architectures.build(architecture.name, **architecture.arguments), groups, spec)
    _fill(network, tensors)
    return network.eval()


@torch.no_grad()
def _fill(network: nn.Module, state: Mapping[str, Tensor], elsewhere: Set[str] = frozenset()) -> None:
    """Copies ``state`` into every tensor of ``network`` but those named in ``elsewhere`` and batch-norm's counters."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, value in state.items():
        if name not in tensors or tensors[name].shape != value.shape:
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            raise InputError(
                f"tensor '{name}' of shape {tuple(value.shape)} does not fit the architecture (there: {found}); "
                "the bundle's weights and architecture disagree, get the bundle again"
            )
        tensors[name].copy_(value)
    for name in tensors:
        if name not in state and name not in elsewhere and not name.endswith("num_batches_tracked"):
            raise InputError(f"tensor '{name}' of the architecture is missing in the weights; get the bundle again")


def open_network(bundle: Bundle, subnet: str) -> nn.Module:
    """One subnet of a bundle as a plain network in eval mode, with its own copies of the weights.

    Raises:
        InputError: there is no such subnet, or the bundle's tensors do not fit its architecture.
    """
    tensors = {name: torch.from_numpy(value) for name, value in bundle.tensors(subnet).items()}
    return assemble(bundle.manifest.architecture, bundle.manifest.groups, bundle.ladder.named(subnet), tensors)
