"""A user's own questions as a suite: a small YAML beside a table of questions, JSONL or CSV. `--suite my.yaml`.

    name: my-questions
    file: questions.jsonl       # or .csv; from --data DIR, or from the folder of this YAML
    images: images              # where image paths start; default: the folder of `file`
    fields: {id: nr, question: prompt, image: picture, group: kind, reference: answer}    # column of each field
    groups:                     # or `side: harmful` for all questions
      attacks: {side: harmful, title: attacks by image}
      plain: {side: benign, image: either}
    judge: refusal
    max_new_tokens: 256
    repeats: 3                  # every question three times, drawn with three seeds; needs a temperature
    temperature: 0.7
    note: what has to stand beside every number

Everything is checked before a question is asked, and nothing is dropped: an unknown or repeated key, a missing,
repeated or misspelt column, an empty cell, an unknown group or a contradiction is an error that names the file, the
line and the fix; other columns that no field reads are allowed. Paths of images stay below `images`, and every image is
opened. `system` and `history` are not supported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from safevlm.data.images import ImageError, is_there, open_image
from safevlm.evaluation.suites import own_rows
from safevlm.evaluation.suites.groups import Group, Images, Side
from safevlm.evaluation.suites.question import REPEAT, USERS, Question
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.table import SUITES
from safevlm.evaluation.suites.tables import AbsentError
from safevlm.files import load_yaml
from safevlm.paths import expanded_path
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE

ENDINGS = (".yaml", ".yml")
MAX_NEW_TOKENS = 256
WHOLE = "all"
"""Name of the only group of a suite without groups."""
NEEDED = ("id", "question")
EXPECTED = ("reference", "topic", "label", "options", "correct", "safety_warning", "rubric")
"""Fields that go to the judge as they are; which one a judge reads, its file says."""
FIELDS = (*NEEDED, "image", "group", "category", "level", *EXPECTED)
HARMFUL = ("illegal", "must_refuse")
"""Category and level of harmful questions whose row has none; of all others: clean and safe."""


@dataclass(frozen=True)
class SuiteFile:
    """The keys of the YAML."""

    name: str
    file: str
    judge: str
    fields: Mapping[str, str]
    """Field → column; a field that is not named is its own column, if the table has it."""
    groups: Mapping[str, Group]
    images: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    repeats: int = 1
    temperature: float = 0.0
    note: str = ""
    source: str = "the user's own"
    licence: str = "the user's own"


KEYS = (*(one.name for one in fields(SuiteFile)), "side")
KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "file", "judge", "images", "note", "source", "licence", "side"), (str,)),
    **dict.fromkeys(("max_new_tokens", "repeats"), (int,)),
    "temperature": (int, float),
    "fields": (dict,),
    "groups": (dict,),
}


def is_file(name: str) -> bool:
    """Whether `--suite` names a file and no row of the table."""
    return name.endswith(ENDINGS)


def read_suite_file(path: Path) -> Suite:
    """The suite that a YAML describes; its questions are read when they are asked for."""
    if not path.is_file():
        raise FileNotFoundError(f"--suite {path}: no such file")
    content = path.read_bytes()
    told = _checked(path, _table(path, content))
    return Suite(
        name=told.name,
        questions=lambda data: _questions(told, data),
        groups=told.groups,
        source=told.source,
        licence=told.licence,
        published={},
        judge=told.judge,
        max_new_tokens=told.max_new_tokens,
        temperature=told.temperature,
        note=told.note or "Questions of the user's own.",
        layout=told.file,
        download=f"put {told.file} beside {path.name}, or give its folder by --data",
        digest=hashlib.sha256(content).hexdigest()[:16],
    )


def _table(path: Path, content: bytes) -> dict[str, Any]:
    table = load_yaml(content, str(path))
    if not isinstance(table, dict):
        raise ValueError(f"{path}: must be a table of {list(KEYS)}")
    return {str(key): value for key, value in table.items()}


def _checked(path: Path, table: dict[str, Any]) -> SuiteFile:
    unknown = [key for key in table if key not in KEYS]
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; one of {list(KEYS)}")
    lacking = [key for key in ("name", "file", "judge") if key not in table]
    if lacking:
        raise ValueError(f"{path}: lacks {lacking}")
    for key, value in table.items():
        if not isinstance(value, KINDS[key]) or isinstance(value, bool) or value == "":
            kinds = " or ".join(kind.__name__ for kind in KINDS[key])
            raise ValueError(f"{path}: {key}: {value!r} is no {kinds}")
    _check_numbers(path, table)
    _check_name(path, table["name"])
    if not table["file"].endswith(own_rows.TABLES):
        raise ValueError(f"{path}: file: {table['file']!r} ends in none of {list(own_rows.TABLES)}")
    told_keys, named = set(table), table.pop("fields", {})
    groups = _groups(path, table.pop("side", None), table.pop("groups", None))
    if "side" in told_keys and "group" in named:
        raise ValueError(f"{path}: fields: group: goes with `groups`, not with one `side` for all")
    if "side" not in told_keys and "group" not in named:
        named = {**named, "group": "group"}
    for name, column in named.items():
        if name not in FIELDS or not isinstance(column, str):
            raise ValueError(f"{path}: fields: {name!r}: {column!r} is no column of one of {list(FIELDS)}")
    return SuiteFile(**table, fields=named, groups=groups)


def _check_numbers(path: Path, table: Mapping[str, Any]) -> None:
    for key in ("max_new_tokens", "repeats"):
        if table.get(key, 1) < 1:
            raise ValueError(f"{path}: {key}: {table[key]} is too small; give 1 or more")
    temperature = table.get("temperature", 0)
    if not 0 <= temperature < math.inf:  # also false for NaN
        raise ValueError(f"{path}: temperature: {temperature} must be 0 or more, and finite")
    if table.get("repeats", 1) > 1 and not table.get("temperature"):
        raise ValueError(
            f"{path}: repeats: {table['repeats']} at temperature 0 would get the same answer every time; set "
            "temperature (0.7, for instance), or leave repeats out"
        )


def _check_name(path: Path, name: str) -> None:
    if name in SUITES or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError(
            f"{path}: name: {name!r} must be letters, digits, `-`, `_` and `.`, and no suite of ours; it names folders"
        )


def _groups(path: Path, side: str | None, groups: Mapping[Any, Any] | None) -> dict[str, Group]:
    if (side is None) == (groups is None):
        raise ValueError(f"{path}: needs either `side` for all questions or `groups`, one of {list(get_args(Side))}")
    if groups is None:
        groups = {WHOLE: {"side": side, "title": "all questions", "image": "either"}}
    if not groups:
        raise ValueError(f"{path}: groups: none is named")
    if len({str(name) for name in groups}) < len(groups):
        raise ValueError(f"{path}: groups: two of {list(groups)} are the same name in words; rename one")
    return {str(name): _group(f"{path}: groups: {name}", str(name), row) for name, row in groups.items()}


def _group(where: str, name: str, row: object) -> Group:
    choices = {"side": get_args(Side), "image": get_args(Images)}
    keys = ("side", "title", "image")
    if not isinstance(row, dict) or "side" not in row or not set(row) <= set(keys):
        raise ValueError(f"{where}: must be a table of {list(keys)} with `side`, not {row!r}")
    for key, names in choices.items():
        if key in row and row[key] not in names:
            raise ValueError(f"{where}: unknown {key} {row[key]!r}; one of {list(names)}")
    return Group(str(row.get("title", name)), row["side"], row.get("image", "either"))


def _questions(told: SuiteFile, data: Path) -> Iterator[Question]:
    path = data / expanded_path(told.file)
    if not path.is_file():
        raise AbsentError(f"{path} is missing")
    root = data / expanded_path(told.images) if told.images else path.parent
    if not root.is_dir():
        raise ValueError(f"{root}: images: no such folder")
    first: dict[str, str] = {}
    unusable = lru_cache(maxsize=None)(_unusable)  # several rows may show one image
    for where, row in own_rows.rows(path):
        one = _question(told, where, row, root, unusable)
        if one.id in first:
            raise ValueError(f"{where}: id {one.id!r} stands at {first[one.id]} already")
        first[one.id] = where
        yield from _repeated(told, one)
    if not first:
        raise ValueError(f"{path}: no question in it")


def _repeated(told: SuiteFile, one: Question) -> Iterator[Question]:
    if told.repeats == 1:
        yield one
        return
    for number in range(told.repeats):
        yield Question(**{**vars(one), "id": f"{one.id}#{number + 1}", "expected": {**one.expected, REPEAT: number}})


def _question(
    told: SuiteFile, where: str, row: Mapping[str, Any], root: Path, unusable: Callable[[Path], str]
) -> Question:
    cells = _cells(told, where, row)
    group = _group_of(told, where, cells)
    images, missing = _images(where, cells.get("image"), root, unusable)
    needs = told.groups[group].image
    if (needs == "always" and not (images or missing)) or (needs == "never" and (images or missing)):
        raise ValueError(f"{where}: group {group!r} has {needs} an image, this row has {len(images) + len(missing)}")
    category, level = _truth(where, told.groups[group].side, cells)
    question = _text(where, told, "question", cells)
    return Question(
        id=_text(where, told, "id", cells),
        group=group,
        text=question,
        images=images,
        missing=missing,
        category=category,
        level=level,
        expected={
            "question": question,
            "prompt_is": USERS,
            **{name: cells[name] for name in EXPECTED if name in cells},
        },
    )


def _truth(where: str, side: Side, cells: Mapping[str, Any]) -> tuple[str, str]:
    """Category and level, the side's where the row has none. ValueError: they contradict each other, or the side."""
    default = HARMFUL if side == "harmful" else (CLEAN, SAFE)
    category = _known(where, "category", cells, DEFAULT.category_names, default[0])
    level = _known(where, "level", cells, DEFAULT.level_names, default[1])
    if (category == CLEAN) != (level == SAFE):
        raise ValueError(
            f"{where}: category {category!r} and level {level!r} contradict each other: {CLEAN!r} and {SAFE!r} go "
            f"together; a cell that is not given is {' or '.join(map(repr, default))} on the side {side}"
        )
    if (side == "harmful" and level == SAFE) or (side == "benign" and level != SAFE):
        raise ValueError(
            f"{where}: category {category!r} and level {level!r} contradict the side {side} of the row's group; leave "
            "them out, or put the row into another group"
        )
    return category, level


def _cells(told: SuiteFile, where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Field → value. A column that the YAML names, and one that every question needs, must be there."""
    columns = {name: told.fields.get(name, name) for name in FIELDS}
    lacking = [columns[name] for name in FIELDS if (name in told.fields or name in NEEDED) and columns[name] not in row]
    if lacking:
        raise ValueError(f"{where}: no column {lacking[0]!r}; this row has {list(row)}; name it under `fields`")
    own_rows.check_columns(where, row, columns.values())
    return {name: row[column] for name, column in columns.items() if column in row}


def _group_of(told: SuiteFile, where: str, cells: Mapping[str, Any]) -> str:
    if "group" not in told.fields:
        return WHOLE
    group = _text(where, told, "group", cells)
    if group not in told.groups:
        raise ValueError(f"{where}: unknown group {group!r}; one of {list(told.groups)}, or name it under `groups`")
    return group


def _text(where: str, told: SuiteFile, name: str, cells: Mapping[str, Any]) -> str:
    value = cells[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{where}: {told.fields.get(name, name)!r} must be a text that is not empty, not {value!r}")
    return str(value).strip()


def _known(where: str, name: str, cells: Mapping[str, Any], names: Sequence[str], default: str) -> str:
    value = cells.get(name)
    if value in (None, ""):
        return default
    if value not in names:
        raise ValueError(f"{where}: unknown {name} {value!r}; one of {list(names)}")
    return str(value)


def _images(
    where: str, value: object, root: Path, unusable: Callable[[Path], str]
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Images that can be opened, and of the others the names and what is wrong; a path may not leave the root."""
    if value in (None, "", []):
        return (), ()
    listed = value if isinstance(value, list) else [value]
    found: list[Path] = []
    missing: list[str] = []
    for name in listed:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: image: {value!r} must be a path, or a list of paths")
        file = root / name
        if not file.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{where}: image {name!r} is not below {root}; move it there, or set `images`")
        if not is_there(file):
            missing.append(name)
        elif reason := unusable(file):
            missing.append(f"{where}: {reason}")
        else:
            found.append(file)
    return tuple(found), tuple(missing)


def _unusable(file: Path) -> str:
    """Why an image cannot be opened; empty when it can. It is decoded, since a cut file has a whole header."""
    try:
        open_image(file)
    except ImageError as error:
        return str(error)
    return ""
