"""Things that several checks need, made once; and running a table of checks so that one failure hides no other.

Trap: the first check that asks for a broken part gets its error and becomes the ✗; every later one is only skipped.
So the check of a part stands before the checks that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from safevlm.check.findings import Finding

Subject = TypeVar("Subject")

PROBLEMS = (OSError, ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ImportError)
"""What looking at broken files and packages can raise."""


class Skipped(Exception):  # noqa: N818 - no error of its own
    """A check needs something that another check has found broken."""


class lazy_part(property):  # noqa: N801 - a decorator, used as `@lazy_part`
    """A property made at its first use. Its error goes to who asked first; whoever asks later is told to skip."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        name = make.__name__

        def get(owner: Any) -> Any:
            made = vars(owner).setdefault("_parts", {})
            if name not in made:
                made[name] = Skipped(f"needs the {name.replace('_', ' ')}, see above")
                made[name] = make(owner)
            if isinstance(made[name], Skipped):
                raise made[name]
            return made[name]

        super().__init__(get, doc=make.__doc__)


def run(checks: Sequence[tuple[str, Callable[[Subject], Iterable[Finding]]]], subject: Subject) -> Iterator[Finding]:
    """All findings of all checks, in order, as they come."""
    for title, check in checks:
        try:
            yield from check(subject)
        except Skipped as reason:
            yield Finding(False, f"{title}: skipped, {reason}", skipped=True)
        except PROBLEMS as error:
            yield Finding(False, f"{title}: {one_line(error)}")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
