"""The manual's table of families is the one that the tests show."""

from __future__ import annotations

from pathlib import Path

from safevlm.backbones import FAMILIES
from safevlm.backbones.table import BACKBONES
from tests.backbones import features

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


def test_the_manual_has_the_table_that_the_tests_show() -> None:
    assert "\n".join(features.rows()) in PAGE.read_text(encoding="utf-8")


def test_the_names_that_are_known_without_torch_are_those_of_the_table() -> None:
    assert tuple(BACKBONES) == FAMILIES
