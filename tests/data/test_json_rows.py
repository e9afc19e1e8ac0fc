"""JSON lists and JSONL come row by row, whatever the size of a chunk, and a mistake is named with its line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from safevlm.data import json_rows
from safevlm.data.json_rows import RowError

ROWS = [{"a": "é\n]", "b": [1, 2]}, 12345, "x,y", None, [], {"c": {"d": "[{"}}, "\u2028"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_rows_do_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    rng = random.Random(chunk)
    file = tmp_path / "rows.json"
    for case in range(60):
        rows = rng.choices(ROWS, k=case % 6)
        text = json.dumps(rows, indent=case % 2 or None, ensure_ascii=False)
        file.write_text(("\n " if case % 3 else "") + text, encoding="utf-8")
        got = list(json_rows.json_rows(file))
        assert [row for _, row in got] == rows
        assert [place for place, _ in got] == [f"{file}[{index}]" for index in range(len(rows))]
        lines = "".join(json.dumps({"row": row}, ensure_ascii=False) + "\n" for row in rows)
        file.write_text("\n" + lines, encoding="utf-8")
        got = list(json_rows.json_rows(file))
        assert [row for _, row in got] == [{"row": row} for row in rows]
        assert [place for place, _ in got] == [f"{file}:{index + 2}" for index in range(len(rows))]


@pytest.mark.parametrize("chunk", [1, 8, 1 << 20])
@pytest.mark.parametrize(
    ("text", "line"),
    [('[{"a": 1},\n{"b" 2}]', 2), ("[1,\n\n2", 3), ("[1]\nx", 2), ("[1\n2]", 2), ('{"a": 1}\n{"b"\n', 2)],
)
def test_malformed_text_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, text: str, line: int
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    file = tmp_path / "rows.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RowError) as error:
        list(json_rows.json_rows(file))
    assert str(error.value).startswith(f"{file}:{line}: malformed"), str(error.value)


@pytest.mark.parametrize(
    "bad",
    ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud83d"}', "[" * 500 + "]" * 500, "[" * 10**5, b"\xff"],
)
def test_what_json_would_pass_over_in_silence_is_an_error_with_its_line(tmp_path: Path, bad: str | bytes) -> None:
    """A key that stands twice, NaN, an infinite number, half a character, deep nesting, bytes that are no text."""
    content = bad if isinstance(bad, bytes) else bad.encode()
    for text in (b'{"a": 1}\n{"a": 1}\n' + content + b"\n", b'[{"a": 1},\n{"a": 1},\n' + content + b"]"):
        file = tmp_path / "rows.json"
        file.write_bytes(text)
        with pytest.raises(RowError) as error:
            list(json_rows.json_rows(file))
        assert str(error.value).startswith(f"{file}:3: "), str(error.value)


def test_rows_before_a_mistake_are_given(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"b"\n', encoding="utf-8")
    assert next(json_rows.json_rows(file)) == (f"{file}:1", {"a": 1})


def test_a_list_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", 100)
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"text": "x" * 40}] * 1_000), encoding="utf-8")
    longest = 0
    read = json_rows._Window._more

    def watched(window: json_rows._Window, size: int) -> bool:
        nonlocal longest
        more = read(window, size)
        longest = max(longest, len(window.text))
        return more

    monkeypatch.setattr(json_rows._Window, "_more", watched)
    assert len(list(json_rows.json_rows(file))) == 1_000
    assert longest < 1_000, f"{longest} characters were held of a file of {file.stat().st_size}"
