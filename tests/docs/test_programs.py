"""The programs in the pages run, one after the other, on a small guarded checkpoint in the place of the demo's."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name, page
from tests.engine import engines

PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_in_a_page_parses(path: Path):
    for block in PYTHON.findall(page(path).text):
        ast.parse(block)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like that of the demo; its head sees `careful`, `misleading` in every image."""
    guarded = engines.model(says=("careful", "misleading"))
    for folder in ("stage1", "merged"):
        guarded.save_pretrained(tmp_path / "runs/demo" / folder)
        engines.processor_of(guarded).save_pretrained(tmp_path / "runs/demo" / folder)
    image = tmp_path / "runs/demo/data/eval/harmful_seen-0013.png"
    image.parent.mkdir(parents=True)
    engines.image(1).save(image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_programs_of_the_api_page_run(demo: Path):
    blocks = PYTHON.findall(page(ROOT / "docs/api.md").text)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)  # noqa: S102
    assert names["verdict"].level == "careful"
    assert names["strict"].reply(names["request"]).refused_by == "safety-head"
    assert len(names["replies"]) == 100
