"""One instance, the state file, and what systemd hears."""

import os
import socket

import pytest

from agent import lifecycle
from agent.lifecycle import Instance, RunningAgent
from subnets.errors import InputError, UnavailableError


def test_a_second_agent_is_refused_until_the_first_has_gone(tmp_path):
    with Instance(tmp_path), pytest.raises(InputError, match="another agent runs here"), Instance(tmp_path):
        pass
    with Instance(tmp_path):
        pass


def test_the_running_agent_is_found_while_it_runs_and_not_after(tmp_path):
    running = RunningAgent(pid=os.getpid(), host="127.0.0.1", port=8700, bundle="tiny")
    with pytest.raises(UnavailableError, match="gearshift run"):
        lifecycle.find_running(tmp_path)
    with Instance(tmp_path) as instance:
        instance.announce(running)
        assert lifecycle.find_running(tmp_path) == running
    with pytest.raises(UnavailableError, match="no agent runs"):
        lifecycle.find_running(tmp_path)


def test_without_a_folder_the_users_own_agent_goes_before_the_systems(tmp_path, monkeypatch):
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    monkeypatch.setattr(lifecycle, "SYSTEM_FOLDER", tmp_path / "system")
    with pytest.raises(UnavailableError, match="no agent runs"):
        lifecycle.find_running()
    with Instance(tmp_path / "system") as of_the_system:
        of_the_system.announce(RunningAgent(pid=1, bundle="systems"))
        assert lifecycle.find_running().bundle == "systems"
        with Instance() as own:
            own.announce(RunningAgent(pid=2, bundle="own"))
            assert lifecycle.find_running().bundle == "own"
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "elsewhere"))
        with pytest.raises(UnavailableError, match="no agent runs"):
            lifecycle.find_running()


def test_the_group_of_the_agents_folder_may_look_where_the_umask_lets_it(tmp_path):
    before = os.umask(0o027)
    try:
        with Instance(tmp_path) as instance:
            instance.announce(RunningAgent(pid=1))
            for name in ("agent.lock", "agent.json"):
                assert (tmp_path / name).stat().st_mode & 0o040, name
    finally:
        os.umask(before)


def test_a_state_file_left_by_a_killed_agent_is_not_believed(tmp_path):
    with Instance(tmp_path) as instance:
        instance.announce(RunningAgent(pid=1))
        left = (tmp_path / "agent.json").read_bytes()
    (tmp_path / "agent.json").write_bytes(left)
    with pytest.raises(UnavailableError, match="no agent runs"):
        lifecycle.find_running(tmp_path)


def test_the_runtime_folder_is_systemds_then_the_sessions_then_the_users(monkeypatch, tmp_path):
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lifecycle.runtime_folder() == tmp_path / ".cache" / "gearshift"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert str(lifecycle.runtime_folder()) == "/run/user/1/gearshift"
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/gearshift:/run/other")
    assert str(lifecycle.runtime_folder()) == "/run/gearshift"


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_gets_one_datagram(monkeypatch, tmp_path, abstract):
    name = f"gearshift-{os.getpid()}-test"
    path = f"\0{name}" if abstract else str(tmp_path / name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path.replace("\0", "@"))
        assert lifecycle.notify("READY=1", "STATUS=s50")
        assert systemd.recv(100) == b"READY=1\nSTATUS=s50"
        lifecycle.notify_reloading()
        first, second = systemd.recv(100).split(b"\n")
        assert first == b"RELOADING=1" and second.startswith(b"MONOTONIC_USEC=")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not lifecycle.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not lifecycle.notify("READY=1")


def test_the_watchdog_is_fed_only_by_the_process_systemd_means(monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert not lifecycle.watchdog_wanted()
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert lifecycle.watchdog_wanted()
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert lifecycle.watchdog_wanted()
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert not lifecycle.watchdog_wanted()
