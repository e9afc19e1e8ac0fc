"""What holds for every suite: rows, sides, ids, images, counts, and what is said when something is not there."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.data.images import open_image
from safevlm.data.sources.images import EXTENSIONS
from safevlm.evaluation.suites import SUITES, AbsentError, folder_of, load_suite, overview, suite_of
from safevlm.evaluation.suites.suite import TOTAL
from safevlm.taxonomy import DEFAULT
from tests.data.downloads import parquet, png, zipped
from tests.evaluation.suites import benchmark_downloads
from tests.evaluation.suites.benchmark_downloads import DOWNLOADS, mm_safetybench_parquet, tarred, vlsbench, write

TEXT_ONLY = {"xstest", "advbench"}
TEXT_GROUPS = {"pro_control"}


@pytest.fixture(params=DOWNLOADS)
def suite(request: pytest.FixtureRequest) -> str:
    return request.param


def pixels(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_every_suite_has_a_download_here() -> None:
    assert set(SUITES) - set(DOWNLOADS) == {"miniature", "pictograms", "rtvlm_test"}, "rtvlm_test: test_suite_rtvlm.py"


def test_rows_groups_and_texts_are_those_of_the_download(tmp_path: Path, suite: str) -> None:
    samples = load_suite(suite, write(suite, tmp_path), partial=True)
    assert Counter(sample.group for sample in samples) == DOWNLOADS[suite][1]
    for sample in samples:
        assert sample.suite == suite
        assert sample.request.text.strip(), sample
        assert sample.expected["question"].strip() and sample.expected["prompt_is"] in ("official", "ours", "user")
        assert not {"category", "level"} & set(sample.expected), "the reply's row has these from the sample itself"
        assert "<image>" not in sample.request.text, "the prompt builder puts the slots"
        json.dumps(dict(sample.expected))


def test_sides_and_levels_agree(tmp_path: Path, suite: str) -> None:
    for sample in load_suite(suite, write(suite, tmp_path), partial=True):
        side = SUITES[suite].side_of(sample.group)
        assert sample.category in DEFAULT.category_names and sample.level in DEFAULT.level_names, sample
        if side != "scored":
            assert sample.is_harmful == (side == "harmful"), sample
        assert sample.is_harmful == (sample.category != "clean"), sample


def test_ids_are_unique_and_stable(tmp_path: Path, suite: str) -> None:
    one, two = (load_suite(suite, write(suite, tmp_path / name), partial=True) for name in "ab")
    ids = [sample.request.id for sample in one]
    assert len(set(ids)) == len(ids)
    assert ids == [sample.request.id for sample in two]
    names = [[Path(image).name for sample in side for image in sample.request.images] for side in (one, two)]
    assert names[0] == names[1], "a run's digest has the images' names, and data may move"


def test_images_are_files_below_the_data(tmp_path: Path, suite: str) -> None:
    data = write(suite, tmp_path)
    for sample in load_suite(suite, data, partial=True):
        assert bool(sample.request.images) == (suite not in TEXT_ONLY and sample.group not in TEXT_GROUPS)
        for image in sample.request.images:
            assert Path(image).is_relative_to(data) and open_image(image).size == (8, 8)


def test_loading_twice_unpacks_once(tmp_path: Path, suite: str) -> None:
    data = write(suite, tmp_path)
    first = load_suite(suite, data, partial=True)
    written = {file: file.stat().st_mtime_ns for file in data.rglob("*") if file.is_file()}
    assert load_suite(suite, data, partial=True) == first
    assert written == {file: file.stat().st_mtime_ns for file in data.rglob("*") if file.is_file()}


def test_fewer_rows_than_published_are_an_error_with_both_numbers(tmp_path: Path, suite: str, caplog) -> None:  # noqa: ANN001
    published = SUITES[suite].published
    if not published:
        pytest.skip("no published number")
    data = write(suite, tmp_path)
    if SUITES[suite].is_sure:
        with pytest.raises(ValueError, match=rf"{suite}.*rows found, {max(published.values()):,} published.*--partial"):
            load_suite(suite, data)
    with caplog.at_level(logging.WARNING):
        assert load_suite(suite, data, partial=True)
    assert f"{max(published.values()):,} published" in caplog.text


def test_a_missing_image_is_reported_never_skipped_silently(tmp_path: Path, caplog) -> None:  # noqa: ANN001
    vlsbench(tmp_path, images="imgs")
    (tmp_path / "imgs/1.png").unlink()
    suite = SUITES["vlsbench"]
    assert len(suite.load(tmp_path)) == 3
    with caplog.at_level(logging.WARNING):
        assert [sample.request.id for sample in load_suite("vlsbench", tmp_path, partial=True)] == ["0", "2"]
    assert "1 of 3 rows lack their image: 1 (imgs/1.png)" in caplog.text


def test_a_missing_image_is_an_error_when_all_rows_are_there(tmp_path: Path) -> None:
    vlsbench(tmp_path, images="imgs")
    rows = json.loads((tmp_path / "data.json").read_text())
    many = [rows[0] | {"instruction_id": number} for number in range(2241)]
    many[7]["image_path"] = "imgs/gone.png"
    (tmp_path / "data.json").write_text(json.dumps(many))
    with pytest.raises(ValueError, match=r"1 of 2241 rows lack their image: 7 \(imgs/gone.png\).*--partial"):
        load_suite("vlsbench", tmp_path)


def _vlsbench_with(tmp_path: Path, **broken: object) -> Path:
    """2,241 rows as published, of which number 7 is broken."""
    vlsbench(tmp_path, images="imgs")
    rows = json.loads((tmp_path / "data.json").read_text())
    many = [rows[0] | {"instruction_id": number} for number in range(2241)]
    many[7] |= broken
    (tmp_path / "data.json").write_text(json.dumps(many))
    return tmp_path


@pytest.mark.parametrize("broken", [{"instruction": ""}, {"category": 5}, {"image_path": None}])
def test_one_row_that_cannot_be_used_is_counted_named_and_left_out(
    tmp_path: Path, broken: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    data = _vlsbench_with(tmp_path, **broken)
    with pytest.raises(ValueError, match=rf"1 of 2241 rows cannot be used: .*data\.json\[7\]: .*{next(iter(broken))}"):
        load_suite("vlsbench", data)
    with caplog.at_level(logging.WARNING):
        samples = load_suite("vlsbench", data, partial=True)
    assert len(samples) == 2240 and "7" not in {sample.request.id for sample in samples}
    assert "data.json[7]" in caplog.text
    told = "\n".join(overview.lines(overview.standings(data, ["vlsbench"])))
    assert "2,240 rows found" in told and "data.json[7]" in told


def test_no_images_at_all_are_told_like_some_and_with_the_way_to_get_them(tmp_path: Path) -> None:
    data = _vlsbench_with(tmp_path)
    shutil.rmtree(data / "imgs")
    with pytest.raises(ValueError, match=r"2241 of 2241 rows lack their image: 0 \(imgs/0.png\)") as error:
        load_suite("vlsbench", data)
    assert SUITES["vlsbench"].download in str(error.value) and "--partial" in str(error.value)


@pytest.mark.parametrize("name", sorted(set(DOWNLOADS) - TEXT_ONLY - {"spa_vl", "risk_sets"}))
def test_a_download_without_any_image_is_told_with_the_way_to_get_it(tmp_path: Path, name: str) -> None:
    """Where images are kept apart from the questions."""
    data = write(name, tmp_path)
    for file in [file for file in data.rglob("*") if file.suffix in {*EXTENSIONS, ".zip", ".tar"}]:
        file.unlink()
    for folder in sorted((place for place in data.rglob("*") if place.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    with pytest.raises((ValueError, AbsentError)) as error:
        load_suite(name, data)
    assert SUITES[name].download in str(error.value)
    assert isinstance(error.value, AbsentError) or "--partial" in str(error.value)


@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": "0.png"}, {"bytes": b"", "path": None}], ids=str)
@pytest.mark.parametrize("name", ["spa_vl", "vlsbench", "holisafe", "mm_safetybench"])
def test_a_row_of_parquet_without_image_bytes_costs_itself_alone(
    tmp_path: Path, name: str, empty: object, caplog: pytest.LogCaptureFixture
) -> None:
    """The first load unpacks, the second finds what was unpacked."""
    question = {"question": "And this?", "class1": "Blorp", "class2": "Florp", "class3": "Small"}
    question |= {"instruction": "Fold it", "category": "Blorp", "query": "Fold it", "type": "SSS"}
    rows = [
        question | {"id": str(n), "instruction_id": str(n), "image": benchmark_downloads.cell(n) if n else empty}
        for n in range(3)
    ]
    files = {
        "spa_vl": ("test/harm-0.parquet", "test/help-0.parquet"),
        "mm_safetybench": tuple(f"data/Legal/{variant}.parquet" for variant in ("SD", "TYPO", "SD_TYPO")),
    }.get(name, ("data/0.parquet",))
    for file in files:
        parquet(tmp_path / file, rows)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{len(files)} of {3 * len(files)} rows lack their image: .*--partial"):
            load_suite(name, tmp_path)
        with caplog.at_level(logging.WARNING):
            samples = load_suite(name, tmp_path, partial=True)
        assert len(samples) == 2 * len(files) and all(len(sample.request.images) == 1 for sample in samples)
        assert f"{files[0]}:0" in caplog.text
        for sample in samples:
            number = int(sample.request.id.rpartition("/")[2].rpartition("-")[2])
            assert Path(sample.request.images[0]).read_bytes() == png(number)


ROWS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "mssbench": ("combined.json", lambda table: table["embodied"][0]["safe_instructions"].append("And?")),
    "siuo_gen": ("siuo_gen.json", lambda table: table[0].update(question=" ")),
    "siuo_mcq": ("siuo_mcqa.json", lambda table: table[0].update(correct_option="E")),
    "holisafe": ("holisafe_bench.json", lambda table: table[0].update(type="?")),
    "mossbench": ("data/images_information/information.json", lambda table: table["1"].update(question=None)),
    "mm_safetybench": (
        "data/processed_questions/01-Illegal_Activitiy.json",
        lambda table: table["0"].pop("Rephrased Question(SD)"),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_broken_row_of_a_json_table_costs_that_row_alone(tmp_path: Path, name: str) -> None:
    data = write(name, tmp_path)
    whole = load_suite(name, data, partial=True)
    file, breaks = ROWS[name]
    table = json.loads((data / file).read_text())
    breaks(table)
    (data / file).write_text(json.dumps(table))
    left = load_suite(name, data, partial=True)
    assert 0 < len(whole) - len(left) <= 2 and {one.request.id for one in left} < {one.request.id for one in whole}
    with pytest.raises(ValueError, match=rf"cannot be used: .*{Path(file).name}"):
        load_suite(name, data)


BROKEN_ROWS: tuple[object, ...] = (None, "?", 5, {})
BROKEN_CELLS: tuple[object, ...] = (None, 5, ["x"])
TABLES = (".json", ".jsonl", ".csv")
NO_ROWS = ("TinyVersion_ID_List.json", "benign_sentences_without_harmful_phase.csv")
"""Lists that tell which rows there are, or that stand beside another table line by line."""


def _broken_tables(file: Path) -> Iterator[str]:
    """The table with its first row broken, in one way after the other."""
    text = file.read_text()
    if file.suffix == ".csv":
        head, first, *rest = text.splitlines()
        yield from ("\n".join([head, broken, *rest, ""]) for broken in (f"{first},more", "x", "," * head.count(",")))
        return
    many = [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
    place, key = _first_row(many)
    row = place[key]
    cells = [{**row, name: broken} for name in row for broken in BROKEN_CELLS]
    gone = [{other: row[other] for other in row if other != name} for name in row]
    for broken in (*BROKEN_ROWS, *cells, *gone):
        place[key] = broken
        yield "".join(json.dumps(one) + "\n" for one in many) if file.suffix == ".jsonl" else json.dumps(many)


def _first_row(table: Any) -> tuple[Any, Any]:
    """Where the first row of a table stands: of a list, of an object of rows, or of an object of lists."""
    if isinstance(table, list):
        return table, 0
    key = next(iter(table))
    return (table[key], 0) if isinstance(table[key], list) else (table, key)


def test_a_row_that_is_broken_in_any_way_costs_itself_alone(tmp_path: Path, suite: str) -> None:
    data = write(suite, tmp_path)
    whole = {sample.request.id for sample in load_suite(suite, data, partial=True)}
    files = [file for file in sorted(data.rglob("*")) if file.suffix in TABLES and file.name not in NO_ROWS]
    for file in files[:2]:  # RTVLM has twelve, which one reader reads
        content = file.read_bytes()
        for broken in _broken_tables(file):
            file.write_text(broken)
            try:
                left = {sample.request.id for sample in load_suite(suite, data, partial=True)}
            except ValueError as error:
                assert "has no samples" in str(error) and suite == "mossbench_contrast", f"{broken[:300]}: {error}"
                continue
            assert len(left) >= len(whole) / 2 - 1, f"{suite}: other rows are gone too: {broken[:300]}"
        file.write_bytes(content)


@pytest.mark.parametrize(("name", "table"), [("vlguard", "test.json"), ("advbench", "harmful_behaviors.csv")])
def test_a_broken_row_is_named_and_needs_partial(tmp_path: Path, name: str, table: str) -> None:
    data = write(name, tmp_path)
    (data / table).write_text(next(_broken_tables(data / table)))
    with pytest.raises(ValueError, match=rf"1 of \d+ rows cannot be used: .*{table}.*--partial"):
        load_suite(name, data)


@pytest.mark.parametrize("column", ["image_path", "jailbreak_query"])
def test_an_empty_cell_of_jailbreakv_costs_that_row_alone(tmp_path: Path, column: str) -> None:
    data = write("jailbreakv", tmp_path)
    file = data / "JailBreakV_28K" / "JailBreakV_28K.csv"
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    rows[1][column] = ""
    benchmark_downloads.table(file, rows)
    assert [one.request.id for one in load_suite("jailbreakv", data, partial=True)] == ["0", "2", "3"]


def test_parquet_copies_of_text_suites_are_the_same_questions(tmp_path: Path) -> None:
    xstest, advbench = write("xstest", tmp_path / "a"), write("advbench", tmp_path / "b")
    with (xstest / "xstest_prompts.csv").open(newline="") as opened:
        prompts = [{name: cell for name, cell in row.items() if name != "id"} for row in csv.DictReader(opened)]
    with (advbench / "harmful_behaviors.csv").open(newline="") as opened:
        goals = [{"prompt": row["goal"], "target": row["target"]} for row in csv.DictReader(opened)]
    parquet(tmp_path / "c/data/test-00000-of-00001.parquet", prompts)
    parquet(tmp_path / "d/data/train-00000-of-00001.parquet", goals)
    for name, one, other in (("xstest", xstest, tmp_path / "c"), ("advbench", advbench, tmp_path / "d")):
        assert load_suite(name, one, partial=True) == load_suite(name, other, partial=True)


def test_figstep_pro_sends_three_images_and_its_control_none(tmp_path: Path) -> None:
    data = write("figstep_pro", tmp_path)
    samples = load_suite("figstep_pro", data, partial=True)
    harmful, control = samples[0], samples[1]
    sent = [Path(image).read_bytes() for image in harmful.request.images]
    assert sent == [png(f"pro1{piece}") for piece in (1, 2, 3)]
    assert harmful.request.text == control.request.text == f"Steps to *.\n{benchmark_downloads.FIGSTEP_PRO_TEXT}"
    assert harmful.expected["prompt_is"] == "official" and not control.request.images and not control.is_harmful


def test_figstep_pro_guesses_no_images(tmp_path: Path) -> None:
    data = write("figstep_pro", tmp_path)
    zipped(data / "data/images/FigStep-Pro/sub-figures.zip", {f"x/{n}.png": png(n) for n in range(5)})
    with pytest.raises(ValueError, match="5 images for 2 questions"):
        load_suite("figstep_pro", data, partial=True)


def test_missing_data_is_absent_with_the_way_to_get_it(tmp_path: Path, suite: str) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AbsentError) as error:
            load_suite(suite, folder)
        assert SUITES[suite].download in str(error.value) and SUITES[suite].layout in str(error.value)


@pytest.mark.parametrize("images", ["imgs", "imgs.zip", "imgs.tar"])
def test_the_image_of_a_row_is_that_rows_image(tmp_path: Path, images: str) -> None:
    vlsbench(tmp_path, images)
    for number, sample in enumerate(load_suite("vlsbench", tmp_path, partial=True)):
        assert pixels(Path(sample.request.images[0]).read_bytes()) == pixels(png(f"vls{number}"))


def test_parquet_images_are_those_of_their_row(tmp_path: Path) -> None:
    mm_safetybench_parquet(tmp_path)
    samples = load_suite("mm_safetybench", tmp_path, partial=True)
    assert Counter(sample.group for sample in samples) == {"SD": 2, "TYPO": 2, "SD_TYPO": 2}
    for sample in samples:
        variant, _, number = sample.request.id.split("/")
        assert Path(sample.request.images[0]).read_bytes() == png(f"{variant}{number}")
        assert sample.request.text == f"Fold this {variant}"
        assert sample.expected["question"] == "How do I fold a paper boat?", "judged is the text-only question"


def test_a_changed_archive_is_unpacked_anew(tmp_path: Path) -> None:
    vlsbench(tmp_path, "imgs.zip")
    before = load_suite("vlsbench", tmp_path, partial=True)[0].request.images[0]
    zipped(tmp_path / "imgs.zip", {f"imgs/{number}.png": png(f"other{number}") for number in range(3)})
    after = load_suite("vlsbench", tmp_path, partial=True)[0].request.images[0]
    assert before != after and Path(before).name == Path(after).name, "a run's digest has the name"
    assert Path(after).read_bytes() == png("other0")


def test_a_broken_image_in_an_archive_is_named(tmp_path: Path) -> None:
    vlsbench(tmp_path, "imgs.zip")
    zipped(tmp_path / "imgs.zip", {f"imgs/{number}.png": b"no image" for number in range(3)})
    with pytest.raises(ValueError, match=r"imgs\.zip:imgs/\d\.png: not an image"):
        load_suite("vlsbench", tmp_path, partial=True)


def test_nothing_is_written_under_a_name_that_an_archive_brings(tmp_path: Path) -> None:
    data = tmp_path / "data"
    vlsbench(data, "imgs")
    tarred(data / "imgs.tar", {f"../../{number}.png": png(number) for number in range(3)})
    for file in (data / "imgs").iterdir():
        file.unlink()
    (data / "imgs").rmdir()
    assert len(load_suite("vlsbench", data, partial=True)) == 3
    assert not list(tmp_path.glob("*.png"))


def test_a_suite_is_found_in_a_folder_of_suites_under_its_downloads_name(tmp_path: Path) -> None:
    write("vlguard", tmp_path / "VLGuard")
    write("holisafe", tmp_path / "holisafe-bench")
    assert folder_of(SUITES["vlguard"], tmp_path) == tmp_path / "VLGuard"
    assert len(load_suite("holisafe", tmp_path, partial=True)) == 5
    assert folder_of(SUITES["xstest"], tmp_path) == tmp_path


def test_an_id_that_a_benchmark_uses_twice_stays_apart(tmp_path: Path) -> None:
    vlsbench(tmp_path, "imgs")
    rows = json.loads((tmp_path / "data.json").read_text())
    rows[2]["instruction_id"] = rows[0]["instruction_id"]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    assert [one.request.id for one in load_suite("vlsbench", tmp_path, partial=True)] == ["0", "1", "0~2"]


def test_groups_are_local_to_their_suite() -> None:
    assert SUITES["xstest"].side_of("safe") == "benign" and SUITES["rtvlm"].side_of("face") == "scored"
    assert SUITES["mssbench"].groups_on("benign") == ("chat_safe", "embodied_safe")
    assert SUITES["holisafe"].in_order(["SUU", "SSS"]) == ["SSS", "SUU"]
    with pytest.raises(ValueError, match="unknown group 'benign'; one of"):
        SUITES["xstest"].check_group("benign", "x")
    with pytest.raises(ValueError, match="unknown 'nothing'; one of"):
        suite_of("nothing")


def test_every_published_part_is_a_group_of_its_suite() -> None:
    for name, suite in SUITES.items():
        assert set(suite.published) <= {*suite.groups, TOTAL}, name
        assert suite.name == name and suite.folder and suite.layout and suite.download and suite.licence, name


def test_every_default_judge_exists() -> None:
    from safevlm.evaluation.judges import JUDGES

    assert {suite.judge for suite in SUITES.values()} <= set(JUDGES)


def test_knowing_the_suites_loads_no_torch() -> None:
    code = "import sys, safevlm.evaluation.suites.overview; from safevlm.evaluation.suites import SUITES; "
    code += "SUITES['rtvlm'].side_of('face'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
