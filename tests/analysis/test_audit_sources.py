"""Every kind of data gives the same images, in a fixed order, with flat memory; a broken one is not the end."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from safevlm.analysis.audit.images import content, read
from safevlm.analysis.audit.plan import PlacedItem, make_plan
from safevlm.analysis.audit.sources import Item, TarFile, open_source
from tests.training import workshop

IMAGES = 7


def _png(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


DATA = [_png(seed) for seed in range(IMAGES)]


def _folder(home: Path) -> Path:
    for index, data in enumerate(DATA):
        path = home / "folder" / f"{index // 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (home / "folder" / "notes.txt").write_text("no image")
    (home / "folder" / ".hidden.png").write_bytes(DATA[0])
    return home / "folder"


def _records(home: Path, suffix: str) -> Path:
    _folder(home)
    rows = [{"id": f"r{index}", "image": f"folder/{index // 3}/{index}.png"} for index in range(IMAGES - 2)]
    rows += [{"id": "text only"}, {"id": "two", "image": ["folder/1/5.png", "folder/2/6.png"]}]
    text = json.dumps(rows) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    (home / f"records{suffix}").write_text(text)
    return home / f"records{suffix}"


def _parquet(home: Path, kind: str) -> Path:
    paths = [f"folder/{index // 3}/{index}.png" for index in range(IMAGES)]
    columns = {
        "struct": [{"bytes": data, "path": "x.png"} for data in DATA],
        "struct paths": [{"bytes": None, "path": path} for path in paths],
        "binary": DATA,
        "text": paths,
    }
    _folder(home)
    table = pa.table({"id": list(range(IMAGES)), "image": columns[kind]})
    pq.write_table(table, home / "data.parquet", row_group_size=3)
    return home / "data.parquet"


def _tar(home: Path, suffix: str, members: int = IMAGES) -> Path:
    path = home / f"data{suffix}"
    with tarfile.open(path, "w" if suffix == ".tar" else "w:gz") as tar:
        for index in range(members):
            for name, data in ((f"a/{index:04d}.left.png", DATA[index % IMAGES]), (f"a/{index:04d}.json", b"{}")):
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


KINDS = {
    "folder": _folder,
    "json": lambda home: _records(home, ".json"),
    "jsonl": lambda home: _records(home, ".jsonl"),
    "parquet struct": lambda home: _parquet(home, "struct"),
    "parquet struct paths": lambda home: _parquet(home, "struct paths"),
    "parquet binary": lambda home: _parquet(home, "binary"),
    "parquet text": lambda home: _parquet(home, "text"),
    "tar": lambda home: _tar(home, ".tar"),
    "tar.gz": lambda home: _tar(home, ".tar.gz"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_images_in_order(tmp_path: Path, kind: str) -> None:
    plan = make_plan(open_source(KINDS[kind](tmp_path)), size=3)
    placed = list(plan.items(range(plan.shards)))
    assert plan.images == IMAGES and [one.index for one in placed] == list(range(IMAGES))
    assert [one.shard for one in placed] == [0, 0, 0, 1, 1, 1, 2]
    assert [content(one.item) for one in placed] == DATA
    assert len({one.item.path for one in placed}) == IMAGES, "names must tell images apart"


@pytest.mark.parametrize("kind", KINDS)
def test_some_shards_or_some_images_can_be_asked_for(tmp_path: Path, kind: str) -> None:
    plan = make_plan(open_source(KINDS[kind](tmp_path)), size=2)
    everything = {one.index: (one.item.path, content(one.item)) for one in plan.items(range(plan.shards))}
    some = list(plan.items({1, 3}))
    assert [one.index for one in some] == [2, 3, 6] and plan.images_of({1, 3}) == 3
    single = list(plan.items_at({0, 5}))
    assert [one.index for one in single] == [0, 5]
    assert all((one.item.path, content(one.item)) == everything[one.index] for one in [*some, *single])


def test_names_say_where_an_image_is(tmp_path: Path) -> None:
    def first(kind: str) -> Item:
        home = tmp_path / kind.replace(" ", "_")
        home.mkdir(exist_ok=True)
        plan = make_plan(open_source(KINDS[kind](home)), size=9)
        return next(plan.items({0})).item

    assert (first("folder").path, first("folder").record) == ("0/0.png", "")
    assert (first("jsonl").path, first("jsonl").record) == ("folder/0/0.png#0", "r0")
    assert (first("parquet struct").path, first("parquet struct").record) == ("data.parquet#0", "0")
    assert (first("tar").path, first("tar").record) == ("data.tar!a/0000.left.png", "a/0000")


def test_a_folder_of_archives_is_all_of_them_and_no_shard_crosses_a_border(tmp_path: Path) -> None:
    for kind in ("tar", "tar.gz", "parquet binary"):
        KINDS[kind](tmp_path)
    plan = make_plan(open_source(tmp_path), size=4)
    names = [one.item.path.split("!")[0].split("#")[0] for one in plan.items(range(plan.shards))]
    assert [name for at, name in enumerate(names) if at % IMAGES == 0][:3] == [
        "data.parquet",
        "data.tar",
        "data.tar.gz",
    ]
    assert plan.images == 4 * IMAGES, "three archives, and the loose images beside them"
    assert plan.shards == 4 * 2
    shards = [one.shard for one in plan.items(range(plan.shards))]
    assert shards == sorted(shards) and set(shards) == set(range(8))


def test_a_listing_changes_with_the_data(tmp_path: Path) -> None:
    folder = _folder(tmp_path)

    def digest() -> str:
        return make_plan(open_source(folder), 3).digest

    before = digest()
    assert digest() == before
    (folder / "0" / "1.png").write_bytes(DATA[1] + b"x")
    changed = digest()
    (folder / "0" / "1.png").rename(folder / "0" / "1b.png")
    assert len({before, changed, digest()}) == 3


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname.png", "folder/../../secret.png"])
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, kind: str, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(DATA[0])
    home = tmp_path / "home"
    home.mkdir()
    if kind == "json":
        (home / "data.json").write_text(json.dumps([{"image": path}]))
    else:
        pq.write_table(pa.table({"image": [path]}), home / "data.parquet")
    [item] = open_source(home / f"data.{kind}")[0].items(lambda position: True)
    assert "leads out of" in item.error and not item.file


def test_an_archive_that_breaks_off_keeps_its_whole_images_and_says_so(tmp_path: Path) -> None:
    for suffix in (".tar", ".tar.gz"):
        path = _tar(tmp_path, suffix, 40)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        plan = make_plan(open_source(path), size=99)
        items = [one.item for one in plan.items({0})]
        assert len(items) > 3 and "broken from here on" in items[-1].error
        assert not any(item.error for item in items[:-1]) and items[0].data == DATA[0]


@pytest.mark.parametrize("name", ["x.tar", "x.tgz", "x.parquet"])
def test_a_file_that_is_no_archive_is_one_unreadable_item(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no archive" * 100)
    plan = make_plan(open_source(tmp_path / name), size=9)
    [placed] = plan.items({0})
    assert placed.item.error and plan.images == 1


@pytest.mark.slow
def test_a_tar_costs_no_memory_per_member(tmp_path: Path) -> None:
    path = _tar(tmp_path, ".tar", 3_000)
    tracemalloc.start()
    count = sum(1 for _ in TarFile(path, "data.tar").items(lambda position: True))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3_000 and peak < 1_000_000, f"peak of {peak:,} bytes"


BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"hello" * 50, "not an image"),
    "truncated": (_png(0)[:90], "broken or truncated"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_an_error_that_says_why(name: str) -> None:
    data, reason = BROKEN[name]
    image = read(PlacedItem(0, 0, Item(0, "x.png", data=data)), workshop.processor())
    assert reason in image.error and image.pixels is None and "x.png" not in image.error


def test_a_ribbon_is_refused_before_it_is_blown_up() -> None:
    """1 x 40,000 pixels are few; resized to a shorter side of 336 they would be gigabytes."""
    file = io.BytesIO()
    Image.new("RGB", (40_000, 1)).save(file, "PNG")
    image = read(PlacedItem(0, 0, Item(0, "x.png", data=file.getvalue())), workshop.processor())
    assert "too long and narrow" in image.error


def test_the_model_gets_the_pixels_that_chat_gets(tmp_path: Path) -> None:
    Image.effect_noise((90, 70), 80).save(tmp_path / "grey.png")
    Image.new("RGBA", (70, 90), (200, 30, 30, 120)).save(tmp_path / "alpha.png")
    processor = workshop.processor()
    from safevlm.data.images import open_image

    for path in sorted(tmp_path.iterdir()):
        chat = processor.image_processor([open_image(path)], return_tensors="np")["pixel_values"][0]
        image = read(PlacedItem(0, 0, Item(0, path.name, file=str(path))), processor)
        assert np.array_equal(image.pixels, chat)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("nothing.json", "no such file"),
        ("notes.txt", "unknown kind of data"),
        ("empty", "no image"),
        ("bad.json", "malformed JSON"),
    ],
)
def test_data_that_cannot_be_audited_is_an_error_that_says_what_can(tmp_path: Path, data: str, told: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("[{]")
    with pytest.raises(ValueError, match=told):
        make_plan(open_source(tmp_path / data), size=3)


def test_a_parquet_without_images_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"], "score": [1.0]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="caption"):
        make_plan(open_source(tmp_path / "x.parquet"), size=3)
    with pytest.raises(ValueError, match="--column score"):
        make_plan(open_source(tmp_path / "x.parquet", column="score"), size=3)


def test_a_name_that_is_not_utf8_is_spelled_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(DATA[0])
    [item] = open_source(tmp_path)[0].items(lambda position: True)
    assert item.path == r"caf\udce9.png" and content(item) == DATA[0]
    (tmp_path / "x.json").write_text(r'[{"id": "\ud800", "image": "\ud800.png"}]')
    with pytest.raises(ValueError, match=r"x\.json:1: .*half a character"):
        make_plan(open_source(tmp_path / "x.json"), size=3)
