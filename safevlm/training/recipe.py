"""`RECIPE.yaml --key.sub value …` → Recipe. Defaults < YAML < flags; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from safevlm.config import Recipe


def _check_yaml(parser: ArgumentParser, words: Sequence[str]) -> None:
    """The parser's own message on broken YAML does not name the file."""
    if words and not words[0].startswith("-") and Path(words[0]).is_file():
        try:
            yaml.safe_load(Path(words[0]).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            parser.error(f"{words[0]}: not YAML: {' '.join(str(error).split())}")


def parse(words: Sequence[str]) -> Recipe:
    """Parses a command line. A wrong key or value exits with code 2 and a line that names it."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="safevlm train",
        usage="safevlm train RECIPE [--key.sub value …]",
        description="Train a stage from a recipe. Every key of the recipe is a flag too.",
    )
    parser.add_argument("--recipe", action="config", help="YAML file; `safevlm train FILE` is short for it")
    parser.add_class_arguments(Recipe)
    _check_yaml(parser, words)
    flags = ["--recipe", *words] if words and not words[0].startswith("-") else list(words)
    values = parser.instantiate_classes(parser.parse_args(flags))
    return Recipe(**{key: value for key, value in vars(values).items() if key != "recipe"})
