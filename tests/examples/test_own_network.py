"""The tutorial runs as it stands, and its bundle is what it says."""

import importlib.util

import pytest
import torch

from subnets import Bundle, architectures, from_pretrained
from subnets.errors import InputError


@pytest.fixture
def own_network(root):
    """The tutorial as a module."""
    spec = importlib.util.spec_from_file_location("own_network", root / "examples" / "own_network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tutorial_ends_with_a_bundle_that_needs_it_no_more(own_network, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(architectures, "_own", {})
    own_network.main(tmp_path / "own")
    bundle = Bundle.open(tmp_path / "own")
    bundle.verify()
    shown = capsys.readouterr().out
    assert bundle.key in shown and "the smallest subnet's answers" in shown
    assert all(bundle.export(subnet, "openvino") for subnet in bundle.ladder.names)
    shares = [entry.macs / bundle.manifest.subnets[-1].macs for entry in bundle.manifest.subnets]
    assert shares[0] <= 0.35 and shares[1] <= 0.6 and shares[2] == 1
    # A tenth is chance.
    assert all(entry.accuracy.value > 0.5 for entry in bundle.manifest.subnets)
    monkeypatch.setattr(architectures, "_own", {})
    with pytest.raises(InputError, match="--module own_network:build"):
        from_pretrained(bundle.path)
    network = from_pretrained(bundle.path, factory=own_network.build)
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
