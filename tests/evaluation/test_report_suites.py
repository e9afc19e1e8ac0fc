"""A report of several suites and judges: unlike numbers stay apart, both sides stand together, published is marked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.judges.provenance import told
from safevlm.evaluation.metrics.rates import NO_RATE, Rate, rate
from safevlm.evaluation.report.chart import MOST_SERIES, grouped_chart
from safevlm.evaluation.report.gallery import LEAST_PER_GROUP, LONGEST, MOST_CARDS, cards, shown_of
from safevlm.evaluation.report.page import report
from safevlm.evaluation.report.section import plain_mean, sections_of
from safevlm.evaluation.report.table import escaped, latex, markdown, notes
from safevlm.evaluation.runs.files import SCORES, write_json
from safevlm.evaluation.runs.run import read_run
from safevlm.evaluation.suites import SUITES, suite_of
from safevlm.evaluation.suites.headline import AVERAGE
from tests.evaluation.command import main
from tests.evaluation.synthetic_runs import write_run

FORGED = "</script><script>alert(1)</script><img src=x onerror=alert(2)> http://example.org"


def section_of(*folders: Path):
    return sections_of([read_run(folder.name, folder) for folder in folders])[0]


def page_of(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def many(root: Path) -> list[tuple[str, Path]]:
    """Two rows of four suites."""
    return [
        (name, write_run(root / suite / name, suite, good=good, model=model, judge="" if model else "refusal"))
        for name, good in (("none", 0.3), ("safety-head", 0.9))
        for suite, model in (("rtvlm", "m"), ("figstep", ""), ("mossbench", "m"), ("holisafe", "m"))
    ]


def test_one_name_may_come_with_several_suites_and_not_twice_with_one(tmp_path: Path, capsys) -> None:
    runs = many(tmp_path)
    words = [word for name, folder in runs for word in ("--run", f"{name}={folder}")]
    assert main(["report", *words, "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["suites"]) == ["rtvlm", "figstep", "mossbench", "holisafe"]
    assert all(list(rows) == ["none", "safety-head"] for rows in summary["suites"].values())
    assert "none (rtvlm)" in summary["runs"]
    again = [*words, "--run", f"none={runs[0][1]}"]
    assert main(["report", *again, "--out", str(tmp_path / "out2")]) == 2
    assert "'none' is given twice for suite 'rtvlm'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other", [{"judge": "safety", "model": "m"}, {"judge": "safety", "model": "n"}, {"prompt": "f" * 16}]
)
def test_judgings_that_differ_never_share_a_column(other: dict[str, str], tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", "figstep", good=0.5, **({"judge": "safety", "model": "m"} | {"prompt": "0" * 16}))
    second = write_run(tmp_path / "b", "figstep", good=0.5, **({"judge": "safety", "model": "m"} | other))
    found = sections_of([read_run("a", first), read_run("b", second)])
    assert [[run.name for run in block.runs] for block in found] == [["a"], ["b"]]
    text = markdown(found)
    assert text.count("### figstep · judge") == 2


def test_a_side_that_a_suite_lacks_is_said_in_its_column(tmp_path: Path) -> None:
    report(many(tmp_path), tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    figstep, mossbench = (
        re.search(rf"### {name} .*?\n\n(.*?)\n\n", table, re.S)[1] for name in ("figstep", "mossbench")
    )
    assert figstep.count("no benign side") == 2 and "over-refusal ↓" in figstep
    assert mossbench.count("no harmful side") == 2 and "attack success ↓" in mossbench
    assert page_of(tmp_path / "out").count("no benign side") == 4, "in the overview and in the suite's table"


def test_every_suite_has_a_table_that_names_both_sides_or_scores(tmp_path: Path) -> None:
    for name in SUITES:
        judge = {"siuo": "siuo", "miniature": "refusal"}.get(SUITES[name].judge, SUITES[name].judge)
        block = section_of(write_run(tmp_path / name, name, good=0.5, per_group=2, judge=judge))
        sides = {group.side for group in suite_of(name).groups.values()}
        told = {column.name.removesuffix("_of_groups") for column in block.columns}
        assert sides == {"scored"} or ({"asr", "harm"} & told and {"over_refusal", "harmless", "preference"} & told)


def test_the_judge_and_its_failures_stand_beside_the_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "none", "rtvlm", good=0.5, model="gpt-x", unparsed=3)
    report({"none": run}, tmp_path / "out")
    for file in ("report.html", "table.md", "table.tex"):
        text = (tmp_path / "out" / file).read_text()
        assert "gpt-x" in text and "0123456789abcdef" in text and "saw the image" in text, file
        assert "3 unparsed" in text or ">3</td>" in text or file == "table.tex"
    row = json.loads((tmp_path / "out" / "summary.json").read_text())["suites"]["rtvlm"]["none"]
    assert row["judge"]["outcomes"]["unparsed"] == 3 and row["judge"]["model"] == "gpt-x"
    assert row["score"]["unscored"] == 3 and row["score"]["n"] == 197
    assert row["wordings"] == {"official": 200}


def test_refusal_rules_are_told_with_how_often_they_err(tmp_path: Path) -> None:
    run = write_run(tmp_path / "none", "figstep", good=0.5, judge="refusal")
    judge(run, "refusal")
    assert re.search(r"precision \d+ % \[\d+, \d+\] n \d+, recall ", told(section_of(run).judge))


def test_a_record_of_other_scores_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "none", "figstep", good=0.5, judge="refusal")
    scores = (run / SCORES).read_text().replace('"value": 1.0', '"value": 0.0')
    (run / SCORES).write_text(scores)
    with pytest.raises(ValueError, match=r"judge\.json: tells of other scores"):
        report({"none": run}, tmp_path / "out")


def test_published_scores_are_complete_and_their_averages_check_out() -> None:
    tables = [(suite, table) for suite in SUITES.ours.values() for table in suite.published_scores.values()]
    assert len(tables) == 3
    for suite, table in tables:
        groups = [name for name in table.columns if name != AVERAGE]
        assert groups == list(suite.groups)
        assert set(table.charted) <= set(table.rows)
        for name, values in table.rows.items():
            assert len(values) == len(table.columns)
            if AVERAGE in table.columns:
                assert sum(values[:-1]) / len(groups) == pytest.approx(values[-1], abs=0.011), name


def test_published_scores_stand_apart_and_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "none", "rtvlm", good=0.5, model="m")
    report({"none": run}, tmp_path / "out")
    page = page_of(tmp_path / "out")
    mark = "published, judged by GPT-4V, not measured here"
    assert page.count(mark) == 2, "above the rows, and in the chart's legend"
    assert page.index("measured here, judged by rtvlm@m") < page.index(f"{mark} (") < page.index(">Fuyu-8B<")
    assert "8.26" in page and "6.39" in page and "7.92" in page
    for file in ("table.md", "table.tex", "summary.json"):
        assert "GPT-4V" not in (tmp_path / "out" / file).read_text(), "published numbers are no results"


def test_scores_of_another_judge_have_no_published_neighbours(tmp_path: Path) -> None:
    report({"none": write_run(tmp_path / "none", "rtvlm", good=0.5, judge="pairs", model="m")}, tmp_path / "out")
    assert "GPT-4V" not in page_of(tmp_path / "out")


def test_the_mean_of_groups_does_not_depend_on_their_sizes() -> None:
    small, large = rate([True] * 2), rate([False] * 200)
    both = plain_mean([small, large])
    assert both.value == 0.5 and both.n == 202
    assert both.low < 0.5 - (1 - small.low) / 2.01 and both.high > 0.5
    assert plain_mean([small, NO_RATE]).value is None, "a group that is missing leaves no mean"
    assert plain_mean([Rate(0.4, 9, 0.3, 0.6)]) == pytest.approx(Rate(0.4, 9, 0.3, 0.6))


def test_forged_html_in_a_reply_is_escaped_in_every_suite(tmp_path: Path) -> None:
    runs = [
        (f"<i>{suite}", write_run(tmp_path / suite, suite, good=0.5, per_group=3, model="<b>m", reply=FORGED))
        for suite in ("rtvlm", "holisafe")
    ]
    report(runs, tmp_path / "out", title="<b>t</b>")
    page = page_of(tmp_path / "out")
    assert "<img src=x" not in page and "<b>" not in page and "<i>" not in page
    assert page.count("<script>") == 1 == page.count("</script>")
    assert "&lt;script&gt;alert(1)" in page


def test_a_page_of_many_suites_asks_the_network_for_nothing(tmp_path: Path) -> None:
    report(many(tmp_path), tmp_path / "out")
    page = page_of(tmp_path / "out")
    sources = re.findall(r'(?:src|href|action|data|poster|srcset)\s*=\s*["\']?([^"\'\s>]*)', page)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)
    assert not re.search(r"@import|url\((?!#)|https?://", page)
    assert "default-src 'none'" in page


def test_harmful_texts_are_folded_and_risky_images_veiled(tmp_path: Path) -> None:
    run = write_run(tmp_path / "none", "holisafe", good=0, per_group=2, model="m")
    found = cards([read_run("none", run)])
    assert {card.is_folded for card in found if card.group != "SSS"} == {True}
    assert {(card.is_folded, card.is_veiled) for card in found if card.group == "SSS"} == {(False, False)}
    assert all(
        answer.is_folded and answer.state == "failed"
        for card in found
        if card.group != "SSS"
        for answer in card.answers
    )
    unread = write_run(tmp_path / "unread", "figstep", good=1, per_group=2, model="m", unparsed=2)
    [answers] = {card.answers[0].state + str(card.answers[0].is_folded) for card in cards([read_run("x", unread)])}
    assert answers == "unknownTrue", "nobody has looked at it"
    scored = write_run(tmp_path / "scored", "risk_sets", good=1, per_group=1, model="m")
    assert all(card.is_veiled for card in cards([read_run("x", scored)]))


@pytest.mark.slow
def test_a_page_stays_small(tmp_path: Path) -> None:
    assert shown_of(6) == 12 and shown_of(60) == MOST_CARDS // 60 and shown_of(10_000) == LEAST_PER_GROUP
    run = write_run(tmp_path / "none", "rtvlm", good=0.5, per_group=300, model="m", reply="long " * 20_000)
    report({"none": run}, tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert len(page) < 120 * (LONGEST + 20_000)
    assert "At most 12 per group" in page and "(cut; 100,000 letters)" in page


def test_runs_that_do_not_compare_are_remarked(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", "figstep", good=0.5, judge="refusal", per_group=4)
    second = write_run(tmp_path / "b", "figstep", good=0.5, judge="refusal", per_group=5)
    record = json.loads((second / "run.json").read_text())
    write_json(second / "run.json", record | {"max_new_tokens": 512, "n": 9})
    summary = report({"a": first, "b": second}, tmp_path / "out")
    [remarks] = summary["remarks"].values()
    assert any("other questions" in one for one in remarks) and any("64, 512" in one for one in remarks)
    assert any("b: 5 of 9" in one for one in remarks)
    assert all(one in page_of(tmp_path / "out") for one in remarks)


def test_tables_for_latex_escape_what_latex_would_read(tmp_path: Path) -> None:
    assert escaped("50 % of_a & b\\c ↓") == r"50 \% of\_a \& b\textbackslash{}c $\downarrow$"
    run = write_run(tmp_path / "none", "holisafe", good=0.5, model="m")
    text = latex(sections_of([read_run("a_b & c", run)]))
    bodies = re.findall(r"begin.tabular..(l+).\n\\hline\n(.*?)\\hline\n\\end", text, re.S)
    assert bodies
    for columns, body in bodies:
        rows = body.replace("\\hline\n", "").rstrip().split("\n")
        assert {line.count(" & ") for line in rows} == {len(columns) - 1}, "as many cells in every row"
    assert r"a\_b \& c" in text and r"\%" in text
    assert not re.search(r"(?<!\\)[%_#]|[^\x00-\x7f]", text), "nothing that plain LaTeX would not set"


def test_tables_in_latex_carry_the_warnings_of_those_in_markdown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "none", "xstest", good=0.5, model="m")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"n_without_limit": record["n"] + 100, "partial": True}))
    found = sections_of([read_run("none", run)])
    plain, paper = markdown(found), latex(found)
    warnings = re.findall(r"^Beware: .*", plain, re.M)
    assert len(warnings) > 1, plain
    for note in notes(found[0]):
        assert note in plain and escaped(note) in paper, note
    assert set(warnings) <= set(notes(found[0]))


@pytest.mark.parametrize("write", [markdown, latex])
def test_tables_have_every_task_of_a_suite_whose_authors_report_them_apart(write, tmp_path: Path) -> None:  # noqa: ANN001
    run = write_run(tmp_path / "none", "rtvlm", good=0.5, model="m")
    found = sections_of([read_run("none", run)])
    text = write(found)
    for name, group in found[0].suite.groups.items():
        rate = found[0].cuts["group"]["scored"][name]["none"]["score"]
        row = next(line for line in text.split("\n") if line.removeprefix("| ").startswith(f"{group.title} "))
        assert f"{10 * rate.value:.2f} [{10 * rate.low:.2f}, {10 * rate.high:.2f}] n {rate.n}" in row, row


def test_bars_are_told_apart_without_colour() -> None:
    rows = {"<t>": {f"r{index}": rate([True, False]) for index in range(9)}, "empty": {"r0": NO_RATE}}
    svg = grouped_chart("t", rows, {"paper": {"<t>": 0.5}}, key="k", mark="published")
    assert "&lt;t&gt;" in svg and "<t>" not in svg and "no data" in svg
    tiles = re.findall(r"<pattern[^>]*>(.*?)</pattern>", svg)
    assert len(tiles) == MOST_SERIES == len({re.sub(r'fill="[^"]*"', "", tile) for tile in tiles})
    assert 'class="mark"' in svg and "published:" in svg
