"""A place for a Unix socket: stale ones go, everything else stays."""

import os
import socket

import pytest

from agent.unix_socket import claimed
from subnets.errors import InputError

KINDS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)


@pytest.mark.parametrize("mine", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
def test_a_socket_somebody_listens_at_stays_whatever_its_kind_and_a_dead_one_is_replaced(tmp_path, mine, theirs):
    path = tmp_path / "deep" / "s"
    mask = os.umask(0)
    try:
        with socket.socket(socket.AF_UNIX, theirs) as other:
            with claimed(path, "--socket"):
                other.bind(str(path))
                other.listen()
            assert path.stat().st_mode & 0o777 == 0o660
            with pytest.raises(InputError, match="another process listens there; give another place for --socket"):
                claimed(path, "--socket").__enter__()
        with socket.socket(socket.AF_UNIX, mine) as new, claimed(path, "--socket"):
            new.bind(str(path))
        assert os.umask(0) == 0
    finally:
        os.umask(mask)


def test_what_is_no_socket_stays_and_a_place_that_cannot_be_used_is_one_sentence(tmp_path):
    ordinary = tmp_path / "file"
    ordinary.write_text("keep me")
    with pytest.raises(InputError, match="exists and is not a socket"):
        claimed(ordinary, "--native").__enter__()
    assert ordinary.read_text() == "keep me"
    for path in (ordinary / "s", tmp_path / ("x" * 200)):
        with (
            pytest.raises(InputError, match=r"cannot listen there .*--native"),
            socket.socket(socket.AF_UNIX) as new,
            claimed(path, "--native"),
        ):
            new.bind(str(path))
