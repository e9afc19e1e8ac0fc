"""The wheel in an environment of its own: everything works from an empty folder, and beside a folder's own `eval`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BASE = ROOT / "checkpoints" / "miniature"
TREES = ("safevlm", "llava_patch")
CODE = (".pyc", ".pyo")


@dataclass(frozen=True)
class Installed:
    """The commands of the wheel, without anything of the clone on their path."""

    environment: Path
    wheel: Path

    def __call__(self, folder: Path, *words: str | Path, fails: int = 0) -> str:
        """Runs in `folder`; returns stdout and stderr. `fails` is the exit code to expect."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        path = os.pathsep.join([str(self.environment / "bin"), "/usr/bin", "/bin"])
        done = subprocess.run(
            [str(self.environment / "bin" / words[0]), *map(str, words[1:])],
            cwd=folder,
            env={**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        assert done.returncode == fails, f"{' '.join(map(str, words))}: exit code {done.returncode}\n{said[-3000:]}"
        assert "Traceback" not in said, said[-3000:]
        return said


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Built from a copy: setuptools would take up what an earlier build left in `build/`."""
    home = tmp_path_factory.mktemp("wheel")
    for tree in TREES:
        shutil.copytree(ROOT / tree, home / "clone" / tree, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home / "clone" / name)
    offline = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", home, home / "clone"], check=True)
    (wheel,) = home.glob("*.whl")
    environment = home / "environment"
    venv.create(environment, with_pip=False)
    site = next(environment.glob("lib/python3*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not read
    python = str(environment / "bin" / "python")
    free = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # a clone there counts as installed
    install = [*pip, "--python", python, "install", *offline, "--no-warn-script-location", wheel]
    subprocess.run(install, env=free, check=True)
    shutil.rmtree(home / "clone")
    return Installed(environment, wheel)


IN_ONE_PROCESS = """
from safevlm.__main__ import main
for words in {commands}:
    assert main(words) == 0, words
"""


@pytest.fixture(scope="module")
def world(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, both stages, the merged model, and one judged run, all made by the installed commands."""
    folder = tmp_path_factory.mktemp("empty")
    small = ("--risky", "40", "--clean", "24", "--per-group", "4")
    installed(folder, "python", "-m", "safevlm.miniature", "data", "--out", "data", *small)
    few = ("--data.train", "[data/train.jsonl]", "--optim.max_steps", "2", "--optim.warmup_steps", "0")
    said = installed(folder, "safevlm", "train", "miniature_stage1", "--model.path", BASE, *few, "--run.out", "stage1")
    assert "done: stage1/final" in said
    stage2 = ("train", "miniature_stage2", "--model.path", "stage1", *few, "--run.out", "stage2")
    said = _in_one_process(installed, folder, [stage2, ("merge", "stage2", "--out", "merged")])
    assert "merged into merged" in said
    return folder


def _in_one_process(installed: Installed, folder: Path, commands: list[tuple[str, ...]]) -> str:
    """Which imports what they need once."""
    return installed(folder, "python", "-c", IN_ONE_PROCESS.format(commands=commands))


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(installed: Installed) -> None:
    names = {name for name in zipfile.ZipFile(installed.wheel).namelist() if ".dist-info/" not in name}
    files = {str(file.relative_to(ROOT)) for tree in TREES for file in (ROOT / tree).rglob("*") if file.is_file()}
    assert names == {file for file in files if not file.endswith(CODE)}
    assert {name.split("/")[0] for name in names} == set(TREES), "no top-level package is called eval"


def test_version_and_names_from_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    assert installed(tmp_path, "safevlm", "--version") == "safevlm 0.1.0\n"
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert "commit" not in installed(tmp_path, "safevlm", "--version"), "of somebody else's checkout"
    assert "one of mix_miniature, mix_safevlm" in installed(tmp_path, "safevlm", "mix", "x", "--out", "m", fails=1)
    assert "✗ data.train: no such record file" in installed(tmp_path, "safevlm", "check", "llava7b_stage1", fails=1)


def test_the_whole_path_from_an_empty_folder(installed: Installed, world: Path) -> None:
    image = "data/eval/harmful_seen-0000.png"
    checked = (
        "--model.path",
        BASE,
        "--data.train",
        "[data/train.jsonl]",
        "--run.out",
        "other",
        "--optim.warmup_steps",
        "0",
    )
    assert ", 0 ✗" in installed(world, "safevlm", "check", "miniature_stage1", *checked)
    said = installed(world, "safevlm", "chat", "--model", "merged", "--image", image, "--ask", "what is this ?")
    assert said.strip() and "kernels-community" not in said and "accelerator" not in said, said
    asked = ("--data", "data", "--model", "merged", "--defense", "safety-head", "--out", "run")
    assert "28 new replies" in installed(world, "safevlm", "eval", "ask", *asked)
    judge, report = ("eval", "judge", "--out", "run"), ("eval", "report", "--run", "here=run", "--out", "report")
    audit = ("audit", "data/train.jsonl", "--model", "merged", "--out", "audit")
    assert "28 scores" in _in_one_process(installed, world, [judge, report, audit])
    assert (world / "report" / "report.html").is_file() and (world / "report" / "summary.json").is_file()
    assert (world / "audit" / "gallery.html").is_file()


EVERY_COMMAND = """
from safevlm.__main__ import main
tried = set()
asked = ["--data", "{world}/data", "--model", "{base}"]
run = lambda *words: tried.add(words[0]) or main(["eval", *words])
assert run("suites", "--data", "{world}/data", "--suite", "miniature") in (0, 1)
for name, defense in (("a", "none"), ("b", "oracle")):
    assert run("ask", *asked, "--defense", defense, "--limit", "6", "--out", name) == 0
    assert run("judge", "--out", name) == 0
assert run("judge", "--out", "a", "--into", "again") == 0
assert run("agreement", "a", "again") == 0
assert run("compare", "a", "b") == 0
assert run("refusals", "--out", "refusals.json") == 0
assert run("report", "--run", "a=a", "--out", "report") in (0, 1)
assert main(["bench", "guard", *asked, "--against", "{base}", "--n", "1", "--out", "a"]) == 0
assert main(["bench", "ask", *asked, "--blocks", "1", "--block-size", "2", "--out", "speed"]) in (0, 1)
assert run("ablations", "plan", "table.yaml", *asked, "--out", "ablations") == 0
assert run("grid", "--out", "nothing") == 2
assert run("attack", *asked, "--defense", "none", "--limit", "2", "--attack", "invert", "--out", "attacked") == 0
assert run("robustness", "--run", "a=attacked", "--out", "compared") == 0
from safevlm.commands.evaluation import commands
assert tried == set(commands())
"""


def test_every_evaluation_command_beside_a_folders_own_eval(installed: Installed, world: Path, tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").write_text("raise SystemExit('the user\\'s own file was run')")
    (tmp_path / "table.yaml").write_text("training: {}\nsections: {all: {neither: {}}}\n")
    installed(tmp_path, "python", "-c", EVERY_COMMAND.format(world=world, base=BASE))
    assert "miniature" in installed(tmp_path, "python", "-m", "safevlm", "eval", "suites")
    assert "miniature" in installed(tmp_path, "safevlm", "eval", "suites")


REGISTRY = """
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None
        chat_class_path: str | None = None
        aliases: tuple = ()
"""
FINDS = """
import importlib.util
from importlib.metadata import entry_points
(point,) = [one for one in entry_points().select(group="lmms_eval.models") if one.name == "safevlm"]
found = point.load()
found = found() if callable(found) else found
found = found if isinstance(found, (list, tuple)) else [found]
(ours,) = [one for one in found if one.model_id == "safevlm"]
for path in filter(None, (ours.simple_class_path, ours.chat_class_path)):
    assert importlib.util.find_spec(path.rpartition(".")[0]), path
print("found", ours.model_id)
"""


@pytest.mark.parametrize("own", ["eval.py", "eval/__init__.py"])
def test_lmms_eval_finds_the_model_beside_a_folders_own_eval(installed: Installed, tmp_path: Path, own: str) -> None:
    """As lmms-eval 0.7.3 reads its entry points (models/registry_v2.py)."""
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).write_text("raise SystemExit('the user\\'s own file was run')")
    for name in ("lmms_eval/__init__.py", "lmms_eval/models/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lmms_eval/models/registry_v2.py").write_text(textwrap.dedent(REGISTRY))
    assert "found safevlm" in installed(tmp_path, "python", "-c", FINDS)
