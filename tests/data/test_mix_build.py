"""One command makes the data of both stages: deterministic, complete, without a held-out image, or not at all."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from safevlm.__main__ import main
from safevlm.data import answers, mix_build, mix_report
from safevlm.data.mix_file import MixError, read_mix
from safevlm.data.records import RecordError, read_records, verify_images
from safevlm.data.sources import llava
from safevlm.miniature import dataset
from safevlm.taxonomy import CLEAN, DEFAULT, Taxonomy
from tests.data import downloads
from tests.training.workshop import file_bytes

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "safevlm" / "recipes" / "mix_safevlm.yaml"
CLEAN_LABEL = {"category": "clean", "level": "safe"}

SOURCES: dict[str, dict[str, Any]] = {
    "vlguard": {"kind": "vlguard", "path": "vlguard", "partial": "allow"},
    "rtvlm": {"kind": "rtvlm", "path": "rtvlm", "partial": "allow", "answers": "table"},
    "spa": {"kind": "spa_vl", "path": "spa"},
    "llava": {"kind": "llava", "path": "llava/llava.json", "images": "images"},
    "psa": {"kind": "psa", "path": "psa/psa.jsonl"},
    "coco": {"kind": "coco", "path": "coco", "head_only": "allow", "partial": "allow"},
    "pics": {"kind": "image_folder", "path": "pics"},
}
HELD_OUT = {
    "vlguard_test": {"kind": "vlguard", "path": "vlguard", "split": "test", "partial": "allow"},
    "rtvlm_test": {"kind": "rtvlm", "path": "rtvlm", "split": "test", "partial": "allow"},
}
LABELS: dict[str, Any] = {
    "vlguard/safe/unsafe_instruction": "unlabelled",
    "vlguard/safe": CLEAN_LABEL,
    "vlguard": {"category": "illegal", "level": "must_refuse"},
    "rtvlm/*/Refuse to Answer": {"category": "illegal", "level": "must_refuse"},
    "rtvlm": {"category": "misleading", "level": "careful"},
    "spa/Blorp*": {"category": "insults", "level": "may_refuse"},
    "llava": CLEAN_LABEL,
    "coco": CLEAN_LABEL,
    "pics/florp": "drop",
    "pics/blorp": {"category": "privacy", "level": "careful"},
}
TABLE: dict[str, Any] = {
    "seed": 3,
    "sources": SOURCES,
    "held_out": HELD_OUT,
    "labels": LABELS,
    "counts": {"misleading": 20, "clean": 20},
    "stages": {"stage1": {"clean": 6}, "stage2": {}},
}

SLOT = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
WHOLE: dict[str, Any] = {"stage1": {}, "stage2": {}}
"""Stages that take all there is."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All downloads. Read only."""
    home = tmp_path_factory.mktemp("home")
    for write in (downloads.vlguard, downloads.rtvlm, downloads.llava, downloads.psa, downloads.coco):
        write(home / write.__name__)
    downloads.spa_vl(home / "spa")
    downloads.folders(home / "pics", blorp=3, florp=2)
    return home


def _file(home: Path, to: Path, **changes: Any) -> Path:
    table = {"root": str(home), **TABLE, **changes}
    return downloads.mix_yaml(to / "mix.yaml", **{key: value for key, value in table.items() if value is not ...})


def _one(home: Path, to: Path, name: str, **changes: Any) -> Path:
    """A mix of one source, which may be changed."""
    source = {key: value for key, value in {**SOURCES[name], **changes}.items() if value is not ...}
    return _file(home, to, sources={name: source}, held_out=..., counts=..., stages=WHOLE)


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mix of all sources. Read only."""
    folder = tmp_path_factory.mktemp("made")
    mix_build.build(_file(home, folder), folder / "out")
    return folder / "out"


def _refused(file: Path, *parts: object, out: Path | None = None) -> None:
    out = out or file.parent / "out"
    with pytest.raises(ValueError) as error:
        mix_build.build(file, out)
    assert all(str(part) in str(error.value) for part in parts), f"the message must say {parts}: {error.value}"
    left = {name for name in (file_bytes(out) if out.exists() else {}) if not name.endswith("_split.json")}
    assert not left, f"half-written: {left}"


# labels and dialogues that rows bring along


def _labelled(tmp_path: Path, *changes: dict[str, Any], **table: Any) -> Path:
    """A mix of six records of one's own: four labelled as risky, one as clean, one not at all; `changes` by row."""
    labels = [("privacy", "careful")] * 4 + [(CLEAN, "safe"), None]
    rows: list[dict[str, Any]] = []
    for number, label in enumerate(labels):
        talk = [{"from": "human", "value": f"q{number}"}, {"from": "gpt", "value": "a"}]
        own = {"safe_type": label[0], "safe_level": label[1]} if label else {}
        rows.append({"id": str(number), "conversations": talk, **own})
    for row, change in zip(rows, changes, strict=False):
        row.update(change)
    downloads.jsonl(tmp_path / "own.jsonl", rows)
    source = {"kind": "llava", "path": "own.jsonl", **table.pop("source", {})}
    return _file(
        tmp_path,
        tmp_path,
        **{"sources": {"own": source}, "labels": {"own": CLEAN_LABEL}, "held_out": ..., "counts": ..., **table},
        stages=WHOLE,
    )


def test_records_keep_their_labels_against_a_rule_and_the_report_counts_them(tmp_path: Path) -> None:
    report = mix_build.build(_labelled(tmp_path), tmp_path / "out")
    assert Counter(row["safe_type"] for row in _rows(tmp_path / "out/stage2.jsonl")) == {"privacy": 4, CLEAN: 2}
    assert report["sources"]["own"]["own_labels"] == {"kept": {"own": 4}}
    assert any("4 rows keep the label" in line and "'own'" in line for line in mix_report.lines(report))


@pytest.mark.parametrize("told", ["rule", "mix"])
def test_a_rule_that_overrules_labels_says_so_and_is_counted(tmp_path: Path, told: str) -> None:
    rule = {"labels": {"own": {**CLEAN_LABEL, "relabel": True}}} if told == "rule" else {"relabel": True}
    report = mix_build.build(_labelled(tmp_path, **rule), tmp_path / "out")
    assert {row["safe_type"] for row in _rows(tmp_path / "out/stage2.jsonl")} == {CLEAN}
    assert report["sources"]["own"]["own_labels"] == {"overruled": {"own": 4}}
    assert any("4 rows lost the label" in line for line in mix_report.lines(report))


PLAIN = dataclasses.replace(llava.SOURCE, keeps_labels=False)


def test_a_source_whose_rows_should_have_no_labels_is_refused(tmp_path: Path) -> None:
    file = _labelled(tmp_path, source={"kind": f"{__name__}:PLAIN"})
    _refused(file, "4 rows whose own label the rule 'own' overrules", "relabel: true", "own.jsonl:1")


IMPOSSIBLE = {
    "answer first": {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]},
    "empty answer": {
        "conversations": [{"from": who, "value": text} for who, text in zip(("human", "gpt") * 2, "qaq ", strict=True)]
    },
    "contradiction": {"safe_type": CLEAN},
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_rows_that_cannot_be_are_refused_or_left_out_and_listed(tmp_path: Path, kind: str) -> None:
    _refused(_labelled(tmp_path, {}, IMPOSSIBLE[kind]), "1 rows that cannot be", "unusable: allow", "own.jsonl:2: ")
    file = _labelled(tmp_path, {}, IMPOSSIBLE[kind], source={"unusable": "allow"})
    told = mix_build.build(file, tmp_path / "out")["sources"]["own"]
    assert (told["unusable"], told["dropped"], told["taken"]) == (1, 0, 5)
    assert len(told["unusable_rows"]) == 1 and "own.jsonl:2: " in told["unusable_rows"][0]


# what it makes


def test_training_reads_what_it_writes(made: Path) -> None:
    for name in ("stage1.jsonl", "stage2.jsonl", "head_only.jsonl"):
        records = read_records([made / name], DEFAULT)
        verify_images(records)
        assert {record.source for record in records} <= set(SOURCES) and all(record.source for record in records)


def test_counts_are_those_asked_for(made: Path) -> None:
    stage1, stage2, silent = (_rows(made / f"{name}.jsonl") for name in ("stage1", "stage2", "head_only"))
    first, second = (Counter(row.get("safe_type") for row in rows) for rows in (stage1 + silent, stage2))
    assert first == {"illegal": 23, "insults": 10, "privacy": 3, "misleading": 20, "clean": 6, None: 2}
    assert second["clean"] == 20 - sum(row["source"] == "coco" for row in _pool(made)), "no words in them, no stage 2"
    assert {kind: count for kind, count in second.items() if kind != "clean"} == {
        kind: count for kind, count in first.items() if kind != "clean"
    }


def _pool(made: Path) -> list[dict[str, str]]:
    report = json.loads((made / "mix.json").read_text())
    return [{"source": name} for name, row in report["sources"].items() for _ in range(row["taken"])]


def test_stage_1_draws_from_the_pool_of_stage_2(made: Path) -> None:
    ids = {row["id"] for row in _rows(made / "stage2.jsonl")}
    assert {row["id"] for row in _rows(made / "stage1.jsonl")} <= ids


def test_same_file_and_seed_give_the_same_bytes(home: Path, made: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over what is there
        mix_build.build(_file(home, tmp_path), tmp_path / "elsewhere")
        assert file_bytes(tmp_path / "elsewhere") == file_bytes(made)


def test_another_seed_gives_another_draw_but_the_same_test_set(home: Path, made: Path, tmp_path: Path) -> None:
    mix_build.build(_file(home, tmp_path), tmp_path / "out", seed=4)
    other, own = file_bytes(tmp_path / "out"), file_bytes(made)
    assert other["stage1.jsonl"] != own["stage1.jsonl"]
    assert other["rtvlm_split.json"] == own["rtvlm_split.json"], "a new mix must not move the test set"


def test_images_out_of_archives_lie_in_the_mix_and_others_stay_where_they_are(made: Path, home: Path) -> None:
    rows = _rows(made / "stage1.jsonl")
    by_source = {row["source"]: row["image"] for row in rows if isinstance(row.get("image"), str)}
    assert all(by_source[name].startswith(f"images/{name}/") for name in ("vlguard", "rtvlm", "spa"))
    assert by_source["pics"] == str((home / "pics/blorp/2.png").resolve()), by_source["pics"]


def test_copied_mix_stands_alone(home: Path, tmp_path: Path) -> None:
    mix_build.build(_file(home, tmp_path, images="copy"), tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    rows = _rows(tmp_path / "moved/stage2.jsonl")
    images = [image for row in rows for image in _list(row.get("image"))]
    assert images and all((tmp_path / "moved" / image).is_file() and image.startswith("images/") for image in images)


def _list(image: str | list[str] | None) -> list[str]:
    return [] if image is None else [image] if isinstance(image, str) else image


def test_twin_ids_of_a_source_become_different(made: Path) -> None:
    ids = Counter(row["id"] for row in _rows(made / "stage2.jsonl"))
    assert max(ids.values()) == 1


def test_report_names_seed_counts_digests_and_split(made: Path) -> None:
    report = json.loads((made / "mix.json").read_text())
    assert report["seed"] == 3 and report["categories"]["misleading"]["asked"] == 20
    assert report["categories"]["misleading"]["found"] > report["categories"]["misleading"]["taken"] == 20
    assert report["sources"]["vlguard"]["parts"]["train"] == {"found": 8, "published": 2000}
    assert report["sources"]["pics"]["dropped"] == 2
    assert set(report["files"]) == {"stage1.jsonl", "stage2.jsonl", "head_only.jsonl", "taxonomy.yaml"}
    assert set(report["splits"]) == {"rtvlm_split.json"} and report["sources"]["llava"]["files"]["llava.json"]
    assert report["held_out"]["vlguard_test"] == {"images": 4}


def test_another_mix_in_a_used_folder_is_refused_and_the_same_one_is_made_again(home: Path, tmp_path: Path) -> None:
    mix_build.build(_one(home, tmp_path, "coco"), tmp_path / "out")
    assert (tmp_path / "out/head_only.jsonl").is_file()
    before = file_bytes(tmp_path / "out")
    with pytest.raises(ValueError, match=r"mix\.json: made of something else: .*mix_sha256.*--out"):
        mix_build.build(_one(home, tmp_path, "llava"), tmp_path / "out")
    assert file_bytes(tmp_path / "out") == before
    mix_build.build(_one(home, tmp_path, "coco"), tmp_path / "out")
    assert file_bytes(tmp_path / "out") == before
    (tmp_path / "out/mix.json").unlink()
    mix_build.build(_one(home, tmp_path, "llava"), tmp_path / "out")
    assert not (tmp_path / "out/head_only.jsonl").exists(), "a file of an earlier mix does not stay"


def _own_records(folder: Path, count: int) -> Path:
    """A mix of so many records of 4 kB; every second id stands there twice."""
    said = [("human", "q" * 2000), ("gpt", "a" * 2000)]
    talk = [{"from": who, "value": text} for who, text in said]
    rows = [{"id": str(n // 2 if n % 4 < 2 else n), "conversations": talk} for n in range(count)]
    downloads.jsonl(folder / "own.jsonl", rows)
    sources = {"own": {"kind": "llava", "path": "own.jsonl"}}
    return _file(folder, folder, sources=sources, labels={"own": CLEAN_LABEL}, held_out=..., counts=..., stages=WHOLE)


def test_rows_pass_through_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix_build, "ROWS_AT_ONCE", 64)
    peaks = {}
    for count in (100, 100, 700):  # once before, for what is imported and remembered
        file = _own_records(tmp_path, count)
        tracemalloc.start()
        report = mix_build.build(file, tmp_path / f"out{count}")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert report["stages"]["stage2"]["rows"] == count
    assert (peaks[700] - peaks[100]) / 600 < 400, "bytes a row; its text alone is 4,000"


def test_ids_that_stand_twice_are_numbered_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix_build, "ROWS_AT_ONCE", 1)
    mix_build.build(_own_records(tmp_path, 8), tmp_path / "out")
    ids = [row["id"] for row in _rows(tmp_path / "out/stage2.jsonl")]
    assert ids == ["own/0", "own/0#2", "own/2", "own/3", "own/2#2", "own/2#3", "own/6", "own/7"]


def test_a_wrong_record_late_in_a_mix_leaves_nothing_half_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mix_build, "ROWS_AT_ONCE", 2)
    file = _own_records(tmp_path, 6)
    rows = _rows(tmp_path / "own.jsonl")
    rows[5]["conversations"].insert(0, {"from": "system", "value": "s"})
    downloads.jsonl(tmp_path / "own.jsonl", rows)
    mix_build.build(file, tmp_path / "out")
    before = file_bytes(tmp_path / "out")

    def parse(raw: Any, place: str, *more: Any) -> None:
        raise RecordError(f"{place}: wrong")

    monkeypatch.setattr(mix_build, "parse_record", parse)
    with pytest.raises(RecordError, match=r"own\.jsonl:6: wrong"):
        mix_build.build(file, tmp_path / "out")
    assert file_bytes(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "told"),
    [({"conversations": SLOT}, "1 <image>"), ({"conversations": SLOT, "image": ["a.png", "a.png"]}, "but 2 images")],
)
def test_slots_that_do_not_match_the_images_are_an_error_with_their_line(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    (tmp_path / "a.png").write_bytes(downloads.png(1))
    _refused(_labelled(tmp_path, {}, change), "own.jsonl:2: ", told)


def test_lines_are_those_of_pythons_json(tmp_path: Path) -> None:
    talk = [
        {"from": "human", "value": '<image> <image> \u2028"\\ä\x00\x7f\n'},
        {"from": "gpt", "value": "\U0001f600\t/"},
    ]
    (tmp_path / 'a"ö.png').write_bytes(downloads.png(1))
    changes = {"id": 'i"\u0085', "conversations": talk, "image": ['a"ö.png'] * 2}
    mix_build.build(
        _labelled(tmp_path, changes, {**changes, "image": 'a"ö.png', "conversations": SLOT}), tmp_path / "out"
    )
    lines = (tmp_path / "out/stage2.jsonl").read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[0])["conversations"] == talk
    assert lines[:-1] == [json.dumps(json.loads(line), ensure_ascii=False) for line in lines[:-1]]


@pytest.mark.parametrize("at_once", [1, 3])
def test_blocks_make_the_same_bytes(
    home: Path, made: Path, tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mix_build, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(mix_build, "IMAGES_AT_ONCE", at_once)
    mix_build.build(_file(home, tmp_path), tmp_path / "out")
    assert file_bytes(tmp_path / "out") == file_bytes(made)


def test_an_image_of_two_sources_lies_in_the_first_ones_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mix_build, "ROWS_AT_ONCE", 1)
    sources = {name: SOURCES["pics"] for name in ("one", "two")}
    labels = {name: LABELS["pics/blorp"] for name in sources}
    file = _file(home, tmp_path, sources=sources, labels=labels, held_out=..., counts=..., stages=WHOLE, images="copy")
    mix_build.build(file, tmp_path / "out")
    rows = _rows(tmp_path / "out/stage2.jsonl")
    assert Counter(row["source"] for row in rows) == {"one": 5, "two": 5}
    assert all(row["image"].startswith("images/one/") for row in rows)


def test_a_linked_image_is_named_by_where_it_is(home: Path, tmp_path: Path) -> None:
    (tmp_path / "linked/blorp").mkdir(parents=True)
    (tmp_path / "linked/blorp/x.png").symlink_to(home / "pics/blorp/1.png")
    (tmp_path / "linked/flat").symlink_to(home / "pics/blorp")
    source = {"kind": "image_folder", "path": str(tmp_path / "linked"), "images": "flat"}
    sources = {"pics": {**source, "images": "blorp"}, "flat": source}
    labels = {name: LABELS["pics/blorp"] for name in sources}
    file = _file(home, tmp_path, sources=sources, labels=labels, held_out=..., counts=..., stages=WHOLE)
    mix_build.build(file, tmp_path / "out")
    names = [row["image"] for row in _rows(tmp_path / "out/stage2.jsonl")]
    folder = home.resolve() / "pics/blorp"
    assert names == [str(folder / "1.png"), *(str(folder / f"{n}.png") for n in range(3))]


# answers


def test_rows_without_an_answer_get_one_of_their_level(made: Path) -> None:
    row = next(row for row in _rows(made / "stage1.jsonl") if row["source"] == "pics")
    question, said = (turn["value"] for turn in row["conversations"])
    assert question.removeprefix("<image>\n") in answers.QUESTIONS
    topic = "private information about people"
    assert said in {wording.format(topic=topic) for wording in answers.ANSWERS["careful"]}


def test_answers_of_the_source_stay_unless_the_table_is_asked_for(made: Path) -> None:
    rows = _rows(made / "stage2.jsonl")
    said = {row["source"]: row["conversations"][-1]["value"] for row in rows}
    assert said["vlguard"] in ("I leave the blorp alone.", "I keep that to myself.", "Many colours.")
    keys = ("Land", "Hard to say.", "No.", "x7")
    rtvlm = [row["conversations"][-1]["value"] for row in rows if row["source"] == "rtvlm"]
    assert not any(text.startswith(keys) for text in rtvlm), "keys to score by are no answers to learn"


def test_harmless_images_without_an_answer_train_the_head_alone(home: Path, made: Path, tmp_path: Path) -> None:
    silent = _rows(made / "head_only.jsonl")
    assert {row["source"] for row in silent} == {"coco"} and {row["safe_type"] for row in silent} == {CLEAN}
    others = _rows(made / "stage1.jsonl") + _rows(made / "stage2.jsonl")
    assert not any(row["conversations"][-1]["value"] == answers.HEAD_ONLY for row in others)
    _refused(_one(home, tmp_path, "coco", head_only=...), "6 rows without an answer", "head_only: allow")


def test_captions_are_answers(home: Path, tmp_path: Path) -> None:
    captions = "annotations/captions_train2017.json"
    mix_build.build(_one(home, tmp_path, "coco", captions=captions, head_only=...), tmp_path / "out")
    said = [row["conversations"][-1]["value"] for row in _rows(tmp_path / "out/stage2.jsonl")]
    assert said == ["Caption 4.", "Caption 9.", "Caption 8.", "Caption 7.", "Caption 6.", "Caption 5."]


def test_own_answers_and_questions_are_used(home: Path, tmp_path: Path) -> None:
    source = {**SOURCES["pics"], "question": "Which one?"}
    file = _file(
        home,
        tmp_path,
        sources={"pics": source},
        answers={"privacy/careful": ["Not {topic}."]},
        held_out=...,
        counts=...,
        stages=WHOLE,
    )
    mix_build.build(file, tmp_path / "out")
    (turns,) = {json.dumps(row["conversations"]) for row in _rows(tmp_path / "out/stage1.jsonl")}
    assert json.loads(turns)[0]["value"] == "<image>\nWhich one?"
    assert json.loads(turns)[1]["value"] == "Not private information about people."


# what it refuses


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("vlguard", {"split": "test"}, ("rows of split 'test'", "0", "1")),
        ("rtvlm", {"split": "test"}, ("rows of split 'test'", "no training mix")),
        ("rtvlm", {"split": "all"}, ("154 rows of split 'test'", "misleading-0000")),
        ("spa", {"split": "test", "partial": "allow"}, ("2 rows of split 'test'", "harm-00000")),
        ("llava", {"split": "eval"}, ("rows of split 'eval'",)),
    ],
)
def test_declared_test_split_is_refused(
    home: Path, tmp_path: Path, name: str, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    _refused(_one(home, tmp_path, name, **changes), *parts)


def test_test_image_in_the_training_pool_is_refused_by_content(home: Path, tmp_path: Path) -> None:
    downloads.vlguard(tmp_path / "leaky", shared=2)
    source = {"kind": "vlguard", "path": str(tmp_path / "leaky"), "partial": "allow"}
    held = {"held": {**source, "split": "test"}}
    file = _file(home, tmp_path, sources={"vlguard": source}, held_out=held, counts=..., stages=WHOLE)
    _refused(file, "2 images", "train.zip:train/HOD/0.png", "test.zip:test/HOD/0.png")
    with pytest.raises(MixError, match="2 images"):
        mix_build.check(file, tmp_path / "out")


def test_image_saved_anew_without_loss_is_the_same_image(home: Path, tmp_path: Path) -> None:
    downloads.save(tmp_path / "held/x/other_name.bmp", downloads.png("pics-blorp-1", "BMP"))
    held = {"held": {"kind": "image_folder", "path": str(tmp_path / "held")}}
    file = _file(home, tmp_path, sources={"pics": SOURCES["pics"]}, held_out=held, counts=..., stages=WHOLE)
    _refused(file, "1 images", home / "pics/blorp/1.png", "other_name.bmp")


def test_fewer_rows_than_asked_for_are_an_error_unless_allowed(home: Path, tmp_path: Path) -> None:
    changes = {"counts": {"privacy": 9, "insults": 11}, "stages": {"stage1": {"clean": 3000}}}
    parts = ("counts.privacy: 9 asked for, 3 found", "counts.insults: 11", "stages.stage1.clean: 3000", "short: allow")
    _refused(_file(home, tmp_path, **changes), *parts)
    report = mix_build.build(_file(home, tmp_path, short="allow", **changes), tmp_path / "out")
    assert len(report["short"]) == 3 and report["categories"]["privacy"]["taken"] == 3


def test_absent_sources_are_all_listed_and_an_error_unless_allowed(home: Path, tmp_path: Path) -> None:
    gone = {"one": {"kind": "psa", "path": "gone/1.jsonl"}, "two": {"kind": "vlguard", "path": "gone/2"}}
    changes = {"sources": {**SOURCES, **gone}, "held_out": {"three": {"kind": "vlguard", "path": "g", "split": "test"}}}
    _refused(_file(home, tmp_path, **changes), "one (", "two (", "missing: allow")
    report = mix_build.build(_file(home, tmp_path, missing="allow", **changes), tmp_path / "out")
    assert report["absent"] == ["one", "two"] and report["held_out"] == {"three": None}
    assert any("NOT compared with: three" in line for line in mix_report.lines(report))


def test_missing_images_are_an_error_unless_allowed_and_then_listed(home: Path, tmp_path: Path) -> None:
    parts = ("16 rows whose image", "missing_images: allow", "coco/1.png")
    _refused(_one(home, tmp_path, "llava", images="gone"), *parts)
    file = _one(home, tmp_path, "llava", images="gone", missing_images="allow")
    report = mix_build.build(file, tmp_path / "out")
    assert report["sources"]["llava"]["without_image"] == len(report["sources"]["llava"]["missing_images"]) == 16
    assert len(_rows(tmp_path / "out/stage2.jsonl")) == 4


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": "x.jpg"}, {"bytes": b"", "path": None}])
def test_rows_with_an_empty_image_cell_are_rows_without_their_image(home: Path, tmp_path: Path, cell: Any) -> None:
    whole = {"bytes": downloads.png("whole", "JPEG"), "path": None}
    rows = [
        {"question": "q", "chosen": "a", "image": cell if n == 3 else whole, "image_name": "Blorp/1.jpg"}
        for n in range(6)
    ]
    downloads.parquet(tmp_path / "spa/data/train-00000-of-00001.parquet", rows, row_group_size=2)
    place = "train-00000-of-00001.parquet:3"
    _refused(
        _one(home, tmp_path, "spa", path=str(tmp_path / "spa")), "1 rows whose image", "missing_images: allow", place
    )
    file = _one(home, tmp_path, "spa", path=str(tmp_path / "spa"), missing_images="allow")
    told = mix_build.build(file, tmp_path / "out")["sources"]["spa"]
    assert (told["without_image"], told["taken"]) == (1, 5) and place in told["missing_images"][0]


def test_rows_that_no_rule_labels_are_an_error_that_names_their_words(home: Path, tmp_path: Path) -> None:
    file = _file(home, tmp_path, labels={"pics/florp": "drop"}, sources={"pics": SOURCES["pics"]}, counts=...)
    _refused(file, "3 rows without a label", "pics/blorp", "labels")


def test_unreadable_image_is_named_and_nothing_is_written(home: Path, tmp_path: Path) -> None:
    downloads.vlguard(tmp_path / "broken")
    members = {f"train/{'bad_ads' if n % 2 else 'HOD'}/{n}.png": downloads.png(n) for n in range(8)}
    downloads.zipped(tmp_path / "broken/train.zip", {**members, "train/HOD/4.png": b"no image"})
    source = {"kind": "vlguard", "path": str(tmp_path / "broken"), "partial": "allow"}
    file = _file(home, tmp_path, sources={"vlguard": source}, held_out=..., counts=..., stages=WHOLE)
    with pytest.raises(ValueError, match=r"train\.zip:train/HOD/4\.png: not an image"):
        mix_build.build(file, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json*")), "records of half a mix"


# limits, checks, command


def test_limit_draws_by_the_seed(home: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (1, 1, 2):
        out = tmp_path / f"out{seed}"
        mix_build.build(_one(home, tmp_path, "llava", limit=5), out, seed=seed)
        drawn.append([row["id"] for row in _rows(out / "stage2.jsonl")])
    assert len(drawn[0]) == 5 and drawn[0] == drawn[1] != drawn[2]


def test_check_tells_the_same_and_writes_nothing(home: Path, made: Path, tmp_path: Path) -> None:
    report = mix_build.check(_file(home, tmp_path), tmp_path / "out")
    whole = json.loads((made / "mix.json").read_text())
    assert not (tmp_path / "out").exists() and json.loads(json.dumps(report)).items() <= whole.items()


def test_command(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _file(home, tmp_path, root=...)
    words = ["mix", str(file), "--out", str(tmp_path / "out"), "--root", str(home), "--seed", "5"]
    assert main([*words, "--check"]) == 0 and not (tmp_path / "out").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "vlguard (vlguard, train): train 8 (published 2000)" in said and "no image shared with" in said
    assert json.loads((tmp_path / "out/mix.json").read_text())["seed"] == 5
    assert main(["mix", str(tmp_path / "gone.yaml"), "--out", str(tmp_path / "x")]) == 1


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"lables": {}}, "unknown key ['lables']"),
    "no sources": ({"sources": {}}, "at least one"),
    "unknown kind": ({"sources": {"a": {"kind": "blorp", "path": "x"}}}, "sources.a: kind: unknown 'blorp'"),
    "unknown key of a source": ({"sources": {"a": {"kind": "psa", "path": "x", "spilt": "y"}}}, "spilt"),
    "no path": ({"sources": {"a": {"kind": "psa"}}}, "needs `kind` and `path`"),
    "a limit that is no number": ({"sources": {"a": {"kind": "psa", "path": "x", "limit": "9"}}}, "sources.a.limit"),
    "a rule that is none": ({"short": "maybe"}, "short: unknown 'maybe'"),
    "unknown category": ({"counts": {"blorp": 3}}, "counts: unknown category ['blorp']"),
    "a count below 0": ({"counts": {"illegal": -1}}, "counts.illegal"),
    "unknown stage": ({"stages": {"stage3": {}}}, "stages: ['stage3']"),
    "answers of no level": ({"answers": {"blorp": ["x"]}}, "answers.blorp"),
    "answers with an unknown field": ({"answers": {"careful": ["{subject}"]}}, "subject"),
    "one name twice": ({"held_out": {"psa": {"kind": "psa", "path": "x"}}}, "['psa']"),
    "a table that is none": ({"labels": ["x"]}, "labels"),
}


@pytest.mark.parametrize(("changes", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_in_a_mix_names_file_and_key(home: Path, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    file = _file(home, tmp_path, **changes)
    _refused(file, file, told)


# what ships


def test_shipped_mix_reads_and_asks_for_the_papers_counts() -> None:
    shipped = read_mix(SHIPPED, Path("out"))
    risky = {name: count for name, count in shipped.counts.items() if name != CLEAN}
    assert sum(risky.values()) == 11_199 and shipped.counts[CLEAN] == 81_978
    assert shipped.stages["stage1"] == {CLEAN: 3_000} and not shipped.stages["stage2"]


def test_shipped_mix_labels_every_row_of_rtvlm_and_vlguard(home: Path, tmp_path: Path) -> None:
    table = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for section in ("sources", "held_out"):
        for name, entry in table[section].items():
            known = {"vlguard": "vlguard", "rtvlm": "rtvlm"}.get(entry["kind"])
            if known:
                table[section][name] = {**entry, "path": known, "partial": "allow"}
    table["sources"] = {name: table["sources"][name] for name in ("rtvlm", "vlguard")}
    file = downloads.mix_yaml(tmp_path / "mix.yaml", **{**table, "root": str(home)})
    report = mix_build.build(file, tmp_path / "out")
    found = {name: row["found"] for name, row in report["categories"].items()}
    assert all(found[name] for name in DEFAULT.category_names if name != CLEAN), found


def test_shipped_mix_of_the_miniature_shares_no_image_with_its_evaluation(tmp_path: Path) -> None:
    home = tmp_path / "runs/data/miniature"
    dataset.write(home, dataset.MiniatureDataConfig(risky=20, clean=20, per_group=5, validation_per_group=0))
    table = yaml.safe_load(SHIPPED.with_name("mix_miniature.yaml").read_text(encoding="utf-8"))
    table["stages"]["stage1"]["clean"] = 7
    file = downloads.mix_yaml(tmp_path / "mix.yaml", **table)
    report = mix_build.build(file, tmp_path / "out", root=tmp_path)
    assert report["held_out"] == {"evaluation": {"images": 30}} and report["stages"]["stage1"]["rows"] == 27


def test_shipped_taxonomy_is_the_default_one() -> None:
    assert Taxonomy.from_yaml(SHIPPED.with_name("taxonomy_default.yaml")) == DEFAULT


@pytest.mark.parametrize("key", ["root", "taxonomy"])
@pytest.mark.parametrize("value", ["1", "[a]", "true"])
def test_a_path_of_a_mix_that_is_no_text_is_an_error_with_its_key(tmp_path: Path, key: str, value: str) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(f"{key}: {value}\nsources: {{a: {{kind: psa, path: {tmp_path}}}}}\n")
    with pytest.raises(MixError) as error:
        read_mix(file, tmp_path)
    assert str(error.value).startswith(f"{file}: {key}: ") and "text" in str(error.value)
