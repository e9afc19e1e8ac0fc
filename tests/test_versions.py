"""Which code runs: the commit of a checkout, and whether its files are those of the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from safevlm import versions


def test_files_that_are_not_those_of_the_commit_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a copy of a tree with what git knew of it an hour before."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    monkeypatch.setattr(versions, "HERE", tmp_path)
    git("init", "-q")
    for name in ("versions.py", "other.py"):
        (tmp_path / name).write_text("before\n", encoding="utf-8")
    assert versions.commit() is None and versions.is_changed() is None, "somebody else's checkout"
    git("add", ".")
    git("commit", "-q", "-m", "all")
    assert versions.commit() and versions.is_changed() is False
    (tmp_path / "other.py").write_text("after\n", encoding="utf-8")
    assert versions.is_changed() is True
