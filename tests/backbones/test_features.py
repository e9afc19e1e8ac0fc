"""The manual's table of families is the one that the tests show."""

from __future__ import annotations

from pathlib import Path

from safevlm.backbones import FAMILIES
from safevlm.backbones.table import BACKBONES
from tests.backbones import features

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "backbones.md"


def test_the_manual_has_the_table_that_the_tests_show() -> None:
    assert "\n".join(features.rows()) in PAGE.read_text(encoding="utf-8")


def test_llavas_row_is_of_tests_that_there_are() -> None:
    assert features.SHOWN_FOR_LLAVA.keys() == features.FEATURES.keys()
    for test in (test for shown in features.SHOWN_FOR_LLAVA.values() for test in shown):
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8"), test


def test_the_names_that_are_known_without_torch_are_those_of_the_table() -> None:
    assert tuple(BACKBONES) == FAMILIES
