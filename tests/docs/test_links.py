"""Every link of every page leads somewhere, and nothing of a page has to be fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name, page

OUTPUTS = ("runs/", "data/", "checkpoints/llava-1.5-7b-hf", "checkpoints/safe-llava-7b")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_relative_links_lead_to_a_file_and_a_heading(path: Path):
    for link in page(path).links:
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{name(path)} links to {link}"
        if anchor:
            assert anchor in page(target).anchors, f"{name(path)}: {name(target)} has no heading #{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_image_is_fetched_from_a_network(path: Path):
    remote = re.findall(r"!\[[^\]]*\]\((?:https?:)?//[^)]*\)|<(?:img|script|link)[^>]*https?://", page(path).text)
    assert not remote, f"{name(path)} shows {remote}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_that_a_page_names_exist(path: Path):
    named = re.findall(
        r"(?<![\w/.])(?:scripts|eval|safevlm|llava_patch|docs|examples|tests)/[\w./-]*\w", page(path).text
    )
    # a bare folder of eval (`eval/results`) and a file of it are both there; what commands write is not
    missing = sorted({text for text in named if not (ROOT / text).exists()})
    assert not missing, f"{name(path)} names {missing}"


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = {line for block in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL) for line in block.split()}
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= listed, f"docs/index.md lacks {sorted(pages - listed)}"


SECTION = re.compile(r"\b(methods|base facts),? §\s?(\d+(?:\.\d+)?)", re.IGNORECASE)
HELD_IN = {"methods": "docs/methods.md", "base facts": "docs/base_facts.md"}


def _references() -> list[tuple[Path, str, str]]:
    """(file, page, section) of every "methods §1.2" and "base facts §3" in the tree."""
    kinds = {".py", ".sh", ".yaml", ".sbatch", ".md", ".toml"}
    folders = ("safevlm", "llava_patch", "tests", "eval", "scripts", "docs", "examples")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*")) if file.suffix in kinds]
    return [
        (file, match.group(1).lower(), match.group(2))
        for file in files
        for match in SECTION.finditer(re.sub(r"\s*\n\s*#?\s*", " ", file.read_text(encoding="utf-8")))
    ]


def test_every_section_that_the_code_points_to_has_a_heading():
    references = _references()
    assert len(references) >= 40, "the pattern finds hardly any reference: it no longer fits how the code points"
    numbers = {
        which: set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)", page(ROOT / path).prose, re.MULTILINE))
        for which, path in HELD_IN.items()
    }
    lost = [f"{name(file)}: {which} §{section}" for file, which, section in references if section not in numbers[which]]
    assert not lost, "\n".join(lost)
