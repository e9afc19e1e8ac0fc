"""Names of attacks on the command line."""

from __future__ import annotations

import pytest

from safevlm.evaluation.attacks.table import ATTACKS, parse, recipes, told
from safevlm.usage import UsageError


def names(*texts: str) -> list[str]:
    return [str(attack) for attack in parse(texts)]


def test_attack_has_the_strength_of_its_row_unless_told_otherwise() -> None:
    assert names("pgd", "scale:35, mirror") == ["pgd:8", "scale:35", "mirror"]


def test_recipe_stands_for_its_attacks_and_each_is_made_once() -> None:
    assert names("linf8", "pgd:8,uniform") == list(recipes()["linf8"])


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_names_attacks_that_exist(recipe: str) -> None:
    assert len(parse([recipe])) == len(recipes()[recipe])


@pytest.mark.parametrize("text", ["nothing", "mirror:3", "pgd:0.5", "pgd:x", "scale:1000", "pgd:"])
def test_wrong_name_or_strength_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(UsageError, match="--attack"):
        parse([text])


def test_no_recipe_has_the_name_of_an_attack_and_help_tells_all() -> None:
    assert not set(ATTACKS) & set(recipes())
    assert all(name in told() for name in (*ATTACKS, *recipes()))
