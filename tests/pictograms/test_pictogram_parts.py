"""Parts from packages in the layout of npm; the packages are made here, of squares."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.data.images import open_drawing
from safevlm.pictograms.parts import CREDITS, FILE, Parts, credits, things_of, write
from safevlm.pictograms.styles import NAMES, PACKAGES, STYLES, NpmPackage, install_command
from safevlm.pictograms.world import BY_NAME, THINGS


def _write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def _write_packages(folder: Path) -> Path:
    modules = folder / "node_modules"
    for package in PACKAGES:
        _write_json(modules / package.name / "package.json", {"name": package.name, "version": package.version})
    labels = [{"label": thing.icon.replace("-", " "), "tags": ["drawn"]} for thing in THINGS if thing.name != "pistol"]
    _write_json(modules / NAMES.name / "en" / "data.json", labels)
    for name, style in STYLES.items():
        icons = {thing.icon: {"body": f'<rect width="4" height="4" id="{thing.icon}"/>'} for thing in things_of(name)}
        icons["toad"] = icons.pop("fox")
        table = {"width": 4, "height": 8, "icons": icons, "aliases": {"fox": {"parent": "toad"}}}
        _write_json(modules / style.package.name / "icons.json", table)
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_packages(tmp_path_factory.mktemp("npm"))


def _squares(seen: list[str]) -> Callable[[str], bytes]:
    file = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(file, "PNG")

    def render(svg: str) -> bytes:
        seen.append(svg)
        return file.getvalue()

    return render


def test_every_thing_is_rendered_in_the_styles_that_draw_it(packages: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    write(packages, tmp_path / "parts", render=_squares(seen))
    files = {str(file.relative_to(tmp_path / "parts")) for file in (tmp_path / "parts").rglob("*.png")}
    assert files == {f"{style}/{thing.icon}.png" for thing in THINGS for style in thing.styles}
    assert all('viewBox="0 0 4 8" width="96" height="96"' in svg for svg in seen), "an icon keeps its shape"
    assert sum('id="fox"' in svg for svg in seen) == len(STYLES), "another name leads to its parent"
    part = Parts(tmp_path / "parts").image(BY_NAME["fox"], "noto")
    assert part.mode == "RGBA" and part.getpixel((0, 0)) == (255, 0, 0, 128), "what is transparent stays so"


def test_the_folder_says_what_made_it_and_whom_to_credit(packages: Path, tmp_path: Path) -> None:
    write(packages, tmp_path / "parts", render=_squares([]))
    table = json.loads((tmp_path / "parts" / FILE).read_text())
    assert {(row["name"], row["version"]) for row in table["packages"]} == {(one.name, one.version) for one in PACKAGES}
    assert table["things"]["fox"] == ["fox", "drawn"] and len(table["made_by"]["digests"]["packages"]) == 16
    text = (tmp_path / "parts" / CREDITS).read_text()
    assert text == credits(STYLES)
    assert all(style.package.author in text and style.package.licence in text for style in STYLES.values())


@pytest.mark.parametrize("package", [PACKAGES[0], NAMES], ids=lambda package: package.name)
def test_a_missing_package_is_named_with_the_command_that_fetches_it(tmp_path: Path, package: NpmPackage) -> None:
    _write_packages(tmp_path)
    (tmp_path / "node_modules" / package.name / "package.json").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path, tmp_path / "parts", render=_squares([]))
    assert f"{package.name} is missing" in str(caught.value) and install_command(str(tmp_path)) in str(caught.value)


def test_another_version_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    _write_packages(tmp_path)
    _write_json(tmp_path / "node_modules" / NAMES.name / "package.json", {"version": "16.0.0"})
    with pytest.raises(ValueError, match=r"emojibase-data 16\.0\.0.*17\.0\.0"):
        write(tmp_path, tmp_path / "parts", render=_squares([]))


def test_an_icon_that_is_not_there_leaves_no_half_a_folder(tmp_path: Path) -> None:
    _write_packages(tmp_path)
    file = tmp_path / "node_modules" / STYLES["twemoji"].package.name / "icons.json"
    icons = json.loads(file.read_text())
    del icons["icons"]["bomb"]
    _write_json(file, icons)
    with pytest.raises(FileNotFoundError, match=r"twemoji.*no icon 'bomb'"):
        write(tmp_path, tmp_path / "parts", render=_squares([]))
    assert not (tmp_path / "parts").exists()


def test_a_missing_renderer_names_the_extra(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"resvg-py: pip install -e '\.\[pictograms\]'"):
        write(packages, tmp_path / "parts")


def test_a_folder_without_parts_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="safevlm pictograms parts"):
        Parts(tmp_path)


@pytest.mark.slow
def test_the_renderer_draws_with_transparency(packages: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    write(packages, tmp_path / "parts")
    part = open_drawing(tmp_path / "parts" / "noto" / "fox.png")
    assert part.size == (96, 96) and part.getpixel((48, 24)) == (0, 0, 0, 255) and part.getpixel((2, 90))[3] == 0
