"""A user's factory: found where the user says, imported only then, refused in one sentence."""

import sys

import pytest
import torch
from torch import nn

from subnets import architectures, modules
from subnets.errors import InputError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current directory; imports from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(architectures, "_own", {})
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_factory_in_the_current_directory_is_found(place):
    (place / "gs_nets").mkdir()
    (place / "gs_nets" / "small.py").write_text(
        "from torch import nn\ndef make(width=2): return nn.Conv2d(1, width, 1)\n"
    )
    factory = modules.load_factory("gs_nets.small:make")
    assert factory(width=3).out_channels == 3


def test_an_installed_package_goes_before_a_file_here(place):
    (place / "subnets.py").write_text("raise AssertionError('must not be imported')\n")
    assert modules.load_factory("subnets.architectures:build") is architectures.build


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gs_nets", "is not package.module:factory"),
        ("gs nets:make", "is not package.module:factory"),
        ("../gs_nets:make", "is not package.module:factory"),
        ("gs_nets:", "is not package.module:factory"),
        ("gs_nowhere:make", "no module 'gs_nowhere'"),
        ("gs_nowhere.deep:make", "no module 'gs_nowhere'"),
        ("gs_needs:make", "needs 'gs_absent'"),
        ("gs_broken:make", r"importing 'gs_broken' failed \(ZeroDivisionError: division by zero\)"),
        ("gs_good:other", r"'other' in .*gs_good.py is not a function \(no such name there\)"),
        ("gs_good:number", r"is not a function \(a int\)"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_its_reason(place, spec, said):
    (place / "gs_needs.py").write_text("import gs_absent\n")
    (place / "gs_broken.py").write_text("1 / 0\n")
    (place / "gs_good.py").write_text("number = 3\n")
    with pytest.raises(InputError, match=said) as refusal:
        modules.load_factory(spec)
    assert "\n" not in str(refusal.value)


def test_a_network_named_by_a_bundle_is_not_imported(place):
    (place / "gs_trap.py").write_text("open('sprung', 'w').close()\ndef make(): ...\n")
    with pytest.raises(InputError, match="runs only when you name it: add --module gs_trap:make"):
        architectures.build("gs_trap:make")
    assert not (place / "sprung").exists() and "gs_trap" not in sys.modules
    modules.use("gs_trap:make")
    assert (place / "sprung").exists()


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (lambda: 3, "returns a int; it must return a torch.nn.Module"),
        (lambda width: nn.Identity(), r"failed with arguments \{\}: TypeError"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_factory_that_fails_is_refused_by_name(place, factory, said):
    architectures.register("mine:make", factory)
    with pytest.raises(InputError, match=f"'mine:make' .*{said}"):
        architectures.build("mine:make")


def test_a_users_network_gets_its_images_in_plain_layout(place):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            return self.conv(x).view(x.size(0), -1)

    architectures.register("mine:flat", Flat)
    network = architectures.build("mine:flat")
    for channels_last in (False, True):
        x = torch.randn(2, 1, 8, 8)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        assert network(x).shape == (2, 4 * 36)
    assert len(architectures.take_any_layout(network)._forward_pre_hooks) == 1


def test_a_checkpoints_own_names_are_kept_where_the_network_has_them(place):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

    network = Linear()
    state = {f"module.{name}": torch.full_like(value, 7) for name, value in network.state_dict().items()}
    architectures.load_weights(network, {"state_dict": state}, "mine.pth")
    assert bool((network.linear.weight == 7).all())
