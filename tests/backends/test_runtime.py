"""What this process finds: the processor, the libraries, finite numbers; and backends by name."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import backends
from backends import create
from backends.openvino import OpenVINOBackend
from backends.runtime import Processor, all_finite
from subnets import InputError


def _cpuinfo(tmp_path, text):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    return Processor.here(file)


@pytest.mark.parametrize(
    ("listed", "bf16", "f16"),
    [
        ("flags\t\t: fpu avx2 fma", False, False),
        ("flags\t\t: avx512f avx512_bf16", True, False),
        ("flags\t\t: avx512_bf16 avx512_fp16 amx_bf16", True, False),
        ("flags\t\t: amx_bf16 amx_fp16", True, True),
        ("Features\t: fp asimd asimdhp", False, True),
        ("Features\t: fp asimd asimdhp bf16", True, True),
        ("", False, False),
    ],
)
def test_half_precisions_are_native_only_with_the_processor_s_instructions(tmp_path, listed, bf16, f16):
    processor = _cpuinfo(tmp_path, f"processor\t: 0\nmodel name\t: Some CPU @ 2: GHz\n{listed}\n")
    assert processor.model == "Some CPU @ 2: GHz"
    assert (processor.computes_bf16, processor.computes_f16) == (bf16, f16)


@pytest.mark.parametrize(
    ("listed", "int8"),
    [
        ("flags\t\t: avx2 avx512bw", False),
        ("flags\t\t: avx2 avx_vnni", True),
        ("flags\t\t: avx512_vnni", True),
        ("flags\t\t: amx_int8", True),
        ("Features\t: asimd", False),
        ("Features\t: asimd asimddp", True),
    ],
)
def test_int8_is_native_only_with_dot_products(tmp_path, listed, int8):
    assert _cpuinfo(tmp_path, f"{listed}\n").computes_int8 == int8


def test_a_kernel_that_lists_nothing_leaves_f32(tmp_path):
    processor = Processor.here(tmp_path / "missing")
    assert processor.model and not processor.computes_bf16 and not processor.computes_f16


def test_a_precision_needs_both_the_plugin_and_the_processor(tmp_path, monkeypatch):
    backend = OpenVINOBackend(tmp_path)
    native = Processor("x", frozenset({"amx_bf16", "amx_fp16"}))
    for capabilities, processor, expected in (
        (("BF16", "FP16", "FP32"), native, ("f32", "f16", "bf16")),
        (("BF16", "FP32"), native, ("f32", "bf16")),
        (("BF16", "FP16", "FP32"), Processor("x", frozenset({"avx2"})), ("f32",)),
    ):
        monkeypatch.setattr(backend, "_capabilities", lambda capabilities=capabilities: capabilities)
        monkeypatch.setattr(Processor, "here", staticmethod(lambda processor=processor: processor))
        assert backend.precisions() == expected


@given(arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(width=32)), st.sampled_from([0, 10**4]))
def test_finite_means_what_numpy_says(values, zeros):
    """Few values and many take different ways."""
    assert all_finite(np.concatenate([values, np.zeros(zeros, np.float32)])) == bool(np.isfinite(values).all())


@pytest.mark.parametrize("count", [9, 10**4])
def test_large_values_are_finite_in_a_program_that_makes_errors_of_overflows_too(count):
    with np.errstate(all="raise"):
        assert all_finite(np.full(count, 1e30, np.float32))
        assert not all_finite(np.array([1e30] * count + [np.inf, -np.inf], np.float32))
        assert not all_finite(np.array([1e30] * count + [np.nan], np.float32))


def test_backends_are_made_by_name_and_near_misses_are_named(tmp_path):
    assert [backend.name for backend in backends.all_backends(tmp_path)] == list(backends.NAMES)
    with pytest.raises(InputError, match="did you mean 'openvino'"):
        create("openvno")
    with pytest.raises(InputError, match=f"known: {', '.join(backends.NAMES)}"):
        create("abacus")


def _run(script):
    path = ":".join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": path, "HOME": "/nonexistent"}, capture_output=True, text=True
    )


def test_the_front_door_imports_neither_torch_nor_openvino():
    script = "import sys, backends; print(sorted({'torch', 'openvino'} & sys.modules.keys()))"
    assert _run(script).stdout == "[]\n"


def test_openvino_comes_without_its_telemetry_and_leaves_it_importable():
    script = (
        "import sys; from backends.runtime import load_openvino; load_openvino()\n"
        "assert 'openvino.tools.ovc.telemetry_stub' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    result = _run(script)
    assert result.returncode == 0, result.stderr


def test_a_missing_library_is_said_in_one_sentence():
    script = (
        "import sys; sys.modules['openvino'] = sys.modules['torch'] = None\n"
        "import backends\n"
        "for name in ('openvino', 'torch'):\n"
        "    available = backends.create(name).available()\n"
        "    print(available.ok, 'pip install' in available.why)\n"
    )
    assert _run(script).stdout == "False True\nFalse True\n"
