"""Backends by name: all are there, none drags in its library, and a wrong name gets a hint."""

import subprocess
import sys

import pytest

from backends import NAMES, all_backends, create
from subnets import InputError


def test_every_name_makes_its_backend(tmp_path):
    assert [backend.name for backend in all_backends(tmp_path)] == list(NAMES)
    assert len({type(create(name, tmp_path)) for name in NAMES}) == len(NAMES)
    assert NAMES[0] == "openvino" and NAMES[-1] == "torch"  # preferred first, the slow reference last


def test_a_wrong_name_gets_a_hint():
    with pytest.raises(InputError, match="did you mean 'tensorrt'"):
        create("tensorr")
    with pytest.raises(InputError, match=f"known: {', '.join(NAMES)}"):
        create("abacus")


def test_every_backend_says_in_one_sentence_whether_it_can_be_used(tmp_path):
    for backend in all_backends(tmp_path):
        found = backend.available()
        assert found.why and "\n" not in found.why


def test_making_and_asking_the_gpu_backends_imports_no_library_where_there_is_no_gpu():
    program = """
import sys
from backends import create
from backends.cuda import open_gpu
from subnets import UnavailableError
try:
    open_gpu()
except UnavailableError:
    for name in ("tensorrt", "tensorrt-rtx", "torch-cuda"):
        assert not create(name).available().ok
    heavy = {"torch", "tensorrt", "tensorrt_rtx", "torch_tensorrt", "openvino", "pynvml"}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
