"""The examples of the page "Extending" work as they stand there, in a folder outside the project."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from safevlm.miniature.dataset import MiniatureDataConfig, write
from tests.docs.pages import ROOT, page

pytestmark = pytest.mark.slow

FILE = re.compile(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
RUN = re.compile(r"^```bash\n(.*?)^```(?:\n+```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    title: str
    text: str

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Every command with the lines that it prints, according to the page; those of the last one in a block."""
        found: list[tuple[str, list[str]]] = []
        for block, output in RUN.findall(self.text):
            lines = re.sub(r"\\\n\s*", "", block).strip().splitlines()
            found += [(line, []) for line in lines[:-1]]
            found.append((lines[-1], [line for line in output.splitlines() if line.strip()]))
        return found


def _examples() -> list[Example]:
    sections = re.split(r"^## ", page(ROOT / "docs/extending.md").text, flags=re.MULTILINE)[1:]
    examples = [Example(section.partition("\n")[0], section) for section in sections]
    return [example for example in examples if example.commands]


def _run(words: list[str], folder: Path, path: str) -> str:
    """A command as an installed `safevlm` runs it: the folder of the command is not on the path by itself."""
    done = subprocess.run(words, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the miniature's base and the demo's data, and the files of all examples."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/miniature").symlink_to(ROOT / "checkpoints/miniature")
    write(folder / "runs/demo/data", MiniatureDataConfig(risky=400, clean=400))
    for example in _examples():
        for name, text in FILE.findall(example.text):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    for name in ("harmful_seen-0003.png", "benign-0000.png"):
        for owner in (file.parent for file in folder.glob("*/*.csv")):
            (owner / name).write_bytes((folder / "runs/demo/data/eval" / name).read_bytes())
    return folder


def test_there_is_an_example_of_each():
    titles = " ".join(example.title for example in _examples())
    kinds = ("A defense", "A trained defense", "A data source", "Your own questions", "A judge", "A suite in Python")
    assert [kind for kind in kinds if kind not in titles] == []


@pytest.mark.parametrize("example", _examples(), ids=lambda example: example.title)
def test_example_runs_and_prints_what_the_page_says(example: Example, outside: Path, warm_path: str):
    assert FILE.findall(example.text), "the example has no file"
    for command, expected in example.commands:
        printed = _run(shlex.split(command), outside, warm_path)
        missing = [line for line in expected if line not in printed]
        assert not missing, f"{command}\nprinted\n{printed}\nand not\n" + "\n".join(missing)
