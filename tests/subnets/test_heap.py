"""What malloc does afterwards, seen from outside, in a process of its own, since it is set for good."""

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


THREADS = """
import ctypes, sys, threading
from subnets.heap import share_one_heap

if sys.argv[1] == "shared":
    assert share_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
places, met = [], threading.Barrier(8)

def take():
    met.wait()
    places.append(libc.malloc(1024))
    met.wait()

threads = [threading.Thread(target=take) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
heap = next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0]
begin, end = (int(place, 16) for place in heap.split("-"))
print(sum(begin <= place < end for place in places))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("how", ["shared", "default"])
def test_threads_take_from_one_heap_once_told(root, how):
    run = subprocess.run([sys.executable, "-c", THREADS, how], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (int(run.stdout) == 8) == (how == "shared")  # by default there are fewer heaps than threads on one core


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
    assert not heap.keep_freed_memory() and not heap.share_one_heap()
