"""What every sensor keeps, as a test class to inherit: ``class TestMine(SensorContract): files = ...; make = ...``.

:attr:`SensorContract.files` is a small recorded tree on which the sensor works; the contract then damages it in every
way a device has been seen to. Needs pytest only to run (its ``tmp_path``), not to import.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from sensors.base import QUANTITIES, Reading, Sensor
from sensors.root import Root

GARBAGE = ("", "\n", "garbage", "\x00\x00\x00", "-", "0x", "1 2 3 4 5 6 7 8 9", "ÿ" * 40, "9" * 100_000)
ABSURD = ("-274000", "-1", "0", "1e308", "9" * 30, "nan", "inf", "-inf", "255000000000")


def write_tree(path: Path, files: Mapping[str, str]) -> Path:
    """Writes a recorded tree: relative path -> content."""
    for relative, content in files.items():
        target = path / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    return path


class FaultyRoot(Root):
    """A root on which reading a path that contains ``part`` fails with a given error number."""

    def __init__(self, path: Path, error: int, part: str = "") -> None:
        super().__init__(path)
        self._error = error
        self._part = part

    def read_bytes(self, relative: str, limit: int) -> bytes:
        """Fails where it should."""
        if self._part in relative:
            raise OSError(self._error, os.strerror(self._error))
        return super().read_bytes(relative, limit)


class SensorContract:
    """Inherit, set ``files`` and override ``make``."""

    files: ClassVar[Mapping[str, str]]

    def make(self, root: Root) -> Sensor:
        """The sensor under test, reading below ``root``."""
        raise NotImplementedError

    def test_a_sound_tree_gives_a_value(self, tmp_path: Path) -> None:
        """The recording is one on which the sensor works; without this the other tests would prove nothing."""
        readings = self._read(Root(write_tree(tmp_path, self.files)))
        assert any(reading.value is not None for reading in readings)

    def test_a_missing_tree_is_unknown_with_a_reason(self, tmp_path: Path) -> None:
        """Absent hardware is no error, and no zero."""
        readings = self._read(Root(tmp_path / "nowhere"))
        assert readings and all(reading.value is None for reading in readings)

    def test_no_error_of_the_system_gets_through(self, tmp_path: Path) -> None:
        """Each file in turn, and all of them, refused, gated, broken."""
        write_tree(tmp_path, self.files)
        for error in (errno.EACCES, errno.EAGAIN, errno.EINVAL, errno.EIO, errno.ENODEV, errno.ENODATA):
            assert all(reading.value is None for reading in self._read(FaultyRoot(tmp_path, error)))
            for relative in self.files:
                self._read(FaultyRoot(tmp_path, error, relative))

    def test_missing_files_and_folders_in_their_place_are_harmless(self, tmp_path: Path) -> None:
        """Each file in turn is absent, then a folder."""
        for index, relative in enumerate(self.files):
            rest = {name: content for name, content in self.files.items() if name != relative}
            path = write_tree(tmp_path / str(index), rest)
            self._read(Root(path))
            (path / relative).mkdir(parents=True)
            self._read(Root(path))

    def test_garbage_and_absurd_values_are_harmless(self, tmp_path: Path) -> None:
        """Each file in turn holds nonsense; what is still read stays within its range."""
        root = Root(write_tree(tmp_path, self.files))
        for content in GARBAGE + ABSURD:
            for relative, sound in self.files.items():
                write_tree(tmp_path, {relative: content})
                self._read(root)
                write_tree(tmp_path, {relative: sound})
        for content in GARBAGE + ABSURD:
            write_tree(tmp_path, dict.fromkeys(self.files, content))
            self._read(root)

    def test_names_stay_the_same_from_reading_to_reading(self, tmp_path: Path) -> None:
        """So that a name that vanishes means a failure and nothing else."""
        sensor = self.make(Root(write_tree(tmp_path, self.files)))
        assert [reading.name for reading in sensor.read()] == [reading.name for reading in sensor.read()]

    def _read(self, root: Root) -> tuple[Reading, ...]:
        """Reads twice, since some sensors compare; each reading is checked."""
        sensor = self.make(root)
        assert sensor.name
        check_readings(sensor.read())
        readings = sensor.read()
        check_readings(readings)
        return readings


def check_readings(readings: tuple[Reading, ...]) -> None:
    """Allowed names, their units, finite values in range, and a reason for everything unknown.

    Raises:
        AssertionError: naming the reading.
    """
    for reading in readings:
        limits = QUANTITIES.get(reading.name.partition(":")[0])
        assert limits is not None, f"{reading.name} is not an allowed name"
        assert reading.unit == limits.unit, reading
        assert reading.source, reading
        if reading.value is None:
            assert reading.why, f"{reading.name} is unknown without a reason"
        else:
            assert isinstance(reading.value, bool) == (limits.unit == "bool"), reading
            assert math.isfinite(reading.value), reading
            assert limits.low <= reading.value <= limits.high, reading
