"""Parts: every thing in every style as a PNG, rendered once from the npm packages that the user installed.

    OUT/STYLE/ICON.png     SIDE x SIDE, RGBA
    OUT/parts.json         things with their keywords, packages with versions and licences, and what made it
    OUT/LICENCES.md        credit for each style, to be kept beside its pictures

Packages are folders as `npm install` leaves them: `node_modules/@iconify-json/STYLE/{package,icons}.json` (Iconify's
format) and `node_modules/emojibase-data/{package.json,en/data.json}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from safevlm.data.atomic_write import atomic_folder
from safevlm.data.images import open_drawing
from safevlm.data.made_by import write_result
from safevlm.files import read_json
from safevlm.pictograms.styles import NAMES, STYLES, NpmPackage, Style, install_command
from safevlm.pictograms.things import OLD_ONLY
from safevlm.pictograms.world import THINGS, Pictogram

SIDE = 96
"""Pixels of a part; no scene shows one larger."""
FILE = "parts.json"
CREDITS = "LICENCES.md"
LIMIT = 512 * 1024 * 1024
"""Bytes of a package's file; the largest has 104 MB."""

Render = Callable[[str], bytes]
"""SVG → PNG."""


class PartsError(FileNotFoundError):
    """A package or a part is not there; the message says which one, and the command that gets it."""


def write(packages: Path, out: Path, render: Render | None = None) -> None:
    """Renders all parts; `packages` is the folder in which `npm install` was run. An older OUT is replaced.

    PartsError: a package, or a thing in it, is missing. ValueError: another version than the pinned one.
    ImportError: resvg-py is missing. `render`: instead of resvg-py.
    """
    render = render or _resvg()
    modules = packages / "node_modules"
    folders = {package: _folder(modules, package, packages) for package in (*_style_packages(), NAMES)}
    keywords = _keywords(folders[NAMES] / "en" / "data.json")
    with atomic_folder(out) as partial:
        for name, style in STYLES.items():
            _write_style(partial / name, folders[style.package] / "icons.json", things_of(name), render)
        (partial / CREDITS).write_text(credits(STYLES), encoding="utf-8")
        table = {
            "side": SIDE,
            "packages": [asdict(package) for package in folders],
            "things": {thing.name: keywords[thing.icon] for thing in THINGS if thing.name not in OLD_ONLY},
        }
        write_result(partial / FILE, table, {"packages": [folder / "package.json" for folder in folders.values()]})
    drawn = sum(len(thing.styles) for thing in THINGS)
    print(f"{drawn} parts of {len(THINGS)} things in {len(STYLES)} styles in {out}")


def things_of(style: str) -> list[Pictogram]:
    """What a style draws."""
    return [thing for thing in THINGS if style in thing.styles]


def credits(styles: Mapping[str, Style]) -> str:
    """Who made the styles' drawings, and under which licence they may be passed on."""
    lines = [
        f"* `{name}` ({style.look}): {style.package.author}, {style.package.source}, {style.package.licence}; "
        f"rendered from the npm package `{style.package.name}` {style.package.version}"
        for name, style in styles.items()
    ]
    return "\n".join(["Drawings, scaled, turned and laid on grounds:", "", *lines, ""])


@dataclass(frozen=True)
class Parts:
    """The rendered parts of a folder."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / FILE).is_file():
            raise PartsError(
                f"{self.folder}: no parts of pictograms; make them: safevlm pictograms parts --packages DIR --out "
                f"{self.folder}"
            )

    def image(self, thing: Pictogram, style: str) -> Image.Image:
        """RGBA, SIDE x SIDE."""
        file = self.folder / style / f"{thing.icon}.png"
        if not file.is_file():
            raise PartsError(f"{file} is missing; make the parts anew: safevlm pictograms parts")
        return open_drawing(file)


def _style_packages() -> list[NpmPackage]:
    return [style.package for style in STYLES.values()]


def _folder(modules: Path, package: NpmPackage, packages: Path) -> Path:
    """The package's folder, once its version is the pinned one."""
    folder = modules / package.name
    if not (folder / "package.json").is_file():
        raise PartsError(
            f"{folder}: package {package.name} is missing; fetch all of them: {install_command(str(packages))}"
        )
    version = read_json(folder / "package.json").get("version")
    if version != package.version:
        raise ValueError(
            f"{folder}: {package.name} {version}, but the world is drawn from {package.version}: "
            f"{install_command(str(packages))}"
        )
    return folder


def _write_style(out: Path, file: Path, things: Sequence[Pictogram], render: Render) -> None:
    icons = read_json(file, limit=LIMIT)
    out.mkdir()
    for thing in tqdm(things, out.name, mininterval=5):
        (out / f"{thing.icon}.png").write_bytes(render(_svg(icons, thing.icon, file)))


def _svg(icons: Mapping[str, Any], name: str, file: Path) -> str:
    """An icon of Iconify's JSON as a square SVG; another name of an icon leads to its parent."""
    alias = icons.get("aliases", {}).get(name)
    icon = icons["icons"].get(alias["parent"] if alias else name)
    if icon is None or (alias and set(alias) != {"parent"}):
        raise PartsError(f"{file}: no icon {name!r}; install the version of the package that is asked for")
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{SIDE}" height="{SIDE}">{icon["body"]}</svg>'
    )


def _keywords(file: Path) -> dict[str, list[str]]:
    """What people call an emoji, by the name of its icon; the first one is its label."""
    rows = read_json(file, limit=LIMIT)
    found = {_icon_name(row["label"]): [row["label"], *row.get("tags", [])] for row in rows}
    missing = [thing.icon for thing in THINGS if thing.icon not in found and thing.name not in OLD_ONLY]
    if missing:
        raise PartsError(f"{file}: names no emoji {missing}; install the version of the package that is asked for")
    return found


def _icon_name(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "")).strip("-")


def _resvg() -> Render:
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError("rendering pictograms needs resvg-py: pip install -e '.[pictograms]'") from error
    return lambda svg: bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
