"""The README fits a page, and its tree is the tree that there is."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _tree() -> set[str]:
    """Paths named in the README's tree; an indented line belongs to the folder above it."""
    block = README.split("## The tree")[1].split("```")[1]
    paths, folder = set(), ""
    for line in filter(str.strip, block.splitlines()):
        names = [name for name in re.split(r"\s{2,}", line.strip())[0].split() if re.search(r"[./]|^LICENSE$", name)]
        names += [name for name in line.split() if re.fullmatch(r"[A-Z]+(\.\w+)?", name) and (ROOT / name).exists()]
        if not line.startswith(" "):
            folder = names[0] if names[0].endswith("/") else ""
        paths.update(folder + name if line.startswith(" ") else name for name in names)
    return paths


def test_it_is_one_page_of_100_columns():
    lines = [line for line in README.splitlines() if not line.startswith("<!--")]
    assert len(lines) <= 150
    wide = [line for line in lines if len(line) > 100]
    assert not wide, "\n".join(wide)


def test_tables_have_at_most_five_columns():
    wide = [line for line in README.splitlines() if line.startswith("|") and line.count("|") > 6]
    assert not wide


def test_every_place_in_the_tree_exists():
    missing = sorted(path for path in _tree() if not (ROOT / path).exists())
    assert not missing, f"the README's tree names {missing}"


def test_every_room_is_in_the_tree():
    named = _tree()
    entries = (entry for entry in (ROOT / "safevlm").iterdir() if not entry.name.startswith("_"))
    rooms = {f"safevlm/{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries}
    rooms |= {f"{entry.name}/" for entry in ROOT.iterdir() if entry.is_dir() and _is_ours(entry)}
    assert rooms <= named, f"the README's tree lacks {sorted(rooms - named)}"


def _is_ours(folder: Path) -> bool:
    """A folder of the project: no cache, no output, nothing that git ignores."""
    outputs = ("runs", "build", "dist", "data", "wandb", "shared")
    return not folder.name.startswith(".") and not folder.name.endswith(".egg-info") and folder.name not in outputs


def test_first_page_states_what_the_numbers_are():
    first = README.split("## Results")[0]
    assert "made to help with risky images" in " ".join(first.split())
    assert "on a GPU only speed and memory were measured" in " ".join(first.replace("*", "").split())
