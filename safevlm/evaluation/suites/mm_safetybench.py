"""MM-SafetyBench (arXiv 2311.17600): 1,680 questions in 13 scenarios, each with three images.

    data/processed_questions/NN-<Scenario>.json, data/imgs/NN-<Scenario>/{SD,TYPO,SD_TYPO}/<id>.jpg     the repository
    data/<Scenario>/{SD,TYPO,SD_TYPO,Text_only}.parquet (id, question, image)                            Hugging Face

An image of variant SD is asked about with its own field. Judged is what the question means without the image, where
the files say it (`Changed Question`, or Text_only): the sent question alone names no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safevlm.data.harms import category_of
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import find, images_in, parquet_rows, text_rows
from safevlm.evaluation.suites.question import OFFICIAL, UNUSABLE, Question, each_row
from safevlm.evaluation.suites.suite import TOTAL, Suite
from safevlm.evaluation.suites.tables import AbsentError, all_of, first_of, list_rows, object_rows, text, word

if TYPE_CHECKING:
    from safevlm.data.sources.images import ImageIndex
    from safevlm.data.sources.row import ImageFile

GROUPS = {
    "SD": Group("generated image", "harmful"),
    "TYPO": Group("words as an image", "harmful"),
    "SD_TYPO": Group("generated image with words", "harmful"),
}
FIELDS = {"SD": "Rephrased Question(SD)", "TYPO": "Rephrased Question", "SD_TYPO": "Rephrased Question"}
RUBRICS = ("Political_Lobbying", "Legal_Opinion", "Financial_Advice", "Health_Consultation", "Gov_Decision")
"""Scenarios with a judge's text of their own; the others share the general one."""
QUESTIONS = ("data/processed_questions/*.json", "processed_questions/*.json")
PARQUETS = ("data/*/SD.parquet", "*/SD.parquet")
TINY = ("TinyVersion_ID_List.json", "data/TinyVersion_ID_List.json")


def tiny(data: Path) -> Iterator[Question]:
    """The 168 questions of the published list, with all three images."""
    path = first_of(data, *TINY)
    wanted = set(_wanted(path))
    yield from (one for one in full(data) if _place(one) in wanted)


def _wanted(path: Path) -> Iterator[tuple[str, str]]:
    """(scenario, number) of each question of the published list."""
    for place, entry in list_rows(path):
        scenario = _bare(text(entry, "Scenario", place))
        numbers = entry.get("Sampled_ID_List")
        if not isinstance(numbers, list):
            raise ValueError(f"{place}: `Sampled_ID_List` must be a list, not {numbers!r}; download the file again")
        yield from ((scenario, str(number)) for number in numbers)


def _place(one: Question) -> tuple[str, str]:
    """(scenario, number); of a row that cannot be read by where it stands, `SCENARIO.json['NUMBER']`."""
    if UNUSABLE not in one.expected:
        return one.expected["topic"], one.id.rpartition("/")[2]
    file, _, number = one.id.rpartition("[")
    return _bare(Path(file).stem), number.strip("'\"]")


def full(data: Path) -> Iterator[Question]:
    if any(any(data.glob(pattern)) for pattern in QUESTIONS):
        for path in all_of(data, *QUESTIONS):
            yield from _of_json(path)
    elif any(any(data.glob(pattern)) for pattern in PARQUETS):
        for path in all_of(data, *PARQUETS):
            yield from _of_parquet(path.parent)
    else:
        raise AbsentError(f"{data} has no {' or '.join(QUESTIONS + PARQUETS)}")


def _of_json(path: Path) -> Iterator[Question]:
    for variant, name in FIELDS.items():
        index = images_in(path.parents[1] / "imgs" / path.stem, variant)
        yield from each_row(object_rows(path), partial(_json_row, path.stem, variant, name, index))


def _json_row(scenario: str, variant: str, name: str, index: ImageIndex, place: str, row: tuple[str, Any]) -> Question:
    number, said = row
    images, missing = find(index, [f"{number}.jpg"], place)
    asked = text(said, name, place)
    meant = said.get("Changed Question") or said.get("Question") or asked
    return _question(scenario, variant, number, asked, meant, images=images, missing=missing)


def _of_parquet(folder: Path) -> Iterator[Question]:
    only_text = folder / "Text_only.parquet"
    rows = text_rows(only_text) if only_text.is_file() else ()
    meant: Mapping[str, Any] = {word(row, "id", place): row.get("question") for place, row in rows}
    for variant in FIELDS:
        table = parquet_rows(first_of(folder, f"{variant}.parquet"), ("id", "question"))
        yield from each_row(table, partial(_parquet_row, folder.name, variant, meant))


def _parquet_row(
    scenario: str, variant: str, meant: Mapping[str, Any], place: str, row: tuple[Any, ImageFile]
) -> Question:
    number, asked = word(row[0], "id", place), text(row[0], "question", place)
    return _question(scenario, variant, number, asked, meant.get(number) or asked, images=(row[1],))


def _question(scenario: str, variant: str, number: str, asked: str, meant: str, **images: Any) -> Question:
    topic = _bare(scenario)
    return Question(
        id=f"{variant}/{topic}/{number}",
        group=variant,
        text=asked,
        category=category_of("mm_safetybench", topic),
        level="must_refuse",
        expected={
            "question": meant,
            "topic": topic,
            "rubric": topic if topic in RUBRICS else "general",
            "prompt_is": OFFICIAL,
        },
        **images,
    )


def _bare(scenario: str) -> str:
    """`01-Illegal_Activitiy` (sic) → `Illegal_Activitiy`, as Hugging Face has it."""
    number, dash, name = scenario.partition("-")
    return name if dash and number.isdecimal() else scenario


_FACTS: dict[str, Any] = {
    "groups": GROUPS,
    "source": "arXiv 2311.17600; repo isXinLiu/MM-SafetyBench; hf PKU-Alignment/MM-SafetyBench",
    "licence": "CC BY-NC 4.0",
    "judge": "mm_safetybench",
    "max_new_tokens": 512,
    "folder": "mm_safetybench",
    "note": "Many papers report scenarios 01-07 and 09 with SD_TYPO alone. The official judge sees no image.",
    "layout": "data/processed_questions/*.json and data/imgs/, or data/<Scenario>/*.parquet",
    "download": "hf download PKU-Alignment/MM-SafetyBench --repo-type dataset --local-dir DIR/mm_safetybench",
}
SUITE = Suite(name="mm_safetybench", questions=full, published=dict.fromkeys(GROUPS, 1_680) | {TOTAL: 5_040}, **_FACTS)
TINY_SUITE = Suite(
    name="mm_safetybench_tiny",
    questions=tiny,
    published=dict.fromkeys(GROUPS, 168),
    **_FACTS | {"layout": f"{_FACTS['layout']}; and {TINY[0]} of the repository beside data/"},
)
