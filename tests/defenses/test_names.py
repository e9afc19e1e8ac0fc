"""Names of defenses on the command line, and where their files are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.defenses import DefenseContext, Policy, build
from safevlm.defenses.names import Named, parse
from safevlm.taxonomy import DEFAULT

KNOWN = ("none", "safe-clip", "safe-clip:pooled", "safety-head", "security-tensor:visual")


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("none", [Named("none")]),
        ("safe-clip:pooled", [Named("safe-clip:pooled")]),
        ("safe-clip=a/b.safetensors", [Named("safe-clip", Path("a/b.safetensors"))]),
        ("safety-head+safe-clip=x", [Named("safety-head"), Named("safe-clip", Path("x"))]),
        ("safe-clip=x+safety-head", [Named("safe-clip", Path("x")), Named("safety-head")]),
        ("safe-clip=a+b/c+safety-head", [Named("safe-clip", Path("a+b/c")), Named("safety-head")]),
        (
            "security-tensor:visual=v+safe-clip:pooled=c",
            [Named("security-tensor:visual", Path("v")), Named("safe-clip:pooled", Path("c"))],
        ),
        ("safe-clip=runs/x=1/f", [Named("safe-clip", Path("runs/x=1/f"))]),
    ],
)
def test_name_says_members_and_files(text: str, members: list[Named]) -> None:
    assert parse(text, KNOWN) == members


@pytest.mark.parametrize("text", ["", "x", "safety-head+", "+none", "safe-clip:wrong", "x=y"])
def test_unknown_name_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="unknown defense"):
        parse(text, KNOWN)


def test_equals_without_a_file_is_an_error() -> None:
    with pytest.raises(ValueError, match="no file behind the ="):
        parse("safe-clip=", KNOWN)


def test_file_for_a_defense_that_reads_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="safety-head reads no file"):
        build("safety-head=x", DefenseContext(Policy(DEFAULT), has_head=True))


def _setting(**given: object) -> DefenseContext:
    return DefenseContext(Policy(DEFAULT), **given)  # type: ignore[arg-type]


def test_own_file_or_folder_comes_before_the_checkpoints(tmp_path: Path) -> None:
    for folder in ("model", "base", "own"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.bin").touch()
    folders = (tmp_path / "model", tmp_path / "base")
    assert _setting(folders=folders).find("x.bin", "make") == tmp_path / "model/x.bin"
    assert _setting(folders=folders, file=tmp_path / "own").find("x.bin", "make") == tmp_path / "own/x.bin"
    assert _setting(folders=folders, file=tmp_path / "own/x.bin").find("x.bin", "make") == tmp_path / "own/x.bin"
    (tmp_path / "model/x.bin").unlink()
    assert _setting(folders=folders).find("x.bin", "make") == tmp_path / "base/x.bin"


def test_missing_file_names_the_places_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.bin is not in .*nowhere; make it with `safevlm embed`"):
        _setting(file=tmp_path / "nowhere", folders=(tmp_path,)).find("x.bin", "safevlm embed")


def test_defense_on_tensors_of_a_served_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="not on a served one"):
        _setting().fitting()
