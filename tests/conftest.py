"""Fixtures that several folders share."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# The same examples each time; a deadline would be a timed assertion, and CI machines are shared.
hypothesis.settings.register_profile("gearshift", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gearshift")

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Marks of tests that need what not every machine has."""
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; 'make test-gpu' runs these")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded data, where it is at hand."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not here; this test reads recorded data from it")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Small tests are faster on one thread, and CI machines are shared."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
