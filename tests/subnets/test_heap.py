"""Freed memory stays: counted in page faults, in a process of its own, since malloc is set for good."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from subnets.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(4 * 2**20)  # 16 MiB, above malloc's own limit for what it maps only while it is small
        torch.ones(10 * 2**20)  # 40 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_memory()
faults()  # the heap grows once
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_repeated_large_allocations_stop_faulting_in_pages(root):
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    before, after = map(int, run.stdout.split())
    assert after < before / 10


def test_elsewhere_it_does_nothing(monkeypatch):
    from subnets import heap

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: pytest.fail("called"))
    assert not heap.keep_freed_memory()
