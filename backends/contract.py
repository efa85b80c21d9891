"""What every backend must do, as a test class that ships with the package (needs pytest).

A backend's own test file subclasses :class:`BackendContract`, overrides the three fixtures and inherits every test::

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self, tmp_path): return MyBackend(tmp_path / "cache")
        @pytest.fixture
        def bundle(self): ...       # at least two subnets
        @pytest.fixture
        def reference(self): ...    # (subnet, images) -> logits, computed by other means than the backend

Accuracy asked of each precision: every logit within ``TOLERANCE[precision]`` times the largest one. The figures are the
rounding step of the weights (f16: 2**-11) or of weights and activations (bf16: 2**-8), times about ten for its growth
through the layers; a wrong channel or a missing batch-norm is off by a large part of the scale.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from backends import store
from backends.base import Artifact, Backend, Batch, CompileRequest, Engine
from subnets import Bundle, EngineError, InputError

TOLERANCE = {"f32": 5e-3, "f16": 1e-2, "bf16": 4e-2}

Reference = Callable[[str, Batch], Batch]

# Loads an artifact where importing torch fails, if so asked, and answers one file of images with one of logits.
_OTHER_PROCESS = """
import sys
from pathlib import Path
name, directory, images, logits, torch_allowed = sys.argv[1:]
if torch_allowed != "yes":
    sys.modules["torch"] = None
import numpy as np
from backends import create, store
engine = create(name, Path(directory).parent.parent).load(store.read(Path(directory)))
np.save(logits, engine.infer(np.load(images)))
engine.close()
"""


class BackendContract:
    """The tests; see the module for what a subclass supplies."""

    needs_torch = False

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test, with a cache of its own."""
        raise NotImplementedError

    @pytest.fixture
    def bundle(self) -> Bundle:
        """A small bundle of at least two subnets."""
        raise NotImplementedError

    @pytest.fixture
    def reference(self) -> Reference:
        """The right answers, from anything but this backend."""
        raise NotImplementedError

    def test_it_is_available_and_offers_f32_first(self, backend: Backend) -> None:
        """A machine that runs these tests can use the backend, and the exact precision comes first."""
        assert backend.available().ok, backend.available().why
        assert backend.precisions()[0] == "f32"
        assert set(backend.precisions()) <= set(TOLERANCE)

    def test_every_subnet_answers_like_the_reference_in_every_precision(
        self, backend: Backend, bundle: Bundle, reference: Reference
    ) -> None:
        """Within the precision's tolerance of the largest logit."""
        for precision in backend.precisions():
            for subnet in bundle.ladder.names:
                images = _images(bundle, 1)
                with _engine(backend, bundle, subnet, precision=precision) as engine:
                    _assert_close(engine.infer(images), reference(subnet, images), precision)

    def test_every_batch_size_is_answered_in_any_order(
        self, backend: Backend, bundle: Bundle, reference: Reference
    ) -> None:
        """One engine answers all of its batch sizes; images of a batch do not mix."""
        subnet = bundle.ladder.names[0]
        with _engine(backend, bundle, subnet, batch_sizes=(1, 2, 5)) as engine:
            for size in (5, 1, 2, 1, 5):
                images = _images(bundle, size, seed=size)
                answer = engine.infer(images)
                assert answer.shape == (size, engine.artifact.classes) and answer.dtype == np.float32
                _assert_close(answer, reference(subnet, images), "f32")

    def test_a_batch_laid_out_otherwise_in_memory_gets_the_same_answer(self, backend: Backend, bundle: Bundle) -> None:
        """Neither channels-last strides, a reversed view nor a read-only array matter."""
        images = _images(bundle, 2)
        flipped = np.ascontiguousarray(images[:, :, ::-1])[:, :, ::-1]
        last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        frozen = images.copy()
        frozen.flags.writeable = False
        with _engine(backend, bundle, bundle.ladder.names[0], batch_sizes=(2,)) as engine:
            expected = engine.infer(images)
            for same in (flipped, last, frozen, np.repeat(images, 2, axis=0)[::2]):
                np.testing.assert_array_equal(engine.infer(same), expected)

    def test_a_batch_is_read_anew_each_time_and_never_written(
        self, backend: Backend, bundle: Bundle, reference: Reference
    ) -> None:
        """An engine may keep the caller's array in sight, but neither old content nor a mark of its own in it."""
        subnet = bundle.ladder.names[-1]
        batch = np.empty((1, *bundle.input.shape), np.float32)
        with _engine(backend, bundle, subnet) as engine:
            for seed in range(3):
                images = _images(bundle, 1, seed=seed)
                batch[:] = images
                for _ in range(2):
                    _assert_close(engine.infer(batch), reference(subnet, images), "f32")
                np.testing.assert_array_equal(batch, images)

    def test_wrong_batches_are_refused_and_the_engine_goes_on(self, backend: Backend, bundle: Bundle) -> None:
        """Shape, batch size, dtype, type and values that are not finite: InputError, and the next answer is right."""
        good = _images(bundle, 1)
        wrong = [
            good[0],
            good[..., :-1],
            np.concatenate([good, good]),
            good[:0],
            good.astype(np.float64),
            (good * 10).astype(np.uint8),
            good.astype(">f4"),
            good.tolist(),
            None,
        ]
        for value in (np.nan, np.inf, -np.inf):
            spoilt = good.copy()
            spoilt[0, -1, -1, -1] = value
            wrong.append(spoilt)
        both = good.copy()
        both[0, 0, 0, :2] = np.inf, -np.inf
        wrong.append(both)
        with _engine(backend, bundle, bundle.ladder.names[0]) as engine:
            expected = engine.infer(good)
            for batch in wrong:
                with pytest.raises(InputError):
                    engine.infer(batch)
                np.testing.assert_array_equal(engine.infer(good), expected)

    def test_the_answer_belongs_to_the_caller(self, backend: Backend, bundle: Bundle) -> None:
        """A later inference does not overwrite it, nor does writing to it spoil the engine."""
        first, second = _images(bundle, 1, seed=1), _images(bundle, 1, seed=2)
        with _engine(backend, bundle, bundle.ladder.names[-1]) as engine:
            answer = engine.infer(first)
            kept = answer.copy()
            engine.infer(second)
            np.testing.assert_array_equal(answer, kept)
            answer[:] = np.nan
            np.testing.assert_array_equal(engine.infer(first), kept)

    def test_closing_twice_is_harmless_and_a_closed_engine_says_so(self, backend: Backend, bundle: Bundle) -> None:
        """EngineError, not a crash."""
        engine = backend.load(backend.build(bundle, CompileRequest(subnet=bundle.ladder.names[0])))
        engine.close()
        engine.close()
        with pytest.raises(EngineError):
            engine.infer(_images(bundle, 1))

    def test_memory_is_measured_or_unknown(self, backend: Backend, bundle: Bundle) -> None:
        """Never a made-up zero."""
        with _engine(backend, bundle, bundle.ladder.names[-1]) as engine:
            assert engine.memory_bytes is None or engine.memory_bytes > 0

    def test_what_is_not_to_be_had_is_refused(self, backend: Backend, bundle: Bundle) -> None:
        """Unknown subnets and precisions, batch sizes and thread counts below one or absurd."""
        good = CompileRequest(subnet=bundle.ladder.names[0])
        for change in (
            {"subnet": "nobody"},
            {"precision": "f8"},
            {"batch_sizes": ()},
            {"batch_sizes": (0, 1)},
            {"batch_sizes": (10**6,)},
            {"threads": 0},
            {"threads": 10**6},
        ):
            with pytest.raises(InputError):
                backend.build(bundle, msgspec.structs.replace(good, **change))

    def test_a_second_build_finds_the_first_one(self, backend: Backend, bundle: Bundle) -> None:
        """The same request gives the same artifact without writing anything; another request another one."""
        request = CompileRequest(subnet=bundle.ladder.names[0], batch_sizes=(2, 1))
        first = backend.build(bundle, request)
        before = _states(first)
        assert backend.build(bundle, msgspec.structs.replace(request, batch_sizes=(1, 2, 2))) == first
        assert _states(first) == before
        assert backend.build(bundle, msgspec.structs.replace(request, batch_sizes=(1,))).key != first.key
        assert backend.build(bundle, msgspec.structs.replace(request, subnet=bundle.ladder.names[1])).key != first.key

    def test_a_flipped_byte_is_noticed_and_built_anew(self, backend: Backend, bundle: Bundle) -> None:
        """In any file of the artifact: loading refuses it, building replaces it."""
        request = CompileRequest(subnet=bundle.ladder.names[0])
        artifact = backend.build(bundle, request)
        images = _images(bundle, 1)
        with contextlib.closing(backend.load(artifact)) as engine:
            expected = engine.infer(images)
        for file in sorted(Path(artifact.path).iterdir()):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0x55
            _replace(file, bytes(content))
            with pytest.raises(EngineError):
                backend.load(artifact)
            assert backend.build(bundle, request) == artifact
            with contextlib.closing(backend.load(artifact)) as engine:
                np.testing.assert_array_equal(engine.infer(images), expected)

    def test_a_half_written_artifact_is_noticed_and_built_anew(self, backend: Backend, bundle: Bundle) -> None:
        """A file cut short or missing, as after a loss of power."""
        request = CompileRequest(subnet=bundle.ladder.names[0])
        artifact = backend.build(bundle, request)
        for name in sorted(file.name for file in Path(artifact.path).iterdir()):
            file = Path(artifact.path) / name
            content = file.read_bytes()
            _replace(file, content[: len(content) // 2])
            with pytest.raises(EngineError):
                backend.load(artifact)
            assert backend.build(bundle, request) == artifact
            file.unlink()
            with pytest.raises(EngineError):
                backend.load(artifact)
            assert backend.build(bundle, request) == artifact
            backend.load(artifact).close()
        assert sorted(path.name for path in Path(artifact.path).parent.iterdir()) == [artifact.key]

    def test_another_process_loads_it(self, backend: Backend, bundle: Bundle, tmp_path: Path) -> None:
        """With the same answer, and without torch where the backend promises so."""
        artifact = backend.build(bundle, CompileRequest(subnet=bundle.ladder.names[-1]))
        images = _images(bundle, 1)
        files = tmp_path / "images.npy", tmp_path / "logits.npy"
        np.save(files[0], images)
        torch_allowed = "yes" if self.needs_torch else "no"
        subprocess.run(
            [sys.executable, "-c", _OTHER_PROCESS, backend.name, artifact.path, *map(str, files), torch_allowed],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            check=True,
            timeout=120,
        )
        with contextlib.closing(backend.load(artifact)) as engine:
            np.testing.assert_array_equal(np.load(files[1]), engine.infer(images))

    def test_two_engines_answer_side_by_side(self, backend: Backend, bundle: Bundle) -> None:
        """Two threads, each with an engine of its own, of one subnet or of two: no answer is mixed up."""
        smallest, largest = bundle.ladder.names[0], bundle.ladder.names[-1]
        for pair in ((smallest, largest), (largest, largest)):
            with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
                engines = [stack.enter_context(_engine(backend, bundle, subnet)) for subnet in pair]
                images = [_images(bundle, 1, seed=seed) for seed in range(2)]
                expected = [engine.infer(batch) for engine, batch in zip(engines, images, strict=True)]

                def many(engine: Engine, batch: Batch) -> list[Batch]:
                    return [engine.infer(batch) for _ in range(30)]

                for answers, right in zip(pool.map(many, engines, images), expected, strict=True):
                    for answer in answers:
                        np.testing.assert_array_equal(answer, right)

    def test_an_artifact_that_moved_still_loads(self, backend: Backend, bundle: Bundle, tmp_path: Path) -> None:
        """An artifact directory is whole in itself: copied elsewhere and read there, it answers the same."""
        artifact = backend.build(bundle, CompileRequest(subnet=bundle.ladder.names[0]))
        images = _images(bundle, 1)
        with contextlib.closing(backend.load(artifact)) as engine:
            expected = engine.infer(images)
        moved = Path(artifact.path).rename(tmp_path / "elsewhere")
        with contextlib.closing(backend.load(store.read(moved))) as engine:
            np.testing.assert_array_equal(engine.infer(images), expected)


@contextlib.contextmanager
def _engine(
    backend: Backend, bundle: Bundle, subnet: str, precision: str = "f32", batch_sizes: tuple[int, ...] = (1,)
) -> Iterator[Engine]:
    request = CompileRequest(subnet=subnet, precision=precision, batch_sizes=batch_sizes)
    with contextlib.closing(backend.load(backend.build(bundle, request))) as engine:
        yield engine


def _images(bundle: Bundle, count: int, seed: int = 0) -> Batch:
    return np.random.default_rng(seed).standard_normal((count, *bundle.input.shape), np.float32)


def _assert_close(found: Batch, expected: Batch, precision: str) -> None:
    scale = np.abs(expected).max()
    assert scale > 0, "the reference answers all zeros, which proves nothing"
    assert np.abs(found - expected).max() <= TOLERANCE[precision] * scale


def _replace(file: Path, content: bytes) -> None:
    """A new file in place of the old: the old one may be linked from the bundle or mapped into memory."""
    file.unlink()
    file.write_bytes(content)


def _states(artifact: Artifact) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(Path(artifact.path).iterdir())}
