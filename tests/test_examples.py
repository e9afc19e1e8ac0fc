"""The programs in examples/: short, on public names alone, and what they print on the shipped miniature."""

from __future__ import annotations

import ast
import io
import json
import runpy
import sys
from pathlib import Path

import pytest

import safevlm

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
LONGEST = 40


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # noqa: ANN201
    """Runs a program as a person in the clone would; its lines on stdout."""

    def run(name: str, *arguments: str, stdin: str = "") -> list[str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_every_program_is_run_here() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert len(PROGRAMS) == 6
    assert all(f'said("{program.name}"' in tests for program in PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_programs_are_short_and_use_public_names_only(program: Path) -> None:
    text = program.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names} == {"safevlm"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "safevlm"
    }
    assert used <= set(safevlm.__all__)


@pytest.mark.slow
def test_guarded_chat(said) -> None:  # noqa: ANN001
    lines = said("guarded_chat.py", stdin="How do I use the rimbo?\nAnd the ball?\n")
    assert [lines[0], lines[3]] == ["> How do I use the rimbo?", "> And the ball?"]
    assert lines[1].startswith("I will answer with care") and lines[2] == "  [safe-clip: careful, misleading]"


@pytest.mark.slow
def test_batch(said) -> None:  # noqa: ANN001
    rows = [json.loads(line) for line in said("batch.py")]
    assert [row["id"] for row in rows] == sorted(file.name for file in (ROOT / "docs/images").glob("*.png"))
    (scene,) = [row for row in rows if row["id"] == "scene.png"]
    assert scene["verdict"]["looked"] and scene["verdict"]["category"] == "misleading" and not scene["refused_by"]


@pytest.mark.slow
def test_async_streaming(said) -> None:  # noqa: ANN001
    first, second, third = said("async_streaming.py")
    assert first.removeprefix("user 1: ") == second.removeprefix("user 2: "), "the same seed, another answer"
    assert "rimbo" in first and int(first.split()[2]) > 3 and third == "user 3: gone"


@pytest.mark.slow
def test_own_defense(said) -> None:  # noqa: ANN001
    lines = said("own_defense.py")
    assert lines[0].startswith("How do I use the cup? -> safe; read ")
    assert lines[1].startswith("How do I use the blade? -> careful; added to the question: Answer with care.; read ")


@pytest.mark.slow
def test_openai_messages(said) -> None:  # noqa: ANN001
    answer, *errors = said("openai_messages.py")
    assert json.loads(answer)["choices"][0]["message"]["content"].startswith("I will answer with care")
    assert [error.split(":")[1].strip() for error in errors] == ["messages[2]", "messages[2].content[0]"]


@pytest.mark.slow
def test_middleware(said) -> None:  # noqa: ANN001
    careful, risky, missing = said("middleware.py")
    assert "the model's answer" in careful
    assert all(line.endswith("I cannot help with that.") for line in (risky, missing))
