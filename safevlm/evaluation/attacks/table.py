"""The table of attacks, an attack by name, and the recipes of `attacks.yaml`: names for several."""

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
    """`NAME`, `NAME:STRENGTH` or a recipe, each perhaps several with commas; every attack once. UsageError."""
    named = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    meant = [each for name in named for each in recipes().get(name, (name,))]
    return list({str(attack): attack for attack in map(_attack, meant)}.values())


def _attack(text: str) -> Attack:
    name, colon, _ = text.partition(":")
    row = ATTACKS.get(name)
    if row is None:
        raise UsageError(f"--attack: unknown {name!r}; one of {list(ATTACKS)}, or a recipe: {list(recipes())}")
    if row.most <= row.least:
        if colon:
            raise UsageError(f"--attack {text}: {name} has no strength")
        return Attack(row, row.strength)
    return Attack(row, strength_of(text, row.strength, (row.least, row.most), row.text, f"--attack {text}", UsageError))


def size_of(name: str) -> float | None:
    """Largest change of a value, in steps of 255, of an attack by its whole name; None: that is not what it does."""
    row = ATTACKS.get(name.partition(":")[0])
    return float(name.partition(":")[2]) if row is not None and row.is_sized else None


def told() -> str:
    """Both tables for the command line."""
    rows = (f"  {Attack(row, row.strength)!s:<16} {row.kind:<9} {row.text}" for row in ATTACKS.values())
    known = (f"  {name:<16} {', '.join(names)}" for name, names in recipes().items())
    return "\n".join(["Attacks, each with the strength it has unless told otherwise:", *rows, "Recipes:", *known])
