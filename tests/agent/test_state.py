"""What a restart goes on with: the clock, holds, until when the battery must last, the policy's plan."""

import datetime
import os
import signal
import subprocess
import sys

import msgspec
import pytest

from agent.clocks import AgentClock, Horizon, JumpWatch, is_time_of_day
from agent.state import Keeper, state_path
from policies.base import Goals
from policies.registry import create
from subnets.errors import InputError


class Machine:
    """A machine with a wall clock, a monotonic clock, and a name for the time since its start."""

    def __init__(self, unix_s=1_000_000.0):
        self.unix_s, self.monotonic_s, self.booted = unix_s, 500.0, "first"

    def passes(self, seconds):
        self.unix_s += seconds
        self.monotonic_s += seconds

    def starts_anew(self, off_s, *, clock_lost=False):
        self.unix_s = 0.0 if clock_lost else self.unix_s + off_s
        self.monotonic_s, self.booted = 5.0, f"{self.booted}+"

    def clock(self, before=None):
        return AgentClock(before, wall=lambda: self.unix_s, monotonic=lambda: self.monotonic_s, booted=self.booted)


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def run(make_agent, machine, tmp_path):
    """Starts an agent as a process would, with the state that an earlier one has left; ``kill`` leaves it so."""
    made = []

    def start(**changes):
        for agent in made:
            agent.kept_by._make = None  # killed: it writes nothing any more
        keeper = Keeper(tmp_path / "tiny.state.json", clock=machine.clock, dry_run=changes.get("dry_run", False))
        seen = []
        agent = make_agent(start=False, keeper=keeper, wall=lambda: machine.unix_s, **changes)
        agent.on_event(lambda event: seen.append((event.name, event.detail)))
        made.append(agent)
        agent.kept_by = keeper
        agent.start()
        while keeper._errand.busy:  # the first writing
            pass
        agent.seen = seen
        return agent

    return start


def test_a_hold_survives_and_expires_when_it_would_have(run, machine, images):
    agent = run()
    agent.hold("s50", 600, "maintenance")
    machine.passes(100)
    agent = run()
    assert ("state_restored", {"policy": False, "hold": "s50"}) in agent.seen
    assert agent.infer(images).subnet == "s50"
    agent.infer(images, subnet="s100")  # resident from here on
    status = agent.status()
    assert status.hold.reason == "maintenance" and status.hold.remaining_s == pytest.approx(500)
    machine.passes(501)
    agent.tick()
    assert agent.infer(images).subnet == "s100" and agent.status().hold is None
    assert run().status().hold is None


@pytest.mark.parametrize(
    ("off_s", "clock_lost", "left_s"), [(50, False, 450.0), (10_000, False, None), (50, True, 500.0)]
)
def test_a_hold_survives_a_start_of_the_machine_even_with_its_clock_lost(run, machine, off_s, clock_lost, left_s):
    run().hold("s50", 600, "maintenance")
    machine.passes(100)
    run().kept_by.keep()  # a hundred seconds later
    machine.starts_anew(off_s, clock_lost=clock_lost)
    hold = run().status().hold
    assert (hold and hold.remaining_s) == (left_s and pytest.approx(left_s))


@pytest.mark.parametrize("set_by_s", [-1e6, 1e6])
def test_setting_the_wall_clock_moves_no_hold(run, machine, set_by_s):
    agent = run()
    agent.hold("s50", 600, "maintenance")
    machine.unix_s += set_by_s
    told = agent.tick()
    assert told.faults == (f"clock jumped: the wall clock by {set_by_s:+.0f} s (it was set, or the machine slept)",)
    assert ("clock_jumped", {"by_s": set_by_s}) in agent.seen and agent.status().counters.clock_jumps == 1
    assert not agent.tick().faults
    assert agent.status().hold.remaining_s == pytest.approx(600)
    assert run().status().hold.remaining_s == pytest.approx(600)


def test_a_released_hold_is_gone_after_a_restart_too(run):
    agent = run()
    agent.hold("s50", 600, "maintenance")
    agent.release()
    assert run().status().hold is None


GOALS = Goals(last_until_s=10_000.0, battery_capacity_j=7200.0, temperature_limit_c=80.0)


@pytest.fixture
def discharging(run, machine, helpers):
    """An agent with a composite that has seen the battery fall for two minutes."""
    sensors = helpers.Readings()

    def start(**changes):
        return run(**{"policy": create("composite", GOALS), "goals": GOALS, "sensors": sensors, **changes})

    def live(agent, seconds=120):
        for second in range(seconds):
            machine.passes(1.0)
            charge = 0.8 - second / 1000
            sensors.told = {"battery_charge": charge, "battery_power_w": 6.0 + second % 3, "temperature_c": 50.0}
            agent.tick()
            agent.kept_by._errand.run(lambda: None, 10.0) if not agent.kept_by._errand.busy else None
        return agent

    return start, live


def test_the_battery_plan_survives_being_killed(discharging):
    start, live = discharging
    agent = live(start())
    agent.hold("s75", 10, "have it kept now")
    kept = agent._control.policy_state
    assert kept != create("composite", GOALS).state()
    agent = start()
    assert ("state_restored", {"policy": True, "hold": "s75"}) in agent.seen
    assert agent._control.policy_state == kept  # what its first decision was made with
    live(agent, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"policy_options": {"up_votes": 3}},
        {"goals": msgspec.structs.replace(GOALS, temperature_limit_c=70.0)},
        {"table": "another"},
    ],
)
def test_the_state_of_another_policy_table_or_goal_is_not_taken_up_but_the_hold_is(
    discharging, helpers, bundle, changes
):
    start, live = discharging
    agent = live(start())
    agent.hold("s75", 600, "have it kept now")
    if "table" in changes:
        changes = {"table": helpers.make_table(bundle, memory_bytes=123)}
    agent = start(**changes)
    assert ("state_restored", {"policy": False, "hold": "s75"}) in agent.seen


def test_a_dry_run_neither_takes_up_nor_changes_what_is_kept(run, tmp_path):
    run().hold("s50", 600, "maintenance")
    before = (tmp_path / "tiny.state.json").read_bytes()
    agent = run(dry_run=True)
    assert agent.status().hold is None
    agent.hold("s25", 600, "only in the dry run")
    assert (tmp_path / "tiny.state.json").read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1}', b"[" * 100_000, b'{"schema":9,"kept":{}}']
)
def test_a_damaged_file_is_told_and_left_out_of_account(run, tmp_path, images, content):
    (tmp_path / "tiny.state.json").write_bytes(content)
    agent = run()
    names = [name for name, _ in agent.seen]
    assert names.count("state_failed") == 1 and "state_restored" not in names
    assert agent.explain()[-1].faults[0].startswith("state ignored: ")
    assert agent.status().counters.state_failures == 1 and agent.infer(images).subnet == "s100"
    agent.hold("s50", 600, "maintenance")
    assert run().status().hold.subnet == "s50"


def test_a_state_that_the_policy_does_not_take_is_told_and_it_begins_anew(discharging, tmp_path):
    start, live = discharging
    live(start()).hold("s75", 600, "have it kept now")
    path = tmp_path / "tiny.state.json"
    saved = msgspec.json.decode(path.read_bytes())
    saved["kept"]["policy"]["state"] = {"odd": 1}
    path.write_bytes(msgspec.json.encode(saved))
    agent = start()
    (error,) = [detail["error"] for name, detail in agent.seen if name == "state_failed"]
    assert "begins anew" in error
    assert agent.status().hold.subnet == "s75"


def test_a_disk_that_refuses_is_told_once_and_holds_go_on(run, tmp_path, images):
    agent = run()
    agent.infer(images, subnet="s50")  # resident from here on
    folder = tmp_path / "folder"
    folder.write_text("no folder")
    agent.kept_by.path = folder / "tiny.state.json"
    for _ in range(2):
        agent.hold("s50", 600, "maintenance")
    assert agent.infer(images).subnet == "s50"
    assert [name for name, _ in agent.seen].count("state_failed") == 1
    assert agent.tick().faults[0].startswith("state not kept: ")
    assert agent.status().counters.state_failures == 2
    agent.kept_by.path = tmp_path / "tiny.state.json"
    agent.release()
    assert not agent.tick().faults


def test_what_was_being_written_when_it_was_killed_is_swept_away(tmp_path):
    (tmp_path / ".tiny.state.json-abc").write_text("half")
    Keeper(tmp_path / "tiny.state.json")
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, threading
from pathlib import Path
from agent.state import Keeper, Kept, PolicyState

keeper = Keeper(Path(sys.argv[1]))
number = 0

def make():
    global number
    number += 1
    state = {"number": number, "filling": "x" * 100_000}
    policy = PolicyState(table_key="t", name="p", options={}, goals={}, state=state)
    return Kept(bundle_key="b", policy=policy, hold=None)

keeper.start(make, lambda name, detail: None)
while True:
    keeper.keep()
    print(number, flush=True)
"""


def test_killed_at_any_moment_of_writing_the_file_is_whole_and_no_older_than_what_was_promised(tmp_path, root):
    path = tmp_path / "state.json"
    for promises in (1, 2, 5, 9):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, cwd=root, env=dict(os.environ)
        )
        for _ in range(promises):
            promised = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
        child.stdout.close()
        child.wait()
        keeper = Keeper(path)
        assert not keeper.ignored and keeper._found.kept.policy.state["number"] >= promised


def test_where_the_file_lies(monkeypatch, tmp_path):
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/robot")
    assert str(state_path("", "", "my net")) == "/home/robot/.local/state/gearshift/my_net.state.json"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/home")
    assert str(state_path("", "", "a")) == "/var/home/gearshift/a.state.json"
    assert str(state_path("", "journal", "a")) == "journal/a.state.json"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/gearshift:/var/lib/other")
    assert str(state_path("", "journal", "a")) == "/var/lib/gearshift/a.state.json"
    assert str(state_path("said", "journal", "a")) == "said/a.state.json"


# -- clocks


def test_the_agents_clock_goes_on_over_restarts_and_starts_of_the_machine(machine):
    clock = machine.clock()
    assert (clock(), clock.name) == (500.0, "first")
    machine.passes(10)
    left = clock.reading()
    machine.passes(5)
    machine.unix_s -= 1e6  # set back meanwhile
    again = machine.clock(left)
    assert (again(), again.name) == (515.0, "first")
    left = again.reading()
    machine.starts_anew(60)
    third = machine.clock(left)
    assert (third(), third.name) == (575.0, "first")
    machine.passes(5)
    assert machine.clock(third.reading())() == 580.0
    left = third.reading()
    machine.starts_anew(60, clock_lost=True)
    assert machine.clock(left)() == 580.0  # as far as known, no time has passed


def test_slewing_is_no_jump(machine):
    jumps = JumpWatch(lambda: machine.unix_s, lambda name, detail: None)
    for _ in range(100):
        machine.passes(1.0)
        machine.unix_s += 0.0005
        jumps.watch(machine.monotonic_s, faults := [])
        assert not faults
    assert jumps.jumps == 0


def test_a_duration_counts_from_when_it_was_first_said(machine):
    horizon = Horizon(clock := machine.clock())
    assert horizon.until_s("8h") == 500.0 + 8 * 3600
    machine.passes(3600)
    assert horizon.until_s("8h") == 500.0 + 8 * 3600  # a reload
    kept, left = horizon.kept, clock.reading()
    machine.starts_anew(100)
    again = Horizon(machine.clock(left), kept)
    assert again.until_s("8h") == 500.0 + 8 * 3600
    assert again.until_s("2h") == machine.clock(left)() + 2 * 3600  # something else was said
    assert again.until_s(None) is None and again.kept is None


def test_a_duration_that_is_over_counts_anew_with_the_next_start_and_not_before(machine):
    horizon = Horizon(clock := machine.clock())
    until_s = horizon.until_s("1h")
    machine.passes(7200)
    assert horizon.until_s("1h") == until_s
    assert Horizon(clock, horizon.kept).until_s("1h") == clock() + 3600


def test_a_time_of_day_follows_the_wall_clock(machine):
    machine.unix_s = datetime.datetime(2026, 6, 1, 9, 0).timestamp()
    horizon = Horizon(machine.clock())
    assert horizon.until_s("18:00") == 500.0 + 9 * 3600
    machine.unix_s += 3600  # set forward
    assert horizon.until_s("18:00") == 500.0 + 8 * 3600
    assert is_time_of_day("18:00") and not is_time_of_day("8h")
    with pytest.raises(InputError, match="neither"):
        horizon.until_s("soon")
