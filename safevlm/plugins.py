"""Rows of a table that come from elsewhere: `package.module:Attribute`, and entry points of installed packages.

    kind        entry-point group        what the attribute may be
    defenses    safevlm.defenses         see safevlm.defenses.table
    judges      safevlm.judges           see safevlm.evaluation.judges
    suites      safevlm.suites           see safevlm.evaluation.suites
    sources     safevlm.sources          see safevlm.data.sources
    stages      safevlm.stages           see safevlm.training.stages

Code runs only when the user names it (on the command line, in a recipe) or has installed it and asks for it by its
name. A plug-in is imported when its name is asked for, so that a broken one does not break the others.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, Literal, TypeVar

from safevlm.usage import UsageError

log = logging.getLogger(__name__)

Kind = Literal["defenses", "judges", "suites", "sources", "stages"]
Row = TypeVar("Row")

_NAME = r"[^\W\d]\w*"
REFERENCE = rf"{_NAME}(?:\.{_NAME})*:{_NAME}(?:\.{_NAME})*"
"""Regular expression of `package.module:Attribute`."""


def is_reference(name: str) -> bool:
    """Whether a name has the form `package.module:Attribute`."""
    return re.fullmatch(REFERENCE, name) is not None


def load(reference: str) -> object:
    """The object of `package.module:Attribute`; the current directory is importable, as for `python -m`.

    ValueError: not of this form, a module that is not there or does not import, an attribute that it does not have.
    """
    if not is_reference(reference):
        raise ValueError(f"{reference!r} is not of the form package.module:Attribute")
    module, _, attribute = reference.partition(":")
    found = _import(module)
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [each for each in vars(found) if not each.startswith("_")] if hasattr(found, "__dict__") else []
            raise ValueError(f"{reference}: {module} has no {attribute}; it has {public}")
        found = getattr(found, name)
    return found


def _import(module: str) -> object:
    try:
        with _current_directory_first():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"no module {module!r}: {error.name!r} is neither in {Path.cwd()} nor installed; run the command in "
                "the folder that holds it, or install it with pip"
            ) from error
        raise ValueError(f"module {module} needs {error.name!r}, which is not installed; install it") from error
    except (Exception, SystemExit) as error:  # whatever the top level of somebody's module raises
        raise ValueError(f"module {module} does not import: {type(error).__name__}: {error}; mend it") from error


@contextmanager
def _current_directory_first() -> Iterator[None]:
    """Afterwards the current directory stays last: late imports of the module find its neighbours, and no file of
    the user's takes the place of a library's that is imported later."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)
        sys.path.append(here)


@dataclass(frozen=True)
class Plugin:
    """One entry point of an installed distribution."""

    name: str
    reference: str
    distribution: str


@lru_cache(maxsize=64)
def _installed(kind: Kind, path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """`path` is `sys.path`, on which the answer depends."""
    found = entry_points(group=f"safevlm.{kind}")
    plugins = {Plugin(each.name, each.value, each.dist.name if each.dist else "unknown") for each in found}
    return tuple(sorted(plugins, key=lambda plugin: (plugin.name, plugin.distribution)))


def installed(kind: Kind) -> tuple[Plugin, ...]:
    """The plug-ins of a kind that installed distributions offer, by name; nothing is imported."""
    return _installed(kind, tuple(sys.path))


class Registry(Mapping[str, Row], Generic[Row]):
    """A table of rows by name: ours, those of installed plug-ins, and with `find` those of `module:Attribute` too.

    `ours`: the rows of this project. `adapt(name, found)` makes a row of what a plug-in's attribute is; it raises
    ValueError when that cannot be one, and says what is missing.
    """

    def __init__(self, kind: Kind, ours: Mapping[str, Row], adapt: Callable[[str, object], Row]) -> None:
        self.kind = kind
        self.ours = dict(ours)
        self.adapt = adapt
        self._adapted: dict[str, Row] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.ours, *(plugin.name for plugin in installed(self.kind))]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self.ours or any(plugin.name == name for plugin in installed(self.kind))

    def __getitem__(self, name: str) -> Row:
        """The row of ours or of a plug-in. KeyError: no such name. ValueError: two of this name, or a broken one."""
        plugins = [plugin for plugin in installed(self.kind) if plugin.name == name]
        if len(plugins) + (name in self.ours) > 1:
            owners = [*(["safevlm"] if name in self.ours else []), *(plugin.distribution for plugin in plugins)]
            raise ValueError(
                f"{self.kind}: the name {name!r} is given by {' and '.join(owners)}; rename the entry point, or "
                f"uninstall {plugins[-1].distribution}"
            )
        if name in self.ours:
            return self.ours[name]
        if not plugins:
            raise KeyError(name)
        return self._plugin(plugins[0])

    def find(self, name: str, where: str) -> Row:
        """The row of a name or of `package.module:Attribute`; `where` begins the ValueError that names the choices."""
        if name in self:
            return self[name]
        if not is_reference(name):
            wrong = UsageError if where.startswith("--") else ValueError  # of a flag, or of a file
            raise wrong(f"{where}: unknown {name!r}; one of {list(self)}, or package.module:Attribute of your own")
        try:
            return self._adapt(name, name)
        except ValueError as error:
            choices = "" if "." in name.partition(":")[0] else f" (and no name of ours: {list(self)})"
            raise ValueError(f"{where}: {name}: {error}{choices}") from error

    def working(self) -> dict[str, Row]:
        """All rows, without the plug-ins that are broken; a warning names those and their distributions."""
        rows: dict[str, Row] = {}
        for name in self:
            try:
                rows[name] = self[name]
            except ValueError as error:
                log.warning("%s", error)
        return rows

    def _plugin(self, plugin: Plugin) -> Row:
        try:
            return self._adapt(plugin.name, plugin.reference)
        except ValueError as error:
            raise ValueError(
                f"{self.kind}: {plugin.name!r} of the installed distribution {plugin.distribution!r} is broken: "
                f"{error}; mend or uninstall {plugin.distribution}"
            ) from error

    def _adapt(self, name: str, reference: str) -> Row:
        key = f"{name} {reference}"
        if key not in self._adapted:
            self._adapted[key] = self.adapt(name, load(reference))
        return self._adapted[key]
