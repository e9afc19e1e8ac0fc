"""Every source in its real layout: rows, images, words; and what a loader must not do silently."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safevlm.data.row_spool import RowSpool
from safevlm.data.sources import SOURCES, llava, read_source
from safevlm.data.sources.images import ImageIndex, read_images
from safevlm.data.sources.row import ImageFile, SourceError, SourceRow, SourceSpec
from tests.data import downloads
from tests.data.test_record_packing import ROWS


def _rows(kind: str, path: Path, **spec: Any) -> list[SourceRow]:
    return list(read_source(SourceSpec(name="it", kind=kind, path=path, **{"partial": "allow", **spec})))


def _refused(kind: str, path: Path, *parts: object, **spec: Any) -> None:
    with pytest.raises(SourceError) as error:
        _rows(kind, path, **spec)
    assert all(str(part) in str(error.value) for part in parts), f"the message must say {parts}: {error.value}"


DOWNLOADS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "llava": (downloads.llava, "llava.json", {"images": "images"}),
    "psa": (downloads.psa, "psa.jsonl", {}),
    "vlguard": (downloads.vlguard, "", {}),
    "spa_vl": (downloads.spa_vl, "", {}),
    "rtvlm": (downloads.rtvlm, "", {"split": "all"}),
    "image_folder": (lambda folder: downloads.folders(folder, blorp=3, florp=2), "", {}),
    "coco": (downloads.coco, "", {"captions": "annotations/captions_train2017.json"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    for kind, (write, _, _) in DOWNLOADS.items():
        write(folder / kind)
    return folder


def _downloaded(folder: Path, kind: str) -> list[SourceRow]:
    _, name, spec = DOWNLOADS[kind]
    return _rows(kind, folder / kind / name, **spec)


# what all of them keep


@pytest.mark.parametrize("name", ROWS)
def test_a_usual_row_is_read_as_any_other_or_is_the_same_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for image in ("a.png", "deep/b.png"):
        (tmp_path / image).write_bytes(downloads.png(1))
    file = downloads.jsonl(tmp_path / "own.jsonl", [ROWS[name]])
    spec, place = SourceSpec(name="it", kind="llava", path=file), f"{file}:1"

    def outcome(read: Callable[[], SourceRow]) -> SourceRow | str:
        try:
            return read()
        except SourceError as error:
            return str(error)

    asked = outcome(lambda: llava.conversation_row(spec, place, ROWS[name], llava.conversation(ROWS[name], place)))
    assert outcome(lambda: next(read_source(spec))) == asked


class _Text(str):
    """As sources of one's own give them: of numpy, say."""


def test_rows_of_a_spool_are_what_was_written(tmp_path: Path) -> None:
    spool, turns = RowSpool(), ((_Text("human"), _Text("q")), ("gpt", 'a"\ud800\n'))
    rows = [SourceRow(_Text(n), "x:1", turns[:n], (ImageFile(tmp_path / f"{n}.png", "m"),) * n) for n in range(3)]
    for row in rows:
        spool.add(row)
    assert list(spool.rows([0, 2])) == [rows[0], rows[2]]
    spool.add(rows[1])
    assert list(spool.rows([3])) == [rows[1]]


def test_every_source_is_tried_here() -> None:
    assert set(DOWNLOADS) == set(SOURCES)


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_same_rows_in_the_same_order_every_time(folder: Path, kind: str) -> None:
    assert _downloaded(folder, kind) == _downloaded(folder, kind), "a mix remembers rows by their number"


@pytest.mark.parametrize("kind", [kind for kind in DOWNLOADS if kind != "llava"])  # LLaVA's own ids repeat
def test_ids_are_unique(folder: Path, kind: str) -> None:
    ids = Counter(row.id for row in _downloaded(folder, kind))
    assert [name for name, count in ids.items() if count > 1] == []


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_every_image_can_be_read_and_has_its_slot(folder: Path, kind: str) -> None:
    rows = _downloaded(folder, kind)
    assert rows and not any(row.missing for row in rows)
    images = {image for row in rows for image in row.images}
    starts = {image: data[:3] for image, data in read_images(images)}
    assert set(starts) == images and set(starts.values()) <= {b"\xff\xd8\xff", b"\x89PN"}
    for row in rows:
        assert not row.turns or sum(text.count("<image>") for _, text in row.turns) == len(row.images), row


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_source_that_is_not_there_is_an_error(tmp_path: Path, kind: str) -> None:
    _refused(kind, tmp_path / "gone", "it", tmp_path / "gone")


@pytest.mark.parametrize("kind", ["vlguard", "spa_vl", "rtvlm", "image_folder", "coco"])
def test_folder_of_something_else_is_an_error(tmp_path: Path, kind: str) -> None:
    downloads.save(tmp_path / "notes.txt", "nothing")
    _refused(kind, tmp_path, "it", **({"split": "all"} if kind == "rtvlm" else {}))


@pytest.mark.parametrize("kind", ["llava", "psa"])
def test_rows_of_another_layout_are_an_error_with_their_place(tmp_path: Path, kind: str) -> None:
    file = downloads.jsonl(tmp_path / "x.jsonl", [{"id": 1, "messages": []}])
    _refused(kind, file, f"{file}:1", "conversations")


def test_fewer_rows_than_published_are_an_error_that_tells_both_numbers(folder: Path) -> None:
    _refused("vlguard", folder / "vlguard", "8 rows", "2000", "partial: allow", partial="error")
    _refused("coco", folder / "coco", "6 rows", "118287", partial="error")
    _refused("rtvlm", folder / "rtvlm", "10 rows", "100", partial="error", split="all")


def test_counts_found_and_published_are_returned(folder: Path) -> None:
    rows = read_source(SourceSpec(name="it", kind="vlguard", path=folder / "vlguard", partial="allow"))
    while True:
        try:
            next(rows)
        except StopIteration as end:
            assert end.value == {"train": (8, 2000)}
            break


# LLaVA and PSA


def test_llava_rows_without_an_image_are_text(folder: Path) -> None:
    rows = _downloaded(folder, "llava")
    assert [bool(row.images) for row in rows] == [bool(number % 5) for number in range(20)]


def test_llava_missing_image_is_kept_as_missing(folder: Path) -> None:
    rows = _rows("llava", folder / "llava" / "llava.json", images="elsewhere")
    assert sum(bool(row.missing) for row in rows) == 16 and not any(row.images for row in rows)


def test_psa_labels_become_published_names(folder: Path) -> None:
    words = [row.words for row in _downloaded(folder, "psa")]
    assert words == [("illegal", "must_refuse"), ("misleading", "careful"), ("clean", "safe")]


def test_psa_pasted_pair_stays_two_images_with_two_slots(folder: Path) -> None:
    row = _downloaded(folder, "psa")[1]
    assert [image.path.name for image in row.images] == ["a.png", "b.png"]
    assert row.turns[0] == ("human", "<image><image>\nWhat is it?")


# VLGuard


def test_vlguard_safe_row_is_two_rows_and_absent_keys_are_no_error(folder: Path) -> None:
    words = Counter(row.words for row in _downloaded(folder, "vlguard"))
    assert words["safe", "safe_instruction"] == words["safe", "unsafe_instruction"] == 2
    assert sum(words.values()) == 6 + 2 * 2


def test_vlguard_images_of_one_number_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    downloads.vlguard(tmp_path)
    zipped = {name: downloads.png(name) for name in ("train/a/1.png", "train/b/1.png")}
    downloads.zipped(tmp_path / "train.zip", zipped)
    index = ImageIndex([tmp_path / "train.zip"])
    assert index.find("b/1.png", "x") == ImageFile(tmp_path / "train.zip", "train/b/1.png")
    with pytest.raises(SourceError, match="fits several"):
        index.find("1.png", "x")


def test_vlguard_unpacked_and_packed_are_the_same(tmp_path: Path) -> None:
    packed = _rows("vlguard", downloads.vlguard(tmp_path / "packed"))
    unpacked = _rows("vlguard", downloads.vlguard(tmp_path / "unpacked", packed=False))
    for one, other in zip(packed, unpacked, strict=True):
        assert one.words == other.words and one.turns == other.turns
        ((_, data),), ((_, same),) = (list(read_images(row.images)) for row in (one, other))
        assert data == same


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_vlguard_lies_below_data_too_packed_or_not(tmp_path: Path, packed: bool, split: str) -> None:
    downloads.vlguard(tmp_path / "data", packed=packed)
    rows = _rows("vlguard", tmp_path, split=split)
    assert rows == _rows("vlguard", tmp_path / "data", split=split) and all(row.images for row in rows)


# SPA-VL


def test_spa_vl_parquet_gives_the_image_of_its_row(folder: Path) -> None:
    rows = _downloaded(folder, "spa_vl")
    data = dict(read_images({image for row in rows for image in row.images}))
    for number, row in enumerate(rows):
        assert data[row.images[0]] == downloads.png(f"spa{number // 5}{number % 5}", "JPEG"), row.id
    assert rows[0].words == ("Blorp & Co", "Florp", "Small")
    assert rows[0].turns[-1] == ("gpt", "I leave it.")


def test_only_the_images_asked_for_are_read(folder: Path) -> None:
    image = _downloaded(folder, "spa_vl")[3].images[0]
    assert list(read_images([image, image])) == [(image, downloads.png("spa03", "JPEG"))]


def test_spa_vl_test_is_both_files_and_has_no_answers(folder: Path) -> None:
    rows = _rows("spa_vl", folder / "spa_vl", split="test")
    assert len(rows) == 2 and not any(row.has_answer for row in rows)
    assert {row.split for row in rows} == {"test"} and rows[0].words == ("Blorp", "Florp", "Small")


def test_spa_vl_preference_json(tmp_path: Path) -> None:
    downloads.save(tmp_path / "pics/Blorp & Co/Florp/Small/1.jpg", downloads.png(1, "JPEG"))
    row = {"id": "1", "image": "Blorp & Co/Florp/Small/1.jpg", "question": "q", "chosen": "c", "rejected": "r"}
    file = downloads.save(tmp_path / "dpo.json", json.dumps([row]))
    (read,) = _rows("spa_vl", file, images="pics")
    assert read.words == ("Blorp & Co", "Florp", "Small") and read.images and read.turns[-1] == ("gpt", "c")


def test_parquet_without_images_or_answers_is_an_error(tmp_path: Path) -> None:
    file = downloads.parquet(tmp_path / "data/train-0.parquet", [{"question": "q", "image": {"bytes": b"x"}}])
    _refused("spa_vl", tmp_path, file, "chosen")
    file.write_bytes(b"no parquet")
    _refused("spa_vl", tmp_path, file, "not a parquet file")


# RTVLM


def test_rtvlm_rows_by_subset(folder: Path) -> None:
    counts = Counter(row.words[0] for row in _downloaded(folder, "rtvlm"))
    assert counts == {
        "misleading": 15,
        "captcha": 10,
        "jailbreak": 10,
        "jailbreak2": 5,
        "face": 10,
        "celeb": 10,
        "politics": 10,
        "racial": 10,
        "visual_misleading_wrong": 10,
        "visual_misleading_correct": 10,
        "visual_orderA": 27,
        "visual_orderB": 27,
    }, "five misleading rows hold two questions, five hold a plain text"


def test_rtvlm_lists_give_a_row_per_question_and_texts_are_not_walked_by_letter(folder: Path) -> None:
    rows = [row for row in _downloaded(folder, "rtvlm") if row.words[0] == "misleading"]
    assert {row.turns[0][1] for row in rows} == {"<image>\nIs it a blorp?", "<image>\nIs it a florp?"}
    assert rows[1].words == ("misleading", "Proceed with Caution") and rows[2].words == ("misleading", "Safe to Answer")
    assert rows[1].images == rows[2].images


def test_rtvlm_unmatched_lists_are_an_error(tmp_path: Path) -> None:
    downloads.rtvlm(tmp_path)
    row = {"questions": ["a", "b"], "refused_to_answer": ["Safe to Answer"], "answers": ["c", "d"], "index": "1"}
    file = downloads.jsonl(tmp_path / "data/Harmful/misleading.jsonl", [row])
    _refused("rtvlm", tmp_path, f"{file}:1", "2 questions, 1 labels", split="all")


def test_rtvlm_one_label_stands_for_all_questions_of_its_row(tmp_path: Path) -> None:
    downloads.rtvlm(tmp_path)
    row = {"questions": ["a", "b"], "refused_to_answer": "Safe to Answer", "answers": ["c", "d"], "index": "1"}
    downloads.jsonl(tmp_path / "data/Harmful/misleading.jsonl", [row])
    rows = [row for row in _rows("rtvlm", tmp_path, split="all") if row.words[0] == "misleading"]
    assert [row.words[1] for row in rows] == ["Safe to Answer"] * 2 and rows[1].turns[-1] == ("gpt", "d")


def test_rtvlm_labels_that_the_source_leaves_out_or_spells_its_own_way(folder: Path) -> None:
    labels = {row.words for row in _downloaded(folder, "rtvlm") if row.words[0] in ("captcha", "celeb")}
    assert labels == {("captcha", "Proceed with Caution"), ("celeb", "Proceed with Caution")}


def test_rtvlm_order_rows_have_two_images(folder: Path) -> None:
    rows = [row for row in _downloaded(folder, "rtvlm") if row.words[0] == "visual_orderA"]
    assert all(len(row.images) == 2 and row.images[0] != row.images[1] for row in rows)


def test_rtvlm_every_missing_image_is_reported(tmp_path: Path) -> None:
    downloads.rtvlm(tmp_path)
    downloads.zipped(tmp_path / "data/Captcha/img/img.zip", {"3.jpg": downloads.png(3)})
    rows = [row for row in _rows("rtvlm", tmp_path, split="all") if row.words[0] == "captcha"]
    assert [row.missing for row in rows] == [() if n == 3 else (f"{n}.jpg",) for n in range(10)]


def test_rtvlm_unpacked_zips_are_found(tmp_path: Path) -> None:
    downloads.rtvlm(tmp_path)
    for archive in (tmp_path / "data").rglob("*.zip"):
        with zipfile.ZipFile(archive) as members:
            members.extractall(archive.parent)
        archive.unlink()
    rows = _rows("rtvlm", tmp_path, split="all")
    assert len(rows) == 154 and not any(row.missing for row in rows)


def test_rtvlm_absent_subset_is_an_error_unless_partial_is_allowed(tmp_path: Path) -> None:
    downloads.rtvlm(tmp_path)
    (tmp_path / "data/Face/face_diffusion.jsonl").unlink()
    _refused("rtvlm", tmp_path, "Face/face_diffusion.jsonl", split="all", partial="error")
    _refused("rtvlm", tmp_path, "Face/face_diffusion.jsonl", split="all", subsets=("face", "celeb"))
    assert {row.words[0] for row in _rows("rtvlm", tmp_path, split="all", subsets=("celeb",))} == {"celeb"}
    assert "face" not in {row.words[0] for row in _rows("rtvlm", tmp_path, split="all")}


# RTVLM's split


def _split(folder: Path, file: Path, **spec: Any) -> dict[str, list[SourceRow]]:
    return {side: _rows("rtvlm", folder, split=side, split_file=file, **spec) for side in ("train", "test")}


def test_split_shares_no_image_between_train_and_test(folder: Path, tmp_path: Path) -> None:
    sides = _split(folder / "rtvlm", tmp_path / "split.json")
    prints = {
        side: {data for _, data in read_images({image for row in rows for image in row.images})}
        for side, rows in sides.items()
    }
    assert not prints["train"] & prints["test"], "four subsets ask about the same flags"
    for subset, train in {"captcha": 8, "face": 8, "celeb": 8}.items():
        assert sum(row.words[0] == subset for row in sides["train"]) == train, "80 % of every subset"


def test_split_is_written_once_and_then_is_the_law(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    first = _split(folder / "rtvlm", file)
    table = json.loads(file.read_text())
    counts = {side: len(ids) for side, ids in table["ids"].items()}
    assert table["counts"] == counts and sum(counts.values()) == 154 and counts["mixed"], "pairs fall on both sides"
    assert _split(folder / "rtvlm", file, split_seed=7) == first, "the file, not the seed, says what is held out"
    other = _split(folder / "rtvlm", tmp_path / "other.json", split_seed=7)
    assert other != first, "the seed does nothing"


def test_split_does_not_depend_on_packing(folder: Path, tmp_path: Path) -> None:
    unpacked = downloads.rtvlm(tmp_path / "unpacked")
    for archive in (unpacked / "data").rglob("*.zip"):
        with zipfile.ZipFile(archive) as members:
            members.extractall(archive.parent)
        archive.unlink()
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    _split(folder / "rtvlm", files[0])
    _split(unpacked, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rows_that_a_split_does_not_know_are_an_error(tmp_path: Path) -> None:
    downloads.rtvlm(tmp_path)
    _split(tmp_path, tmp_path / "split.json")
    rows = [{"id": n, "instruction": "Read it.", "answer": "x"} for n in [*range(10), 1, 2]]
    downloads.jsonl(tmp_path / "data/Captcha/captcha.jsonl", rows)
    spec = {"split": "train", "split_file": tmp_path / "split.json"}
    _refused("rtvlm", tmp_path, "captcha-0010", "1 others", "split.json", **spec)


def test_file_that_is_no_split_is_an_error(folder: Path, tmp_path: Path) -> None:
    file = downloads.save(tmp_path / "split.json", "{}")
    _refused("rtvlm", folder / "rtvlm", file, "not a split file", split="train", split_file=file)


# images


def test_image_names_are_matched_without_case_spaces_and_extension(tmp_path: Path) -> None:
    archive = downloads.zipped(tmp_path / "p.zip", {"deep/Land Of A.JPG": b"x", "v1.5": b"y", "b.png": b"z"})
    index = ImageIndex([archive])
    assert index.find("landofa.png", "x") == ImageFile(archive, "deep/Land Of A.JPG")
    assert index.find("b", "x") == ImageFile(archive, "b.png")
    assert index.find("c", "x") is None


def test_zip_members_are_never_written_by_their_name_and_have_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = downloads.zipped(tmp_path / "p.zip", {"../../evil.png": downloads.png(1), "/root.png": downloads.png(2)})
    index = ImageIndex([archive])
    ((_, data),) = read_images([index.find("evil.png", "x")])
    assert data == downloads.png(1) and sorted(path.name for path in tmp_path.rglob("*")) == ["p.zip"]
    monkeypatch.setattr("safevlm.data.sources.images.MAX_BYTES", 10)
    with pytest.raises(SourceError, match="over the limit of 10 bytes"):
        list(read_images([index.find("root.png", "x")]))


def test_broken_zip_is_named(tmp_path: Path) -> None:
    file = downloads.save(tmp_path / "p.zip", b"PK nothing")
    with pytest.raises(SourceError, match=r"p\.zip: not a zip"):
        ImageIndex([file])


def test_missing_pyarrow_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"\.\[data\]"):
        _downloaded(folder, "spa_vl")


def test_rows_are_frozen() -> None:
    with pytest.raises(AttributeError):
        SourceRow("a", "b").id = "c"  # type: ignore[misc]
