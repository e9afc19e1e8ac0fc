"""Two runs side by side: pairs by id, honest intervals, and no comparison of unlike things."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from scipy import stats

from safevlm.evaluation.judges import JUDGES
from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.metrics.comparison import compare, interval, markdown, mcnemar, paired
from safevlm.evaluation.metrics.measures import MEASURES
from safevlm.evaluation.metrics.rates import by_group, mean
from safevlm.evaluation.report.page import report
from safevlm.evaluation.runs.ask import ask
from safevlm.evaluation.runs.files import Score, read_scores, write_rows
from safevlm.evaluation.suites import SUITES
from safevlm.intervals import wilson
from tests.evaluation.command import main
from tests.evaluation.synthetic_runs import write_run
from tests.evaluation.world_of_runs import Parrot, helpful, refusing, write_suite

ASR, SCORE = MEASURES["asr"], MEASURES["score"]


def judged(data: Path, out: Path, say=helpful, **asked) -> Path:  # noqa: ANN001, ANN003
    ask("miniature", data, "m", "none", out, engine=Parrot(say), **asked)
    judge(out, "miniature")
    return out


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    data = write_suite(tmp_path / "data", per_group=8)
    flip = lambda request: (helpful if int(request.id[-1]) % 4 else refusing)(request)  # noqa: E731
    return judged(data, tmp_path / "a"), judged(data, tmp_path / "b", flip)


def row_of(table: dict, group: str, measure: str) -> dict:
    return next(row for row in table["comparisons"] if (row["group"], row["measure"]) == (group, measure))


def scores(**values: float | None) -> dict[str, Score]:
    return {name: Score(name, "harmful_seen", "j", value, "x") for name, value in values.items()}


def test_pairs_are_made_by_id_whatever_the_order_of_the_files(runs: tuple[Path, Path]) -> None:
    straight = compare(*runs)
    mixed = [asdict(score) for score in read_scores(runs[1])]
    random.Random(0).shuffle(mixed)
    write_rows(runs[1] / "scores.jsonl", mixed)
    assert compare(*runs) == straight
    row = row_of(straight, "harmful_seen", "asr")
    assert (row["a"]["value"], row["b"]["value"], row["difference"]) == (1.0, 0.75, -0.25)
    assert (row["only_a"], row["only_b"], row["p"]) == (["harmful_seen-0", "harmful_seen-4"], [], 0.5)
    assert row_of(straight, "all harmful", "asr")["a"]["n"] == 32
    assert row_of(straight, "lookalike", "over_refusal")["only_b"] == ["lookalike-0", "lookalike-4"]


def test_the_other_way_round_changes_only_the_sign(runs: tuple[Path, Path]) -> None:
    there, back = (row_of(compare(*pair), "all benign", "utility") for pair in (runs, runs[::-1]))
    assert there["difference"] == -back["difference"] and there["p"] == back["p"]
    assert (there["only_a"], there["only_b"]) == (back["only_b"], back["only_a"])


def test_a_run_equals_itself(runs: tuple[Path, Path]) -> None:
    for row in compare(runs[0], runs[0])["comparisons"]:
        assert (row["difference"], row["p"], row["only_a"]) == (0, 1, [])
        assert row["low"] < 0 < row["high"], "no discordant pair among a few is no proof of equality"


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 11), (700, 800)])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    expected = stats.binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    dice, hits, trials = random.Random(1), 0, 300
    for trial in range(trials):
        pairs = [(dice.random() < 0.6, dice.random() < 0.4) for _ in range(150)]
        low, high = interval([float(b) - float(a) for a, b in pairs], seed=trial)
        hits += low <= -0.2 <= high
    assert 0.91 <= hits / trials <= 0.985, f"covers the truth in {hits} of {trials}"


def test_the_interval_is_seeded() -> None:
    dice = random.Random(0)
    differences = [dice.random() for _ in range(50)]
    assert interval(differences, 3) == interval(differences, 3) != interval(differences, 4)


def test_a_mean_of_equal_scores_is_not_certain() -> None:
    assert mean([0.5] * 10).low < 0.5 < mean([0.5] * 10).high
    assert (mean([1.0] * 10).low, mean([1.0] * 10).high) == pytest.approx(wilson(10, 10))
    assert (mean([0.2, None, 0.4]).value, mean([0.2, None, 0.4]).unscored) == (pytest.approx(0.3), 1)


def test_what_one_side_could_not_score_is_left_out_of_both_and_named() -> None:
    row = paired("g", "asr", ASR, scores(x=1.0, y=None, z=0.0), scores(x=0.0, y=1.0, z=None), ["x", "y", "z"])
    assert (row.a.n, row.b.n, row.a.value, row.b.value, row.unscored) == (1, 1, 1.0, 0.0, ["y", "z"])
    none = paired("g", "asr", ASR, scores(x=None), scores(x=1.0), ["x"])
    assert (none.difference, none.p, none.unscored) == (None, None, ["x"])


def test_no_way_to_score_what_was_left_out_goes_beyond_the_bounds_of_the_difference() -> None:
    ids, dice = [str(index) for index in range(12)], random.Random(3)
    sides = [{name: dice.choice([0.0, 1.0, None]) for name in ids} for _ in "ab"]
    row = paired(
        "g",
        "asr",
        ASR,
        *(scores(**{f"i{name}": v for name, v in side.items()}) for side in sides),
        [f"i{n}" for n in ids],
    )
    assert row.unscored and row.bounds
    seen = []
    for _ in range(300):
        first, second = ([dice.random() if value is None else value for value in side.values()] for side in sides)
        seen.append(sum(y - x for x, y in zip(first, second, strict=True)) / len(ids))
    assert row.bounds[0] <= min(seen) and max(seen) <= row.bounds[1]
    whole = paired("g", "asr", ASR, scores(x=1.0), scores(x=0.0), ["x"])
    assert whole.bounds is whole.a.bounds is None


def test_what_is_left_out_stands_in_words_with_what_it_could_change(runs: tuple[Path, Path]) -> None:
    rows = [asdict(score) for score in read_scores(runs[1])]
    for row in rows:
        if row["id"] in ("harmful_seen-1", "harmful_seen-2"):
            row.update(value=None, label="unparsed")
    write_rows(runs[1] / "scores.jsonl", rows)
    (runs[1] / "judge.json").unlink()
    table = compare(*runs)
    row = row_of(table, "harmful_seen", "asr")
    assert (row["a"]["n"], row["b"]["bounds"], row["bounds"]) == (6, (0.5, 0.75), (-0.5, -0.25))
    told = next(line for line in markdown(table).split("\n") if line.startswith("harmful_seen, asr"))
    assert "2 of 8" in told and "50.0 to 75.0 %" in told and "-50.0 to -25.0" in told


def test_a_number_is_written_as_the_report_writes_it(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / str(good), "rtvlm", good=good, model="m") for good in (0.3, 0.9))
    report([("a", a), ("b", b)], tmp_path / "out")
    one = json.loads((tmp_path / "out/summary.json").read_text())["suites"]["rtvlm"]["a"]["groups"]["captcha"]["score"]
    shown = f"{10 * one['value']:.2f}"
    assert f" {shown} [" in (tmp_path / "out/table.md").read_text()
    line = next(line for line in markdown(compare(a, b)).split("\n") if line.startswith("| captcha | score |"))
    assert f"| {shown} |" in line and "%" not in line


def test_scores_are_compared_by_their_mean_and_have_no_p() -> None:
    row = paired("g", "score", SCORE, scores(x=0.5, y=0.2), scores(x=0.7, y=0.1), ["x", "y"])
    assert row.difference == pytest.approx(0.05) and row.p is None and not row.only_a


def test_every_judge_says_what_its_scores_can_carry() -> None:
    for name, known in JUDGES.items():
        assert name == known.name
        for side in known.measures:
            assert known.counts[side], f"{name} scores {side} rows, and nothing is counted on them"
        assert set().union(*known.counts.values()) <= set(MEASURES)


def test_a_judge_that_never_says_refused_measures_no_over_refusal() -> None:
    table = [Score(str(n), "safe", "safety@m", 1.0, "harmless") for n in range(3)]
    row = by_group(table, SUITES["xstest"], JUDGES["safety"].counts)["safe"]
    assert "over_refusal" not in row and "utility" not in row and row["harmless"]["value"] == 1.0


def test_the_same_judge_with_another_prompt_is_refused(runs: tuple[Path, Path]) -> None:
    record = json.loads((runs[1] / "judge.json").read_text())
    (runs[1] / "judge.json").write_text(json.dumps(record | {"fingerprint": "other"}))
    with pytest.raises(ValueError, match="in two ways"):
        compare(*runs)


def test_ids_without_a_partner_are_named(tmp_path: Path) -> None:
    data = write_suite(tmp_path / "data", per_group=2)
    whole, part = judged(data, tmp_path / "a"), judged(data, tmp_path / "b", limit=6)
    table = compare(whole, part)
    assert table["pairs"] == 6 and len(table["only_in_a"]) == 6 and not table["only_in_b"]
    assert "Only in A, left out (6): benign-1" in markdown(table)


def test_other_questions_other_suites_and_other_judges_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = judged(write_suite(tmp_path / "data", per_group=7), tmp_path / "other")
    with pytest.raises(ValueError, match="other questions"):
        compare(runs[0], other)
    record = json.loads((runs[1] / "run.json").read_text())
    (runs[1] / "run.json").write_text(json.dumps(record | {"suite": "elsewhere"}))
    with pytest.raises(ValueError, match="elsewhere"):
        compare(*runs)
    (runs[1] / "run.json").write_text(json.dumps(record))
    again = [asdict(score) | {"judge": "somebody"} for score in read_scores(runs[1])]
    write_rows(runs[1] / "scores.jsonl", again)
    with pytest.raises(ValueError, match=r"A is judged by \['miniature'\], B by \['somebody'\]"):
        compare(*runs)


def test_the_command_prints_a_table_and_writes_the_same(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "c.json")]) == 0
    said = capsys.readouterr().out
    assert "| harmful_seen | asr | 100.0 % | 75.0 % (n 8) | -25.0 [" in said and "| 2 : 0 | 0.50 |" in said
    written = json.loads((tmp_path / "c.json").read_text())
    assert written.pop("made_by")["digests"] and written == json.loads(json.dumps(compare(*runs)))
