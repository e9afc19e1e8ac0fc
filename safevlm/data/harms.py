"""A benchmark's own name of a harm → the category of the default taxonomy: one table, `harms.yaml`, for all of them.

No benchmark uses our taxonomy. The category is what the `oracle` defense and the head's accuracy are given; the
benchmark's own word stays in a question's `expected["topic"]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, cast

from safevlm.files import load_yaml

FILE = "harms.yaml"
OTHER = "crime"
"""The harm of a name that says nothing."""


@dataclass(frozen=True)
class HarmTable:
    """`harms.yaml`."""

    harms: Mapping[str, str]
    """Harm → category."""
    names: Mapping[str, Mapping[str, str]]
    """Benchmark → its name → harm."""
    words: Mapping[str, str]
    """Part of a name → harm, the first that fits."""


@lru_cache(maxsize=1)
def table() -> HarmTable:
    place = resources.files("safevlm.data") / FILE
    return HarmTable(**cast(dict[str, Any], load_yaml(place.read_bytes(), FILE)))


def harm_of(benchmark: str, *topics: str) -> str:
    """The harm that a benchmark's names of a row mean, the most special name last."""
    plain = [_plain(topic) for topic in topics]
    known = table().names.get(benchmark, {})
    named = [known[topic] for topic in plain if topic in known]
    if named:
        return named[-1]
    text = " ".join(plain)
    return next((harm for word, harm in table().words.items() if word in text), OTHER)


def category_of(benchmark: str, *topics: str) -> str:
    """The category of that harm."""
    return table().harms[harm_of(benchmark, *topics)]


def markdown() -> Iterator[str]:
    """The table as the docs show it: a line per harm, with what each benchmark calls it."""
    yield "| harm | category | called |"
    yield "|---|---|---|"
    for harm, category in table().harms.items():
        called = [
            f"{benchmark}: {', '.join(name for name, meant in names.items() if meant == harm)}"
            for benchmark, names in table().names.items()
            if harm in names.values()
        ]
        yield f"| {harm} | `{category}` | {'; '.join(called) or '–'} |"


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
