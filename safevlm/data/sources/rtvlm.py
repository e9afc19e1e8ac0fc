"""RTVLM: JSONL files and zips of images (or the folders they were unpacked to), by subset; read without its script.

Words are (subset, what `refused_to_answer` says). Rows of `misleading` may hold parallel lists of questions; every
question is a row. RTVLM has one split, `test`, so ours is drawn: 80 % of the images train, 20 % test, seeded, and
kept in a file (`safevlm.data.sources.split`). `split: all` is the whole set, for evaluation only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.data.json_rows import json_rows
from safevlm.data.sources import split
from safevlm.data.sources.images import ImageIndex, find_all
from safevlm.data.sources.row import (
    Counts,
    PublishedCount,
    Rows,
    SourceError,
    SourceRow,
    SourceSpec,
    SourceTally,
    asked,
    spared,
    text_of,
)
from safevlm.data.sources.source import Source

CAUTION = "Proceed with Caution"
SPELLINGS = {"answer with caution": CAUTION}
"""The full celebrity file spells one label in its own way."""
SPLITS = ("train", "test", "all")

Entry = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    question: str
    answer: str
    label: str


@dataclass(frozen=True)
class Subset:
    table: str
    images: str
    """A zip; the folder beside it holds the same, unpacked."""
    names: Callable[[Entry, str], list[str]]
    """Image names of a row."""
    asked: Callable[[Entry, str], Iterator[Asked]]
    published: int


def _index_name(row: Entry, place: str) -> list[str]:
    return [f"{_word(row, 'index', place)}.jpg"]


def _id_name(row: Entry, place: str) -> list[str]:
    name = _word(row, "id", place)
    return [name if Path(name).suffix else f"{name}.jpg"]


def _flag_name(field: str) -> Callable[[Entry, str], list[str]]:
    def names(row: Entry, place: str) -> list[str]:
        return [_flag(row.get(field), field, place)]

    return names


def _flag_pair(row: Entry, place: str) -> list[str]:
    if not isinstance(row.get("img"), list):
        raise SourceError(f"{place}: `img` must be a list of two names, not {row.get('img')!r}")
    return [_flag(name, "img", place) for name in row["img"]]


def _flag(name: Any, field: str, place: str) -> str:
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str) or not name.strip():
        raise SourceError(f"{place}: {field!r} must name an image, not {name!r}")
    bare = "".join(name.split())
    return f"flags/{bare}" if Path(bare).suffix else f"flags/{bare}.jpg"


def _word(row: Entry, field: str, place: str) -> str:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise SourceError(f"{place}: no {field!r} in this row; it has {sorted(row)}")
    return str(value)


def _lists(row: Entry, place: str) -> Iterator[Asked]:
    """Parallel lists, or plain strings: a string is one question, never a list of letters; one label fits them all."""
    questions, labels, answers = (_as_list(row, name, place) for name in ("questions", "refused_to_answer", "answers"))
    if isinstance(row["refused_to_answer"], str):
        labels *= len(questions)
    if not len(questions) == len(labels) == len(answers):
        raise SourceError(
            f"{place}: {len(questions)} questions, {len(labels)} labels, {len(answers)} answers; they must match"
        )
    for question, label, answer in zip(questions, labels, answers, strict=True):
        yield Asked(question, answer, label)


def _as_list(row: Entry, name: str, place: str) -> list[str]:
    value = row.get(name)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise SourceError(f"{place}: {name!r} must be a text or a list of texts, not {value!r}")
    return values


def _one(question: str, answer: str = "", label: str = "") -> Callable[[Entry, str], Iterator[Asked]]:
    """Fields of a plain row; a `label` in capitals is the label itself."""

    def read_row(row: Entry, place: str) -> Iterator[Asked]:
        said = label or text_of(row, "refused_to_answer", place)
        yield Asked(text_of(row, question, place), _answer(row, answer), said)

    return read_row


def _answer(row: Entry, field: str) -> str:
    value = row.get(field, "") if field else ""
    return str(value[0] if isinstance(value, list) and value else value or "")


_JAILBREAK = _one("instruction")
_PROMPT = _one("prompt")
_FLAGS = _one("question", "answers")

SUBSETS: dict[str, Subset] = {
    "misleading": Subset("Harmful/misleading.jsonl", "Harmful/img/img.zip", _index_name, _lists, 100),
    "captcha": Subset(
        "Captcha/captcha.jsonl", "Captcha/img/img.zip", _id_name, _one("instruction", label=CAUTION), 200
    ),
    "jailbreak": Subset("Jailbreak/jailbreak.jsonl", "Jailbreak/img/img.zip", _index_name, _JAILBREAK, 200),
    "jailbreak2": Subset("Jailbreak2/jailbreak.jsonl", "Jailbreak/img/img.zip", _index_name, _JAILBREAK, 21),
    "face": Subset("Face/face_diffusion.jsonl", "Face/img/img.zip", _id_name, _PROMPT, 2_040),
    "celeb": Subset("Celebrity/mixed.jsonl", "Celebrity/mix.zip", _id_name, _PROMPT, 200),
    "politics": Subset("Safety/Politics/politics.jsonl", "Safety/Politics/img/politics.zip", _id_name, _PROMPT, 200),
    "racial": Subset("Safety/Racial/racial.jsonl", "Safety/Racial/img/racial.zip", _id_name, _PROMPT, 200),
    "visual_misleading_wrong": Subset(
        "VisualMisleadingWrong/visual_misleading_wrong.jsonl",
        "VisualMisleadingWrong/img.zip",
        _flag_name("img"),
        _FLAGS,
        405,
    ),
    "visual_misleading_correct": Subset(
        "VisualMisleadingCorrect/visual_misleading_correct.jsonl",
        "VisualMisleadingCorrect/img.zip",
        _flag_name("answers"),
        _FLAGS,
        432,
    ),
    "visual_orderA": Subset("VisualOrderA/order_A.jsonl", "VisualOrderA/img.zip", _flag_pair, _FLAGS, 0),
    "visual_orderB": Subset("VisualOrderB/order_B.jsonl", "VisualOrderB/img.zip", _flag_pair, _FLAGS, 0),
}
ORDER_ROWS = 804
"""Of both order sets together."""

PUBLISHED = {
    **{name: PublishedCount(subset.published) for name, subset in SUBSETS.items() if subset.published},
    "visual_order": PublishedCount(ORDER_ROWS),
}


def files(spec: SourceSpec) -> list[Path]:
    return [_data(spec) / SUBSETS[name].table for name in _wanted(spec)]


def splits(folder: Path) -> list[str]:
    """All of it, where any of its tables is there."""
    places = (folder / below / subset.table for below in ("data", "") for subset in SUBSETS.values())
    return ["all"] if any(place.is_file() for place in places) else []


def read(spec: SourceSpec) -> Rows:
    """Rows of one split; all of them are read first, since the split is of images."""
    if spec.split not in SPLITS:
        raise SourceError(f"{spec.name}: RTVLM has no split {spec.split!r}; one of {list(SPLITS)}")
    rows = [row for name in _wanted(spec) for row in _subset_rows(spec, name)]
    counts = _counts(spec, rows)
    sides = split.sides(spec, rows) if spec.split != "all" else {}
    for row in rows:
        if sides.get(row.id, "all") == spec.split:
            yield row
    return counts


def _wanted(spec: SourceSpec) -> list[str]:
    unknown = sorted(set(spec.subsets) - set(SUBSETS))
    if unknown:
        raise SourceError(f"{spec.name}: RTVLM has no subset {unknown}; one of {list(SUBSETS)}")
    present = [name for name, subset in SUBSETS.items() if (_data(spec) / subset.table).is_file()]
    wanted = [name for name in SUBSETS if name in (spec.subsets or SUBSETS)]
    absent = [name for name in wanted if name not in present]
    if absent and (spec.partial == "error" or spec.subsets or not present):
        raise SourceError(
            f"{spec.name}: no {', '.join(SUBSETS[name].table for name in absent)} below {_data(spec)}; download them, "
            "or name the subsets to read (`subsets`), or set `partial: allow`"
        )
    return [name for name in wanted if name in present]


def _data(spec: SourceSpec) -> Path:
    return spec.path / "data" if (spec.path / "data").is_dir() else spec.path


def _subset_rows(spec: SourceSpec, name: str) -> Iterator[SourceRow]:
    subset = SUBSETS[name]
    index = ImageIndex(_images(spec, subset))

    def rows(place: str, numbered: tuple[int, Any]) -> Iterator[SourceRow]:
        number, raw = numbered
        if not isinstance(raw, dict):
            raise SourceError(f"{place}: not a row of RTVLM: {raw!r}")
        names = subset.names(raw, place)
        images, missing = find_all(index, names, place)
        for turn, one in enumerate(subset.asked(raw, place)):
            yield SourceRow(
                id=f"{name}-{number:04d}" + (f"-{turn}" if turn else ""),
                place=place,
                turns=asked(one.question, one.answer, len(names)),
                images=images,
                missing=missing,
                words=(name, SPELLINGS.get(one.label.strip().lower(), one.label.strip())),
                split="train" if spec.split == "train" else "test",
            )

    placed = enumerate(json_rows(_data(spec) / subset.table))
    yield from spared(spec, ((place, (number, raw)) for number, (place, raw) in placed), rows)


def _images(spec: SourceSpec, subset: Subset) -> list[Path]:
    """The zip, or what somebody unpacked it to: the folder of its name, or else the folder it lies in.

    Nothing, where rows without their image are left out.
    """
    archive = _data(spec) / subset.images
    places = (archive, archive.with_suffix(""), archive.parent)
    found = [place for place in places if place.exists()]
    if not found and spec.missing_images == "error":
        raise SourceError(f"{spec.name}: no images: {archive} is not there, packed or unpacked")
    return found[:1]


def _counts(spec: SourceSpec, rows: list[SourceRow]) -> Counts:
    """Expanded questions are counted once, as published counts are."""
    tally = SourceTally(spec, PUBLISHED)
    parts = {row.place: row.words[0] for row in rows}
    for part, count in Counter(parts.values()).items():
        tally.found[part] = count
    both = [tally.found.get(name, 0) for name in ("visual_orderA", "visual_orderB")]
    if all(both):
        tally.found["visual_order"] = sum(both)
    return tally.close()


SOURCE = Source(
    "rtvlm",
    "RTVLM by subset; split: train draws 80 % of its images once",
    read,
    files,
    licence="cc, which one is not said",
    published=PUBLISHED,
    splits=splits,
    caution="has one split, test; ours is drawn, so that only the other 20 % may be evaluated on",
)
