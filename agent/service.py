"""``gearshift run``: from a configuration to a serving agent, and back to silence when told.

* :func:`assemble`: bundle, table, backends, policy, sensors and journal into an :class:`Agent`; all checks are here.
* :class:`Service`: lock, sockets, server, signals, systemd; SIGTERM drains, SIGHUP reloads, SIGUSR1 tells
  the status.

Knows nothing of the command line: the configuration arrives parsed, what happens is told through a callback.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from agent import quantities
from agent.clocks import is_time_of_day
from agent.config import Config
from agent.core import Agent
from agent.journal import Journal
from agent.lifecycle import Instance, RunningAgent, notify, notify_reloading, watchdog_wanted
from agent.state import Keeper, state_path
from agent.values import Event
from backends import registry as backend_registry
from backends.base import Backend
from calibration import table as tables
from calibration.host import fingerprint
from policies import registry as policy_registry
from policies.base import Goals, Policy
from subnets import Bundle
from subnets.errors import GearshiftError, InputError, MismatchError, UnavailableError
from subnets.heap import share_one_heap

if TYPE_CHECKING:
    from agent.front_doors import FrontDoors

DRAIN_S = 20.0
EXIT_HUNG = 70  # EX_SOFTWARE
_LAST_WORDS_S = 5.0
Tell = Callable[[str, dict[str, Any]], None]
# Settings that a reload takes up; the others need a restart.
_RELOADABLE = ("goals.", "guard.", "policy.", "agent.policy")


def version() -> str:
    """The installed version, empty when run from a plain folder."""
    try:
        return importlib.metadata.version("gearshift")
    except importlib.metadata.PackageNotFoundError:
        return ""


def assemble(config: Config, *, force: bool = False, tell: Tell = lambda name, detail: None) -> Agent:
    """An agent that is not started yet.

    Args:
        config: what to run.
        force: use a table of another bundle or machine all the same; told as ``mismatch``.
        tell: called with (name, detail) for what the user should know.

    Raises:
        InputError: bundle, table, policy or a goal is wrong, or they do not fit together.
        UnavailableError: no backend of the table can be used here.
    """
    if not config.agent.bundle:
        raise InputError("no bundle is named; give one: gearshift run BUNDLE, or agent.bundle in the configuration")
    bundle = Bundle.open(config.agent.bundle)
    table = tables.read(_table_path(config, bundle))
    try:
        table.check(bundle_key=bundle.key, bundle_name=bundle.name)
        table.check(host=fingerprint({row.backend for row in table.rows}))
    except MismatchError as error:
        if not force:
            raise
        tell("mismatch", {"error": str(error)})
    rows = _rows(table, config)
    backends = _backends({row.backend for row in rows}, tell)
    import sensors

    sensor_root = Path(config.agent.sensor_root)
    if not sensor_root.is_dir():
        raise InputError(f"agent.sensor_root: {sensor_root} is not a folder; give /, or where a host's / is mounted")
    path = state_path(config.agent.state, config.agent.journal, bundle.name)
    keeper = Keeper(path, dry_run=config.agent.dry_run)  # a dry run decides over nobody's hold
    clock, journal = keeper.clock, None
    if config.agent.journal:
        journal = Journal(
            Path(config.agent.journal),
            max_bytes=quantities.size_bytes(config.agent.journal_size),
            keep=config.agent.journal_keep,
            clock=clock,
        )
    budget = config.agent.memory_budget
    goals = config.goals.goals(keeper.horizon.until_s)
    return Agent(
        bundle,
        table,
        backends=backends,
        policy=_policy(config, goals),
        policy_options=config.policy.options,
        goals=goals,
        sensors=sensors.discover(sensor_root, device=rows[0].device.upper()),
        journal=journal,
        clock=clock,
        control_period_s=quantities.seconds(config.agent.control_period),
        memory_budget_bytes=None if budget is None else quantities.size_bytes(budget),
        queue_limit=config.agent.queue_limit,
        admission=config.agent.admission,
        drop_late=config.agent.drop_late,
        touch=config.agent.touch,
        points=[row.point for row in rows],
        dry_run=config.agent.dry_run,
        version=version(),
        limits=config.guard.limits(goals),
        keeper=keeper,
        recalibrate=_storing(_table_path(config, bundle)) if config.agent.recalibrate else None,
    )


def _table_path(config: Config, bundle: Bundle) -> Path:
    """The table named, or the one that ``gearshift calibrate`` writes by default."""
    path = Path(config.agent.table or f"{bundle.name}.table.json")
    if not path.is_file():
        raise InputError(
            f"{path}: no such calibration table; measure this machine first with "
            f"'gearshift calibrate {config.agent.bundle} --out {path}'"
        )
    return path


def _storing(path: Path) -> Callable[[tables.Table], None]:
    """What stores a new table in the place of the old one, which it keeps beside it."""

    def store(table: tables.Table) -> None:
        old = path.with_name(f"{path.stem}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}{path.suffix}")
        with tables.disk_errors(old):
            shutil.copy2(path, old)
        tables.write(table, path)

    return store


def _rows(table: tables.Table, config: Config) -> tuple[tables.Row, ...]:
    """The rows that the configuration admits."""
    wanted = config.agent
    rows = tuple(
        row
        for row in table.rows
        if (not wanted.backend or row.backend == wanted.backend)
        and (not wanted.precision or row.precision == wanted.precision)
        and (wanted.threads is None or row.threads == wanted.threads)
    )
    if not rows:
        have = ", ".join(sorted({f"{r.backend}/{r.precision}/{r.threads} threads" for r in table.rows}))
        raise InputError(f"the table has no rows of that backend, precision and threads; it has {have}")
    return rows


def _backends(names: set[str], tell: Tell) -> dict[str, Backend]:
    found: dict[str, Backend] = {}
    reasons = []
    for name in sorted(names):
        backend = backend_registry.create(name)
        available = backend.available()
        if available.ok:
            found[name] = backend
        else:
            reasons.append(f"{name}: {available.why}")
            tell("backend_unavailable", {"backend": name, "error": available.why})
    if not found:
        raise UnavailableError(f"no backend of the table can be used here ({'; '.join(reasons)})")
    return found


def _policy(config: Config, goals: Goals) -> Policy:
    return policy_registry.create(config.agent.policy, goals, config.policy.options)


class Service:
    """One agent as a daemon.

    Args:
        config: what to run.
        force: see :func:`assemble`.
        reload: reads the configuration again on SIGHUP.
        tell: called with (name, detail) for everything worth telling, from any thread.
    """

    def __init__(self, config: Config, *, force: bool, reload: Callable[[], Config], tell: Tell) -> None:
        self._config, self._force, self._reload, self._tell = config, force, reload, tell
        self._wake = threading.Event()
        self._signals: list[int] = []
        self._jumped = False  # the wall clock; a time of day is nearer or farther now

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Call from the main thread.

        Raises:
            InputError, UnavailableError, EngineError: it could not start.
        """
        share_one_heap()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        with Instance() as instance:
            agent = assemble(self._config, force=self._force, tell=self._tell)
            agent.on_event(self._on_event)
            self._serve(agent, instance)
            if agent.status().counters.engine_hangs:
                os._exit(0)  # the interpreter's own end may wait for a thread that is still in an engine

    def _serve(self, agent: Agent, instance: Instance) -> None:
        from agent.front_doors import FrontDoors
        from agent.metrics import Metrics
        from agent.ui import Ui
        from agent.view import Viewer

        viewer = Viewer(agent, version())
        ui = Ui(viewer)
        doors = FrontDoors(
            agent,
            self._config.serve,
            version=version(),
            private_path=instance.folder / "http.sock",
            routes=[*ui.routes(), *Metrics(viewer).routes()],
        )
        try:
            with agent:
                doors.start()
                running = RunningAgent(
                    pid=os.getpid(),
                    host=doors.http.host,
                    port=doors.http.port,
                    socket=str(doors.unix_path or ""),
                    native=doors.native_path,
                    grpc_port=doors.grpc_port,
                    grpc_socket=doors.grpc_path,
                    bundle=agent.bundle.name,
                    started_unix_s=time.time(),
                )
                instance.announce(running)
                if watchdog_wanted():
                    agent.on_tick(_feed_watchdog)
                notify("READY=1", f"STATUS={agent.status().point}")
                self._tell("listening", msgspec.to_builtins(running))
                if self._config.agent.dry_run:
                    self._tell("dry_run", {"point": agent.status().point})
                try:
                    self._wait(agent, doors)
                finally:
                    notify("STOPPING=1")
                    self._tell("stopping", {})
                    ui.close()
                    doors.stop(DRAIN_S)
        finally:
            doors.stop(0)
        self._tell("stopped", msgspec.to_builtins(agent.status().counters))

    def _wait(self, agent: Agent, doors: FrontDoors) -> None:
        while doors.alive:
            self._wake.wait(1.0)
            self._wake.clear()
            if agent.hopeless:
                self._leave(agent)
            while self._signals:
                number = self._signals.pop(0)
                if number == signal.SIGUSR1:
                    self._tell("status", msgspec.to_builtins(agent.status()))
                    continue
                if number != signal.SIGHUP:
                    return
                notify_reloading()
                self._apply(agent)
                notify("READY=1")
            if self._jumped and is_time_of_day(self._config.goals.last_until or ""):
                self._take_up(agent, self._config)
            self._jumped = False
        raise UnavailableError("the HTTP server has ended by itself")

    def _leave(self, agent: Agent) -> NoReturn:
        """Ends the process where nothing else helps, so that whoever started it starts it again."""
        self._tell("agent_hung", {"error": agent.hopeless})
        notify("STOPPING=1", f"STATUS={agent.hopeless}")
        last_words = threading.Thread(target=lambda: agent.close(drain_s=0), daemon=True)
        last_words.start()
        last_words.join(_LAST_WORDS_S)  # journal and state; what hangs is not waited for
        os._exit(EXIT_HUNG)

    def _apply(self, agent: Agent) -> None:
        """Takes up a changed configuration, or keeps the old one and says why."""
        kept = agent.horizon.kept
        try:
            new = self._reload()
            self._take_up(agent, new)
        except GearshiftError as error:
            agent.horizon.kept = kept
            self._tell("reload_refused", {"error": str(error)})
            return
        changed = _changed(self._config, new)
        waiting = [key for key in changed if not key.startswith(_RELOADABLE)]
        self._config = new
        self._tell("reloaded", {"changed": changed, "after_restart": waiting})

    def _take_up(self, agent: Agent, config: Config) -> None:
        goals = config.goals.goals(agent.horizon.until_s)
        limits, policy = config.guard.limits(goals), _policy(config, goals)
        agent.reconfigure(policy=policy, policy_options=config.policy.options, goals=goals, limits=limits)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)
        self._wake.set()

    def _on_event(self, event: Event) -> None:
        if event.name == "switch":
            notify(f"STATUS={event.detail['to']}: {event.detail['reason']}")
        if event.name == "clock_jumped":
            self._jumped = True
            self._wake.set()
        self._tell(event.name, event.detail)


def _feed_watchdog() -> None:
    notify("WATCHDOG=1")


def _changed(old: Config, new: Config) -> list[str]:
    """Keys that differ, as ``section.key``."""
    found = []
    for section in Config.__struct_fields__:
        before, after = getattr(old, section), getattr(new, section)
        found += [f"{section}.{k}" for k in before.__struct_fields__ if getattr(before, k) != getattr(after, k)]
    return found
