"""Records as `safevlm.data.record_store` keeps them: of each a JSON line, the paths of its images, and its facts.

What nearly all rows look like is told from the row itself, at a tenth of the price of a record; every other row, and so
every wrong one, becomes a record first (`safevlm.data.records`), which alone says what is wrong.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from safevlm.data import label_keys, packed_images
from safevlm.data.answers import HEAD_ONLY
from safevlm.data.conversations import IMAGE, LAYOUTS, LONGEST_PATH, OTHER_MEDIA, ROLES
from safevlm.data.dialogues import ASSISTANT, USER, Said, has_words
from safevlm.data.images import is_plain_name
from safevlm.data.json_parts import Part, part_lines
from safevlm.data.json_rows import RowError, line_row
from safevlm.data.record_facts import NONE, fact
from safevlm.data.records import MESSAGES, PARTS, Record, RecordError, label_ids, parse_record, row_reader
from safevlm.taxonomy import Taxonomy

Ids = tuple[int | None, int | None]
Keys = tuple[str, tuple[str, ...]]
Turns = list[tuple[str, str, int]]
"""(role, text, images)."""

TURN_KEYS = {"conversations": ("from", "value"), "messages": ("role", "content")}
SPECIAL = frozenset({*LAYOUTS, *OTHER_MEDIA, "prompt", "completion", "system"})
"""Keys that mean something beside the turns."""
OWN_KEYS = frozenset({"id", "image", "images", label_keys.TYPE, label_keys.LEVEL, "source", "part"})
SIMPLE = frozenset({str, bool, type(None)})
"""Types of values that are the same to every reader of JSON."""
LABELS = frozenset({str, int, type(None)})
"""Types of labels; True is none, though a table takes it for 1."""
LONGEST_NUMBER = 10**15
"""Of an id; a longer one is looked at closely."""
NAMES = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
"""How the names of files are encoded."""
REMEMBERED = 4096
"""Sets of keys that are remembered."""


class PackedRecord(NamedTuple):
    line: bytes
    """A JSON list, see `record_of`; with its newline."""
    images: bytes
    """The paths of its images, each with a NUL at its end."""
    fact: tuple[Any, ...]
    """A row of `safevlm.data.record_facts.FACTS`."""


def packed_records(
    file: Path, taxonomy: Taxonomy, images: str | Path = "", part: Part | None = None
) -> Iterator[PackedRecord]:
    """The records of a file, or of a part of it, checked. RecordError: as `read_records`."""
    folder, unpacked = Path(images) if images else file.parent, packed_images.folder_of(file)
    usual = UsualRows(file, taxonomy, folder)
    if part is None:
        for place, raw in row_reader(file):
            yield usual.packed(raw, place) or _packed(parse_record(raw, place, taxonomy, folder, unpacked), file)
        return
    for place, line in part_lines(file, part):
        found = usual.packed_line(line, place)
        if found is not None:
            yield found
        elif (text := _text(line, place)).strip():
            yield _packed(parse_record(_row(text, place), place, taxonomy, folder, unpacked), file)


def _text(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"{place}: not UTF-8 text; save the file as UTF-8") from error


def _row(text: str, place: str) -> Any:
    try:
        return line_row(text, place)
    except RowError as error:
        raise RecordError(str(error)) from error


def record_of(line: bytes, file: Path) -> Record:
    """The record that a line was made of."""
    id, place, said, images, safe_type, safe_level, source, part = json.loads(line)
    return Record(
        id=f"{file}{place}" if id is None else id,
        place=f"{file}{place}",
        messages=tuple(MESSAGES[role](Said(role, text, count)) for role, text, count in said),
        images=tuple(map(Path, images)),
        safe_type=safe_type,
        safe_level=safe_level,
        source=source,
        part=part,
    )


def _packed(record: Record, file: Path) -> PackedRecord:
    said = [
        (message["role"], message["content"][-1]["text"], len(message["content"]) - 1) for message in record.messages
    ]
    id = None if record.id == record.place else record.id
    paths = [str(path) for path in record.images]
    place = record.place.removeprefix(str(file))
    row = (id, place, said, paths, record.safe_type, record.safe_level, record.source, record.part)
    # unlike pydantic's, Python's writer takes half characters, as file names may have them
    line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
    return PackedRecord(line, b"".join(os.fsencode(one) + b"\0" for one in paths), fact(record))


class UsualRows:
    """Packs rows of the usual layouts: flat, with turns of two texts, and paths without anything special."""

    def __init__(self, file: Path, taxonomy: Taxonomy, folder: Path) -> None:
        self._taxonomy = taxonomy
        self._before_place = len(str(file))
        self._folder = str(folder / "x")[:-1]
        self._known_keys: dict[tuple[str, ...], Keys] = {}
        self._ids: dict[tuple[str | int | None, str | int | None], Ids] = {}

    def packed_line(self, line: bytes, place: str) -> PackedRecord | None:
        """`packed` of a line of JSON; None, too, where it may be JSON that `safevlm.files.strict_json` refuses.

        Nothing but strings ends in a quote, so `":` stands at least once for every key that is written; where no text
        has a colon, colons alone say it, which are counted much faster.
        """
        try:
            raw = from_json(line, allow_inf_nan=False, cache_strings="keys")
            talk, others = self._keys(raw)
            if not talk or (others and not all([type(raw[key]) in SIMPLE for key in others])):
                return None
            keys = len(raw) + 2 * len(raw[talk])
            if line.count(b":") != keys and (line.count(b'":') != keys or b" :" in line or b"\t:" in line):
                return None  # a key may stand there twice
            return self._packed(raw, place, talk)
        except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError):
            return None

    def packed(self, raw: Any, place: str) -> PackedRecord | None:
        """None: it is not usual, or wrong."""
        try:
            talk, _ = self._keys(raw)
            return self._packed(raw, place, talk) if talk else None
        except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError):
            return None

    def _packed(self, raw: dict[str, Any], place: str, talk: str) -> PackedRecord | None:
        id, source, part = raw.get("id"), raw.get("source"), raw.get("part")
        if type(id) is int and -LONGEST_NUMBER < id < LONGEST_NUMBER:
            id = str(id)
        if (id is not None and (type(id) is not str or id == place)) or (
            source is not None and type(source) is not str
        ):
            return None
        paths = self._paths(raw.get("image", raw.get("images")))
        category, level = self._label_ids(raw.get(label_keys.TYPE), raw.get(label_keys.LEVEL))
        part_id = NONE if part is None else PARTS.index(part)
        said, slots, size, is_head_only = _said(raw[talk], *TURN_KEYS[talk])
        if slots != len(paths):
            if slots or talk == "conversations" or is_head_only:
                return None
            said = _in_front(said, len(paths))
        row = (id, place[self._before_place :], said, paths, category, level, source or "", part or "")
        about = (
            len(paths),
            NONE if category is None else category,
            NONE if level is None else level,
            part_id,
            is_head_only,
            size,
        )
        names = "\0".join([*paths, ""]).encode(*NAMES) if paths else b""
        return PackedRecord(to_json(row) + b"\n", names, about)

    def _keys(self, raw: dict[str, Any]) -> Keys:
        """The key of the turns (empty: some key may mean something else, or two mean the same); and keys of others."""
        keys = tuple(raw)
        found = self._known_keys.get(keys)
        if found is None:
            special = [key for key in keys if key in SPECIAL]
            is_plain = len(special) == 1 and special[0] in TURN_KEYS and not {"image", "images"} <= set(keys)
            talk = special[0] if is_plain and all(map(label_keys.is_plain, keys)) else ""
            found = (talk, tuple(key for key in keys if key not in OWN_KEYS and key not in TURN_KEYS))
            if len(self._known_keys) < REMEMBERED:
                self._known_keys[keys] = found
        return found

    def _label_ids(self, category: Any, level: Any) -> Ids:
        """Ids of two labels that go together."""
        if type(category) not in LABELS or type(level) not in LABELS:
            raise ValueError(category, level)
        key = (category, level)
        if key not in self._ids:
            self._ids[key] = label_ids({label_keys.TYPE: category, label_keys.LEVEL: level}, self._taxonomy, "")
        return self._ids[key]

    def _paths(self, images: Any) -> list[str]:
        """The paths of images that are there. ValueError: something special about one; OSError."""
        if images is None:
            return []
        found = []
        for name in [images] if type(images) is str else images:
            if type(name) is not str or len(name) > LONGEST_PATH or ":" in name:
                raise ValueError(name)
            is_absolute = name[:1] == "/"
            if not is_plain_name(name[1:] if is_absolute else name):
                raise ValueError(name)
            path = name if is_absolute else self._folder + name
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ValueError(name)
            found.append(path)
        return found


def _said(turns: Any, speaker: str, words: str) -> tuple[Turns, int, int, bool]:
    """Turns that alternate and all say something; their images, their characters, whether one stands in for an answer.

    ValueError, TypeError, KeyError: other turns.
    """
    said: Turns = []
    before, slots, size, is_head_only = "", 0, 0, False
    for turn in turns:
        role, text = ROLES[turn[speaker]], turn[words]
        if len(turn) != 2 or type(text) is not str or role == before:
            raise ValueError(turn)
        count = text.count(IMAGE) if IMAGE in text else 0
        if role == USER:
            text = (text.replace(IMAGE, "") if count else text).strip()
            slots += count
            if not (count or text[:1].isalnum() or has_words(text)):
                raise ValueError(turn)
        elif count or not (text[:1].isalnum() or has_words(text)) or before != (USER if role == ASSISTANT else ""):
            raise ValueError(turn)
        said.append((role, text, count))
        size += len(text)
        if text == HEAD_ONLY and not count:
            is_head_only = True
        before = role
    if before != ASSISTANT:
        raise ValueError(turns)
    return said, slots, size, is_head_only


def _in_front(said: Turns, images: int) -> Turns:
    """All images in front of the first question."""
    first = next(index for index, (role, _, _) in enumerate(said) if role == USER)
    return [(role, text, images if index == first else count) for index, (role, text, count) in enumerate(said)]
