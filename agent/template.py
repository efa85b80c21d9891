"""``gearshift config init``: a configuration with every key at its default, commented out, and what each is for.

What a key is for stands beside it in :mod:`agent.config`; it is read from there, so that it is written once.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from agent.config import Config

_EXAMPLES = {
    "bundle": '"bundles/digits"',
    "table": '"digits.table.json"',
    "backend": '"openvino"',
    "precision": '"f32"',
    "threads": "1",
    "memory_budget": '"250MB"',
    "journal": '"journal"',
    "state": '"state"',
    "deadline": '"50ms"',
    "min_accuracy": "0.9",
    "max_power_w": "5.0",
    "temperature_limit_c": "80.0",
    "last_until": '"18:00"',
    "critical_temperature_c": "95.0",
    "brownout_power_w": "9.0",
    "battery_capacity_j": "72000.0",
    "switches_per_hour": "20",
    "socket": '"agent.sock"',
    "token_file": '"token"',
    "tls_cert": '"cert.pem"',
    "tls_key": '"key.pem"',
    "native": '"native.sock"',
    "grpc_port": "8701",
    "grpc_socket": '"grpc.sock"',
}
_COLUMN = 36  # where the comments begin


def template() -> str:
    """The file, as text; where there is no default, an example stands."""
    lines = [
        "# Gearshift agent. Every key is optional; what is commented out shows the default, or an example where there",
        "# is none. Paths are relative to this file. Files in conf.d beside it, GEARSHIFT_<SECTION>_<KEY> and flags go",
        "# before it. 'gearshift config check' reads it as 'gearshift run' would.",
    ]
    config = Config()
    for section in Config.__struct_fields__:
        values = getattr(config, section)
        lines += ["", f"[{section}{'.options' if section == 'policy' else ''}]"]
        if section == "policy":
            lines.append(_line("up_votes", "10", "an option of the policy, see 'gearshift policies'"))
            continue
        meanings = _meanings(type(values))
        for key in values.__struct_fields__:
            lines.append(_line(key, _EXAMPLES.get(key) or _toml(getattr(values, key)), meanings.get(key, "")))
    return "\n".join(lines) + "\n"


def _line(key: str, value: str, meaning: str) -> str:
    setting = f"# {key} = {value}"
    return f"{setting:<{_COLUMN}}  # {meaning}" if meaning else setting


def _meanings(section: type) -> dict[str, str]:
    """The comments beside a section's fields."""
    return dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.+)$", inspect.getsource(section), re.MULTILINE))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
