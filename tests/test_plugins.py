"""Rows from outside the project: a reference, an entry point, and what is wrong with one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safevlm import plugins
from safevlm.plugins import Registry


def _upper(name: str, found: object) -> str:
    if not isinstance(found, str):
        raise ValueError(f"{found!r} is not a text")
    return f"{name}={found}"


@pytest.fixture
def registry() -> Registry[str]:
    return Registry("judges", {"ours": "ours=built in"}, _upper)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with modules of the user's that are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Makes a distribution with one entry point look installed."""
    (folder / "site").mkdir()
    monkeypatch.syspath_prepend(str(folder / "site"))

    def distribution(name: str, entry: str, reference: str) -> None:
        about = folder / "site" / f"{name.replace('-', '_')}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[safevlm.judges]\n{entry} = {reference}\n")
        plugins._installed.cache_clear()

    return distribution


def test_a_module_in_the_current_directory_is_found(folder: Path, registry: Registry[str]) -> None:
    (folder / "pkg_here").mkdir()
    (folder / "pkg_here" / "inner.py").write_text("class Box:\n    WORD = 'hello'\n")
    assert registry.find("pkg_here.inner:Box.WORD", "--judge") == "pkg_here.inner:Box.WORD=hello"


def test_the_current_directory_hides_no_library_afterwards(folder: Path, registry: Registry[str]) -> None:
    (folder / "mine_one.py").write_text("WORD = 'hello'\n")
    registry.find("mine_one:WORD", "--judge")
    assert sys.path[-1] == str(folder)
    assert str(folder) not in sys.path[:-1]


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("nowhere_mod:WORD", None, r"nowhere_mod.*neither in .* nor installed"),
        ("here_a.gone:WORD", "", r"no module 'here_a.gone'"),
        ("here_b:WORD", "import surely_not_there", r"here_b needs 'surely_not_there'"),
        ("here_c:WORD", "1 / 0", r"here_c does not import: ZeroDivisionError"),
        ("here_d:WORD", "def", r"here_d does not import: SyntaxError"),
        ("here_e:WORD", "OTHER = ''", r"here_e has no WORD; it has \['OTHER'\]"),
        ("here_g:WORD", "raise SystemExit('bye')", r"here_g does not import: SystemExit: bye"),
        ("here_f:WORD", "WORD = 7", r"7 is not a text"),
    ],
)
def test_what_is_wrong_with_a_reference_is_said(
    folder: Path, registry: Registry[str], reference: str, code: str | None, message: str
) -> None:
    if code is not None:
        (folder / f"{reference.partition(':')[0].partition('.')[0]}.py").write_text(code)
    with pytest.raises(ValueError, match=rf"^--judge: .*{message}"):
        registry.find(reference, "--judge")


def test_an_unknown_name_lists_the_choices(registry: Registry[str]) -> None:
    with pytest.raises(ValueError, match=r"--judge: unknown 'their-s'; one of \['ours'"):
        registry.find("their-s", "--judge")
    with pytest.raises(ValueError, match=r"no name of ours: \['ours'"):
        registry.find("ours:special", "--judge")


def test_an_installed_plug_in_is_a_row(
    folder: Path, registry: Registry[str], install: Callable[[str, str, str], None]
) -> None:
    (folder / "site" / "plug_a.py").write_text("WORD = 'hi'\n")
    install("dist-a", "theirs", "plug_a:WORD")
    assert list(registry) == ["ours", "theirs"]
    assert registry["theirs"] == registry.find("theirs", "--judge") == "theirs=hi"


def test_a_broken_plug_in_names_its_distribution_and_spares_the_rest(
    folder: Path, registry: Registry[str], install: Callable[[str, str, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "site" / "plug_b.py").write_text("WORD = 'hi'\n")
    install("dist-b", "theirs", "plug_b:WORD")
    install("dist-bad", "broken", "plug_not_there:WORD")
    assert registry.working() == {"ours": "ours=built in", "theirs": "theirs=hi"}
    assert "dist-bad" in caplog.text
    with pytest.raises(ValueError, match="dist-bad"):
        registry["broken"]


def test_a_name_that_exists_already_is_an_error(
    folder: Path, registry: Registry[str], install: Callable[[str, str, str], None]
) -> None:
    install("dist-c", "ours", "plug_c:WORD")
    with pytest.raises(ValueError, match="'ours' is given by safevlm and dist-c"):
        registry["ours"]
    install("dist-d", "new", "plug_c:WORD")
    install("dist-e", "new", "plug_c:WORD")
    with pytest.raises(ValueError, match="dist-d and dist-e"):
        registry.find("new", "--judge")


def test_asking_for_names_imports_nothing(folder: Path, install: Callable[[str, str, str], None]) -> None:
    install("dist-f", "theirs", "plug_f:WORD")
    assert "theirs" in Registry("judges", {}, _upper)
    code = "import sys, safevlm.plugins; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
