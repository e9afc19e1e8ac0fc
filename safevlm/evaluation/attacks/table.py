"""The table of attacks, an attack by name, and the recipes of `attacks.yaml`: names for several.

`scale:50+pgd:8` is one attack: the second starts from what came of the first. An attacker chooses the image, so the
budget of a gradient may just as well be spent on one that is already hard to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from safevlm import files
from safevlm.data.strengths import strength_of
from safevlm.evaluation.attacks import blind, white_box_rows, words
from safevlm.evaluation.attacks.row import Attack, AttackRow
from safevlm.usage import UsageError

ATTACKS: dict[str, AttackRow] = {row.name: row for row in (*blind.ROWS, *words.ROWS, *white_box_rows.ROWS)}
RECIPES = Path(__file__).with_name("attacks.yaml")


@cache
def recipes() -> dict[str, tuple[str, ...]]:
    """Name → the attacks that it stands for."""
    table = files.read_yaml(RECIPES)
    assert isinstance(table, dict)
    return {name: tuple(names) for name, names in table.items()}


def parse(texts: Sequence[str]) -> list[Attack]:
    """`NAME`, `NAME:STRENGTH`, some of these joined by `+`, or a recipe, each perhaps several with commas; every attack
    once. UsageError."""
    named = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    meant = [each for name in named for each in recipes().get(name, (name,))]
    return list({str(attack): attack for attack in map(attack_of, meant)}.values())


def attack_of(text: str) -> Attack:
    """`NAME` or `NAME:STRENGTH`, or several joined by `+`, done in this order. UsageError."""
    made = None
    for part in text.split("+"):
        row, strength = _row(part)
        made = Attack(row, strength, made)
    assert made is not None
    return made


def _row(text: str) -> tuple[AttackRow, float]:
    name, colon, _ = text.partition(":")
    row = ATTACKS.get(name)
    if row is None:
        raise UsageError(f"--attack: unknown {name!r}; one of {list(ATTACKS)}, or a recipe: {list(recipes())}")
    if row.most <= row.least:
        if colon:
            raise UsageError(f"--attack {text}: {name} has no strength")
        return row, row.strength
    return row, strength_of(text, row.strength, (row.least, row.most), row.text, f"--attack {text}", UsageError)


def known(name: object) -> Attack | None:
    """The attack of a run or of a row in a report; None: it is none (`clean`, `strongest of all`)."""
    first = str(name or "").partition("+")[0].partition(":")[0]
    return attack_of(str(name)) if first in ATTACKS else None


def size_of(name: str) -> float | None:
    """Largest change of a value, in steps of 255, of an attack by its whole name; None: that is not what it does."""
    attack = known(name)
    return None if attack is None else attack.size


def told() -> str:
    """Both tables for the command line."""
    rows = (f"  {Attack(row, row.strength)!s:<16} {row.kind:<9} {row.text}" for row in ATTACKS.values())
    named = (f"  {name:<16} {', '.join(names)}" for name, names in recipes().items())
    first = "Attacks, each with the strength it has unless told otherwise; rotate:15+pgd:8 does one after the other:"
    return "\n".join([first, *rows, "Recipes:", *named])
