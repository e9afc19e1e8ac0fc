"""The manual's table of families is the one that the tests show."""

from __future__ import annotations

from pathlib import Path

from tests.backbones import features

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


def test_the_manual_has_the_table_that_the_tests_show() -> None:
    assert "\n".join(features.rows()) in PAGE.read_text(encoding="utf-8")
