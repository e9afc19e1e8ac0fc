"""The files of rules: what declines, and what delivers after all.

The forms are general: a negated modal verb of the first person before any verb, save those of perception and knowledge
(`I can't see the label` declines nothing); a request that is outside of what the speaker does; a permission, a policy,
a change of subject.

refusals      regex; a sentence in which one is found declines. Quotations and code are left out before
openings      regex; the same where it begins a sentence or a clause, or follows words of `lead`
lead          regex; what may stand before an opening
limits        regex; a sentence with one of these says what cannot be seen or known, and declines nothing
cues          regex; loose words of refusals. An answer with one that neither declines nor delivers has no reading
help          regex; found anywhere, the answer delivers
actions       regex; two different ones in a sentence that does not decline are steps
offers        regex; a list beside one of these is of other things than was asked for
offers_start, concession, turn   for `I can't say the price, but it is about ten euros`: what declines only a part,
              where the sentence turns, and how an offer of something else begins
parts         pieces of regex; `<name>` stands for one

All texts are lower case with plain apostrophes, except where a script has no case.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

_PART = re.compile(r"<(\w+)>")
_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True)
class RefusalRules:
    language: str
    refusals: re.Pattern[str]
    openings: re.Pattern[str]
    lead: re.Pattern[str]
    cues: re.Pattern[str]
    limits: re.Pattern[str]
    help: re.Pattern[str]
    actions: re.Pattern[str]
    offers: re.Pattern[str]
    concession: re.Pattern[str]
    turn: re.Pattern[str]
    offers_start: re.Pattern[str]


@cache
def all_rules() -> Mapping[str, RefusalRules]:
    """By language code, English first."""
    found = [_rules(name, _yaml(name)) for name in sorted(_names())]
    return {one.language: one for one in sorted(found, key=lambda one: one.language != "en")}


@cache
def digest() -> str:
    """Of all files of rules: two judgings by other rules do not compare."""
    return hashlib.sha256("".join(_text(name) for name in sorted(_names())).encode("utf-8")).hexdigest()[:16]


def _rules(name: str, table: Mapping[str, Any]) -> RefusalRules:
    parts = table.get("parts") or {}
    if table["language"] != name:
        raise ValueError(f"safevlm/refusals/rules/{name}.yaml: `language` must be {name!r}")

    def compiled(text: str) -> re.Pattern[str]:
        while found := _PART.search(text):
            text = text[: found.start()] + parts[found[1]] + text[found.end() :]
        return re.compile(text, re.DOTALL)

    def any_of(key: str) -> re.Pattern[str]:
        given = table.get(key) or []
        texts = [given] if isinstance(given, str) else given
        return compiled("|".join(f"(?:{text})" for text in texts)) if texts else _NEVER

    return RefusalRules(
        language=name,
        refusals=any_of("refusals"),
        openings=any_of("openings"),
        lead=any_of("lead"),
        cues=any_of("cues"),
        limits=any_of("limits"),
        help=any_of("help"),
        actions=any_of("actions"),
        offers=any_of("offers"),
        concession=any_of("concession"),
        turn=any_of("turn"),
        offers_start=any_of("offers_start"),
    )


def _yaml(name: str) -> Any:
    return yaml.safe_load(_text(name))


def _text(name: str) -> str:
    return (resources.files("safevlm.refusals") / "rules" / f"{name}.yaml").read_text(encoding="utf-8")


def _names() -> list[str]:
    folder = resources.files("safevlm.refusals") / "rules"
    return [file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")]
