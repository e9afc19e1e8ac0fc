"""A table of records on the disk is the list of records that was read before: same records, order, facts and errors."""

from __future__ import annotations

import base64
import json
import multiprocessing
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from safevlm.config import DataConfig
from safevlm.data import record_store
from safevlm.data.answers import HEAD_ONLY
from safevlm.data.batches import POOL, GroupedSampler
from safevlm.data.exclude import exclude_images
from safevlm.data.mix import draw_clean
from safevlm.data.record_facts import FACTS, are_clean, fact, facts_of, label_counts, length
from safevlm.data.record_table import RecordTable, choose, image_paths, open_records
from safevlm.data.records import PARTS, MissingImageError, Record, RecordError, is_clean, read_records
from safevlm.taxonomy import DEFAULT, Category, Taxonomy
from safevlm.training.hints import add_hints

IMAGES = ("a.png", "deep/b b.png", "ö.png")
LABELS = [("clean", "safe"), (None, None), ("clean", None), (None, "safe"), ("privacy", 2), (1, "careful"), (None, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("records")
    for name in IMAGES:
        (made / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(made / name)
    return made


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every file is packed to the disk, below this cache folder."""
    monkeypatch.setattr(record_store, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "safevlm" / "records"


def _row(number: int, images: Sequence[str] = (), label: tuple[Any, Any] = (None, None), **more: Any) -> dict[str, Any]:
    labels = {key: value for key, value in zip(("safe_type", "safe_level"), label, strict=True) if value is not None}
    asked = "<image>\n" * len(images) + f"q{number}"
    talk = [{"from": "human", "value": asked}, {"from": "gpt", "value": "a" * (1 + number * 7 % 31)}]
    return {"id": str(number), "conversations": talk, **({"image": list(images)} if images else {}), **labels, **more}


def _rows(count: int = 40) -> list[dict[str, Any]]:
    return [
        _row(
            number,
            IMAGES[: number % 4],
            LABELS[number % len(LABELS)],
            part=PARTS[number % 3],
            source="s" * (number % 2),
        )
        for number in range(count)
    ]


def _write(file: Path, rows: Sequence[Any]) -> Path:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    file.write_text(lines if file.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return file


def _same(table: Sequence[Record], records: Sequence[Record]) -> None:
    assert list(table) == list(records)
    assert facts_of(table).tolist() == [fact(record) for record in records]
    assert list(image_paths(table)) == list(image_paths(list(records)))


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
words = texts.map(lambda text: f"w{text}".replace("<image>", ""))
rows_of_any_kind = st.lists(
    st.builds(
        lambda id, system, turns, images, label, part, source: {
            "id": id,
            "conversations": [
                *([{"from": "system", "value": system}] if system else []),
                *(
                    {"from": who, "value": ("<image>" * len(images) if not at and who == "human" else "") + said}
                    for at, pair in enumerate(turns)
                    for who, said in zip(("human", "gpt"), pair, strict=True)
                ),
            ],
            "image": images,
            "safe_type": label[0],
            "safe_level": label[1],
            "part": part,
            "source": source,
        },
        st.none() | st.integers() | texts,
        st.none() | words,
        st.lists(st.tuples(words, words | st.just(HEAD_ONLY)), min_size=1, max_size=3),
        st.lists(st.sampled_from(IMAGES), max_size=3),
        st.sampled_from(LABELS),
        st.none() | st.sampled_from(PARTS),
        st.none() | texts,
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of_any_kind, ending=st.sampled_from((".json", ".jsonl")), small=st.booleans())
def test_a_table_is_the_list_of_records(
    rows: list[Any], ending: str, small: bool, folder: Path, on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_store, "SMALL", 1 << 20 if small else 0)
    file = _write(folder / f"any{ending}", rows)
    expected = read_records([file], DEFAULT)
    for _ in range(2):  # checked now; and found checked
        _same(open_records([file], DEFAULT), expected)


def test_rows_of_several_files_and_kinds_stand_in_order(folder: Path, on_disk: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [_row(number, IMAGES[: 1 + number % 2], ("clean", "safe")) for number in range(9)]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "c.parquet")
    files = [_write(folder / "b.jsonl", _rows(5)), _write(folder / "a.json", _rows(7)), folder / "c.parquet"]
    _same(open_records(files, DEFAULT), read_records(files, DEFAULT))


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    "row",
    [
        {**_row(1), "conversations": []},
        _row(1, label=("clean", "must_refuse")),
        _row(1, ("gone.png",)),
        {**_row(1), "safetype": "clean"},
        _row(1, part="x"),
        "no table",
    ],
)
def test_a_wrong_record_is_the_same_error_and_nothing_is_kept(
    row: Any, small: bool, folder: Path, on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_store, "SMALL", 1 << 20 if small else 0)
    file = _write(folder / "wrong.jsonl", [_row(0), row, _row(2)])
    with pytest.raises(RecordError) as before:
        read_records([file], DEFAULT)
    with pytest.raises(type(before.value)) as now:
        open_records([file], DEFAULT)
    assert str(now.value) == str(before.value) and f"{file}:2" in str(now.value)
    assert not on_disk.exists() or not list(on_disk.iterdir())


@pytest.mark.parametrize("name", ["gone.jsonl", "empty.jsonl"])
def test_no_file_and_no_records_are_errors_as_before(name: str, folder: Path, on_disk: Path) -> None:
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(RecordError) as before:
        read_records([folder / name], DEFAULT)
    with pytest.raises(RecordError) as now:
        open_records([folder / name], DEFAULT)
    assert str(now.value) == str(before.value)


def _opened_without_checking(file: Path, monkeypatch: pytest.MonkeyPatch, taxonomy: Taxonomy = DEFAULT) -> RecordTable:
    """AssertionError: the file would be checked again."""

    def check(*given: Any) -> Any:
        raise AssertionError("checked again")

    with monkeypatch.context() as patched:
        patched.setattr(record_store, "pack_into", check)
        return open_records([file], taxonomy)


def test_a_file_is_checked_once_and_again_when_anything_changed(
    folder: Path, on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _write(folder / "once.jsonl", _rows())
    first = list(open_records([file], DEFAULT))
    assert list(_opened_without_checking(file, monkeypatch)) == first
    other = Taxonomy((*DEFAULT.categories, Category("more")), DEFAULT.levels)
    with pytest.raises(AssertionError, match="checked again"):
        _opened_without_checking(file, monkeypatch, other)
    _write(file, _rows(3))
    assert list(open_records([file], DEFAULT)) == read_records([file], DEFAULT) != first


def test_an_image_that_went_away_is_missed_at_the_next_start(folder: Path, on_disk: Path) -> None:
    gone = folder / "soon gone.png"
    Image.new("RGB", (8, 8)).save(gone)
    file = _write(folder / "gone.jsonl", [_row(0), _row(1, (gone.name,))])
    open_records([file], DEFAULT)
    gone.unlink()
    with pytest.raises(MissingImageError, match=r"gone\.jsonl:2"):
        open_records([file], DEFAULT)


def test_images_that_records_hold_as_bytes_are_unpacked_again_when_they_went_away(folder: Path, on_disk: Path) -> None:
    row = _row(0, (IMAGES[0],))
    data = (folder / IMAGES[0]).read_bytes()
    file = _write(folder / "bytes.jsonl", [{**row, "image": {"bytes": base64.b64encode(data).decode()}}])
    for _ in range(2):
        (image,) = open_records([file], DEFAULT)[0].images
        assert image.read_bytes() == data
        image.unlink()


@pytest.mark.parametrize("name", [record_store.RECORDS, record_store.IMAGES, record_store.ENDS, record_store.ABOUT])
def test_a_packed_file_that_lost_something_is_made_again(name: str, folder: Path, on_disk: Path) -> None:
    file = _write(folder / "lost.jsonl", _rows())
    first = list(open_records([file], DEFAULT))
    (place,) = on_disk.iterdir()
    content = (place / name).read_bytes()
    (place / name).write_bytes(content[: len(content) // 2])
    assert list(open_records([file], DEFAULT)) == first
    assert (place / name).read_bytes() == content


def test_without_a_cache_folder_records_are_read_all_the_same(
    folder: Path, on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    file = _write(folder / "no cache.jsonl", _rows())
    assert list(open_records([file], DEFAULT)) == read_records([file], DEFAULT)


def test_what_a_run_began_with_is_what_it_reads(folder: Path, on_disk: Path) -> None:
    file = _write(folder / "changing.jsonl", _rows())
    before, table = read_records([file], DEFAULT), open_records([file], DEFAULT)
    file.write_text("something else\n")
    assert list(table) == before


def _pick(table: RecordTable) -> list[str]:
    return [table[row].id for row in range(len(table))] * 20


def test_processes_share_a_table(folder: Path, on_disk: Path) -> None:
    table = open_records([_write(folder / "shared.jsonl", _rows())], DEFAULT)
    expected = _pick(table)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(found == expected for found in pool.map(_pick, [table] * 4))
    assert list(pickle.loads(pickle.dumps(table))) == list(table)


@pytest.mark.parametrize("small", [True, False])
def test_choices_draws_exclusions_and_hints_are_those_of_the_list(
    small: bool, folder: Path, on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_store, "SMALL", 1 << 20 if small else 0)
    file = _write(folder / "passes.jsonl", _rows(60))
    records, table = read_records([file], DEFAULT), open_records([file], DEFAULT)
    for cut in (slice(None), slice(3, 40, 2), slice(None, None, -1), slice(50, 10)):
        assert list(table[cut]) == records[cut]
    assert table[-1] == records[-1] and table[7] == records[7]
    with pytest.raises(IndexError):
        table[len(records)]
    (folder / "exclude.txt").write_text(f"{IMAGES[1]}\n")
    data = DataConfig(train=[str(file)], exclude=[str(folder / "exclude.txt")])
    (kept, went), (kept_before, went_before) = exclude_images(table, data), exclude_images(records, data)
    assert went == went_before > 0
    _same(kept, kept_before)
    for clean in (None, 0, 5, 1000):
        _same(draw_clean(kept, DEFAULT, clean, seed=3), draw_clean(kept_before, DEFAULT, clean, seed=3))
    hinted = add_hints(table, DEFAULT)
    _same(hinted, add_hints(records, DEFAULT))
    assert {record.hint for record in hinted} != {""}
    _same(choose(hinted, np.array([4, 1])), [hinted[4], hinted[1]])


def test_facts_say_what_records_say(folder: Path) -> None:
    records = read_records([_write(folder / "facts.jsonl", _rows(60))], DEFAULT)
    facts = facts_of(records)
    assert are_clean(facts, DEFAULT).tolist() == [is_clean(record, DEFAULT) for record in records]
    told = [str(record.safe_type) for record in records]
    assert label_counts(facts["safe_type"]) == {label: told.count(label) for label in sorted(set(told))}
    assert list(label_counts(facts["safe_type"])) == sorted(set(told))


def _order(records: Sequence[Record], by: str, step: int, seed: int) -> list[int]:
    """What `GroupedSampler` gives, on lists."""
    generator = torch.Generator().manual_seed(seed * 1_000_003)
    steps = []
    for kind in (True, False):
        rows = [row for row, record in enumerate(records) if bool(record.images) == kind]
        if not rows:
            continue
        order = [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]
        missing = -len(order) % step
        order += (order * (missing // len(order) + 1))[:missing]
        if by == "length":
            pools = [order[start : start + POOL * step] for start in range(0, len(order), POOL * step)]
            order = [row for pool in pools for row in sorted(pool, key=lambda row: length(records[row]), reverse=True)]
        steps += [order[start : start + step] for start in range(0, len(order), step)]
    return [row for index in torch.randperm(len(steps), generator=generator).tolist() for row in steps[index]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1, max_size=400),
    by=st.sampled_from(("kind", "length")),
    step=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_steps_are_those_of_lists(lengths: list[tuple[bool, int]], by: Any, step: int, seed: int) -> None:
    records = [
        Record(
            str(row),
            f"x:{row}",
            ({"role": "user", "content": [{"type": "text", "text": "w" * size}]},),
            (Path("x"),) * seen,
        )
        for row, (seen, size) in enumerate(lengths)
    ]
    sampler = GroupedSampler(records, by, step, seed)
    assert list(sampler) == _order(records, by, step, seed)
    assert len(sampler) == len(list(sampler))


def test_a_million_rows_of_facts_are_small() -> None:
    assert FACTS.itemsize <= 32
