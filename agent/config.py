"""The agent's configuration: one TOML file, overrides beside it, environment and flags above.

::

    defaults  <  agent.toml  <  conf.d/*.toml in order of name  <  GEARSHIFT_<SECTION>_<KEY>  <  flags

Every source is checked on its own, so that an error names the file (or variable) and the key. Paths in a file are
relative to that file. Knows nothing of how the values are used.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent import quantities
from agent.limits import HardLimits
from agent.logs import Form
from policies.base import Goals, Maximise
from subnets.errors import InputError

_MAX_FILE_BYTES = 2**20
_PATHS = (
    *(("agent", key) for key in ("bundle", "table", "journal", "state", "sensor_root")),
    *(("serve", key) for key in ("socket", "native", "grpc_socket", "token_file", "tls_cert", "tls_key")),
)

Quantity = str | float | int


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: frozen, and unknown keys are errors."""


class AgentSection(Section, frozen=True, kw_only=True):
    """``[agent]``: what runs. ``None`` and empty = not said."""

    bundle: str = ""  # folder of the network with its subnets; the only key that must be said somewhere
    table: str = ""  # what 'gearshift calibrate' has measured here; empty = <bundle's name>.table.json
    policy: str = "composite"  # see 'gearshift policies'
    backend: str = ""  # only this backend's rows of the table
    precision: str = ""  # only rows of this precision
    threads: int | None = None  # only rows with so many threads
    memory_budget: Quantity | None = None  # for all resident engines, e.g. "250MB"
    control_period: Quantity = "1s"  # between two decisions
    queue_limit: int = 64  # requests that may wait before new ones are refused
    admission: bool = False  # refuse a request at once whose deadline cannot be kept
    drop_late: bool = False  # give up a request whose deadline passes before its turn
    touch: bool = True  # warm an engine after a switch, while nobody wants it
    journal: str = ""  # folder; empty = no journal
    journal_size: Quantity = "16MiB"  # of one file before it is compressed
    journal_keep: int = 16  # compressed files
    state: str = ""  # folder of what restarts go on from; empty = $STATE_DIRECTORY, the journal's, or the user's
    recalibrate: bool = False  # measure rows that are off the table for long again, and store the new table
    sensor_root: str = "/"  # sensors are read below this folder, e.g. a host's / mounted in a container
    dry_run: bool = False  # decide and journal, never act
    log_format: Form = "auto"  # or "text", "json"


class GoalsSection(Section, frozen=True, kw_only=True):
    """``[goals]``: what is to be kept; what is left out is not wished for."""

    deadline: Quantity | None = None  # from arrival to answer, e.g. "50ms"
    min_accuracy: float | None = None  # share, 0.9 for 90 %
    max_power_w: float | None = None  # of the measured domain, while a batch is being computed
    temperature_limit_c: float | None = None  # of the hottest relevant zone
    last_until: Quantity | None = None  # "8h" from the start, or a time of day, "18:00"
    reserve: float = 0.05  # charge of the battery to keep, as a share
    battery_capacity_j: float | None = None  # where the battery does not tell its energy; 1 Wh is 3600 J
    deadline_percentile: float = 0.99  # share of the answers that should keep the deadline
    switches_per_hour: int | None = None  # at most
    maximise: Maximise = "accuracy"  # or "answers_per_joule"

    def goals(self, until_s: Callable[[Quantity | None], float | None] = lambda said: None) -> Goals:
        """The goals.

        Args:
            until_s: turns ``last_until`` into a time on the agent's clock, see :class:`agent.clocks.Horizon`; left
                out, that goal is.

        Raises:
            InputError: naming the key and what it should be.
        """
        return Goals(
            deadline_ms=None if self.deadline is None else quantities.milliseconds(self.deadline),
            min_accuracy=self.min_accuracy,
            max_power_w=self.max_power_w,
            temperature_limit_c=self.temperature_limit_c,
            last_until_s=until_s(self.last_until),
            reserve=self.reserve,
            battery_capacity_j=self.battery_capacity_j,
            deadline_percentile=self.deadline_percentile,
            switches_per_hour=self.switches_per_hour,
            maximise=self.maximise,
        ).check()


class GuardSection(Section, frozen=True, kw_only=True):
    """``[guard]``: hard limits, which no policy, hold or request may overrule.

    What is left out follows from the goals: 10 °C above ``temperature_limit_c``, 1.25 times ``max_power_w``; else it is
    not known, and does not bind. The reserve of charge is the goals'.
    """

    critical_temperature_c: float | None = None  # from here on only the thriftiest answers
    brownout_power_w: float | None = None  # what the supply cannot give

    def limits(self, goals: Goals) -> HardLimits:
        """The limits for these goals.

        Raises:
            InputError: naming the key and what it should be.
        """
        return HardLimits.of(goals, self.critical_temperature_c, self.brownout_power_w)


class PolicySection(Section, frozen=True, kw_only=True):
    """``[policy.options]``: what the policy takes, see ``gearshift policies``."""

    options: dict[str, float | int | str | bool] = {}


class ServeSection(Section, frozen=True, kw_only=True):
    """``[serve]``: where it listens; an empty host = no TCP."""

    host: str = "127.0.0.1"  # empty = no TCP
    port: int = 8700  # 0 = any free one
    socket: str = ""  # HTTP on a Unix socket
    token_file: str = ""  # bearer tokens, one a line; with TLS what an address needs that others can reach
    tls_cert: str = ""  # PEM, with tls_key
    tls_key: str = ""  # readable by the agent alone
    max_body: Quantity = "64MiB"  # of one request, also unpacked
    max_json: Quantity = "8MiB"  # of its JSON part
    max_head: Quantity = "16KiB"  # of request line and headers
    max_images: int = 256  # of one request
    max_connections: int = 64  # over HTTP
    http_memory: Quantity = "256MiB"  # for all HTTP requests being read or answered
    read_timeout: Quantity = "30s"  # for a request to arrive, and for a reply to be taken
    idle_timeout: Quantity = "75s"  # between the requests of a connection
    shared_memory: bool = False  # clients may name objects in /dev/shm that are read and written
    max_regions: int = 64  # of shared memory
    region_memory: Quantity = "1GiB"  # of all regions together
    model_control: bool = False  # clients may unload the model
    native: str = ""  # a Unix socket for neighbours on the device, docs/native.md; empty = none
    native_memory: Quantity = "256MiB"  # that its clients together may make the agent hold
    native_connections: int = 32  # at a time
    grpc_port: int | None = None  # on the host above; 0 = any free one; needs the extra gearshift[grpc]
    grpc_socket: str = ""  # gRPC on a Unix socket
    grpc_calls: int = 64  # that may be under way at a time, on each of the two


class Config(Section, frozen=True, kw_only=True):
    """All of it."""

    agent: AgentSection = AgentSection()
    goals: GoalsSection = GoalsSection()
    guard: GuardSection = GuardSection()
    policy: PolicySection = PolicySection()
    serve: ServeSection = ServeSection()


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A key that is not as by default, and who said so."""

    key: str
    default: Any
    value: Any
    source: str


def load(
    path: Path | None, *, environment: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> Config:
    """The configuration from all sources.

    Args:
        path: the file; None = none.
        environment: usually ``os.environ``.
        flags: ``{"section.key": value}``; None values are not said.

    Raises:
        InputError: naming source and key.
    """
    return _combine(_sources(path, environment or {}, flags or {}))


def differences(path: Path, *, environment: Mapping[str, str] | None = None) -> list[Difference]:
    """What a file with its overrides changes from the defaults.

    Raises:
        InputError: as :func:`load`.
    """
    sources = _sources(path, environment or {}, {})
    chosen, default = (_flatten(msgspec.to_builtins(config)) for config in (_combine(sources), Config()))
    found = []
    for key in chosen | default:
        if chosen.get(key) != default.get(key):
            source = next(name for name, content in reversed(sources) if key in _flatten(content))
            found.append(Difference(key=key, default=default.get(key), value=chosen.get(key), source=source))
    return found


def _sources(
    path: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """(name, content) of every source, the strongest last; each is checked."""
    sources: list[tuple[str, dict[str, Any]]] = []
    if path is not None:
        sources.append((str(path), _read(path)))
        sources += [(str(extra), _read(extra)) for extra in sorted((path.parent / "conf.d").glob("*.toml"))]
    for name in sorted(environment):
        section, _, key = name.removeprefix("GEARSHIFT_").lower().partition("_")
        if name.startswith("GEARSHIFT_") and section in ("agent", "goals", "guard", "serve") and key:
            sources.append((name, {section: {key: environment[name]}}))
    for flag, value in flags.items():
        if value is not None:
            section, _, key = flag.partition(".")
            content = {"policy": {"options": value}} if section == "policy" else {section: {key: value}}
            sources.append((f"--{key.replace('_', '-')}", content))
    for source, content in sources:
        _check(source, _convert(source, content))
    return sources


def _combine(sources: list[tuple[str, dict[str, Any]]]) -> Config:
    merged: dict[str, Any] = {}
    for _, content in sources:
        merged = _merge(merged, content)
    return _convert("the configuration", merged)


def _check(source: str, config: Config) -> None:
    """Refuses values that no other source can make sense of.

    Raises:
        InputError: naming source and key.
    """
    agent, goals, serve = config.agent, config.goals, config.serve
    for key, value, parse in (
        ("agent.memory_budget", agent.memory_budget, quantities.size_bytes),
        ("agent.control_period", agent.control_period, quantities.seconds),
        ("agent.journal_size", agent.journal_size, quantities.size_bytes),
        ("goals.deadline", goals.deadline, quantities.milliseconds),
        ("goals.last_until", goals.last_until, quantities.seconds_until),
        ("serve.max_body", serve.max_body, quantities.size_bytes),
        ("serve.max_json", serve.max_json, quantities.size_bytes),
        ("serve.max_head", serve.max_head, quantities.size_bytes),
        ("serve.http_memory", serve.http_memory, quantities.size_bytes),
        ("serve.region_memory", serve.region_memory, quantities.size_bytes),
        ("serve.read_timeout", serve.read_timeout, quantities.seconds),
        ("serve.idle_timeout", serve.idle_timeout, quantities.seconds),
        ("serve.native_memory", serve.native_memory, quantities.size_bytes),
    ):
        try:
            if value is not None:
                parse(value)
        except InputError as error:
            raise InputError(f"{source}: {key}: {error}") from None
    for key, number, low, high in (
        ("agent.queue_limit", agent.queue_limit, 0, 100_000),
        ("agent.journal_keep", agent.journal_keep, 1, 100_000),
        ("agent.threads", agent.threads, 1, 1024),
        ("serve.port", serve.port, 0, 65535),
        ("serve.max_images", serve.max_images, 1, 1_000_000),
        ("serve.max_connections", serve.max_connections, 1, 100_000),
        ("serve.max_regions", serve.max_regions, 1, 100_000),
        ("serve.native_connections", serve.native_connections, 1, 1000),
        ("serve.grpc_port", serve.grpc_port, 0, 65535),
        ("serve.grpc_calls", serve.grpc_calls, 1, 1000),
    ):
        if number is not None and not low <= number <= high:
            raise InputError(f"{source}: {key} is {number}; give a whole number from {low} to {high}")
    try:
        config.guard.limits(goals.goals())
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InputError(f"{path}: larger than {_MAX_FILE_BYTES} bytes, no configuration is")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); write one with 'gearshift config init'") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    for section, key in _PATHS:
        found = content.get(section)
        if isinstance(found, dict) and isinstance(found.get(key), str) and found[key]:
            found[key] = str(path.parent / found[key])
    return content


def _convert(source: str, content: dict[str, Any]) -> Config:
    """The content as a configuration; text is taken for numbers where numbers belong (environment and flags).

    Raises:
        InputError: naming source and key, with the nearest known key for an unknown one.
    """
    from_file = source.endswith(".toml")
    try:
        return msgspec.convert(content, Config, strict=from_file)
    except msgspec.ValidationError as error:
        message = str(error)
    unknown = re.match(r"Object contains unknown field `([^`]+)`(?: - at `\$\.?([^`]*)`)?", message)
    if unknown is None:
        what, _, place = message.partition(" - at `$.")
        raise InputError(f"{source}: {place.rstrip('`') or 'content'}: {what[:1].lower()}{what[1:]}")
    key, place = unknown[1], unknown[2] or ""
    fields = Config.__struct_fields__ if not place else type(getattr(Config(), place.split(".")[0])).__struct_fields__
    near = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(fields)}"
    raise InputError(f"{source}: unknown {'key' if place else 'section'} '{f'{place}.' if place else ''}{key}'; {hint}")


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
