"""Names of attacks on the command line."""

from __future__ import annotations

import pytest

from safevlm.evaluation.attacks.table import ATTACKS, known, parse, recipes, size_of, told
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


@pytest.mark.parametrize(
    "text", ["nothing", "mirror:3", "pgd:0.5", "pgd:x", "scale:1000", "pgd:", "pgd:8+", "mirror+nothing"]
)
def test_wrong_name_or_strength_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(UsageError, match="--attack"):
        parse([text])


def test_no_recipe_has_the_name_of_an_attack_and_help_tells_all() -> None:
    assert not set(ATTACKS) & set(recipes())
    assert all(name in told() for name in (*ATTACKS, *recipes()))


def test_attacks_in_a_row_are_one_attack_that_knows_as_much_as_its_parts_and_has_no_size_of_its_own() -> None:
    first, second = parse(["rotate:15+pgd", "forged-turn+mirror"])
    assert (str(first), first.needs_white_box, first.size) == ("rotate:15+pgd:8", True, None)
    assert not second.needs_white_box and second.kinds == ("words", "blind")
    assert str(known(str(first))) == str(first) and size_of("pgd:8") == 8


@pytest.mark.parametrize("name", ["", None, "clean", "strongest within 8/255", "strongest of all"])
def test_row_of_a_report_that_is_no_attack_is_none(name: str | None) -> None:
    assert known(name) is None
