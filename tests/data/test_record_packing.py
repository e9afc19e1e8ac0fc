"""Packing a row in the short way is packing its record, and is never done where the record would be an error."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.data import record_parts
from safevlm.data.answers import HEAD_ONLY
from safevlm.data.json_parts import Part, part_lines, parts_of
from safevlm.data.json_rows import json_rows
from safevlm.data.record_facts import FACTS, fact
from safevlm.data.record_packing import packed_records, record_of
from safevlm.data.records import RecordError, read_records
from safevlm.taxonomy import DEFAULT

SLOT = "<image>\n"


def _talk(*said: str, keys: tuple[str, str] = ("from", "value"), more: Any = ()) -> list[dict[str, Any]]:
    who = ("human", "gpt") if keys[0] == "from" else ("user", "assistant")
    return [{keys[0]: who[at % 2], keys[1]: text, **dict(more)} for at, text in enumerate(said)]


def _messages(*said: str) -> list[dict[str, Any]]:
    return _talk(*said, keys=("role", "content"))


SEEN = _talk(f"{SLOT}q", "a")
PLAIN = _talk("q", "a")
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"conversations": PLAIN},
    "one image": {"image": "a.png", "conversations": SEEN},
    "a list of images": {"image": ["a.png", "deep/b.png"], "conversations": _talk(f"{SLOT}{SLOT}q", "a", "and", "b")},
    "images": {"images": ["a.png"], "conversations": SEEN},
    "both keys": {"image": "a.png", "images": ["a.png"], "conversations": SEEN},
    "both keys, one null": {"image": None, "images": ["a.png"], "conversations": SEEN},
    "no images": {"image": [], "conversations": PLAIN},
    "an empty name": {"image": "", "conversations": PLAIN},
    "an image too many": {"image": "a.png", "conversations": PLAIN},
    "a slot too many": {"conversations": SEEN},
    "dotted path": {"image": "./deep/../deep//b.png", "conversations": SEEN},
    "path with an address": {"image": "http://x/a.png", "conversations": SEEN},
    "path with file:": {"image": "file://a.png", "conversations": SEEN},
    "a folder": {"image": "deep", "conversations": SEEN},
    "a folder's slash": {"image": "a.png/", "conversations": SEEN},
    "a missing image": {"image": "gone.png", "conversations": SEEN},
    "half a path": {"image": "a\0.png", "conversations": SEEN},
    "a number": {"image": 3, "conversations": SEEN},
    "a table": {"image": {"path": "a.png"}, "conversations": SEEN},
    "a list of lists": {"image": [["a.png"]], "conversations": SEEN},
    "id of a number": {"id": 7, "conversations": PLAIN},
    "id of a long number": {"id": 10**30, "conversations": PLAIN},
    "id of a fraction": {"id": 1.5, "conversations": PLAIN},
    "id true": {"id": True, "conversations": PLAIN},
    "id of nothing": {"id": "", "conversations": PLAIN},
    "source": {"source": "s", "part": "benign", "conversations": PLAIN},
    "source of a number": {"source": 5, "conversations": PLAIN},
    "no part": {"part": "", "conversations": PLAIN},
    "wrong part": {"part": "x", "conversations": PLAIN},
    "labels": {"safe_type": "privacy", "safe_level": "careful", "conversations": PLAIN},
    "label ids": {"safe_type": 1, "safe_level": 2, "conversations": PLAIN},
    "label true": {"safe_type": True, "conversations": PLAIN},
    "label of a fraction": {"safe_type": 1.0, "conversations": PLAIN},
    "label of a list": {"safe_type": ["privacy"], "conversations": PLAIN},
    "unknown label": {"safe_type": "x", "conversations": PLAIN},
    "contradiction": {"safe_type": "clean", "safe_level": "must_refuse", "conversations": PLAIN},
    "other keys": {"width": 3, "meta": {"a": [1]}, "conversations": PLAIN},
    "a word that is no label": {"label": "x", "conversations": PLAIN},
    "a word that is one": {"label": "clean", "conversations": PLAIN},
    "misspelt": {"safetype": "clean", "conversations": PLAIN},
    "system key": {"system": "be kind", "conversations": PLAIN},
    "system turn": {"conversations": [{"from": "system", "value": "s"}, *PLAIN]},
    "empty system turn": {"conversations": [{"from": "system", "value": " "}, *PLAIN]},
    "late system turn": {"conversations": [*PLAIN, {"from": "system", "value": "s"}]},
    "slot in an answer": {"image": "a.png", "conversations": _talk("q", f"{SLOT}a")},
    "slot later": {"image": "a.png", "conversations": _talk("q", "a", f"{SLOT}", "b")},
    "head only": {"conversations": _talk("q", HEAD_ONLY)},
    "head only as a question": {"conversations": _talk(HEAD_ONLY, "a")},
    "head only below an image": {"image": "a.png", "conversations": _talk(f"{SLOT}{HEAD_ONLY}", "a")},
    "answer first": {"conversations": PLAIN[::-1]},
    "no answer": {"conversations": PLAIN[:1]},
    "a question at the end": {"conversations": _talk("q", "a", "q")},
    "empty answer": {"conversations": _talk("q", "a", "q", "\u200b")},
    "empty question": {"conversations": _talk(" ", "a")},
    "invisible at first": {"conversations": _talk("\u200bq ", "\u200ba ")},
    "two questions": {"conversations": [PLAIN[0], *PLAIN]},
    "unlearned": {"conversations": [PLAIN[0], {**PLAIN[1], "weight": 0}]},
    "turns of more": {"conversations": _talk("q", "a", more={"lang": "en"})},
    "unknown speaker": {"conversations": _talk("q", "a", more={"from": "x"})},
    "a turn that is none": {"conversations": ["q", "a"]},
    "text of a number": {"conversations": [PLAIN[0], {"from": "gpt", "value": 3}]},
    "messages": {"messages": _messages("q", "a")},
    "messages with a slot": {"images": ["a.png"], "messages": _messages(f"{SLOT}q", "a")},
    "messages without": {"images": ["a.png", "a.png"], "messages": _messages("q", "a", "q", "b")},
    "messages without, head only": {"images": ["a.png"], "messages": _messages(HEAD_ONLY, "a")},
    "messages of parts": {"images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image"}]}, *PLAIN]},
    "both layouts": {"messages": _messages("q", "a"), "conversations": PLAIN},
    "prompt": {"prompt": _messages("q", "a")[:1], "completion": _messages("q", "a")[1:]},
    "videos": {"videos": ["x"], "conversations": PLAIN},
    "characters": {"id": "ö\U0001f600", "conversations": _talk("\u2028ä<image", 'a"\\\n\x7f')},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("packing")
    (made / "deep").mkdir()
    for name in ("a.png", "deep/b.png"):
        Image.new("RGB", (8, 8)).save(made / name)
    return made


def _outcome(read: Any) -> Any:
    try:
        return read()
    except RecordError as error:
        return type(error), str(error)


LINES_OF_TEXT: dict[str, str | bytes] = {
    "a key twice": '{"id": "1", "conversations": [], "conversations": TALK}',
    "a key twice, spaced": '{"id": "1", "id" : "2", "conversations": TALK}',
    "a key twice, far spaced": '{"id": "1", "id"\t :"2", "conversations": TALK}',
    "a turn's key twice": '{"conversations": [{"from": "human", "from": "human", "value": "q"}]}',
    "another key twice": '{"width": 1, "width": 2, "conversations": TALK}',
    "a key twice, and a text that looks like one": '{"id": "a\\":", "id" :"2", "conversations": TALK}',
    "a text that looks like a key": '{"id": "a\\": b", "conversations": TALK}',
    "a text that begins with a colon": '{"id": ": b", "conversations": TALK}',
    "not a number": '{"width": NaN, "conversations": TALK}',
    "no end": '{"width": 1e999, "conversations": TALK}',
    "no end in a list": '{"width": [1e999], "conversations": TALK}',
    "long": '{"width": ' + "9" * 1200 + ', "conversations": TALK}',
    "deep": '{"width": ' + "[" * 100 + "]" * 100 + ', "conversations": TALK}',
    "half a character": '{"id": "\\ud800", "conversations": TALK}',
    "half a character elsewhere": '{"width": "\\ud83d", "conversations": TALK}',
    "a whole one": '{"id": "\\ud83d\\ude00", "conversations": TALK}',
    "spaces around": ' \t{"conversations": TALK} ',
    "more text": '{"conversations": TALK} x',
    "two rows": '{"conversations": TALK}{"conversations": TALK}',
    "no JSON": "{'conversations': TALK}",
    "a control character": '{"id": "\x01", "conversations": TALK}',
    "a space of another kind": '\xa0{"conversations": TALK}',
    "spaces of another kind": "\xa0\u2028",
    "no UTF-8": b'{"id": "\xff", "conversations": TALK}',
    "half a character of UTF-8": b'{"id": "\xed\xa0\x80", "conversations": TALK}',
    "a second mark": b'\xef\xbb\xbf{"conversations": TALK}',
    "one text": '"TALK"',
}


@pytest.mark.parametrize("before", [b"", b"\n", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("name", LINES_OF_TEXT)
def test_a_line_of_a_part_is_its_record_or_the_same_error(name: str, before: bytes, folder: Path) -> None:
    file, text = folder / "line.jsonl", LINES_OF_TEXT[name]
    line = (text.encode() if isinstance(text, str) else text).replace(b"TALK", json.dumps(PLAIN).encode())
    content = before + line + b"\n" + json.dumps(ROWS["plain"]).encode() + b"\n"
    file.write_bytes(content)
    assert _outcome(lambda: _packed_rows(file, Part(0, len(content), 1))) == _outcome(lambda: _read_rows(file))


def _packed_rows(file: Path, part: Part | None) -> Any:
    found = list(packed_records(file, DEFAULT, part=part))
    paths = [os.fsdecode(one.images).split("\0")[:-1] for one in found]
    return [record_of(one.line, file) for one in found], [one.fact for one in found], paths


def _read_rows(file: Path) -> Any:
    records = read_records([file], DEFAULT)
    return records, list(map(fact, records)), [[str(path) for path in record.images] for record in records]


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_a_packed_row_is_its_record_or_the_same_error(name: str, in_parts: bool, folder: Path) -> None:
    file = folder / "one.jsonl"
    rows = [ROWS[name], {**ROWS[name], "id": f"{file}:2"}]
    absolute = {"image": str(folder / "a.png")} if ROWS[name].get("image") == "a.png" else {}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**ROWS[name], **absolute}]))
    part = Part(0, file.stat().st_size, 1) if in_parts else None
    assert _outcome(lambda: _packed_rows(file, part)) == _outcome(lambda: _read_rows(file))


# parts


LINES = [json.dumps({"id": number, "conversations": PLAIN}) for number in range(50)]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES),
        "\n\n".join(LINES) + "\n\n",
        "\ufeff" + "\n".join(LINES) + "\n",
        "\r\n".join(LINES) + "\r\n",
        "\n\n" + LINES[0],
    ],
)
@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_parts_are_the_file_with_its_places(content: str, count: int, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content.encode())
    parts = parts_of(file, count)
    found = [(place, json.loads(line)) for part in parts for place, line in part_lines(file, part) if line.strip()]
    assert found == list(json_rows(file))
    assert [part.end for part in parts[:-1]] == [part.start for part in parts[1:]]
    assert parts and (parts[0].start, parts[-1].end) == (0, file.stat().st_size)


@pytest.mark.parametrize("content", [f"[{','.join(LINES)}]", "\n".join(LINES[:3]) + "\r" + "\n".join(LINES[3:]), ""])
def test_a_list_and_lines_of_another_kind_are_not_parted(content: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content.encode())
    assert not parts_of(file, 2)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_parts, "PART", 1)
    monkeypatch.setattr(record_parts, "processes", lambda: 3)


def _content(folder: Path) -> dict[str, Any]:
    return {name: (folder / name).read_bytes() for name in record_parts.NAMES}


def _packed(file: Path, to: Path) -> dict[str, Any]:
    to.mkdir()
    record_parts.pack_into(to, (file, DEFAULT, ""))
    assert sorted(path.name for path in to.iterdir()) == sorted(record_parts.NAMES)
    return _content(to)


@pytest.mark.parametrize("rows", [50, 2, 1])
def test_several_processes_pack_what_one_packs(
    rows: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, three: None
) -> None:
    made = [
        {"id": n, "conversations": SEEN if n % 3 else PLAIN, **({"image": "a.png"} if n % 3 else {})}
        for n in range(rows)
    ]
    file = folder / "many.jsonl"
    file.write_text("\n".join(map(json.dumps, made)))
    several = _packed(file, tmp_path / "several")
    monkeypatch.setattr(record_parts, "processes", lambda: 1)
    assert several == _packed(file, tmp_path / "one")


def test_the_first_wrong_record_of_several_parts_is_told(folder: Path, three: None, tmp_path: Path) -> None:
    file = folder / "wrong.jsonl"
    wrong = {20: {"conversations": []}, 49: {"conversations": PLAIN[:1]}}
    file.write_text("\n".join(json.dumps(wrong[n]) if n in wrong else line for n, line in enumerate(LINES)))
    with pytest.raises(RecordError, match=r"wrong\.jsonl:21: "):
        record_parts.pack_into(tmp_path, (file, DEFAULT, ""))


def test_a_process_that_is_killed_costs_time_and_no_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, three: None
) -> None:
    file = folder / "killed.jsonl"
    file.write_text("\n".join(LINES))
    whole, ours = record_parts.pack, os.getpid()

    def killed(*given: Any) -> Any:
        return whole(*given) if os.getpid() == ours else os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(record_parts, "pack", killed)
    assert len(_packed(file, tmp_path / "made")[record_parts.ABOUT]) == len(LINES) * FACTS.itemsize


@pytest.mark.parametrize(("ranks", "most"), [("", 4), ("1000", 1), ("x", 4)])
def test_ranks_of_a_machine_share_its_cores(ranks: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert 1 <= record_parts.processes() <= most
