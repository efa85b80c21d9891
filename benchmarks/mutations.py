"""Spoiling: bytes and JSON documents made wrong in the ways that have broken servers before.

Everything comes from the ``random.Random`` that is given, so the same seed spoils in the same way. Knows nothing of
protocols.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_TOKENS = (b"\0", b"\r\n", b"\r\n\r\n", b"\n", b"%00", b"..", b"\xff\xfe", b"\xf0\x9f\xa6\x80", b"{", b"[" * 50, b"NaN")
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    -(2**64),
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "0",
    "x" * 5000,
    "\0",
    "\ud83e",
    [],
    {},
    [[]],
    [None],
    {"": None},
)
_DEEP = 2000


def spoil(content: bytes, chance: random.Random, times: int = 3) -> bytes:
    """Bytes with up to ``times`` changes: flipped, cut, doubled, inserted, overwritten."""
    spoilt = bytearray(content)
    for _ in range(chance.randint(1, times)):
        place = chance.randrange(len(spoilt) + 1)
        end = min(len(spoilt), place + chance.choice((1, 2, 4, 8, 64)))
        what = chance.randrange(7)
        if what == 0 and spoilt:
            spoilt[place % len(spoilt)] ^= 1 << chance.randrange(8)
        elif what == 1:
            del spoilt[place:end]
        elif what == 2:
            spoilt[place:place] = spoilt[place:end] * chance.randint(1, 20)
        elif what == 3:
            spoilt[place:place] = chance.choice(_TOKENS)
        elif what == 4:
            spoilt[place:end] = chance.randbytes(end - place)
        elif what == 5:
            width = chance.choice((1, 2, 4, 8))
            spoilt[place : place + width] = (chance.choice(_NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
        else:
            del spoilt[place:]
    return bytes(spoilt)


def spoil_json(document: Any, chance: random.Random) -> bytes:
    """A JSON document with one to three nodes replaced, removed, renamed or doubled; at times spoilt as bytes too."""
    spoilt = copy.deepcopy(document)
    for _ in range(chance.randint(1, 3)):
        spoilt = _spoil_node(spoilt, chance)
    text = json.dumps(spoilt)
    if chance.random() < 0.02:
        text = text.replace("null", "[" * _DEEP + "]" * _DEEP, 1)
    encoded = text.encode("utf-8", "surrogatepass")
    return spoil(encoded, chance) if chance.random() < 0.15 else encoded


def _spoil_node(document: Any, chance: random.Random) -> Any:
    places = list(_places(document))
    if not places or chance.random() < 0.03:
        return copy.deepcopy(chance.choice(_VALUES))
    owner, key = chance.choice(places)
    what = chance.randrange(4)
    if what == 0:
        del owner[key]
    elif what == 1 and isinstance(owner, dict):
        owner[str(key) + chance.choice("sX \0")] = owner.pop(key)
    elif what == 2 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[key]))
    else:
        owner[key] = copy.deepcopy(chance.choice(_VALUES))  # or the next document would find it changed
    return document


def _places(node: Any) -> Any:
    """Every (owner, key) in a document; of long lists only the first few entries."""
    if isinstance(node, dict):
        for key in list(node):
            yield node, key
            yield from _places(node[key])
    elif isinstance(node, list):
        for index in range(min(len(node), 6)):
            yield node, index
            yield from _places(node[index])
