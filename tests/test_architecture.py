"""Who may import whom: the house of the design as a table, and a few things that no room may have.

A module imports from its own package and from packages of a LOWER rank. Imports inside functions and under
TYPE_CHECKING count: a late import is still a dependency.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from safevlm.backbones import FAMILIES

ROOT = Path(__file__).parents[1]
TREES = ("llava_patch", "safevlm")

RANKS: dict[str, float] = {
    "safevlm.files": -1,  # whatever reads a file may import it
    "safevlm.taxonomy": 0,
    "safevlm.messages": 0,
    "safevlm.usage": -1,
    "safevlm.ranges": -1,
    "safevlm.paths": 0,
    "safevlm.command_line": 1,
    "safevlm.types": 1,
    "safevlm.plugins": 1,
    "safevlm.refusals": 1,
    "safevlm.config": 1,
    "safevlm.versions": 1,
    "safevlm.recipes": 1,
    "safevlm.intervals": 1,
    "safevlm.sharding": 1,
    "llava_patch": 2,
    "safevlm.backbones": 2.5,
    "safevlm.data": 3,
    "safevlm.model": 4,
    "safevlm.defenses": 5,
    "safevlm.engine": 6,
    "safevlm.training": 7,
    "safevlm.analysis": 7,
    "safevlm.serve": 8,
    "safevlm.worlds": 7.5,
    "safevlm.miniature": 8,
    "safevlm.pictograms": 8,
    "safevlm.check": 8,
    "safevlm.evaluation": 9,
    "safevlm.commands": 10,
    "safevlm": 11,  # the package itself: the public names, imported on first use
    "safevlm.__main__": 12,
}
FORBIDDEN = {
    "llava_patch": {name for name in RANKS if name != "llava_patch"},  # it knows LLaVA, and nothing of ours
    "safevlm.data": {"llava_patch"},  # words and images; no model
    "safevlm.defenses": {"safevlm.model"},  # a defense sees what the engine hands it
}
"""Beyond the ranks."""
WITHOUT_TORCH = (
    "safevlm",
    "safevlm.types",
    "safevlm.messages",
    "safevlm.taxonomy",
    "safevlm.plugins",
    "safevlm.refusals",
    "safevlm.files",
    "safevlm.data.mix_build",  # `safevlm mix`, and what training reads, open millions of rows
    "safevlm.data.record_table",
    "safevlm.pictograms.base.config",  # whose fields are flags
    "safevlm.serve.chat_cli",  # a client of a server
    "safevlm.serve.console.remote_model",
    "safevlm.serve.nemo",  # runs in the process of NeMo Guardrails
)
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, and where."""

    importer: str
    target: str
    place: str


def _name(path: Path, root: Path) -> str:
    """`safevlm/model/head.py` → `safevlm.model.head`; a package's `__init__` has the package's name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _files(root: Path) -> list[Path]:
    return sorted(path for tree in TREES for path in (root / tree).rglob("*.py"))


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def _imports(path: Path, root: Path) -> list[Import]:
    return list(_read_imports(path, root))


def _read_imports(path: Path, root: Path) -> Iterator[Import]:
    importer = _name(path, root)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(_parse(path)):
        place = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, place)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"  # `from safevlm import types`: the module, not the package
                yield Import(importer, full if _is_module(full, root) else base, place)


@functools.cache
def _is_module(name: str, root: Path) -> bool:
    if name.split(".")[0] not in TREES:
        return False
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def _package(module: str) -> str | None:
    """The row of the table that a module belongs to; None for foreign modules; unknown ones of ours keep their name."""
    parts = module.split(".")
    if parts[0] not in TREES:
        return None
    return ".".join(parts[:2]) if parts[0] == "safevlm" else parts[0]


def _violations(root: Path) -> list[str]:
    found = []
    for one in (one for path in _files(root) for one in _imports(path, root)):
        mine, theirs = _package(one.importer), _package(one.target)
        if mine is None or theirs is None or mine == theirs:
            continue
        if mine not in RANKS or theirs not in RANKS:
            continue  # test_every_package_has_a_place_in_the_table
        if RANKS[theirs] >= RANKS[mine] or theirs in FORBIDDEN.get(mine, ()):
            found.append(f"{one.place}: {one.importer} imports {one.target}")
    return found


def test_nobody_imports_upward() -> None:
    found = _violations(ROOT)
    assert not found, "imports against the order of the house:\n" + "\n".join(found)


def _graph(root: Path) -> dict[str, set[str]]:
    """Module of ours → modules of ours that it imports, late imports and those for types included."""
    graph: dict[str, set[str]] = {_name(path, root): set() for path in _files(root)}
    for one in (one for path in _files(root) for one in _imports(path, root)):
        if one.target in graph and one.target != one.importer:
            graph[one.importer].add(one.target)
    return graph


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """A shortest circle of modules, empty where there is none. What imports nothing that is left is in no circle."""
    left = dict(graph)
    while gone := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in gone:
            del left[name]
    circles = [path for name in left if (path := _way_back(name, left))]
    return min(circles, key=len, default=[])


def _way_back(start: str, graph: dict[str, set[str]]) -> list[str]:
    """The shortest way from a module to itself, breadth first."""
    ways, seen = [[start]], {start}
    while ways:
        way = ways.pop(0)
        for target in sorted(graph[way[-1]] & graph.keys()):
            if target == start:
                return [*way, start]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def test_modules_import_in_no_circle() -> None:
    """Within a package too, and through late imports: they only hide that two modules are one."""
    circle = _circle(_graph(ROOT))
    assert not circle, f"a circle of imports: {' → '.join(circle)}; move what both need into a third module"


@pytest.mark.parametrize(
    ("lines", "circle"),
    [
        ({"a": "from safevlm.model import b", "b": "import torch"}, False),
        ({"a": "from safevlm.model import b", "b": "def f():\n    from safevlm.model import a"}, True),
        ({"a": "from .b import x", "b": "from .c import y", "c": "import safevlm.model.a"}, True),
    ],
)
def test_a_circle_of_late_imports_is_found(tmp_path: Path, lines: dict[str, str], circle: bool) -> None:
    folder = tmp_path / "safevlm" / "model"
    folder.mkdir(parents=True)
    for name, line in lines.items():
        (folder / f"{name}.py").write_text(line, encoding="utf-8")
    assert bool(_circle(_graph(tmp_path))) == circle


def test_every_package_has_a_place_in_the_table() -> None:
    packages = {_package(_name(path, ROOT)) for path in _files(ROOT)}
    assert packages, "nothing found: is the root wrong?"
    unknown = packages - set(RANKS)
    assert not unknown, f"{unknown}: give it a rank in tests/test_architecture.py, or put it into a room that has one"


def test_imports_of_ours_exist() -> None:
    ours = [one for path in _files(ROOT) for one in _imports(path, ROOT) if _package(one.target)]
    gone = [f"{one.place}: {one.target}" for one in ours if not _is_module(one.target, ROOT)]
    assert not gone, "imports of modules that are not there:\n" + "\n".join(gone)


def test_nothing_has_a_name_without_meaning() -> None:
    names = [_name(path, ROOT) for path in _files(ROOT)]
    found = [name for name in names if FORBIDDEN_NAMES & set(name.split("."))]
    assert not found, f"files are nouns; a drawer for everything is none: {found}"


def test_no_bare_except() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _files(ROOT)
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not found, f"a bare except hides broken images and Ctrl-C alike: {found}"


def test_files_are_replaced_in_one_place() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _files(ROOT)
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.Call) and _renames(node) and path != ROOT / "safevlm" / "data" / "atomic_write.py"
    ]
    assert not found, f"write through safevlm.data.atomic_write, so that nobody reads half a file: {found}"


def _renames(call: ast.Call) -> bool:
    """`os.replace(…)`, `shutil.move(…)`, `path.replace(other)` and the like; not `text.replace(a, b)`."""
    if not isinstance(call.func, ast.Attribute):
        return False
    owner, name = ast.unparse(call.func.value), call.func.attr
    if owner in ("os", "shutil"):
        return name in ("replace", "rename", "link", "move")
    return name == "replace" and len(call.args) == 1 and not call.keywords


@pytest.mark.parametrize(
    ("code", "renames"),
    [
        ("os.replace(part, path)", True),
        ("part.replace(path)", True),
        ("shutil.move(part, path)", True),
        ("text.replace('a', 'b')", False),
        ("dataclasses.replace(one, name='b')", False),
        ("replace(one)", False),
    ],
)
def test_a_rename_is_told_from_other_replacements(code: str, renames: bool) -> None:
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert _renames(call) == renames


def test_images_open_in_one_place() -> None:
    """There they are turned upright, made RGB and bounded; whoever opens one himself sees other pixels."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _files(ROOT)
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("Image.open", "PIL.Image.open")
    ]
    assert {place.rpartition(":")[0] for place in found} == {"safevlm/data/images.py"}, found


def test_nothing_imports_torchvision() -> None:
    imports = [one for path in _files(ROOT) for one in _imports(path, ROOT)]
    found = [one.place for one in imports if one.target.split(".")[0] == "torchvision"]
    assert not found, f"a torchvision beside a CPU build of torch breaks transformers; use the PIL processors: {found}"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_words_are_free_of_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{module} loads torch or transformers, itself or through an import. {done.stderr}"


@pytest.mark.parametrize(
    ("path", "line", "allowed"),
    [
        ("safevlm/defenses/a.py", "from safevlm.data import chat", True),
        ("safevlm/defenses/a.py", "from safevlm.model.head import SafetyHead", False),
        ("safevlm/defenses/a.py", "def f():\n    import safevlm.engine", False),
        ("safevlm/defenses/a.py", "from safevlm import engine", False),
        ("safevlm/defenses/a.py", "from ..training import run", False),
        ("safevlm/model/a.py", "from .tokens import TokenBank", True),
        ("safevlm/model/a.py", "from safevlm.data import chat", True),
        ("safevlm/data/a.py", "from safevlm.model import head", False),
        ("safevlm/data/a.py", "import llava_patch.vision", False),
        ("safevlm/types.py", "from safevlm.taxonomy import SAFE", True),
        ("safevlm/types.py", "from safevlm.config import Recipe", False),
        ("llava_patch/a.py", "from safevlm.taxonomy import SAFE", False),
        ("llava_patch/a.py", "import torch", True),
        ("safevlm/miniature/a.py", "from safevlm.defenses import prompts", True),
        ("safevlm/evaluation/a.py", "import safevlm.serve.chat_cli", True),
        ("safevlm/evaluation/a.py", "import safevlm.__main__", False),
        ("safevlm/serve/a.py", "from safevlm.evaluation import metrics", False),
        ("safevlm/__main__.py", "from safevlm.evaluation import metrics", True),
        ("safevlm/__main__.py", "from safevlm import __version__", True),
        ("safevlm/__init__.py", "from safevlm.engine import Engine", True),
        ("safevlm/engine/a.py", "from safevlm import Engine", False),
    ],
)
def test_the_table_finds_what_it_should(tmp_path: Path, path: str, line: str, allowed: bool) -> None:
    for name in (*RANKS, "safevlm.evaluation.metrics.rates", "safevlm.training.run"):
        tmp_path.joinpath(*name.split(".")).mkdir(parents=True, exist_ok=True)
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line, encoding="utf-8")
    assert (not _violations(tmp_path)) == allowed, _violations(tmp_path)


def test_every_folder_with_code_is_a_package() -> None:
    """Without its `__init__.py` a folder is found in a clone, and left out of the wheel."""
    folders = {file.parent for file in _files(ROOT)}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_family_is_named_outside_its_row() -> None:
    """`safevlm.backbones` alone knows families; whoever needs something of one asks its row."""
    names = re.compile("|".join(FAMILIES))
    others = [path for path in _files(ROOT) if not {"backbones", "llava_patch"} & {*path.relative_to(ROOT).parts}]
    lines = [(path, nr, line) for path in others for nr, line in enumerate(path.read_text("utf-8").splitlines(), 1)]
    found = [f"{path.relative_to(ROOT)}:{nr}" for path, nr, line in lines if names.search(line)]
    assert not found, f"say it in the family's row of safevlm.backbones, and ask that: {found}"


STAND_INS = {"SafeLlavaConfig"}  # safevlm.model.registration: gives way to the class of that name at its first use


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in _files(ROOT):
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in STAND_INS}
    assert not twice, f"give the later one a name of its own: {twice}"
