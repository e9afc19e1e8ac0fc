"""What a suite's file says of one question, and how questions become samples.

A suite is a generator of questions; images stay where they are until all questions are known, and then come out of
their archives in one pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safevlm.evaluation.suites.images import on_disk
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.types import Request, Sample

if TYPE_CHECKING:
    from safevlm.data.sources.row import ImageFile, SourceRow

Row = TypeVar("Row")

MISSING = "missing_images"
"""Key of `Sample.expected`: images that the row names and the download lacks. Such a sample is never asked."""
UNUSABLE = "unusable"
"""Key of `Sample.expected`: why the row cannot be used, with its place. Such a sample is never asked."""
FURTHER = "further"
"""Key of `Sample.expected`: a further question of a row that is counted already."""
REPEAT = "repeat"
"""Key of `Sample.expected`: which asking of the same question this is, from 0 on; the number is added to the seed."""
OFFICIAL, OURS, USERS = "official", "ours", "user"
"""Values of `expected["prompt_is"]`: whose words surround the benchmark's."""


@dataclass(frozen=True)
class Question:
    id: str
    group: str
    text: str
    images: tuple[ImageFile | Path, ...] = ()
    missing: tuple[str, ...] = ()
    """Names of images that the row speaks of and the download does not have."""
    category: str = CLEAN
    level: str = SAFE
    expected: Mapping[str, Any] = field(default_factory=dict)


def each_row(
    rows: Iterable[tuple[str, Row]], make: Callable[[str, Row], Question | Iterable[Question]]
) -> Iterator[Question]:
    """The questions that `make(place, row)` finds in each row; a row that it cannot read is `UNUSABLE`.

    A broken row of a published file is no reason to lose the others: it is counted and named, and the user decides.
    """
    for place, row in rows:
        try:
            made = make(place, row)
            yield from [made] if isinstance(made, Question) else list(made)
        except ValueError as error:
            yield unusable(place, str(error))
        except (TypeError, AttributeError, LookupError) as error:  # a list where a table should be, and the like
            yield unusable(place, f"{place}: not a row of this benchmark ({type(error).__name__}: {error})")


def unusable(place: str, why: str) -> Question:
    """What stands for a row that cannot be read."""
    return Question(id=place, group="", text="", expected={UNUSABLE: why})


def asked_of(row: SourceRow) -> str:
    """The question of a row that training reads too. ValueError: it has none."""
    question = row.turns[0][1].removeprefix("<image>\n")
    if not question.strip():
        raise ValueError(f"{row.place}: no question in this row")
    return question


def as_samples(suite: str, folder: Path, questions: Iterable[Question]) -> list[Sample]:
    """Samples in the order of the questions; images in archives are unpacked below the suite's folder."""
    asked = list(_with_own_ids(questions))
    files = on_disk({image for one in asked for image in one.images}, folder)
    return [_sample(suite, one, files) for one in asked]


def _sample(suite: str, one: Question, files: Mapping[ImageFile | Path, Path]) -> Sample:
    missing = [*one.missing, *(str(image) for image in one.images if image not in files)]
    return Sample(
        request=Request(text=one.text, images=tuple(files[image] for image in one.images if image in files), id=one.id),
        suite=suite,
        group=one.group,
        category=one.category,
        level=one.level,
        expected={name: value for name, value in one.expected.items() if value not in (None, "")}
        | ({MISSING: missing} if missing else {}),
    )


def _with_own_ids(questions: Iterable[Question]) -> Iterator[Question]:
    """A benchmark that uses an id twice gets `~2`, `~3` … in the order of its file."""
    seen: Counter[str] = Counter()
    for one in questions:
        seen[one.id] += 1
        yield replace(one, id=f"{one.id}~{seen[one.id]}") if seen[one.id] > 1 else one
