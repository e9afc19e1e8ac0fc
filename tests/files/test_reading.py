"""One way from a file's bytes to checked values: what is wrong is one line that begins with the place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from safevlm import files
from safevlm.files import FileError


@dataclass(frozen=True)
class Inner:
    share: float
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"{self.share} is not from 0 to 1")


@dataclass(frozen=True)
class Outer:
    title: str
    count: int = 1
    kind: Literal["a", "b"] = "a"
    path: Path = Path(".")
    rows: Mapping[str, Inner] = field(default_factory=dict)
    either: tuple[str, ...] | str = ""
    is_on: bool = False


YAML: dict[str, tuple[str | bytes, int | None, tuple[str, ...]]] = {
    "a repeated key": ("a: 1\nb: 2\na: 3\n", 3, ("'a'", "twice", "line 1")),
    "a repeated key, inside": ("x:\n  levels: {}\n  levels: {}\n", 3, ("'levels'", "twice")),
    "the same key in quotes": ("1: a\n'1': b\n", 2, ("twice",)),
    "an alias bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9)),
        5,
        ("aliases",),
    ),
    "deep lists": ("a: " + "[" * 9_000 + "]" * 9_000, 1, ("nested",)),
    "deep tables": ("".join(f"{' ' * depth}a:\n" for depth in range(300)), 64, ("nested",)),
    "an alias to itself": ("a: &a [*a]\n", 1, ()),
    "a merge with itself": ("a: &a\n  <<: *a\n  b: 1\n", None, ()),
    "a timestamp that is none": ("a: !!timestamp junk\n", 1, ("timestamp",)),
    "a tag of Python's": ("a: !!python/object/apply:os.system [ls]\n", 1, ("tag",)),
    "bytes": ("a: !!binary x\n", 1, ("tag",)),
    "infinity": ("a:\n  b: .inf\n", 2, (".inf", "finite")),
    "not a number": ("lora_alpha: .nan\n", 1, (".nan", "finite")),
    "a huge number": ("a: " + "9" * 5_000, 1, ()),
    "an int that is none": ("a: !!int x\n", 1, ("'x'",)),
    "an int that is empty": ("a: !!int ''\n", 1, ("''",)),
    "a float that is empty": ("b: 1\na: !!float ''\n", 2, ("''",)),
    "a truth value that is none": ("b: 1\na: !!bool perhaps\n", 2, ("'perhaps'",)),
    "half a character": ('a: "\\ud83d"\n', 1, ("half a character",)),
    "no UTF-8": (b"a: b\nb: \xff\n", 2, ("UTF-8",)),
    "UTF-16": ("a: b\n".encode("utf-16"), 1, ("UTF-8",)),
    "a NUL": ("a: b\nb: \0\n", 2, ("not YAML",)),
    "an open list": ("a: [1,\n", None, ("not YAML",)),
    "an unknown alias": ("a: *b\n", 1, ("not YAML",)),
    "two documents": ("a: 1\n---\nb: 2\n", 2, ("not YAML",)),
    "a truth value as a key": ("no: 1\n", 1, ("'no'", "quotes")),
    "a list as a key": ("? [a]\n: b\n", 1, ()),
    "too large": ("a" * (300 << 10), None, ("KiB",)),
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_could_mislead_is_an_error_with_its_line(tmp_path: Path, kind: str) -> None:
    content, line, parts = YAML[kind]
    file = tmp_path / "some.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    _one_line(lambda: files.read_yaml(file), f"{file}:{line}: " if line else str(file), *parts)


JSON: dict[str, tuple[str | bytes, int | None, tuple[str, ...]]] = {
    "a repeated key": ('{\n"a": 1,\n"b": 2,\n"a": 3\n}', 4, ("'a'", "twice")),
    "a repeated key, inside": ('{\n"x": {\n"a": 1, "a": 2},\n"b": 3\n}', 3, ("'a'", "twice")),
    "NaN": ('{"a":\n NaN}', 2, ("NaN", "finite")),
    "infinity": ('{"a":\n -Infinity}', 2, ("-Infinity", "finite")),
    "an infinite number": ('{"a": 1,\n"b": 1e999}', 2, ("1e999", "finite")),
    "a huge number": ('{"a":\n' + "9" * 5_000 + "}", 2, ("5000 digits",)),
    "deep lists": ("[" * 100_000 + "]" * 100_000, None, ("nested",)),
    "lists that are deep enough to hurt later": ("[" * 500 + "]" * 500, None, ("nested",)),
    "half a character": ('{"a": "\\ud83d"}', None, ("half a character",)),
    "no UTF-8": (b'{"a":\n"\xff"}', 2, ("UTF-8",)),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), 1, ("UTF-8",)),
    "half a file": ('{"a":\n', 2, ("not JSON",)),
    "nothing": ("", 1, ("not JSON",)),
    "more than one": ('{"a": 1}\n{"b": 2}', 2, ("not JSON",)),
}


@pytest.mark.parametrize("kind", JSON)
def test_json_that_could_mislead_is_an_error_with_its_line(tmp_path: Path, kind: str) -> None:
    content, line, parts = JSON[kind]
    file = tmp_path / "some.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    _one_line(lambda: files.read_json(file), f"{file}:{line}: " if line else str(file), *parts)


@pytest.mark.parametrize(
    "kind", [name for name, (_, line, _) in JSON.items() if name not in ("nothing", "half a file")]
)
def test_a_line_of_jsonl_is_read_as_strictly(tmp_path: Path, kind: str) -> None:
    content, _, parts = JSON[kind]
    bad = (content if isinstance(content, bytes) else content.encode()).replace(b"\n", b" ")
    file = tmp_path / "some.jsonl"
    file.write_bytes(b'{"a": 1}\n\n' + bad + b"\n")
    _one_line(lambda: list(files.json_lines(file)), f"{file}:3: ", *parts)


def test_what_is_right_is_read(tmp_path: Path) -> None:
    yaml, json, lines = tmp_path / "a.yaml", tmp_path / "a.json", tmp_path / "a.jsonl"
    yaml.write_bytes("\ufeffa: &x {b: 2024-01-02, c: [1, 2.5, null, yes, '1']}\nd: {<<: *x, e: Zoë}\n".encode())
    json.write_text('\ufeff{"a": [1, 2.5, null, true, "\\ud83d\\ude00"]}', encoding="utf-8")
    lines.write_text('\ufeff{"a": 1}\r\n\n{"b": "\\u2028"}', encoding="utf-8")
    a = {"b": "2024-01-02", "c": [1, 2.5, None, True, "1"]}
    assert files.read_yaml(yaml) == {"a": a, "d": {**a, "e": "Zoë"}}
    assert files.read_json(json) == {"a": [1, 2.5, None, True, "😀"]}
    assert [value for _, value in files.json_lines(lines)] == [{"a": 1}, {"b": "\u2028"}]


RIGHT: dict[str, Any] = {
    "title": "t",
    "count": 2,
    "kind": "b",
    "path": "x/y",
    "rows": {"q": {"share": 1, "names": ["n"]}},
}
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "a number for a text": ({"title": 1}, "title", ("1", "a text")),
    "a text for a number": ({"count": "5"}, "count", ("'5'", "whole number")),
    "a truth value for a number": ({"count": True}, "count", ("True", "whole number")),
    "half a number": ({"count": 1.5}, "count", ("1.5", "whole number")),
    "a number for a truth value": ({"is_on": 1}, "is_on", ("1", "true or false")),
    "a word of no choice": ({"kind": "c"}, "kind", ("'c'", "'a'", "'b'")),
    "a list for a table": ({"rows": []}, "rows", ("[]", "a table")),
    "an unknown key": ({"coutn": 1}, "coutn", ("unknown key", "count")),
    "an unknown key, inside": ({"rows": {"q": {"share": 1, "shrae": 1}}}, "rows.q.shrae", ("unknown key", "share")),
    "a key that is not there": ({"rows": {"q": {}}}, "rows.q", ("share",)),
    "a value that is not allowed": ({"rows": {"q": {"share": 2}}}, "rows.q", ("2", "from 0 to 1")),
    "one of several kinds": ({"either": 3}, "either", ("3",)),
    "an item": ({"rows": {"q": {"share": 1, "names": ["n", 5]}}}, "rows.q.names[1]", ("5", "a text")),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_wrong_value_is_told_with_line_and_key(tmp_path: Path, kind: str, ending: str) -> None:
    import json

    change, path, parts = WRONG[kind]
    file = tmp_path / f"some.{ending}"
    text = json.dumps({**RIGHT, **change}, indent=1)
    file.write_text(text, encoding="utf-8")  # JSON is YAML
    read = files.read_yaml if ending == "yaml" else files.read_json
    said = _one_line(lambda: read(file, Outer), f"{file}:", f": {path}: ", *parts)
    line = int(said.removeprefix(f"{file}:").split(":")[0])
    last = path.split(".")[-1].split("[")[0]
    near = text.splitlines()[line - 2 : line + 1]
    assert any(last in one for one in near) or str(parts[0]) in "".join(near), (line, near)


def test_a_right_value_becomes_its_shape() -> None:
    made = files.checked(Outer, RIGHT, "here")
    assert made == Outer("t", 2, "b", Path("x/y"), {"q": Inner(1.0, ("n",))})
    assert isinstance(made.rows["q"], Inner)


def test_what_is_no_table_is_told(tmp_path: Path) -> None:
    for text in ("[]", "5", "null", '"a"'):
        file = tmp_path / "some.json"
        file.write_text(text, encoding="utf-8")
        _one_line(lambda file=file: files.read_json(file, Outer), f"{file}", "a table")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.json"
    with file.open("wb") as opened:
        opened.truncate(1 << 32)
    tracemalloc.start()
    _one_line(lambda: files.read_json(file), str(file), "MiB")
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def _one_line(read: Any, *parts: str) -> str:
    with pytest.raises(FileError) as caught:
        read()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 1_000, said
    assert said.startswith(parts[0]), said
    for part in parts[1:]:
        assert part in said, said
    return said
