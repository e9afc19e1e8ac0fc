"""Training records: every accepted shape is read, everything else is an error with file, line and fix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.data import chat_messages
from safevlm.data.answers import HEAD_ONLY
from safevlm.data.records import (
    Record,
    RecordError,
    is_clean,
    read_records,
    refuse_placeholders,
    verify_images,
)
from safevlm.taxonomy import DEFAULT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "deep/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "one",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."}],
        **changes,
    }
    return {key: value for key, value in row.items() if value is not ...}


def _talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": value} for speaker, value in turns]


def _read(file: Path, *rows: Any, images: Path | str = "") -> list[Record]:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(lines if file.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return read_records([file], DEFAULT, images)


def _one(folder: Path, **changes: Any) -> Record:
    return _read(folder / "one.jsonl", _row(**changes))[0]


def _error(call: Callable[[], Any], *parts: str) -> str:
    with pytest.raises(RecordError) as error:
        call()
    message = str(error.value)
    assert all(part in message for part in parts), f"the message must say {parts}: {message}"
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_lists_and_jsonl_are_the_same(folder: Path, name: str) -> None:
    records = _read(folder / name, _row(), _row(id="two"))
    assert [record.id for record in records] == ["one", "two"]
    assert records[0].messages == (chat_messages.user("What is it?", 1), chat_messages.assistant("A cup."))
    assert records[0].images == (folder / "a.png",)
    expected = f"{folder / name}:2" if name.endswith("l") else f"{folder / name}[1]"
    assert records[1].place == expected


@pytest.mark.parametrize(("asks", "answers"), [("human", "gpt"), ("USER", "ASSISTANT"), ("user", "assistant")])
def test_both_kinds_of_speakers(folder: Path, asks: str, answers: str) -> None:
    talk = _talk(("system", "Be kind."), (asks, "<image>\nq"), (answers, "a"), (asks, "q2"), (answers, "a2"))
    assert _one(folder, conversations=talk).messages == (
        chat_messages.system("Be kind."),
        chat_messages.user("q", 1),
        chat_messages.assistant("a"),
        chat_messages.user("q2"),
        chat_messages.assistant("a2"),
    )


def test_several_images_and_slots_anywhere_in_a_question(folder: Path) -> None:
    talk = _talk(
        ("human", "Compare <image> with <image>."), ("gpt", "Same."), ("human", "And this?\n<image>"), ("gpt", "No.")
    )
    record = _one(folder, image=["a.png", "b.png", "deep/c.png"], conversations=talk)
    assert record.images == (folder / "a.png", folder / "b.png", folder / "deep" / "c.png")
    slots = [sum(part["type"] == "image" for part in message["content"]) for message in record.messages]
    assert slots == [2, 0, 1, 0], "every turn keeps its own images"
    assert not any("<image>" in part.get("text", "") for message in record.messages for part in message["content"])


@pytest.mark.parametrize("image", [..., None, []])
def test_text_only_records_are_read(folder: Path, image: Any) -> None:
    record = _one(folder, image=image, conversations=_talk(("human", "Hi"), ("gpt", "Hello.")))
    assert record.images == () and record.messages == (chat_messages.user("Hi"), chat_messages.assistant("Hello."))


@pytest.mark.parametrize("label", ["privacy", 4])
@pytest.mark.parametrize("level", ["may_refuse", 2])
def test_labels_by_id_and_by_name(folder: Path, label: int | str, level: int | str) -> None:
    record = _one(folder, safe_type=label, safe_level=level)
    assert (record.safe_type, record.safe_level) == (4, 2)


@pytest.mark.parametrize("nothing", [..., None])
def test_unlabelled_records_have_no_label(folder: Path, nothing: Any) -> None:
    record = _one(folder, safe_type=nothing, safe_level=nothing)
    assert (record.safe_type, record.safe_level) == (None, None), "a missing label must not become a label"


def test_id_zero_is_a_label(folder: Path) -> None:
    record = _one(folder, safe_type=0)
    assert (record.safe_type, record.safe_level) == (0, None)
    assert _one(folder, safe_level=0).safe_level == 0
    assert not is_clean(record, DEFAULT), "id 0 is politics, not clean"


def test_image_folder_is_used_and_absolute_paths_stay(folder: Path) -> None:
    elsewhere = folder / "lists"
    elsewhere.mkdir()
    assert _read(elsewhere / "x.jsonl", _row(), images=folder)[0].images == (folder / "a.png",)
    absolute = _row(image=str(folder / "b.png"))
    assert _read(elsewhere / "x.jsonl", absolute, images=folder / "deep")[0].images == (folder / "b.png",)


def test_files_are_read_in_order_each_from_its_own_folder(folder: Path) -> None:
    first, second = folder / "x.jsonl", folder / "deep" / "y.json"
    _read(first, _row())
    _read(second, _row(id="two", image="c.png"))
    records = read_records([second, first], DEFAULT)
    assert [record.images[0] for record in records] == [folder / "deep" / "c.png", folder / "a.png"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line_of_jsonl(folder: Path, separator: str) -> None:
    """JSON may hold these as they are (control characters escaped); `str.splitlines` breaks lines at them."""
    row = _row(conversations=_talk(("human", "<image>\nq"), ("gpt", f"one{separator}two")))
    (folder / "x.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(_row()), encoding="utf-8")
    records = read_records([folder / "x.jsonl"], DEFAULT)
    assert records[0].messages[1] == chat_messages.assistant(f"one{separator}two")
    assert records[1].place.endswith(":2")


def test_blank_lines_and_windows_line_ends_are_fine_and_counted(folder: Path) -> None:
    line = json.dumps(_row())
    (folder / "x.jsonl").write_bytes(f"{line}\r\n\r\n{line}\r\n".encode())
    assert [record.place for record in read_records([folder / "x.jsonl"], DEFAULT)] == [
        f"{folder / 'x.jsonl'}:1",
        f"{folder / 'x.jsonl'}:3",
    ]


def test_byte_order_mark_is_skipped(folder: Path) -> None:
    (folder / "x.jsonl").write_text(json.dumps(_row()), encoding="utf-8-sig")
    assert len(read_records([folder / "x.jsonl"], DEFAULT)) == 1


def test_malformed_line_is_named(folder: Path) -> None:
    file = folder / "x.jsonl"
    file.write_text(json.dumps(_row()) + "\n\n" + '{"id": "two", "image": \n', encoding="utf-8")
    _error(lambda: read_records([file], DEFAULT), f"{file}:3: ", "malformed")


def test_malformed_json_list_names_its_line(folder: Path) -> None:
    file = folder / "x.json"
    file.write_text(f'[\n{json.dumps(_row())},\n{{"id" 2}}\n]', encoding="utf-8")
    _error(lambda: read_records([file], DEFAULT), f"{file}:3: ", "malformed")


def test_file_that_is_no_utf8_is_named(folder: Path) -> None:
    file = folder / "x.jsonl"
    file.write_bytes(b'{"id": "caf\xe9"}\n')
    _error(lambda: read_records([file], DEFAULT), str(file))


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_empty_file_is_an_error(folder: Path, content: str) -> None:
    file = folder / "x.json"
    file.write_text(content, encoding="utf-8")
    _error(lambda: read_records([file], DEFAULT), str(file), "no records")


def test_missing_file_is_an_error(folder: Path) -> None:
    _error(lambda: read_records([folder / "gone.jsonl"], DEFAULT), str(folder / "gone.jsonl"), "no such record file")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"safe_type": "porn"}, ("unknown safe_type 'porn'", "one of", "illegal", "clean")),
        ({"safe_type": 7}, ("unknown safe_type 7", "one of")),
        ({"safe_type": -1}, ("unknown safe_type -1",)),
        ({"safe_type": True}, ("unknown safe_type True",)),
        ({"safe_type": "4"}, ("unknown safe_type '4'",)),
        ({"safe_level": "high"}, ("unknown safe_level 'high'", "one of", "must_refuse")),
        ({"safe_level": 4}, ("unknown safe_level 4",)),
        ({"safe_level": 1.0}, ("unknown safe_level 1.0",)),
        ({"image": "gone.png"}, ("gone.png", "data.images")),
        ({"image": "deep"}, ("deep", "no such image file")),
        ({"image": 5}, ("`image` must be a path",)),
        ({"image": ""}, ("`image` must be a path",)),
        ({"image": ["a.png", None]}, ("`image` must be a path",)),
        ({"image": ...}, ("1 <image>", "0 images")),
        ({"image": ["a.png", "b.png"]}, ("1 <image>", "2 images")),
        ({"conversations": ...}, ("conversations",)),
        ({"conversations": "hello"}, ("conversations",)),
        ({"conversations": []}, ("turns", "conversations")),
        ({"conversations": _talk(("human", "<image>\nq"), ("bot", "a"))}, ("unknown speaker 'bot'", "one of", "gpt")),
        ({"conversations": _talk(("human", "<image>\nq"))}, ("no answer",)),
        ({"conversations": _talk(("human", "<image>\nq"), ("gpt", "  "))}, ("no answer",)),
        ({"conversations": _talk(("human", "q"), ("gpt", "<image> a"))}, ("<image> in a turn of 'gpt'",)),
        ({"conversations": [{"from": "human"}]}, ("`value`",)),
        ({"conversations": [{"from": "human", "value": 5}]}, ("`value`",)),
        ({"conversations": [{"from": ["human"], "value": "q"}]}, ("unknown speaker",)),
        ({"conversations": ["q"]}, ("`from`",)),
    ],
)
def test_wrong_record_is_an_error_that_names_its_line(
    folder: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    file = folder / "x.jsonl"
    _error(lambda: _read(file, _row(), _row(**changes)), f"{file}:2: ", *parts)


@pytest.mark.parametrize("row", [5, "text", ["list"], None])
def test_rows_that_are_no_objects_are_errors(folder: Path, row: Any) -> None:
    file = folder / "x.json"
    _error(lambda: _read(file, _row(), row), f"{file}[1]", "conversations")


def test_wrong_index_in_a_list_is_named(folder: Path) -> None:
    file = folder / "x.json"
    _error(lambda: _read(file, _row(), _row(safe_type="porn")), f"{file}[1]: ", "'porn'")


def test_verifying_names_the_record_of_a_broken_image(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"")
    records = _read(folder / "x.jsonl", _row(), _row(image="b.png"))
    _error(lambda: verify_images(records), f"{folder / 'x.jsonl'}:2: ", str(folder / "b.png"))
    verify_images(records[:1])


def test_verifying_counts_the_records_of_which_one_frame_is_trained(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "still.gif")
    records = _read(folder / "x.jsonl", _row(image="still.gif"), *[_row(image="moving.gif")] * 2)
    verify_images(records)
    assert f"2 of 3 records hold images of several frames or pages ({folder / 'x.jsonl'}:2" in caplog.text
    caplog.clear()
    verify_images(records[:1])
    assert not caplog.text


def test_a_stand_in_for_an_answer_never_teaches_words(folder: Path) -> None:
    """`head_only.jsonl` of a mix: fine for the head, poison for the LLM."""
    rows = [{"id": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": HEAD_ONLY}]}]
    (folder / "head_only.jsonl").write_text(json.dumps(rows), encoding="utf-8")
    records = read_records([folder / "head_only.jsonl"], DEFAULT)
    with pytest.raises(RecordError, match=r"head_only.jsonl\[0\].*loss.lm: 0"):
        refuse_placeholders(records)


# what cannot be


Q, A = ("human", "<image>\nq"), ("gpt", "a")
IMPOSSIBLE_TALKS = {
    "answer first": ((A, Q, A), "turn 1 is an answer that nobody asked for"),
    "answer after the system": ((("system", "s"), A), "turn 2 is an answer that nobody asked for"),
    "two questions": ((Q, ("human", "q"), A), "turns 1 and 2 have one speaker, user"),
    "two answers": ((Q, A, A), "turns 2 and 3 have one speaker, assistant"),
    "system in the middle": ((Q, ("system", "s"), A), "turn 2 is a system turn"),
    "two systems": ((("system", "s"), ("system", "s"), Q, A), "turn 2 is a system turn"),
    "empty answer among others": ((Q, A, ("human", "q"), ("gpt", " \n")), "turn 4 is an empty answer"),
    "empty question without image": ((Q, A, ("human", "  "), A), "turn 3 is a question without words or image"),
    "no answer": ((Q,), "no answer to learn from"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE_TALKS)
def test_a_dialogue_that_cannot_be_is_an_error_that_names_line_and_turn(folder: Path, kind: str) -> None:
    talk, told = IMPOSSIBLE_TALKS[kind]
    file = folder / "x.jsonl"
    _error(lambda: _read(file, _row(), _row(conversations=_talk(*talk))), f"{file}:2: ", told)


def test_an_image_is_a_question_and_a_question_may_be_the_last_turn(folder: Path) -> None:
    talk = _talk(("human", "<image>"), A, ("human", "And now?"))
    assert _one(folder, conversations=talk).messages == (
        chat_messages.user("", 1),
        chat_messages.assistant("a"),
        chat_messages.user("And now?"),
    )


@pytest.mark.parametrize("nothing", ["\u200b", "\u00a0\ufeff", "\x00\n", "\u2060\u200d"])
def test_what_nobody_can_see_is_no_answer_and_no_question(folder: Path, nothing: str) -> None:
    file = folder / "x.jsonl"
    for talk in ([("human", "q"), ("gpt", nothing)], [("human", nothing), ("gpt", "a")]):
        _error(lambda talk=talk: _read(file, _row(), _row(image=None, conversations=_talk(*talk))), f"{file}:2: ")
    seen = _one(folder, conversations=_talk(Q, ("gpt", f"\u2764\ufe0f{nothing}")))
    assert seen.messages[1] == chat_messages.assistant(f"\u2764\ufe0f{nothing}")


@pytest.mark.parametrize("name", ["a" * 900, "a\0b", "b/" * 3000 + "c.png"])
def test_a_path_that_no_file_can_have_is_told_with_its_line(folder: Path, name: str) -> None:
    file = folder / "x.jsonl"
    _error(lambda: _read(file, _row(), _row(image=name)), f"{file}:2: ")


def test_labels_in_a_table_of_their_own_are_an_error(folder: Path) -> None:
    file = folder / "x.jsonl"
    wrong = _row(labels={"safe_type": "privacy", "safe_level": "careful"})
    _error(lambda: _read(file, _row(), wrong), f"{file}:2: ", "'labels'", "'safe_type'")


def test_an_empty_system_turn_says_nothing(folder: Path) -> None:
    assert _one(folder, conversations=_talk(("system", " "), Q, A)).messages == (
        chat_messages.user("q", 1),
        chat_messages.assistant("a"),
    )


@pytest.mark.parametrize(("category", "level"), [("clean", "must_refuse"), (6, 1), ("privacy", "safe"), (0, 0)])
def test_labels_that_contradict_each_other_are_an_error(folder: Path, category: int | str, level: int | str) -> None:
    file = folder / "x.jsonl"
    wrong = _row(safe_type=category, safe_level=level)
    _error(lambda: _read(file, _row(), wrong), f"{file}:2: ", "category", "level", "together")


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("safe_typ", "safe_type"),
        ("safetype", "safe_type"),
        ("Safe_Type", "safe_type"),
        ("safe-type", "safe_type"),
        ("saftey_type", "safe_type"),
        ("safety_category", "safe_type"),
        ("category", "safe_type"),
        ("Category", "safe_type"),
        ("label", "safe_type"),
        ("class", "safe_type"),
        ("Safe_Level", "safe_level"),
        ("safe_lvl", "safe_level"),
        ("safety_level", "safe_level"),
        ("level", "safe_level"),
        ("LEVEL", "safe_level"),
        ("label", "safe_level"),
        ("severity", "safe_level"),
        ("risk_level", "safe_level"),
        ("imageRisk", "safe_level"),
        ("Category", "safe_type"),
        ("harm_category", "safe_type"),
        ("labels", "safe_type"),
    ],
)
def test_a_misspelt_label_key_is_an_error_that_names_the_right_one(folder: Path, key: str, right: str) -> None:
    file = folder / "x.jsonl"
    value = "privacy" if right == "safe_type" else "careful"
    _error(lambda: _read(file, _row(), _row(**{key: value})), f"{file}:2: ", repr(key), repr(right))


@pytest.mark.parametrize(
    "other",
    [
        {"model": "gpt4", "dataset": "coco", "split": "train", "safe": True, "safety": {}, "source": "x"},
        {"level": "B2", "category": "animals", "type": "vqa", "label": "a cup", "class": 3},
        {
            "label": "cat",
            "labels": {"cat": 1},
            "risk_level": 3,
            "verdict": None,
            "subtype": "privacy",
            "place": "clean",
        },
        {"safe_level": "careful", "level": "careful"},
    ],
)
def test_keys_of_other_data_are_nobodys_business(folder: Path, other: dict[str, Any]) -> None:
    assert _one(folder, **other).safe_type is None
