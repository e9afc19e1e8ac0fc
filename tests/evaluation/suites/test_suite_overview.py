"""`safevlm eval suites`: everything is listed, with or without its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.evaluation.suites import SUITES
from safevlm.evaluation.suites.overview import standings
from tests.evaluation.command import main
from tests.evaluation.suites.benchmark_downloads import DOWNLOADS, mm_safetybench_parquet, vlsbench, write
from tests.evaluation.world_of_runs import write_suite


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["suites", *arguments])
    return code, capsys.readouterr().out


def test_every_suite_is_listed_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = listed(capsys)
    assert code == 0
    for name, suite in SUITES.items():
        assert name in out and suite.licence in out and suite.source in out and suite.download in out


def test_what_is_there_is_counted_and_the_rest_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("xstest", tmp_path / "xstest")
    write_suite(tmp_path / "miniature")
    code, out = listed(capsys, "--data", str(tmp_path))
    rows = {line.split()[0]: line.split() for line in out.split("\n\n")[0].splitlines()}
    assert code == 1, "fewer than published"
    assert rows["xstest"][1:3] == ["450", "2"] and rows["miniature"][2] == "18" and rows["vlguard"][2] == "absent"
    assert "xstest: safe: 1 rows found, 250 published; unsafe: 1 rows found, 200 published" in out
    assert "hf download ys-zong/VLGuard" in out


@pytest.mark.parametrize("suite", DOWNLOADS)
def test_the_listing_counts_what_the_suite_loads(tmp_path: Path, suite: str) -> None:
    rows = DOWNLOADS[suite][1]
    (one,) = standings(write(suite, tmp_path), [suite])
    further = 5 if suite == "rtvlm" else 0  # questions of rows that count once
    assert one.found == sum(rows.values()) - further and {count.part for count in one.counts} >= set(rows)


def test_the_folder_of_one_suite_makes_the_others_absent(tmp_path: Path) -> None:
    mm_safetybench_parquet(tmp_path)
    (tmp_path / "data/Illegal_Activitiy/SD.parquet").rename(tmp_path / "data/SD.parquet")
    assert {one.suite.name for one in standings(tmp_path) if not one.absent} == set()


def test_missing_images_are_counted_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vlsbench(tmp_path, "imgs")
    (tmp_path / "imgs/0.png").unlink()
    code, out = listed(capsys, "--data", str(tmp_path), "--suite", "vlsbench")
    assert code == 1 and "vlsbench: 1 rows lack their image; vlsbench: 3 rows found, 2,241 published" in out


def test_listing_unpacks_nothing(tmp_path: Path) -> None:
    vlsbench(tmp_path / "vlsbench")
    write("vlguard", tmp_path / "vlguard")
    assert [one.found for one in standings(tmp_path, ["vlsbench", "vlguard"])] == [3, 5]
    assert not list(tmp_path.rglob(".safevlm"))


def test_a_broken_download_is_an_error_of_its_own_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("advbench", tmp_path / "advbench")
    write("siuo_gen", tmp_path / "siuo")
    (tmp_path / "siuo/siuo_gen.json").write_text("[{")
    code, out = listed(capsys, "--data", str(tmp_path))
    assert code == 1 and "siuo_gen: cannot be read: " in out and "siuo_gen.json:1: not JSON" in out
    assert "advbench: behaviors: 2 rows found, 520 published" in out


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites", "--data", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_note_that_a_reviewer_must_see_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("vlguard", tmp_path)
    assert "Never for a model trained on SafeVLM's published pool" in listed(capsys, "--data", str(tmp_path))[1]
