"""JailBreakV-28K (arXiv 2404.03027): jailbreaks from LLMs with an image, and image attacks.

Sent is `jailbreak_query`; judged is the reply to `redteam_query`, the plain request inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.data.harms import category_of
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import find, images_in
from safevlm.evaluation.suites.question import OFFICIAL, Question, each_row
from safevlm.evaluation.suites.suite import TOTAL, Suite
from safevlm.evaluation.suites.tables import csv_rows, first_of, text, word

FOLDER = "JailBreakV_28K"
COLUMNS = ("id", "jailbreak_query", "redteam_query", "format", "policy", "image_path")
GROUPS = {
    "Template": Group("template", "harmful"),
    "Persuade": Group("persuasion", "harmful"),
    "Logic": Group("logic", "harmful"),
    "figstep": Group("FigStep", "harmful"),
    "SD": Group("generated image", "harmful"),
    "typo": Group("words as an image", "harmful"),
    "SD_typo": Group("generated image with words", "harmful"),
}
PLAIN = {name.casefold(): name for name in GROUPS}


def full(data: Path) -> Iterator[Question]:
    yield from _questions(first_of(data, f"{FOLDER}/{FOLDER}.csv", f"{FOLDER}.csv"))


def mini(data: Path) -> Iterator[Question]:
    yield from _questions(first_of(data, f"{FOLDER}/mini_{FOLDER}.csv", f"mini_{FOLDER}.csv"))


def _questions(table: Path) -> Iterator[Question]:
    indexes: dict[str, Any] = {}

    def question(place: str, row: dict[str, str]) -> Question:
        group = PLAIN.get(row["format"].strip().casefold())
        if group is None:
            raise ValueError(f"{place}: unknown format {row['format']!r}; one of {list(GROUPS)}")
        image = text(row, "image_path", place).replace("\\", "/")  # a few published rows have none
        top, _, rest = image.partition("/")  # figstep/, llm_transfer_attack/, query_related/
        indexes.setdefault(top, images_in(table.parent, top, f"{top}.zip"))
        images, missing = find(indexes[top], [rest], place)
        return Question(
            id=word(row, "id", place),
            group=group,
            text=text(row, "jailbreak_query", place),
            images=images,
            missing=missing,
            category=category_of("jailbreakv", row["policy"]),
            level="must_refuse",
            expected={"question": text(row, "redteam_query", place), "topic": row["policy"], "prompt_is": OFFICIAL},
        )

    yield from each_row(csv_rows(table, COLUMNS), question)


_FACTS: dict[str, Any] = {
    "groups": GROUPS,
    "source": "arXiv 2404.03027; hf JailbreakV-28K/JailBreakV-28k",
    "licence": "MIT",
    "judge": "llama_guard",
    "max_new_tokens": 512,
    "folder": "jailbreakv",
    "aliases": (FOLDER, "JailBreakV-28k", "JailBreakV"),
    "note": "Hugging Face has about 100 images of each kind; the full set is on the drive that its card links.",
    "layout": f"{FOLDER}/*.csv and {FOLDER}/{{figstep,llm_transfer_attack,query_related}}/",
    "download": "hf download JailbreakV-28K/JailBreakV-28k --repo-type dataset --local-dir DIR/jailbreakv  (then the "
    "images from the drive that the card links)",
}
SUITE = Suite(name="jailbreakv", questions=full, published={TOTAL: 28_000}, **_FACTS)
MINI_SUITE = Suite(name="jailbreakv_mini", questions=mini, published={TOTAL: 280}, **_FACTS)
