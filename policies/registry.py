"""Policies by name: creating one from a configuration, and saying what there is.

Knows each policy's module by name and imports it when it is asked for; wrappers are built in code, not by name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from policies.base import Goals, Policy
from policies.rungs import Where
from subnets.errors import InputError

_CLASSES = {
    "smallest": "policies.smallest:Smallest",
    "largest": "policies.largest:Largest",
    "static": "policies.static:Static",
    "throughput": "policies.throughput:Throughput",
    "thermal": "policies.thermal:Thermal",
    "battery": "policies.battery:Battery",
    "power": "policies.power:Power",
    "ladder": "policies.ladder:Ladder",
    "aimd": "policies.aimd:Aimd",
    "pid": "policies.pid:Pid",
    "maxacc": "policies.maxacc:MaxAcc",
    "maxbatch": "policies.maxbatch:MaxBatch",
    "slackfit": "policies.slackfit:SlackFit",
    "effective": "policies.effective:Effective",
    "alert": "policies.alert:Alert",
    "lyapunov": "policies.lyapunov:Lyapunov",
    "bandit": "policies.bandit:Bandit",
    "mdp": "policies.mdp:Mdp",
    "composite": "policies.composite:Composite",
}


class OptionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One option of a policy: its name, type in words, default and meaning."""

    name: str
    type: str
    default: float | int | str | bool | None
    meaning: str
    shared: bool = False  # every policy takes it


class PolicyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One policy: what it does, which conditions it looks at, its options."""

    name: str
    summary: str
    looks_at: tuple[str, ...]
    options: tuple[OptionInfo, ...]


def names() -> tuple[str, ...]:
    """Every policy's name, simple ones first."""
    return tuple(_CLASSES)


def create(name: str, goals: Goals | None = None, options: Mapping[str, Any] | None = None) -> Policy:
    """A policy with its options; every policy also takes those of :class:`~policies.rungs.Where`.

    Values may be texts, as from a command line: ``"0.2"`` is 0.2 for an option that takes a number.

    Raises:
        InputError: there is no such policy or option, or a value is not what the option takes.
    """
    kind = _class(name)
    hints = _hints(kind)
    wheres = typing.get_type_hints(Where)
    arguments: dict[str, Any] = {}
    place: dict[str, Any] = {}
    for option, value in (options or {}).items():
        if option in wheres:
            place[option] = _convert(name, option, value, wheres[option])
        elif option in hints:
            arguments[option] = _convert(name, option, value, hints[option])
        else:
            known = [*hints, *wheres]
            raise InputError(
                f"policy {name} has no option '{option}'; {_guess(option, known)}it takes {', '.join(known)}"
            )
    policy: Policy = kind(goals or Goals(), **arguments, where=Where(**place))
    return policy


def describe() -> tuple[PolicyInfo, ...]:
    """All policies with their options and defaults."""
    return tuple(_info(name) for name in names())


def _class(name: str) -> Any:
    if name not in _CLASSES:
        raise InputError(f"there is no policy '{name}'; {_guess(name, names())}there are {', '.join(names())}")
    module, _, attribute = _CLASSES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _guess(value: str, known: typing.Sequence[str]) -> str:
    close = difflib.get_close_matches(value, known, n=1)
    return f"did you mean '{close[0]}'? " if close else ""


def _hints(kind: Any) -> dict[str, Any]:
    """The types of a policy's own options, in the constructor's order."""
    hints = typing.get_type_hints(kind.__init__)
    parameters = inspect.signature(kind.__init__).parameters.values()
    keywords = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    return {name: hints[name] for name in keywords if name != "where"}


def _convert(policy: str, option: str, value: Any, hint: Any) -> Any:
    try:
        return msgspec.convert(value, hint, strict=False)
    except msgspec.ValidationError:
        raise InputError(f"policy {policy}: option {option} is {value!r}; give {_words(hint)}") from None


def _words(hint: Any) -> str:
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "nothing"}
    return " or ".join(words[part] for part in typing.get_args(hint) or (hint,))


def _info(name: str) -> PolicyInfo:
    kind = _class(name)
    signature = inspect.signature(kind.__init__).parameters
    meanings = _meanings(kind)
    own = [_option(option, hint, signature[option].default, meanings) for option, hint in _hints(kind).items()]
    where, meanings = Where(), _meanings(Where)
    shared = [
        _option(option, hint, getattr(where, option), meanings, shared=True)
        for option, hint in typing.get_type_hints(Where).items()
    ]
    return PolicyInfo(
        name=name,
        summary=(inspect.getdoc(kind) or "").partition("\n")[0].replace("``", ""),
        looks_at=kind.looks_at,
        options=(*own, *shared),
    )


def _option(name: str, hint: Any, default: Any, meanings: dict[str, str], *, shared: bool = False) -> OptionInfo:
    return OptionInfo(name=name, type=_words(hint), default=default, meaning=meanings.get(name, ""), shared=shared)


def _meanings(kind: type) -> dict[str, str]:
    """The ``Args:`` of a docstring: name -> meaning, on one line."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Args:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
