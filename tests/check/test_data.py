"""`safevlm check DATA`: every defect is found, counted and named; what is fine is told in numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from safevlm.check import survey
from safevlm.check.command import kind_of
from safevlm.check.data import check_data
from safevlm.check.findings import Finding
from safevlm.data import mix_build
from safevlm.data.sources import vlguard
from safevlm.data.sources.row import PublishedCount
from safevlm.taxonomy import CLEAN, DEFAULT
from tests.data import downloads

COUNT = 12


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "id": str(number),
            "image": f"pics/{number}.png",
            "source": "even" if number % 2 == 0 else "odd",
            "safe_type": "clean" if number % 3 == 0 else "privacy",
            "safe_level": "safe" if number % 3 == 0 else "careful",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is it, {number}?"},
                {"from": "gpt", "value": "A cup."},
            ],
        }
        for number in range(COUNT)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for number in range(COUNT):
        downloads.save(tmp_path / f"pics/{number}.png", downloads.png(f"check{number}"))
    return downloads.jsonl(tmp_path / "train.jsonl", _rows())


def _one(findings: list[Finding], part: str) -> Finding:
    found = [finding for finding in findings if part in finding.title]
    assert len(found) == 1, f"one finding about {part!r}: {[finding.title for finding in findings]}"
    return found[0]


def _only_defect(findings: list[Finding], part: str, *told: str) -> None:
    bad = [finding for finding in findings if not finding.ok]
    assert len(bad) == 1 and part in bad[0].title, [finding.title for finding in bad]
    assert all(one in bad[0].title + bad[0].detail for one in told), bad[0]


# records


def test_good_data_have_no_defect(file: Path) -> None:
    findings = check_data(file)
    assert all(finding.ok for finding in findings), findings
    assert "12 records, 12 images" in findings[0].title


def test_table_counts_by_source_category_and_level(file: Path) -> None:
    table = _one(check_data(file), "by source, category and level").detail.splitlines()
    assert [line.split() for line in table[1:]] == [
        ["train", "even", "clean", "safe", "2"],
        ["train", "even", "privacy", "careful", "4"],
        ["train", "odd", "clean", "safe", "2"],
        ["train", "odd", "privacy", "careful", "4"],
    ]


EMPTY = [{"from": "human", "value": "And?"}, {"from": "gpt", "value": ""}]
SPOIL: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no answer": (lambda row: row["conversations"].pop(), "every conversation has an answer"),
    "slots": (lambda row: row.update(image=[row["image"]] * 2), "image slots match"),
    "label": (lambda row: row.update(safe_type="blorp"), "labels are known"),
    "contradiction": (lambda row: row.update(safe_type="clean", safe_level="must_refuse"), "labels are known"),
    "misspelt": (lambda row: row.update(safetype="privacy"), "labels are known"),
    "empty answer": (lambda row: row["conversations"].extend(EMPTY), "an answer"),
    "answer first": (lambda row: row["conversations"].reverse(), "questions and answers alternate"),
    "gone": (lambda row: row.update(image="pics/gone.png"), "image files are there"),
    "speaker": (lambda row: row["conversations"][0].update({"from": "bot"}), "well-formed"),
}


@pytest.mark.parametrize("kind", SPOIL)
def test_each_defect_is_counted_and_its_records_named(file: Path, kind: str) -> None:
    spoil, title = SPOIL[kind]
    rows = _rows()
    spoil(rows[2])
    spoil(rows[7])
    downloads.jsonl(file, rows)
    _only_defect(check_data(file), title, "2 of 12", f"{file}:3: ", f"{file}:8: ")


def test_long_lists_of_defects_are_cut_and_counted(file: Path) -> None:
    rows = _rows()
    for row in rows:
        row["safe_type"] = "blorp"
    downloads.jsonl(file, rows)
    detail = _one(check_data(file), "labels are known").detail
    assert len(detail.splitlines()) == survey.NAMED + 1 and detail.endswith("… and 2 more")


@pytest.mark.parametrize(
    ("spoil", "cause"), [(lambda _: b"", "0 bytes"), (lambda _: b"hello", "not an image"), (lambda d: d[:60], "broken")]
)
def test_all_unreadable_images_are_found(file: Path, spoil: Callable[[bytes], bytes], cause: str) -> None:
    for number in (3, 5):
        image = file.parent / f"pics/{number}.png"
        image.write_bytes(spoil(image.read_bytes()))
    _only_defect(check_data(file), "all images can be read", "2 of 12", "3.png", "5.png", cause)


def test_malformed_line_is_named_and_the_rest_is_not_guessed(file: Path) -> None:
    file.write_text(file.read_text().replace('{"id": "4"', '{"id" "4"'), encoding="utf-8")
    findings = check_data(file)
    _only_defect(findings, "well-formed", f"{file}:5: malformed", "reading stopped here")
    assert "4 records" in findings[0].title


@pytest.mark.parametrize("text", ["", "[]", "\n"])
def test_empty_and_missing_files_are_defects(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    _only_defect(check_data(file), "no records", str(file.name))
    _only_defect(check_data(file.with_name("gone.jsonl")), "no such record file", "gone.jsonl")


def test_image_that_is_harmless_and_risky_is_a_defect_under_one_name_or_two(file: Path) -> None:
    rows = _rows()
    rows[3]["image"] = rows[4]["image"]
    downloads.jsonl(file, rows)
    _only_defect(check_data(file), "no image is harmless in one record", "4.png")
    downloads.jsonl(file, _rows())
    downloads.save(file.parent / "pics/3.png", (file.parent / "pics/4.png").read_bytes())
    _only_defect(check_data(file), "no image is harmless in one record", "3.png", "4.png")


def test_unlabelled_record_does_not_hide_a_contradiction(file: Path) -> None:
    rows = _rows()
    del rows[0]["safe_type"]
    rows[1]["image"] = rows[2]["image"] = rows[3]["image"] = rows[0]["image"]
    downloads.jsonl(file, rows)
    _only_defect(check_data(file), "no image is harmless in one record", f"{file}:4: ")


def test_image_with_several_levels_is_told_and_no_defect(file: Path) -> None:
    rows = _rows()
    rows[2].update(image=rows[4]["image"], safe_level="must_refuse")
    downloads.jsonl(file, rows)
    findings = check_data(file)
    assert all(finding.ok for finding in findings)
    assert _one(findings, "several levels").title.endswith(": 1")


def test_same_image_with_one_label_is_told_and_no_defect(file: Path) -> None:
    downloads.save(file.parent / "pics/2.png", (file.parent / "pics/4.png").read_bytes())
    findings = check_data(file)
    assert all(finding.ok for finding in findings)
    assert _one(findings, "under several names").title.endswith(": 1")


def test_records_that_stand_there_twice_are_told(file: Path) -> None:
    downloads.jsonl(file, [*_rows(), _rows()[0]])
    assert _one(check_data(file), "word for word").title.endswith(": 1")


def test_lengths_name_the_longest_record(file: Path) -> None:
    rows = _rows()
    rows[6]["conversations"][1]["value"] = "A cup. " * 100
    downloads.jsonl(file, rows)
    detail = _one(check_data(file), "characters").detail
    assert f"{file}:7" in detail and "median 20" in detail


def test_images_folder_is_used(file: Path, tmp_path: Path) -> None:
    moved = downloads.jsonl(tmp_path / "deep/train.jsonl", _rows())
    _only_defect(check_data(moved), "image files are there", "12 of 12")
    assert all(finding.ok for finding in check_data(moved, images=str(tmp_path)))


def test_own_taxonomy_says_which_labels_are_known(file: Path, tmp_path: Path) -> None:
    table = DEFAULT.to_dict()
    table["categories"] = [{"name": "spam", "topic": "spam"}, {"name": CLEAN}]
    own = downloads.save(tmp_path / "taxonomy.yaml", yaml.safe_dump(table))
    _only_defect(check_data(file, taxonomy=own), "labels are known", "8 of 12", "spam")


# train against test


def _against(file: Path, tmp_path: Path, name: str, kind: str) -> Path:
    held = tmp_path / "held"
    data_ = (file.parent / "pics/4.png").read_bytes() if kind == "PNG" else downloads.png("check4", kind)
    downloads.save(held / f"other.{kind.lower()}", data_)
    downloads.jsonl(held / "test.jsonl", [{"id": "1", "image": f"other.{kind.lower()}"}, {"id": "2"}])
    downloads.zipped(held / "test.zip", {f"deep/other.{kind.lower()}": data_})
    mix = {
        "sources": {"a": {"kind": "image_folder", "path": "x"}},
        "held_out": {"b": {"kind": "image_folder", "path": str(held)}},
    }
    downloads.mix_yaml(held / "mix.yaml", **mix)
    return held / name


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
@pytest.mark.parametrize("name", ["", "test.jsonl", "test.zip", "mix.yaml"])
def test_held_out_image_is_found_by_content_wherever_it_lies(file: Path, tmp_path: Path, name: str, kind: str) -> None:
    findings = check_data(file, against=[_against(file, tmp_path, name, kind)])
    _only_defect(findings, "no image is among the 1 held-out ones", "1 of 12", "4.png", f"other.{kind.lower()}")


def test_other_images_are_no_leak(file: Path, tmp_path: Path) -> None:
    downloads.save(tmp_path / "held/x.png", downloads.png("x"))
    findings = check_data(file, against=[tmp_path / "held"])
    assert all(finding.ok for finding in findings) and _one(findings, "1 held-out")


def test_nothing_to_compare_with_is_a_defect(file: Path, tmp_path: Path) -> None:
    _only_defect(check_data(file, against=[tmp_path / "gone"]), "nothing was compared", "gone")
    downloads.save(tmp_path / "held/x.png", b"broken")
    _only_defect(check_data(file, against=[tmp_path / "held"]), "nothing was compared", "x.png")


# mixes


@pytest.fixture
def mix_file(tmp_path: Path) -> Path:
    downloads.vlguard(tmp_path / "vlguard")
    downloads.folders(tmp_path / "pics", blorp=3)
    return _save_mix(tmp_path)


def _save_mix(folder: Path, **changes: Any) -> Path:
    guard = {"kind": "vlguard", "path": "vlguard", "partial": "allow"}
    table = {
        "root": str(folder),
        "sources": {"vlguard": guard, "pics": {"kind": "image_folder", "path": "pics"}},
        "held_out": {"test": {**guard, "split": "test"}},
        "labels": {
            "vlguard/safe": "drop",
            "vlguard": {"category": "illegal", "level": "careful"},
            "pics": {"category": "privacy", "level": "careful"},
        },
        "stages": {"stage1": {}, "stage2": {}},
        **changes,
    }
    return downloads.mix_yaml(folder / "mix.yaml", **table)


def test_good_mix_file_has_no_defect_and_writes_nothing(mix_file: Path) -> None:
    before = sorted(mix_file.parent.rglob("*"))
    findings = check_data(mix_file)
    assert all(finding.ok for finding in findings), findings
    assert _one(findings, "vlguard: 10 rows") and "no image shared" in findings[-2].title
    assert "illegal" in _one(findings, "the mix").detail and sorted(mix_file.parent.rglob("*")) == before


def test_every_source_of_a_mix_is_checked_for_itself(mix_file: Path) -> None:
    gone = {"gone": {"kind": "psa", "path": "gone.jsonl"}, "two": {"kind": "coco", "path": "pics"}}
    sources = {**yaml.safe_load(mix_file.read_text())["sources"], **gone}
    findings = check_data(_save_mix(mix_file.parent, labels={"vlguard": "drop"}, sources=sources))
    bad = [finding.title for finding in findings if not finding.ok]
    assert len(bad) == 3 and "pics" in bad[0] and "two" in bad[1] and "gone" in bad[2], bad


def test_leaking_and_short_mix_files_are_defects(mix_file: Path) -> None:
    _only_defect(check_data(_save_mix(mix_file.parent, counts={"privacy": 9})), "counts.privacy: 9 asked for, 3 found")
    downloads.vlguard(mix_file.parent / "vlguard", shared=1)
    _only_defect(check_data(_save_mix(mix_file.parent)), "1 images of the training pool are held out")
    downloads.vlguard(mix_file.parent / "vlguard")
    _only_defect(check_data(mix_file, against=[mix_file.parent / "pics"]), "3 images of the training pool")


def test_made_mix_is_checked_as_records_and_by_digest(mix_file: Path) -> None:
    out = mix_file.parent / "out"
    mix_build.build(mix_file, out)
    findings = check_data(out)
    assert all(finding.ok for finding in findings), findings
    assert "stage1.jsonl, stage2.jsonl: 18 records, 9 images" in _one(findings, "18 records").title
    stage = out / "stage1.jsonl"
    stage.write_text(stage.read_text().replace("blorp 0", "blorp 9"), encoding="utf-8")
    _only_defect(check_data(out), "files are those that mix.json names", "stage1.jsonl: changed")


def test_mix_with_its_own_taxonomy_is_checked_with_it(mix_file: Path) -> None:
    table = DEFAULT.to_dict()
    table["categories"] = [{"name": "blorps", "topic": "blorps"}, {"name": CLEAN}]
    own = downloads.save(mix_file.parent / "own.yaml", yaml.safe_dump(table))
    label = {"category": "blorps", "level": "careful"}
    file = _save_mix(mix_file.parent, taxonomy=str(own), labels={"vlguard": label, "pics": label})
    mix_build.build(file, mix_file.parent / "out")
    assert all(finding.ok for finding in check_data(mix_file.parent / "out"))


def test_folder_that_is_no_mix_is_a_defect(tmp_path: Path) -> None:
    _only_defect(check_data(tmp_path), "neither a record file nor a mix", str(tmp_path))
    downloads.save(tmp_path / "mix.json", json.dumps([]))
    _only_defect(check_data(tmp_path), "not the report of a mix")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"files": []}, "files"),
        ({"files": {"stage1.jsonl": 1}}, "files.stage1.jsonl"),
        ({"files": {"stage1.jsonl": {}}}, "files.stage1.jsonl"),
        ({"categories": None}, "categories"),
        ({"stages": {"stage1": {"rows": "many", "head_only": 0, "levels": {}}}}, "stages.stage1.rows"),
        ({"held_out": {"other": {"images": {}}}}, "held_out.other.images"),
    ],
)
def test_a_report_of_a_mix_that_somebody_spoiled_is_one_line_with_its_key(
    mix_file: Path, change: dict[str, Any], place: str
) -> None:
    out = mix_file.parent / "out"
    mix_build.build(mix_file, out)
    file = out / mix_build.REPORT
    downloads.save(file, json.dumps(json.loads(file.read_text(encoding="utf-8")) | change))
    _only_defect(check_data(out), f"{file}: {place}")


# what is no training data, and folders


TAXONOMY_YAML = yaml.safe_dump(DEFAULT.to_dict())
OTHERS: dict[str, tuple[str, str, bool, str]] = {
    "policy": ("policy.yaml", "levels: {careful: hint}\nthresholds: {privacy: 0.5}\n", True, "a policy"),
    "broken policy": ("policy.yaml", "levels: {carefl: hint}\n", False, "carefl"),
    "taxonomy": ("own.yaml", TAXONOMY_YAML, True, "a taxonomy"),
    "concepts": ("concepts.yaml", "concepts: [{name: gun}]\n", False, "safevlm embed"),
    "suite": ("suite.yaml", "name: a\nfile: q.jsonl\njudge: refusal\n", False, "a suite"),
    "replies": ("replies.jsonl", '{"id": "1", "suite": "s", "request": {}, "reply": "a"}\n', False, "eval judge"),
    "scores": ("scores.jsonl", '{"id": "1", "judge": "j", "value": 1, "label": "x"}\n', False, "eval report"),
    "published pairs": ("st.json", '[{"pic_path": "a", "input": "q", "type": "SA set"}]', False, "safevlm pair"),
    "vlguard": ("train.json", '[{"id": "1", "instr-resp": []}]', False, "kind vlguard"),
    "report of a mix": ("mix.json", '{"schema": 1, "mix": "m", "sources": {}, "stages": {}}', False, "report of a mix"),
    "csv": ("xstest.csv", "id,prompt\n1,q\n", False, "a table (CSV)"),
    "bank": ("bank.safetensors", "no bank", False, "not a concept bank"),
    "other rows": ("x.jsonl", '{"text": "a", "n": 1}\n', False, "rows of ['n', 'text']"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_holds_no_records_says_what_it_is_and_nothing_else(tmp_path: Path, kind: str) -> None:
    name, text, is_ok, told = OTHERS[kind]
    (finding,) = check_data(downloads.save(tmp_path / name, text))
    assert finding.ok == is_ok and told in finding.title and name in finding.title


@pytest.mark.parametrize("kind", ["policy", "taxonomy", "suite", "concepts"])
def test_yaml_of_ours_is_not_taken_for_a_recipe(tmp_path: Path, kind: str) -> None:
    name, text, _, _ = OTHERS[kind]
    assert kind_of(downloads.save(tmp_path / name, text)) == "data"


def test_a_pair_file_is_told_by_its_parts(file: Path) -> None:
    parts = ["malicious"] * 4 + ["benign"] * 8
    downloads.jsonl(file, [{**row, "part": part} for row, part in zip(_rows(), parts, strict=True)])
    assert "pairs of security tensors: malicious 4, benign 8" in check_data(file)[0].title


def test_a_folder_of_record_files_is_checked_file_by_file(file: Path) -> None:
    downloads.jsonl(file.with_name("more.jsonl"), _rows()[:1])
    downloads.jsonl(file.with_name("replies.jsonl"), [{"suite": "s", "request": {}, "reply": "a"}])
    findings = check_data(file.parent)
    assert all(finding.ok for finding in findings) and kind_of(file.parent) == "data"
    assert "more.jsonl, train.jsonl" in findings[0].title and "13 records" in findings[1].title
    file.write_text("{", encoding="utf-8")
    _only_defect(check_data(file.parent), "well-formed", f"{file}:1")


def test_a_folder_of_images_is_counted_and_read(tmp_path: Path) -> None:
    downloads.folders(tmp_path, blorp=3, florp=2)
    findings = check_data(tmp_path)
    assert all(finding.ok for finding in findings) and kind_of(tmp_path) == "data"
    assert "5 images and no records" in findings[0].title and findings[0].detail == "blorp: 3\nflorp: 2"
    (tmp_path / "blorp/0.png").write_bytes(b"")
    _only_defect(check_data(tmp_path), "all images can be read", "0.png")


LAYOUTS = {"vlguard": (downloads.vlguard, ["train", "test"]), "rtvlm": (downloads.rtvlm, ["all"])}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("below", ["", "data"])
def test_a_published_data_set_is_known_by_its_folder_and_checked(tmp_path: Path, kind: str, below: str) -> None:
    write, splits = LAYOUTS[kind]
    write(tmp_path / (below if kind == "vlguard" else ""))
    assert kind_of(tmp_path) == "data"
    findings = check_data(tmp_path)
    assert f"(kind {kind} of a mix): {', '.join(splits)}" in findings[0].title
    bad = [finding.title for finding in findings if not finding.ok]
    assert len(bad) == len(splits) and all("partial: allow" in title for title in bad), "the small copies are too small"


def test_images_that_a_published_data_set_lacks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlguard, "PUBLISHED", {"train": PublishedCount(8), "test": PublishedCount(4)})
    downloads.vlguard(tmp_path, packed=False)
    assert all(finding.ok for finding in check_data(tmp_path))
    (tmp_path / "train/HOD/0.png").unlink()
    _only_defect(check_data(tmp_path), "vlguard train: every image is in the download", "HOD/0.png")
