"""How a right JSON value is spoiled: values that no program expects, and parts swapped, dropped, renamed or added."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

STRANGE: list[Any] = json.loads(
    r"""[null, true, false, 0, -1, 1, 5, 1.5, -0.0, 1e308, "", " ", "x", "yes", "0", "nan", "a/b", "../..", "\u0000",
    "a\nb", "\ud83d", "{", "}", "{topic}", "{topic:>999999999}", "{0}", "%s", [], {}, [[]], [null], [1, "a"], ["a"],
    {"a": 1}, {"": ""}, {"name": 5}, "\u2028", "~", "$HOME", "2024-01-02", 1000000000000000000000000000000]"""
) + ["x" * 100_000, -(10**400)]
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    r'"\ud83d"',
    r'"\udc00\ud83d"',
    r'"\u0000"',
    "tru",
    "01",
    "'",
    "<<",
    "*b",
]
RAW += ["&a [*a]", "!!timestamp junk", "!!python/object:os.system {}", "!!binary x", "!!set {a, b}", ".inf", ".nan"]
RAW += ["0x1F", "1_000", "1:30", "9" * 5_000, "[" * 3_000 + "]" * 3_000, "[" * 100_000]
RAW += ['{"a":' * 2_000 + "1" + "}" * 2_000]


def ways_to_spoil(rng: random.Random, content: bytes, at: int) -> list[tuple[str, bytes]]:
    """What may happen to any file of text, and what comes of it; `at`: where."""
    return [
        ("cut", content[:at]),
        ("empty", b""),
        ("white space", b" \n\n"),
        ("a bad byte", content[:at] + b"\xff" + content[at:]),
        ("a NUL", content[:at] + b"\0" + content[at:]),
        ("a surrogate's bytes", content[:at] + b"\xed\xa0\xbd" + content[at:]),
        ("a mark", b"\xef\xbb\xbf" + content),
        ("UTF-16", content.decode().encode("utf-16")),
        ("a flipped byte", content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]),
        ("twice", content + content),
        ("brackets", b"[" * 50_000),
        ("braces", b'{"a":' * 20_000),
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield from places(part, (*path, key))


def with_part(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    made = copy.deepcopy(value)
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return made


def changed(rng: random.Random, value: Any) -> tuple[str, Any]:
    """A value with one to three parts of it swapped, dropped, renamed or added."""
    told = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(list(places(value)))
        kind = rng.choice(["swap", "swap", "swap", "drop", "rename", "add", "wrap"])
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        told.append(f"{kind} {path}")
        if kind == "swap" or not path:
            value = with_part(value, path, copy.deepcopy(rng.choice(STRANGE)))
        elif kind == "wrap":
            value = with_part(value, path, [holder[path[-1]]])
        else:
            value = copy.deepcopy(value)
            holder = value
            for key in path[:-1]:
                holder = holder[key]
            if isinstance(holder, dict):
                old = holder.pop(path[-1]) if kind != "add" else None
                if kind != "drop":
                    holder[rng.choice(["extra", "", "name", "path", 5, f"{path[-1]}x"])] = old
            elif kind == "drop":
                del holder[path[-1]]
            else:
                holder.append(copy.deepcopy(rng.choice(STRANGE)))
    return "; ".join(told), value
