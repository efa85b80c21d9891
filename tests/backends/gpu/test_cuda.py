"""The driver's seam: identity, errors by name, recorded work, and that nothing is left allocated."""

import threading

import numpy as np
import pytest

from backends import cuda
from backends.cuda import Gpu, Stream, Transfer, identity
from subnets import EngineError, UnavailableError


def test_a_gpu_says_who_it_is(gpu):
    assert identity(gpu) == {
        "gpu": "Scripted GPU",
        "compute capability": "8.6",
        "driver": "580.95 (CUDA 13.0)",
    }


def test_no_device_and_no_driver_are_one_sentence_each(driver, monkeypatch):
    driver.failing["cuInit"] = 100
    with pytest.raises(UnavailableError, match=r"GPU 0 cannot be used: cuInit: error 100"):
        Gpu(driver)
    cuda.open_gpu.cache_clear()
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    with pytest.raises(UnavailableError, match=r"no NVIDIA GPU here: .*libcuda\.so\.1"):
        cuda.open_gpu()


def test_a_driver_without_a_function_is_too_old():
    with pytest.raises(UnavailableError, match="too old"):
        Gpu(object())


def test_short_memory_says_how_much_is_free(gpu, driver):
    gpu.activate()
    driver.failing["cuMemAlloc_v2"] = 2
    with pytest.raises(EngineError, match=r"cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY, 1024 MiB of GPU memory are free"):
        Transfer(gpu, (4, 5))
    assert driver.allocated == 0


def test_work_is_done_when_the_stream_is_synchronized(gpu, driver):
    gpu.activate()
    stream, there = Stream(gpu), Transfer(gpu, (2, 3))
    assert not there.host.any()
    there.host[:] = 5
    there.upload(stream)
    stream.synchronize()
    there.host[:] = 0
    there.download(stream)
    assert not there.host.any()
    stream.synchronize()
    np.testing.assert_array_equal(there.host, np.full((2, 3), 5))
    for part in (there, stream, there, stream):
        part.close()
    assert driver.allocated == 0


def test_a_recorded_graph_runs_when_launched_and_leaves_nothing(gpu, driver):
    gpu.activate()
    stream, there = Stream(gpu), Transfer(gpu, (3,))

    def enqueue():
        there.upload(stream)
        there.download(stream)

    graph = stream.capture(enqueue)
    assert driver.calls.count("cuGraphDestroy") == 1  # the recording; what runs is its instance
    there.host[:] = 2
    graph.launch()
    stream.synchronize()
    assert there.host.tolist() == [2, 2, 2]
    for part in (graph, there, stream, graph):
        part.close()
    assert driver.allocated == 0


def test_a_failed_recording_is_ended_and_the_stream_goes_on(gpu, driver):
    gpu.activate()
    stream, there = Stream(gpu), Transfer(gpu, (3,))
    driver.failing["cuMemcpyHtoDAsync_v2"] = 900
    with pytest.raises(EngineError, match="error 900"):
        stream.capture(lambda: there.upload(stream))
    driver.failing.clear()
    assert not driver.recording(stream.handle)
    there.upload(stream)
    stream.synchronize()


def test_a_thread_without_the_context_fails_until_it_activates_it(gpu):
    gpu.activate()
    stream, there = Stream(gpu), Transfer(gpu, (3,))
    said = []

    def work():
        try:
            there.upload(stream)
        except EngineError as error:
            said.append(str(error))
        gpu.activate()
        there.upload(stream)
        said.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == ["cuMemcpyHtoDAsync_v2: CUDA_ERROR_INVALID_CONTEXT", "done"]


def test_the_kernel_drivers_version_is_read_where_it_is_told(tmp_path):
    (tmp_path / "version").write_text("580.95.05\n")
    assert cuda._kernel_driver(tmp_path / "version") == "580.95.05"
    assert cuda._kernel_driver(tmp_path / "none") == ""
