"""What `safevlm check PATH` looks at, told by the path's contents: a recipe, a model, data, or only the machine.

Trap: the machine is checked before anything of ours that needs transformers is imported. A broken torchvision would
otherwise end the command instead of being one of its findings.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from safevlm import recipes
from safevlm.check import packages
from safevlm.check.findings import Finding
from safevlm.check.lazy_parts import PROBLEMS, one_line, run
from safevlm.check.other_files import is_other_yaml
from safevlm.config import Recipe
from safevlm.data.record_rows import ENDINGS
from safevlm.data.sources.images import EXTENSIONS
from safevlm.files import FileError, read_yaml
from safevlm.usage import UsageError

Kind = Literal["recipe", "model", "data", "machine"]
YAML = (".yaml", ".yml")
SECTIONS = "|".join(field.name for field in fields(Recipe))
RECIPE_FLAG = re.compile(rf"--({SECTIONS}|[a-z0-9_]+\.[a-z0-9_.]+\+?)(=.*)?", re.DOTALL)
"""`--key.sub value`, `--key.sub=value`, or a whole section, `--key '{sub: value}'`, as `safevlm train` takes them."""


@dataclass(frozen=True)
class CheckRequest:
    """The command line of `safevlm check`."""

    path: Path | None = None
    gpus: int = 0
    nodes: int = 1
    gpu_memory: float | None = None
    base: str | None = None
    against: tuple[Path, ...] = ()
    taxonomy: Path | None = None
    images: str = ""
    recipe_flags: tuple[str, ...] = ()


def split_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and the recipe's flags with their values."""
    own: list[str] = []
    recipe: list[str] = []
    left = iter(words)
    for word in left:
        found = RECIPE_FLAG.fullmatch(word)
        if found is None:
            own.append(word)
            continue
        recipe.append(word)
        value = None if found[2] is not None else next(left, None)
        recipe += [value] if value is not None else []
    return own, recipe


def kind_of(path: Path | None) -> Kind:
    """What a path is, from its contents."""
    if path is None:
        return "machine"
    if path.is_dir():
        configs = (path / "config.json", path / "final" / "config.json", path / "adapter_config.json")
        return "model" if any(config.is_file() for config in configs) or not _has_data(path) else "data"
    return "recipe" if path.suffix.lower() in YAML and not (_is_mix(path) or is_other_yaml(path)) else "data"


def findings(request: CheckRequest) -> Iterator[Finding]:
    """Everything there is to say, as it is found. UsageError: recipe flags without a recipe, or wrong ones."""
    if request.gpus < 0 or request.nodes < 1 or (request.gpu_memory or 1) <= 0:
        raise UsageError("--gpus, --nodes and --gpu-memory count from 1")
    given = request.path
    request = replace(request, path=_place(given))
    kind = kind_of(request.path)
    if kind != "data" and (request.against or request.taxonomy or request.images):
        raise UsageError("--against, --taxonomy and --images are for data; a recipe names its own (model.taxonomy, …)")
    if request.recipe_flags and kind != "recipe":
        raise UsageError(f"{request.recipe_flags[0]}: a recipe's flag, but {given or 'nothing'} is no recipe")
    if kind == "machine":
        yield from run(packages.CHECKS, None)
    else:
        yield from CHECKS[kind](request)


def _place(given: Path | None) -> Path | None:
    """A path that is there, or the file of a shipped recipe or mix; UsageError: neither."""
    if given is None or given.exists():
        return given
    try:
        return recipes.find(given, "recipe", "mix")
    except ValueError as error:
        raise UsageError(f"{error}; or give a recipe, a model or data of your own") from error


def _recipe(request: CheckRequest) -> Iterator[Finding]:
    recipe, problem = _parsed(request)
    yield from run(packages.CHECKS, recipe)
    if recipe is None:
        yield Finding(False, f"recipe: {problem}")
        return
    yield Finding(True, f"recipe: {request.path}")
    try:
        from safevlm.check import plan
        from safevlm.check import recipe as table
    except PROBLEMS as error:
        yield Finding(False, f"the model cannot be looked at before that is mended: {one_line(error)}")
        return
    cluster = plan.Cluster(request.gpus, request.nodes, request.gpu_memory)
    yield from run(table.CHECKS, plan.RunPlan(recipe, cluster))


def _model(request: CheckRequest) -> Iterator[Finding]:
    yield from run(packages.CHECKS, None)
    try:
        from safevlm.check import model
    except PROBLEMS as error:
        yield Finding(False, f"the model cannot be looked at before that is mended: {one_line(error)}")
        return
    yield from run(model.CHECKS, model.Subject(_given(request), request.base))


def _data(request: CheckRequest) -> Iterator[Finding]:
    from safevlm.check.data import check_data

    yield from check_data(
        _given(request), taxonomy=request.taxonomy, against=list(request.against), images=request.images
    )


def _given(request: CheckRequest) -> Path:
    if request.path is None:
        raise UsageError("PATH is missing")
    return request.path


CHECKS = {"recipe": _recipe, "model": _model, "data": _data}


def _parsed(request: CheckRequest) -> tuple[Recipe | None, str]:
    """The recipe, or what is wrong with the file. UsageError when only the flags are wrong."""
    from safevlm.training.recipe import parse

    file = str(request.path)
    recipe, problem = _try(parse, [file, *request.recipe_flags])
    if recipe is None and request.recipe_flags and _try(parse, [file])[0] is not None:
        raise UsageError(problem)
    return recipe, problem


def _try(parse: object, words: list[str]) -> tuple[Recipe | None, str]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(words), ""  # type: ignore[operator]
    except SystemExit:
        return None, one_line(ValueError(said.getvalue().split("error:", 1)[-1]))
    except ValueError as error:
        return None, one_line(error)


def _is_mix(path: Path) -> bool:
    """A mix has sources; everything else in YAML is taken for a recipe, so that its faults are told as a recipe's."""
    try:
        table = read_yaml(path)
    except FileError:
        return False
    return isinstance(table, dict) and "sources" in table and "stage" not in table


def _has_data(folder: Path) -> bool:
    """Records, a mix, or anywhere below it images or an archive."""
    endings = {*ENDINGS, *EXTENSIONS, ".zip"} - {".safetensors"}
    return any(path.suffix.lower() in endings or path.name.startswith("mix") for path in folder.rglob("*"))
