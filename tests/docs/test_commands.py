"""Commands in the pages parse: their flags, recipes and keys exist."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from safevlm import recipes
from safevlm.__main__ import COMMANDS, parser_for
from tests.docs.pages import PAGES, ROOT, name, page

WORD = re.compile(r"--[a-z][\w.-]*")


def _commands(path: Path) -> list[list[str]]:
    """Every `safevlm …` of a page, in code and in prose, as words."""
    one = page(path)
    lines = [*one.code.splitlines(), *re.findall(r"`([^`\n]+)`", one.prose)]
    found = []
    for line in lines:
        match = re.match(r"(?:\$ |\[?[A-Z_]+=\S+ )*(?:python -m )?safevlm (?!\.)([a-z].*)", line.strip())
        if match:
            words = match.group(1).split("  ")[0].split(" # ")[0]  # a remark stands behind two spaces
            found.append(shlex.split(words.replace("\\|", "|"), posix=True))
    return found


def _leaf(words: list[str]) -> argparse.ArgumentParser:
    """The parser of the innermost command that the words name."""
    parser, rest = parser_for(words[0]), list(words)
    while True:
        inner = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if inner is None or not rest or rest[0] not in inner.choices:
            return parser
        parser = inner.choices[rest.pop(0)]


def _keys() -> set[str]:
    """Every key of a recipe, as `train` and `check` take it."""
    from jsonargparse import ArgumentParser

    from safevlm.config import Recipe

    parser = ArgumentParser()
    parser.add_class_arguments(Recipe)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_and_their_flags_exist(path: Path):
    for words in _commands(path):
        assert words[0] in COMMANDS, f"{name(path)}: safevlm {' '.join(words)}: no such command"
        flags = {flag for word in words for flag in WORD.findall(word)}
        known = {option for action in _leaf(words)._actions for option in action.option_strings}
        if words[0] in ("train", "check"):
            flags = {flag for flag in flags if "." not in flag}
        assert flags <= known, f"{name(path)}: safevlm {' '.join(words)}: unknown {sorted(flags - known)}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_recipes_and_mixes_are_found_by_their_name(path: Path):
    known = {*recipes.shipped("recipe"), *recipes.shipped("mix")}
    given = [words[1] for words in _commands(path) if words[0] in ("train", "mix", "check") and len(words) > 1]
    given += re.findall(r"RECIPE=([a-z]\w+)", page(path).text)
    unknown = {word for word in given if re.fullmatch(r"[a-z][a-z0-9_]+", word) and word not in known}
    assert not unknown, f"{name(path)}: no recipe or mix is called {sorted(unknown)}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_keys_of_recipes_exist(path: Path):
    keys = {
        key for key in WORD.findall(page(path).text) if re.match(r"--(model|data|run|loss|lora|tensor|optim)\.", key)
    }
    assert keys <= _keys(), f"{name(path)}: unknown {sorted(keys - _keys())}"


def test_every_command_is_on_the_page_of_commands():
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    missing = [command for command in COMMANDS if f"`safevlm {command}" not in text]
    assert not missing, f"docs/commands.md lacks {missing}"


def test_every_extra_is_on_the_page_of_commands():
    extras = re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert extras, "setup.py: no extras found"
    missing = [extra for extra in extras if f"| `{extra}` |" not in text]
    assert not missing, f"docs/commands.md lacks the extras {missing}"


def test_every_command_of_the_evaluation_is_in_the_manual():
    from safevlm.commands.evaluation import commands

    text = " ".join(page(path).text for path in PAGES)
    missing = [command for command in commands() if f"safevlm eval {command}" not in text]
    assert not missing, f"no page shows safevlm eval {missing}"
