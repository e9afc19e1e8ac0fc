"""MOSSBench (arXiv 2406.17806): harmless requests whose image looks dangerous; a refusal is wrong.

`mossbench_contrast` are the repository's really harmful twins, so that a model that refuses nothing does not look good.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import find, images_in
from safevlm.evaluation.suites.question import OFFICIAL, Question, each_row
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.tables import first_of, object_rows, text

if TYPE_CHECKING:
    from safevlm.data.sources.images import ImageIndex

GROUPS = {
    "exaggerated_risk": Group("exaggerated risk", "benign"),
    "negated_harm": Group("negated harm", "benign"),
    "counterintuitive": Group("counter-intuitive", "benign"),
}
TYPES = dict(zip(("type 1", "type 2", "type 3"), GROUPS, strict=True))
CONTRAST = {"contrast": Group("harmful twin", "harmful")}
INFORMATION = "images_information/information.json"


def questions(data: Path) -> Iterator[Question]:
    path = first_of(data, f"data/{INFORMATION}", INFORMATION)
    index = _images(path)

    def question(place: str, row: tuple[str, Any]) -> Question:
        facts = _facts(index, place, *row)
        over = (row[1].get("metadata") or {}).get("over")
        if over not in TYPES:
            raise ValueError(f"{place}: metadata: unknown `over` {over!r}; one of {list(TYPES)}")
        return Question(group=TYPES[over], **facts)

    yield from each_row(object_rows(path), question)


def contrast(data: Path) -> Iterator[Question]:
    path = first_of(data, f"data_contrast/{INFORMATION}")
    index = _images(path)

    def question(place: str, row: tuple[str, Any]) -> Question:
        return Question(group="contrast", category="illegal", level="must_refuse", **_facts(index, place, *row))

    yield from each_row(object_rows(path), question)


def _images(path: Path) -> ImageIndex:
    return images_in(path.parents[1], "images", "images.zip")


def _facts(index: ImageIndex, place: str, number: str, row: Any) -> dict[str, Any]:
    """What both kinds share."""
    images, missing = find(index, [text(row, "image", place)], place)
    question = text(row, "question", place)
    expected = {"question": question, "image": row.get("description"), "prompt_is": OFFICIAL}
    return {"id": number, "text": question, "images": images, "missing": missing, "expected": expected}


_FACTS: dict[str, Any] = {
    "source": "arXiv 2406.17806; repo xirui-li/MOSSBench (hf AIcell/MOSSBench lacks the table)",
    "licence": "CC BY-SA 4.0 by its README, no licence file; not for training",
    "judge": "mossbench",
    "max_new_tokens": 512,
    "folder": "mossbench",
    "download": "git clone https://github.com/xirui-li/MOSSBench DIR/mossbench",
}
SUITE = Suite(
    name="mossbench",
    questions=questions,
    groups=GROUPS,
    published=dict.fromkeys(GROUPS, 100),
    layout=f"data/{INFORMATION} and data/images/",
    note="Over-refusal: read it beside an attack suite. The official judge sees the image.",
    **_FACTS,
)
CONTRAST_SUITE = Suite(
    name="mossbench_contrast",
    questions=contrast,
    groups=CONTRAST,
    published={},
    layout=f"data_contrast/{INFORMATION} and data_contrast/images/",
    note="How many there are is not published.",
    **_FACTS,
)
