"""`RECIPE.yaml --key.sub value …` → Recipe. Defaults < YAML < flags; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser, set_parsing_settings

from safevlm.config import Recipe


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
    flags = ["--recipe", *words] if words and not words[0].startswith("-") else list(words)
    values = parser.instantiate_classes(parser.parse_args(flags))
    return Recipe(**{key: value for key, value in vars(values).items() if key != "recipe"})
