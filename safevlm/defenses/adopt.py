"""A defense of the user's own code → a row of the table.

    a DefenseRow                        taken as it is, under the name that was asked for
    a class with from_context           built by `from_context(context)`
    a class without arguments           built by calling it
    a function of one argument          called with the `DefenseContext`

What is built may be a `Defense`, any object with some of its hooks, or a detector: an object with `detect` and no other
hook, which is put together with the policy as our own detectors are (`Mixer`).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from safevlm.defenses.base import Ask, Defense, ImageFeatures, Inputs, is_own
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.row import DefenseRow
from safevlm.types import Reply, Request, Verdict

HOOKS = ("detect", "rewrite", "transform", "review")
WAYS = (
    "name a DefenseRow, a class that is built without arguments or by a classmethod from_context(context), "
    "or a function of a DefenseContext"
)


def adopt(name: str, found: object) -> DefenseRow:
    """The row of what `package.module:Attribute` or an entry point is. ValueError says what it lacks."""
    if isinstance(found, DefenseRow):
        build = found.build
        return dataclasses.replace(found, name=name, build=lambda context: _built(name, build, context))
    if isinstance(found, type):
        return _of_class(name, found)
    if callable(found) and not _hooks_of(found):
        build = found
        return DefenseRow(name, lambda context: _built(name, build, context), takes_file=True, reads_folder=True)
    raise ValueError(f"{_shown(found)} is no defense; {WAYS}")


def _row(name: str, build: Callable[[DefenseContext], object], *, reads_context: bool, **facts: Any) -> DefenseRow:
    """What is built with a context may read files; what is built without one cannot know of any."""
    return DefenseRow(
        name,
        lambda context: _built(name, build, context),
        takes_file=reads_context,
        reads_folder=reads_context,
        **facts,
    )


def _of_class(name: str, kind: type) -> DefenseRow:
    text = (inspect.getdoc(kind) or "").partition("\n")[0]
    from_context: Callable[[DefenseContext], object] | None = getattr(kind, "from_context", None)
    if from_context is not None:
        return _row(name, from_context, reads_context=True, text=text)
    hooks = _hooks_of(kind)
    _check_hooks(kind, hooks)
    if needed := _needed(kind):
        raise ValueError(
            f"class {kind.__name__} wants arguments ({', '.join(needed)}); give them defaults, or the class a "
            "classmethod from_context(context)"
        )
    is_of_words = hooks == ["rewrite"]
    return _row(name, lambda context: kind(), reads_context=False, text=text, works_on_served_model=is_of_words)


def _built(name: str, build: Callable[[DefenseContext], object], context: DefenseContext) -> Defense:
    """ValueError that names the defense: somebody's code raised, or built what is no defense."""
    try:
        made = build(context)
    except ValueError as error:  # the builder says itself what does not fit
        raise ValueError(f"defense {name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"defense {name} could not be built: {type(error).__name__}: {error}; mend it") from error
    return guard(name, made, context)


def guard(name: str, made: object, context: DefenseContext) -> Defense:
    """What was built, as a `Defense` of a name. ValueError: it has no hook, or its name is no text."""
    own = getattr(made, "name", name)
    if not isinstance(own, str) or not own.strip():
        raise ValueError(f"defense {name}: its `name` must be a text that is not empty, not {own!r}")
    hooks = _hooks_of(made)
    if not isinstance(made, Defense):
        _check_hooks(made, hooks, f"defense {name}: built ")
        made = Mixer(_Detector(name, made), context.policy) if hooks == ["detect"] else Adopted(made, hooks)
    if made.name == Defense.name:
        object.__setattr__(made, "name", name)  # it may be a frozen dataclass
    return made


class Adopted(Defense):
    """An object with some of the hooks that does not derive from `Defense`; the hooks that it lacks do nothing."""

    def __init__(self, theirs: Any, hooks: list[str]) -> None:
        self.theirs = theirs
        self.name = getattr(theirs, "name", Defense.name)
        self._hooks = {hook: getattr(theirs, hook) for hook in hooks}

    @property
    def reviews(self) -> bool:
        return "review" in self._hooks or is_own(self, "review", Adopted)

    @property
    def transforms(self) -> bool:
        return "transform" in self._hooks or is_own(self, "transform", Adopted)

    def attach(self, ask: Ask) -> None:
        super().attach(ask)
        if hasattr(self.theirs, "attach"):
            self.theirs.attach(ask)

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        return self._hooks.get("detect", super().detect)(request, features)

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        return self._hooks.get("rewrite", super().rewrite)(request, verdict)

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        return self._hooks.get("transform", super().transform)(inputs, verdict)

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        return self._hooks.get("review", super().review)(request, reply, verdict)


class _Detector:
    """A detector under its own name or, if it has none, the one it was asked for by."""

    def __init__(self, name: str, theirs: Any) -> None:
        self.theirs = theirs
        self.name: str = getattr(theirs, "name", name)

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        verdict: Verdict = self.theirs.detect(request, features)
        return verdict if verdict.source else dataclasses.replace(verdict, source=self.name)


def _hooks_of(found: object) -> list[str]:
    """The hooks that a class or object brings itself."""
    if isinstance(found, type) and issubclass(found, Defense):
        return [hook for hook in HOOKS if getattr(found, hook) is not getattr(Defense, hook)]
    if isinstance(found, Defense):
        return [hook for hook in HOOKS if is_own(found, hook, Defense)]
    return [hook for hook in HOOKS if callable(getattr(found, hook, None))]


def _check_hooks(found: object, hooks: list[str], where: str = "") -> None:
    if not hooks:
        raise ValueError(f"{where}{_shown(found)} has none of the hooks {', '.join(HOOKS)}")


def _needed(kind: type) -> list[str]:
    """Names of the arguments that a class cannot be built without."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):  # built in C: calling it will tell
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters if each.default is each.empty and each.kind not in variable]


def _shown(found: object) -> str:
    return f"class {found.__name__}" if isinstance(found, type) else f"an object of {type(found).__name__}"
