"""The model card: front matter that the Hub reads, code that is code, and nothing that is not known."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from safevlm.model import card
from safevlm.model.checkpoint_folder import Kind
from safevlm.model.safe_llava import SafeLlavaConfig
from tests import tiny

RUN = json.dumps({"stage": "stage1", "commit": "abc123", "seed": 3, "versions": {}})


TRAPS = ["---\ndate: 2001-99-99\n---\n", f"---\nlicense: {'[' * 5000}\n---\n", "---\na: &a [*a]\nlicense: *a\n---\n"]
"""Front matter on which PyYAML itself fails in other ways than a YAMLError, or that has no end."""


def _config(**safety: object) -> SafeLlavaConfig:
    return tiny.safe_config(tiny.stock_config(), **safety)


def _front(text: str) -> dict[str, object]:
    found = card.FRONT.match(text)
    assert found is not None
    return yaml.safe_load(found[1])


@pytest.mark.parametrize("kind", ["full", "guarded", "safety", "adapter"])
def test_front_matter_and_code_can_be_read(kind: Kind, tmp_path: Path) -> None:
    text = card.card(_config(), kind, tmp_path / "base", RUN)
    front = _front(text)
    assert front["pipeline_tag"] == "image-text-to-text" and "safevlm" in front["tags"]
    assert front["license"] == "other" and front["license_name"] and "base_model" not in front
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks and all(ast.parse(block) for block in blocks)
    assert "* stage: `stage1`" in text and "* commit: `abc123`" in text
    config = _config()
    assert all(f"`{name}`" in text for name in (*config.taxonomy.category_names, *config.taxonomy.level_names))


def test_licence_and_base_come_from_the_bases_own_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: llama2\nbase_model: a/b\ntags: [x]\n---\n# B\n", encoding="utf-8"
    )
    front = _front(card.card(_config(), "full", tmp_path))
    assert (front["license"], front["base_model"]) == ("llama2", "a/b") and "license_name" not in front


@pytest.mark.parametrize("text", ["# no front matter", "---\n: : :\n---\n", "---\n- a\n---\n", "\xff", *TRAPS])
def test_a_base_card_that_cannot_be_read_tells_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text.encode("latin-1"))
    assert _front(card.card(_config(), "full", tmp_path))["license"] == "other"


def test_without_safety_modules_no_guard_is_promised(tmp_path: Path) -> None:
    text = card.card(_config(**tiny.BARE), "adapter", tmp_path)
    assert "has no safety head" in text and "safety head reads" not in text
