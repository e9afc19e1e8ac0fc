"""From replies to the report: judged without a model, shown without surprises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.metrics.rates import NO_RATE, rate
from safevlm.evaluation.report.chart import interval_chart
from safevlm.evaluation.report.gallery import choose, thumbnail
from safevlm.evaluation.report.page import report
from safevlm.evaluation.runs.ask import ask
from safevlm.evaluation.runs.files import SCORES, read_replies, write_rows
from safevlm.evaluation.runs.run import read_run
from safevlm.types import Request
from tests.evaluation.command import main
from tests.evaluation.world_of_runs import Parrot, helpful, refusing, write_suite

ROOT = Path(__file__).resolve().parents[2]
FORGED = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def forging(request: Request) -> str:
    return FORGED


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    data = write_suite(tmp_path / "data", per_group=4)
    folders = {}
    for name, say, source in (("none", helpful, ""), ("a+b", refusing, "safety-head"), ("forged", forging, "")):
        folders[name] = tmp_path / f"run-{len(folders)}"
        ask("miniature", data, "checkpoints/m", name, folders[name], engine=Parrot(say, source=source))
        judge(folders[name])
    return folders


def test_summary_has_the_promised_shape_and_numbers(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text('{"total": 12.5, "stage1": 3}')
    report(runs, tmp_path / "out", head="a+b", seconds=tmp_path / "seconds.json")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["schema"] == 1
    assert summary["seconds"] == {"total": 12.5, "stage1": 3}
    rows = summary["suites"]["miniature"]
    assert list(rows) == ["none", "a+b", "forged"]
    for row in rows.values():
        for metric in ("asr", "asr_unseen", "asr_typographic", "asr_text", "over_refusal", "utility", "latency_ratio"):
            assert set(row[metric]) == {"value", "n", "low", "high", "unscored", "bounds"}
    assert (rows["none"]["asr"]["value"], rows["none"]["utility"]["value"]) == (1.0, 1.0)
    assert (rows["a+b"]["asr"]["value"], rows["a+b"]["over_refusal"]["value"]) == (0.0, 1.0)
    assert rows["forged"]["asr"] == {
        "value": None,
        "n": 0,
        "low": None,
        "high": None,
        "unscored": 4,
        "bounds": [0.0, 1.0],
    }
    assert rows["none"]["groups"]["lookalike"]["labels"] == {"right": 4}
    head = summary["head"]
    assert (head["n"], head["row"]) == (12, "a+b")
    assert head["sets"]["benign"]["level_from_category"]["value"] == 1.0
    assert 0 <= head["category_accuracy"] <= 1


def test_forged_html_in_a_reply_is_escaped(runs: dict[str, Path], tmp_path: Path) -> None:
    report(runs, tmp_path / "out", title="<b>t</b>")
    page = (tmp_path / "out" / "report.html").read_text()
    assert FORGED not in page and "&lt;script&gt;alert(1)" in page
    assert "<img src=x" not in page and "<b>t</b>" not in page
    assert page.count("<script>") == 1 == page.count("</script>")


def test_the_page_is_one_file_and_asks_the_network_for_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    report(runs, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"@import|url\((?!#)|https?://", page)


def test_harmful_replies_are_folded_and_harmful_images_veiled(runs: dict[str, Path], tmp_path: Path) -> None:
    report({"none": runs["none"]}, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<details>") == 16, "4 groups of 4 harmful replies"
    assert page.count('class="veil"') == 12, "one of the harmful groups has no images"


def test_scores_of_other_replies_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    write_rows(runs["none"] / "replies.jsonl", read_replies(runs["none"])[:-1])
    with pytest.raises(ValueError, match=r"scores\.jsonl: .*judge again"):
        report(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_detector_has_no_head(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--head none: no detector spoke"):
        report(runs, tmp_path / "out", head="none")
    with pytest.raises(ValueError, match="--head: no run is named 'nobody'"):
        report(runs, tmp_path / "out", head="nobody")


def test_a_run_of_a_part_of_the_suite_says_so_on_the_page(tmp_path: Path) -> None:
    data = write_suite(tmp_path / "data", per_group=4)
    for name, limit in (("part", 6), ("whole", None)):
        ask("miniature", data, "checkpoints/m", "none", tmp_path / name, limit=limit, engine=Parrot(helpful))
        judge(tmp_path / name)
        report({name: tmp_path / name}, tmp_path / f"report-{name}")
    pages = {name: (tmp_path / f"report-{name}" / "report.html").read_text() for name in ("part", "whole")}
    whole = read_run("whole", tmp_path / "whole").record["n"]
    assert f"6 of {whole} requests" in pages["part"] and f"of {whole} requests" not in pages["whole"]


def test_a_rare_outcome_is_shown_first(runs: dict[str, Path]) -> None:
    rows = [json.loads(line) for line in (runs["none"] / SCORES).read_text().splitlines()]
    rows[2] |= {"label": "refused", "value": 0.0}
    write_rows(runs["none"] / SCORES, rows)
    assert choose([read_run("none", runs["none"])], "harmful_seen", 1) == ["harmful_seen-2"]


def test_an_image_that_is_gone_does_not_stop_the_report(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "data" / "p.png").unlink()
    report(runs, tmp_path / "out")
    assert "image not found" in (tmp_path / "out" / "report.html").read_text()
    assert thumbnail(tmp_path / "nothing.png") == ""


def test_a_chart_escapes_names_and_tells_missing_values() -> None:
    svg = interval_chart("t", {"<x>": rate([True, False]), "empty": NO_RATE}, "#000")
    assert "<x>" not in svg and "&lt;x&gt;" in svg
    assert "no data" in svg


def test_judge_and_report_never_import_torch(runs: dict[str, Path], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from tests.evaluation.command import main\n"
        f"assert main(['judge', '--out', {str(runs['none'])!r}]) == 0\n"
        f"assert main(['report', '--run', {'none=' + str(runs['none'])!r}, '--out', {str(tmp_path / 'out')!r}]) == 0\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge", "--out", "nowhere"], "replies.jsonl is missing"),
        (["report", "--run", "a", "--out", "x"], "'a' is not NAME=DIR"),
        (["report", "--run", "a=nowhere", "--out", "x"], "run.json is missing"),
        (["ask", "--data", "nowhere", "--model", "m", "--out", "x"], "eval.jsonl is missing"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


def test_findings_are_exit_code_1(runs: dict[str, Path], tmp_path: Path) -> None:
    assert main(["judge", "--out", str(runs["forged"])]) == 1, "nothing could be scored"
    record = json.loads((runs["none"] / "run.json").read_text())
    (runs["none"] / "run.json").write_text(json.dumps(record | {"n": 25}))
    assert main(["report", "--run", f"none={runs['none']}", "--out", str(tmp_path / "out")]) == 1, "unfinished"
    assert "24 of 25 replies" in (tmp_path / "out" / "report.html").read_text()
