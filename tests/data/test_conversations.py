"""Records as other trainers write them are those that LLaVA's layout would have made; what is lost is an error."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from safevlm.check.data import check_data
from safevlm.data import chat_messages, mix_build
from safevlm.data.images import open_image
from safevlm.data.records import Record, RecordError, read_records
from safevlm.taxonomy import DEFAULT
from tests.data import downloads

ONE, TWO = downloads.png("one"), downloads.png("two", "JPEG")
SAID = (
    chat_messages.system("s"),
    chat_messages.user("q", 1),
    chat_messages.assistant("a"),
    chat_messages.user("q2"),
    chat_messages.assistant("a2"),
)
TEXTS = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")]


def _parts(first: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every content as parts; `first` in front of the first question."""
    contents = [[{"type": "text", "text": text}] for _, text in TEXTS]
    contents[1] = [*first, *contents[1]]
    return [{"role": role, "content": content} for (role, _), content in zip(TEXTS, contents, strict=True)]


def _turns(question: str) -> list[tuple[str, str]]:
    return [(role, question if text == "q" else text) for role, text in TEXTS]


MESSAGES = [{"role": role, "content": text} for role, text in _turns("<image>q")]
URI = "data:image/png;base64," + base64.b64encode(ONE).decode()
ROWS: dict[str, dict[str, Any]] = {
    "ms-swift": {"messages": MESSAGES, "images": ["a.png"]},
    "ms-swift, base64": {"messages": MESSAGES, "images": [URI]},
    "ms-swift, {bytes, path}": {"messages": MESSAGES, "images": [{"bytes": None, "path": "a.png"}]},
    "ms-swift, images without marks": {
        "messages": [{"role": role, "content": text} for role, text in TEXTS],
        "images": ["a.png"],
    },
    "LLaMA-Factory, sharegpt": {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[role], "value": text}
            for role, text in _turns("<image>q")[1:]
        ],
        "system": "s",
        "images": ["a.png"],
    },
    "LLaMA-Factory, openai": {"messages": MESSAGES[1:], "system": "s", "images": ["a.png"], "videos": None},
    "TRL, parts": {"messages": _parts([{"type": "image"}]), "images": ["a.png"]},
    "TRL, nulls of Arrow": {"messages": _parts([{"type": "image", "text": None, "index": 0}]), "image": "a.png"},
    "TRL, prompt and completion": {"prompt": MESSAGES[:4], "completion": MESSAGES[4:], "images": ["a.png"]},
    "OpenAI": {"messages": _parts([{"type": "image_url", "image_url": {"url": URI}}])},
    "HF, path in the part": {"messages": _parts([{"type": "image", "path": "a.png"}]), "images": []},
}


def _read(file: Path, *rows: Any) -> list[Record]:
    file.parent.mkdir(exist_ok=True)
    (file.parent / "a.png").write_bytes(ONE)
    if file.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(list(rows)), file)
    elif file.suffix == ".arrow":
        import pyarrow as pa

        table = pa.Table.from_pylist(list(rows))
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        downloads.jsonl(file, rows)
    return read_records([file], DEFAULT)


@pytest.mark.parametrize("kind", ROWS)
def test_every_trainers_layout_gives_the_same_record(tmp_path: Path, kind: str) -> None:
    (record,) = _read(tmp_path / "x.jsonl", {**ROWS[kind], "safe_type": "privacy"})
    assert record.messages == SAID and record.safe_type == DEFAULT.category_id("privacy")
    assert [path.read_bytes() for path in record.images] == [ONE]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_tables_with_image_bytes_are_read_and_unpacked_once(tmp_path: Path, name: str) -> None:
    messages = [{"role": "user", "content": "<image>q <image>"}, {"role": "assistant", "content": "a"}]
    images = [{"bytes": ONE, "path": "../../etc/x.png"}, {"bytes": TWO, "path": None}]
    rows = [{"messages": messages, "images": images, "safe_level": level} for level in (None, "careful", "careful")]
    records = _read(tmp_path / name, *rows)
    assert [record.place for record in records] == [f"{tmp_path / name}[{index}]" for index in range(3)]
    assert [[path.read_bytes() for path in record.images] for record in records] == [[ONE, TWO]] * 3
    unpacked = sorted((tmp_path / f"{name}.images").iterdir())
    assert sorted(path.suffix for path in unpacked) == [".jpg", ".png"], "one file for one image, whatever its name"
    assert {path for record in records for path in record.images} == set(unpacked)
    stamps = [path.stat().st_mtime_ns for path in unpacked]
    assert len(read_records([tmp_path / name], DEFAULT)) == 3
    assert [path.stat().st_mtime_ns for path in unpacked] == stamps
    findings = check_data(tmp_path / name)
    assert all(finding.ok for finding in findings) and "3 records, 2 images" in findings[0].title


def test_a_mix_takes_records_of_other_trainers(tmp_path: Path) -> None:
    _read(tmp_path / "x.parquet", {"messages": MESSAGES, "images": [{"bytes": ONE, "path": None}]})
    source = {"own": {"kind": "llava", "path": "x.parquet"}}
    label = {"category": "illegal", "level": "careful"}
    file = downloads.mix_yaml(
        tmp_path / "mix.yaml", root=str(tmp_path), sources=source, labels={"own": label}, stages={"stage2": {}}
    )
    mix_build.build(file, tmp_path / "out")
    (record,) = read_records([tmp_path / "out/stage2.jsonl"], DEFAULT)
    assert record.messages == SAID and open_image(record.images[0]).size == (8, 8)


TALK = [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "address": ({"images": ["https://example.org/a.png"]}, "download it"),
    "two lists": ({"images": ["a.png"], "image": "a.png"}, "both `image` and `images`"),
    "two layouts": ({"conversations": [{"from": "human", "value": "q"}]}, "both `conversations` and `messages`"),
    "too few marks": ({"images": ["a.png", "a.png"]}, "1 <image> in the conversation but 2 images"),
    "no image bytes": ({"images": [{"bytes": "aGVsbG8=", "path": None}]}, "not an image"),
    "empty image": ({"images": [{"bytes": None, "path": None}]}, "`images` must be"),
    "video": ({"videos": ["a.mp4"], "images": ["a.png"]}, "`videos` cannot be read"),
    "tool": ({"messages": [*TALK, {"role": "tool", "content": "x"}]}, "unknown speaker 'tool'"),
    "not learned": ({"messages": [TALK[0], {**TALK[1], "loss": False}]}, "`loss: False`"),
    "not learned, in OpenAI's words": ({"messages": [TALK[0], {**TALK[1], "weight": 0}]}, "`weight: 0`"),
    "not learned, in others' words": ({"messages": [TALK[0], {**TALK[1], "train": False}]}, "`train: False`"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "video"}]}, TALK[1]]}, "unknown part"),
    "part without text": ({"messages": [{"role": "user", "content": [{"type": "text"}]}, TALK[1]]}, "`text` must be"),
    "number": ({"messages": [{"role": "user", "content": 5}, TALK[1]]}, "needs a text"),
    "two texts": ({"messages": [{"role": "user", "content": "q", "value": "q"}, TALK[1]]}, "keep one"),
    "half a character": ({"messages": [TALK[0], {"role": "assistant", "content": "a\ud800"}]}, "half a character"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_would_be_lost_is_an_error_that_names_its_line(tmp_path: Path, kind: str) -> None:
    changes, told = WRONG[kind]
    good = {"messages": TALK, "images": ["a.png"]}
    with pytest.raises(RecordError) as error:
        _read(tmp_path / "x.jsonl", good, {"messages": TALK, **changes})
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'x.jsonl'}:2: ") and told in message and "\n" not in message, message


def test_text_that_is_no_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(json.dumps({"messages": TALK[:0]}).encode() + b'\n{"id": "caf\xe9"}\n')
    with pytest.raises(RecordError, match=r"x\.jsonl:[12]: "):
        read_records([tmp_path / "x.jsonl"], DEFAULT)


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_broken_table_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 no table")
    with pytest.raises(RecordError, match=rf"{name}: not a table"):
        read_records([tmp_path / name], DEFAULT)
