"""The README says what is there: its tree, its commands, its numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = [ROOT / "eval/results" / name for name in ("miniature/table.md", "grid/grid.md")]


def _tree() -> list[str]:
    """Paths named in the README's tree; an indented line belongs to the last folder."""
    block = README.split("## The house")[1].split("```")[1]
    paths, folder = [], ""
    for line in filter(str.strip, block.splitlines()):
        name = line.split()[0]
        folder = name if not line.startswith(" ") and name.endswith("/") else folder
        paths.append(folder + name if line.startswith(" ") else name)
    return paths


def test_every_place_in_the_tree_exists():
    missing = [path for path in _tree() if not (ROOT / path).exists()]
    assert not missing, f"the README's tree names {missing}"


def test_every_room_is_in_the_tree():
    named = set(_tree())
    for package in ("safevlm", "llava_patch"):
        entries = (entry for entry in (ROOT / package).iterdir() if not entry.name.startswith("_"))
        rooms = {f"{package}/{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries}
        assert rooms <= named, f"the README's tree lacks {sorted(rooms - named)}"


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.parent.name)
def test_results_are_the_committed_ones(file: Path):
    table = "\n".join(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("|"))
    assert table in README, f"the README's table is not {file.relative_to(ROOT)}; paste it anew"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:scripts|checkpoints)/[\w./-]+\w", README))))
def test_every_file_that_a_command_names_exists(path: str):
    is_output = path.startswith(("checkpoints/safe-llava-7b", "checkpoints/llava-1.5-7b-hf"))
    assert is_output or (ROOT / path).exists(), f"the README names {path}"
