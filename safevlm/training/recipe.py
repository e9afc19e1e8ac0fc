"""`RECIPE --key.sub value …` → Recipe. Defaults < YAML < flags; an unknown key is an error.

RECIPE is a YAML file, or the name of a shipped one (safevlm/recipes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, cast, get_args, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from safevlm import paths, ranges, recipes
from safevlm.config import Recipe
from safevlm.files import read_yaml
from safevlm.training import updates
from safevlm.training.stages import stage_of


class RecipeParser(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(" ".join(message.split()), ex)


def _file(parser: ArgumentParser, given: str) -> Path:
    """The recipe of a name or path. The parser's own message on broken YAML does not name the file."""
    try:
        file = recipes.find(paths.expanded(given), "recipe")
        table = read_yaml(file)
        if not isinstance(table, dict):
            parser.error(f"{file}: a recipe is a table of keys, such as `stage`, `model` and `data`")
        _check_sections(Recipe, table, str(file))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return file


def _check_sections(shape: type, table: dict[str, Any], where: str) -> None:
    """ValueError: a section that is no table, which jsonargparse would try to build from."""
    kinds = get_type_hints(shape)
    for name, value in table.items():
        section = next((kind for kind in (kinds.get(name), *get_args(kinds.get(name))) if is_dataclass(kind)), None)
        if section is None or (value is None and section is not kinds[name]):
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {name}: {value!r} is not a table")
        _check_sections(cast("type", section), value, f"{where}: {name}")


@cache
def _parser() -> ArgumentParser:
    """Made once: reading the help texts out of the dataclasses takes longer than parsing."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = RecipeParser(
        prog="safevlm train",
        usage="safevlm train RECIPE [--key.sub value …]",
        description="Train a stage from a recipe. Every key of the recipe is a flag too.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe", action="config", help="YAML file; `safevlm train FILE` is short for it, and takes names"
    )
    parser.add_class_arguments(Recipe)
    return parser


def parse(words: Sequence[str]) -> Recipe:
    """Parses a command line. A wrong key or value exits with code 2 and a line that names it."""
    parser = _parser()
    flags = list(words)
    if flags and not flags[0].startswith("-"):
        flags = ["--recipe", str(_file(parser, flags[0])), *flags[1:]]
    values = parser.parse_args(flags)
    problems = list(ranges.problems(Recipe, values.as_dict()))
    if problems:
        parser.error("; ".join(problems))
    try:
        made = vars(parser.instantiate_classes(values))
        recipe = Recipe(**{key: value for key, value in made.items() if key != "recipe"})
        stage = stage_of(recipe)
        stage.check(recipe)
        if stage.fit is None:
            updates.check_warmup(recipe.optim, recipe.optim.max_steps)
    except ValueError as error:
        parser.error(str(error))
    return recipe
