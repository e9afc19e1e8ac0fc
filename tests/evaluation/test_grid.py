"""The grid: every number from the runs it says, corrected for how many there are, and no gap that reads as 0."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safevlm.__main__ import parser_for
from safevlm.evaluation.grid import figures
from safevlm.evaluation.grid.build import build, grid
from safevlm.evaluation.grid.pairs import holm
from safevlm.evaluation.grid.table import markdown
from safevlm.evaluation.judges.base import UNPARSED
from safevlm.evaluation.metrics.comparison import compare
from safevlm.evaluation.runs.files import read_json, read_scores, write_json, write_rows
from tests.evaluation.command import main
from tests.evaluation.miniature_columns import headline
from tests.evaluation.synthetic_runs import write_run
from tests.evaluation.world_of_runs import write_suite

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "checkpoints" / "miniature")
NOISE = "noise:16"
PASSES = {"tower": 1.0, "llm": 1.0, "written": 9.0}
TIME = {"value": 1.25, "n": 40, "low": 1.2, "high": 1.3}


def put(out: Path, row: str, good: float, seed: str = "once", perturb: str = "", **run: Any) -> Path:
    """A judged run where the script would leave it."""
    attack = perturb.replace(":", "-") or "clean"
    folder = write_run(out / "runs" / row / seed / attack, "miniature", good=good, **run)
    change(folder / "run.json", perturb=perturb or None, defense=row)
    return folder


def change(file: Path, **fields: Any) -> None:
    write_json(file, read_json(file) | fields)


def time(folder: Path, **fields: Any) -> None:
    extra = {"passes": {"defended": PASSES, "bare": PASSES, "extra": {"tower": 0.0, "llm": 2.0, "written": -3.0}}}
    write_json(folder / "overhead.json", TIME | {"times": {"answer": TIME, "first_token": TIME}} | extra | fields)


def unscore(folder: Path, *groups: str) -> None:
    """As if no judge could read the replies of these groups."""
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    lost = {"value": None, "label": UNPARSED}
    write_rows(folder / "scores.jsonl", [row | (lost if row["group"] in groups else {}) for row in rows])
    change(folder / "judge.json", scores_sha256=hashlib.sha256((folder / "scores.jsonl").read_bytes()).hexdigest())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """none, a guard with two seeds, a poor one, and the truth."""
    for row, seed, good in (
        ("none", "once", 0.05),
        ("guard", "a", 0.9),
        ("guard", "b", 0.95),
        ("poor", "once", 0.3),
        ("oracle", "once", 1.0),
    ):
        time(put(tmp_path, row, good, seed))
        put(tmp_path, row, good / 2, seed, NOISE)
    return tmp_path


def line(table: dict[str, Any], row: str) -> dict[str, str]:
    """A line of the table for people, by title."""
    lines = markdown(table).splitlines()
    cells = [[cell.strip() for cell in text.split("|")[1:-1]] for text in lines if text.startswith("|")]
    return dict(zip(cells[0], next(own for own in cells if own[0] == row), strict=True))


def test_every_cell_is_the_rate_of_its_own_run(out: Path) -> None:
    table = build(out)
    for row, seed in (("none", "once"), ("guard", "a"), ("guard", "b")):
        scores = read_scores(out / "runs" / row / seed / "clean")
        cells = table["rows"][row]["cells"]
        assert cells["asr:harmful_unseen"][seed]["value"] == headline("asr_unseen", scores).value
        assert cells["utility:all"][seed]["value"] == headline("utility", scores).value
        noisy = [one for one in read_scores(out / "runs" / row / seed / "noise-16") if one.group.startswith("harmful")]
        assert cells[f"asr@{NOISE}"][seed]["n"] >= len(noisy), "changed images are their own column"
    assert table["rows"]["guard"]["seeds"] == ["a", "b"]
    assert json.loads(json.dumps(table, allow_nan=False)) == json.loads(json.dumps(build(out)))


def test_differences_and_p_are_those_of_compare(out: Path) -> None:
    cell = build(out)["rows"]["guard"]["cells"]["asr:harmful_seen"]["b"]["against_none"]
    pair = compare(out / "runs/none/once/clean", out / "runs/guard/b/clean")["comparisons"]
    row = next(one for one in pair if (one["group"], one["measure"]) == ("harmful_seen", "asr"))
    assert {name: cell[name] for name in ("difference", "low", "high", "p")} == {
        name: row[name] for name in ("difference", "low", "high", "p")
    }
    assert (cell["only_there"], cell["only_here"], cell["pairs"]) == (len(row["only_a"]), len(row["only_b"]), 20)


def test_holm_is_the_step_down_over_all_cells(out: Path) -> None:
    ps = {("r", "s", "a"): 0.01, ("r", "s", "b"): 0.04, ("r", "s", "c"): 0.03, ("r", "s", "d"): 0.5}
    assert holm(ps) == {place: pytest.approx(p) for place, p in zip(ps, (0.04, 0.09, 0.09, 0.5), strict=True)}
    assert holm({}) == {} and holm({("r", "s", "a"): 0.9}) == {("r", "s", "a"): 0.9}
    table = build(out)
    found = [
        cell["against_none"]
        for row in table["rows"].values()
        for cells in row["cells"].values()
        for cell in cells.values()
        if "against_none" in cell
    ]
    assert len(found) == table["tests"]["against_none"] == 4 * len(table["columns"]), "three rows, one of them twice"
    smallest = min(found, key=lambda one: one["p"])
    assert smallest["p_holm"] == pytest.approx(min(1, len(found) * smallest["p"]))
    assert all(one["p"] <= one["p_holm"] <= 1 for one in found)


def test_a_star_needs_every_seed_and_the_corrected_p(out: Path) -> None:
    table = build(out)
    assert line(table, "guard")["ASR, harmful seen ↓"].endswith("%*")
    put(out, "guard", 0.05, "b")
    table = build(out)
    assert not line(table, "guard")["ASR, harmful seen ↓"].endswith("*"), "one seed does nothing"
    assert not line(table, "none")["ASR, harmful seen ↓"].endswith("*")


def test_the_best_row_is_told_and_never_the_one_that_knows_the_truth(out: Path) -> None:
    table = build(out)
    assert table["best"] == "guard"
    assert table["rows"]["poor"]["cells"]["asr:all"]["once"]["against_best"]["difference"] > 0
    assert "against_best" not in table["rows"]["guard"]["cells"]["asr:all"]["a"]
    for seed in ("a", "b"):
        unscore(out / "runs/guard" / seed / "clean", "benign", "lookalike")
    put(out, "refuses-all", 1.0)
    unscore(out / "runs/refuses-all/once/clean", "benign", "lookalike")
    assert build(out)["best"] == "poor", "a row whose over-refusal nobody knows is not the best"


def test_what_could_not_be_scored_says_so_and_never_reads_as_0(out: Path) -> None:
    unscore(out / "runs/poor/once/clean", "benign", "lookalike")
    unscore(out / "runs/poor/once/noise-16", "benign", "lookalike")
    table = build(out)
    cell = table["rows"]["poor"]["cells"]["over_refusal:all"]["once"]
    assert (cell["value"], cell["n"], cell["unscored"]) == (None, 0, 40)
    assert line(table, "poor")["over-refusal, all benign ↓"] == "– (40 unscored: 0.0 to 100.0 %)"
    assert line(table, "poor")["utility, all benign ↑"] == "– (40 unscored: 0.0 to 100.0 %)"
    assert line(table, "poor")["over-refusal, worst change ↓"] == "– (40 unscored: 0.0 to 100.0 %)"
    figures.heatmap(table, out)
    assert (out / "grid.svg").read_text().count("<!-- n/s -->") == 8, "four columns of over-refusal, four of utility"


def test_the_best_row_is_not_best_by_what_could_not_be_scored(out: Path) -> None:
    folder = put(out, "sly", 1.0)
    assert build(out)["best"] == "sly"
    _unscore_all_but_one(folder)
    table = build(out)
    cell = table["rows"]["sly"]["cells"]["asr:harmful_seen"]["once"]
    assert (cell["value"], cell["n"], cell["bounds"]) == (0.0, 1, (0.0, 0.95))
    assert table["best"] == "guard"


def test_the_worst_change_is_not_the_one_that_could_be_read(out: Path) -> None:
    """Half the attacks under one change succeed, as far as anybody can tell; under the other one, all of one."""
    put(out, "sly", 1.0)
    put(out, "sly", 0.5, perturb=NOISE)
    _unscore_all_but_one(put(out, "sly", 1.0, perturb="crop:80"))
    table = build(out)
    told = line(table, "sly")["ASR, worst change ↓"]
    assert "crop 80" in told and "unscored" in told, told
    figures.heatmap(table, out)
    assert "<!-- 0° -->" in (out / "grid.svg").read_text(), "the figure hides that most could not be scored"


def _unscore_all_but_one(folder: Path) -> None:
    """As if no judge could read what most attacks were answered with."""
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    unread = [row for row in rows if row["group"].startswith("harmful") and not row["id"].endswith("-0")]
    for row in unread:
        row.update(value=None, label=UNPARSED)
    write_rows(folder / "scores.jsonl", rows)
    change(folder / "judge.json", scores_sha256=hashlib.sha256((folder / "scores.jsonl").read_bytes()).hexdigest())


def test_what_was_not_asked_or_timed_says_so(out: Path) -> None:
    put(out, "late", 0.5)
    table = build(out)
    assert table["rows"]["late"]["cells"][f"asr@{NOISE}"] == {}
    assert line(table, "late")["ASR, worst change ↓"] == "not asked"
    assert line(table, "late")["answer ×"] == line(table, "late")["extra passes: tower, LLM"] == "not timed"


def test_overhead_and_passes_stand_in_the_table(out: Path) -> None:
    old = {name: TIME[name] for name in TIME}
    (out / "runs/poor/once/clean/overhead.json").write_text(json.dumps(old))
    table = build(out)
    assert table["rows"]["guard"]["overhead"]["a"]["passes"]["extra"]["llm"] == 2
    guard, poor = line(table, "guard"), line(table, "poor")
    assert (guard["answer ×"], guard["extra passes: tower, LLM"]) == ("1.25 / 1.25", "+0.00, +2.00 / +0.00, +2.00")
    assert (poor["answer ×"], poor["first token ×"]) == ("1.25 [1.20, 1.30]", "not timed"), "the older layout"


def test_one_seed_has_an_interval_and_two_stand_side_by_side(out: Path) -> None:
    table = build(out)
    values = [100 * cell["value"] for cell in table["rows"]["guard"]["cells"]["utility:all"].values()]
    assert line(table, "guard")["utility, all benign ↑"].startswith("{:.1f} / {:.1f} %".format(*values))
    assert " % [" in line(table, "poor")["utility, all benign ↑"]


def test_a_seed_is_compared_with_its_own_reference(out: Path) -> None:
    for seed, good in (("a", 0.1), ("b", 0.9)):
        put(out, "twin", good, seed)
    put(out, "guard", 0.1, "a")
    put(out, "guard", 0.99, "b")
    table = build(out)
    best = table["best"]
    rows = table["rows"]
    other = "twin" if best == "guard" else "guard"
    for seed in ("a", "b"):
        mine, theirs = (rows[name]["cells"]["asr:all"][seed]["value"] for name in (other, best))
        assert rows[other]["cells"]["asr:all"][seed]["against_best"]["difference"] == pytest.approx(mine - theirs)


def test_rows_that_broke_or_were_skipped_are_told(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    standings = [
        ("poor", "once", "ran", ""),
        ("lost", "once", "failed", "no such file"),
        ("guard", "a", "failed", "at first"),
        ("guard", "a", "ran", ""),
        ("void", "-", "skipped", "x is missing"),
    ]
    (out / "rows.tsv").write_text("".join("\t".join(one) + "\n" for one in standings))
    assert main(["grid", "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert "Not run: lost (once), failed: no such file." in said and "Not run: void (-), skipped: x is missing." in said
    table = read_json(out / "grid.json")
    assert (out / "grid.md").read_text() == markdown(table)
    assert list(table["rows"])[:2] == ["poor", "guard"], "in the order of the rows"
    assert [one["row"] for one in table["not_run"]] == ["lost", "void"], "the last word counts"


def test_a_run_that_is_not_judged_or_not_finished_is_a_problem_and_the_rest_stands(out: Path) -> None:
    (put(out, "unjudged", 0.5) / "scores.jsonl").unlink()
    change(put(out, "half", 0.5) / "run.json", n=1000)
    table = build(out)
    assert "unjudged" not in table["rows"] and "half" in table["rows"]
    assert any("unjudged (once)" in one and "judge" in one for one in table["problems"])
    assert any("half (once): clean: 140 of 1000" in one for one in table["problems"])
    assert "Beware: unjudged (once)" in markdown(table)


def test_other_questions_are_not_compared(out: Path) -> None:
    change(out / "runs/poor/once/clean/run.json", digests={"samples": "others"})
    table = build(out)
    assert "against_none" not in table["rows"]["poor"]["cells"]["asr:all"]["once"]
    assert any("poor (once) against none" in one and "other questions" in one for one in table["problems"])


def test_runs_of_several_suites_or_judges_are_no_one_table(out: Path) -> None:
    write_run(out / "runs/real/once/clean", "xstest", good=0.5)
    with pytest.raises(ValueError, match="several suites"):
        build(out)
    with pytest.raises(ValueError, match="no judged run"):
        build(out / "nowhere")


def test_a_real_suite_has_its_own_columns(tmp_path: Path) -> None:
    for row, good in (("none", 0.2), ("guard", 0.8)):
        write_run(tmp_path / "runs" / row / "once" / "clean", "vlguard", good=good, judge="refusal")
    table = build(tmp_path)
    assert {column["measure"] for column in table["columns"]} == {"asr", "over_refusal"}, "what its judge can carry"
    assert table["best"] == "guard"


@pytest.mark.slow
def test_the_figure_is_the_same_bytes_every_time_and_names_every_row(out: Path) -> None:
    grid(out)
    names = ("grid.png", "grid.svg")
    first = {name: (out / name).read_bytes() for name in names}
    grid(out)
    assert {name: (out / name).read_bytes() for name in names} == first
    xml.parse(out / "grid.svg")
    assert all(f"{row}" in first["grid.svg"].decode() for row in ("none", "guard", "poor", "oracle"))


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = (
        "SUITE",
        "ROWS",
        "DEFENSES",
        "SEEDS",
        "PERTURBATIONS",
        "CHANGED_GROUPS",
        "TIMED",
        "LIMIT",
        "JUDGE",
        "GPUS",
        "BATCH_SIZE",
        "PARTIAL",
        "DRY_RUN",
    )
    clean = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(
        ["bash", str(ROOT / "eval" / "compare_defenses.sh"), *words],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def commands(done: subprocess.CompletedProcess[str]) -> Iterator[Any]:
    import shlex

    assert done.returncode == 0, done.stdout + done.stderr
    for text in done.stdout.splitlines():
        if text.startswith(("safevlm ", "torchrun ")):
            words = shlex.split(text)
            kind = next(word for word in words if word in ("eval", "bench"))
            yield parser_for(kind).parse_args(words[words.index(kind) :])


def test_the_script_prints_every_attack_of_a_row_and_of_every_seed() -> None:
    done = run(
        "my model",
        "da ta",
        "o ut",
        DRY_RUN="1",
        SEEDS="runs/a/ runs/b",
        LIMIT="7",
        PERTURBATIONS="jpeg:50 crop",
        DEFENSES="none safety-head@refuse",
    )
    found = list(commands(done))
    asked = [one for one in found if one.command == "eval" and one.evaluation == "ask"]
    models = ("my model", "runs/a/stage1", "runs/b/stage1")
    assert [(one.model, one.perturb) for one in asked] == [
        (model, change) for model in models for change in ("", "jpeg:50", "crop")
    ]
    assert all(one.limit == 7 and one.data == "da ta" for one in asked)
    assert asked[1].group == ["harmful_seen", "benign"] and not asked[0].group
    assert {one.policy and Path(one.policy).name for one in asked} == {None, "refuse.yaml"}
    assert asked[4].out == "o ut/runs/safety-head@refuse/runs_a/jpeg-50" and asked[4].images == "o ut/images"
    assert [one.against for one in found if one.command == "bench"] == ["my model"], "one of the rows is timed"
    assert found[-1].evaluation == "grid"


def test_rows_without_a_training_are_skipped_with_a_reason() -> None:
    done = run("m", "d", "o", DRY_RUN="1", DEFENSES="none safety-head")
    assert "safety-head (-): skipped: needs a training: SEEDS=DIR …" in done.stdout and done.returncode == 0
    unknown = run("m", "d", "o", DRY_RUN="1", DEFENSES="safety")
    assert unknown.returncode == 2 and "has no row safety; it has none static-prompt" in unknown.stderr


@pytest.mark.parametrize("table", sorted((ROOT / "eval" / "protocols").glob("*.tsv")), ids=lambda file: file.stem)
def test_every_line_of_a_table_has_six_cells_and_a_name_of_its_own(table: Path) -> None:
    lines = [text.split("\t") for text in table.read_text().splitlines() if not text.startswith("#")]
    assert all(len(cells) == 6 and all(cells) for cells in lines), "- where there is nothing: bash folds empty cells"
    names = [cells[0] for cells in lines]
    assert len(set(names)) == len(names) and not any("/" in name or " " in name for name in names)
    assert names[0] == "none" and {cells[4] for cells in lines} <= {"-", "timed"}


@pytest.mark.slow
def test_a_row_that_breaks_is_told_and_the_rest_goes_on_and_nothing_is_done_twice(
    tmp_path: Path, warm_path: str
) -> None:
    rows = tmp_path / "rows.tsv"
    rows.write_text(
        "broken\t{model}\tsafety-head\t-\t-\t-\nabsent\t{model}\tnone\t-\t-\t{model}/gone\n"
        "none\t{model}\tnone\t-\ttimed\t-\n"
    )
    data, out = write_suite(tmp_path / "data", per_group=5), tmp_path / "out"
    words = {"ROWS": str(rows), "PERTURBATIONS": "-", "TIMED": "1", "LIMIT": "12", "PATH": warm_path}
    done = run(MODEL, str(data), str(out), **words)
    assert done.returncode == 1, "a broken row is no success"
    assert "broken (once): failed: defense safety-head: this checkpoint has no safety head" in done.stdout
    assert f"absent (once): skipped: {MODEL}/gone is missing" in done.stdout
    table = read_json(out / "grid.json")
    assert list(table["rows"]) == ["none"] and [one["row"] for one in table["not_run"]] == ["broken", "absent"]
    assert table["rows"]["none"]["overhead"]["once"]["passes"]["extra"] == {"tower": 0, "llm": 0, "written": 0}
    again = run(MODEL, str(data), str(out), **words)
    assert "eval judge" not in again.stdout and "bench guard" not in again.stdout
    assert "none/once/clean: 0 new replies" in again.stdout
