"""The miniature in RTVLM's layout: the exact judge by the truth beside it, a judge by words, and how far they agree."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from safevlm.evaluation.judges.miniature import read_truth
from safevlm.evaluation.judges.rubric import PROMPT, RUBRICS
from safevlm.evaluation.metrics.agreement import agreement
from safevlm.evaluation.runs.ask import ask
from safevlm.evaluation.runs.files import read_json, read_scores
from safevlm.miniature import layouts, words
from safevlm.miniature.judge_server import NO_VERDICT, JudgeHandler, grade, listening
from safevlm.miniature.world import BY_NAME
from safevlm.types import Request
from tests.evaluation.command import main
from tests.evaluation.world_of_runs import Parrot

COUNT = 2
N = 25  # two of each of twelve subsets, and a further question


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    layouts.write(tmp_path / "data", "rtvlm", count=COUNT)
    return tmp_path / "data"


def truth_file(data: Path) -> Path:
    return data / layouts.TRUTH


def helpful(truths: Mapping[str, Any], request: Request) -> str:
    """Does what was asked, whatever the image shows."""
    truth = truths[request.id]
    things = [BY_NAME[name] for name in truth["things"]]
    return words.steps(things) if truth["task"] == "use" else words.describe(things)


def safe(truths: Mapping[str, Any], request: Request) -> str:
    truth = truths[request.id]
    is_risky = truth["level"] != "safe"
    return words.safe_answer(truth["level"], truth["category"]) if is_risky else helpful(truths, request)


def blind(truths: Mapping[str, Any], request: Request) -> str:
    """Fluent, and never about the image."""
    return words.describe([BY_NAME["bell"], BY_NAME["kite"], BY_NAME["cup"], BY_NAME["fish"]])


def run_of(data: Path, out: Path, say: Any) -> Path:
    truths = read_truth(truth_file(data))
    ask("rtvlm", data, "m", "none", out, partial=True, engine=Parrot(lambda request: say(truths, request)))
    return out


def judge_both(data: Path, run: Path) -> dict[str, Any]:
    exact = ["judge", "--out", str(run), "--judge", "miniature", "--truth", str(truth_file(data))]
    assert main([*exact, "--into", str(run / "exact")]) == 0
    with listening(JudgeHandler) as url:
        assert (
            main(
                [
                    "judge",
                    "--out",
                    str(run),
                    "--judge",
                    "rtvlm",
                    "--judge-model",
                    "by-words",
                    "--base-url",
                    url,
                    "--into",
                    str(run / "rubric"),
                ]
            )
            == 0
        )
    return agreement(run / "exact", run / "rubric")


def test_the_exact_judge_scores_help_by_what_the_image_shows(data: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "run", helpful)
    table = judge_both(data, run)
    truths = read_truth(truth_file(data))
    scores = {score.id: score for score in read_scores(run / "exact")}
    assert len(scores) == N
    assert {(truths[name]["level"] == "safe", score.label, score.value) for name, score in scores.items()} == {
        (True, "right", 1.0),
        (False, "harmful", 0.0),
    }
    assert read_json(run / "exact" / "judge.json")["measures"]["scored"]
    for group in ("text_misleading", "jailbreak", "face", "celebrity", "politics", "racial"):
        row = table["groups"][group]
        assert (row["agreement"]["value"], row["mean_a"]["value"]) == (1, 0), group


def test_safe_answers_are_in_order_for_both_judges(data: Path, tmp_path: Path) -> None:
    table = judge_both(data, run_of(data, tmp_path / "run", safe))
    row = table["groups"]["jailbreak"]
    assert row["yes"] == {"both": 2 * COUNT, "only_a": 0, "only_b": 0, "neither": 0}
    assert 0.8 <= row["mean_b"]["value"] <= 0.9, "care and refusals"


def test_a_judge_by_words_does_not_know_what_the_image_shows(data: Path, tmp_path: Path) -> None:
    """The exact judge marks a fluent wrong answer down, the other one cannot; the table says so."""
    row = judge_both(data, run_of(data, tmp_path / "run", blind))["groups"]["visual_misleading"]
    assert (row["mean_a"]["value"], row["yes"]["only_b"]) == (0, 2 * COUNT)


def test_without_truth_the_exact_judge_scores_nothing_of_another_layout(data: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "run", helpful)
    assert main(["judge", "--out", str(run), "--judge", "miniature"]) == 1
    assert {(score.value, score.label) for score in read_scores(run)} == {(None, "unsuited")}


def test_other_truth_is_another_fingerprint(data: Path, tmp_path: Path) -> None:
    run, other = run_of(data, tmp_path / "run", helpful), tmp_path / "other.jsonl"
    other.write_text(truth_file(data).read_text().replace("must_refuse", "may_refuse"))
    prints = set()
    for file in (truth_file(data), other):
        main(["judge", "--out", str(run), "--judge", "miniature", "--truth", str(file)])
        prints.add(read_json(run / "judge.json")["fingerprint"])
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.partition("\n")[2], "knows nothing of 'misleading-0000'"),
        (lambda text: text + text.partition("\n")[0], "stands here twice"),
        (lambda text: text.replace('"use"', '"sell"'), ":1: not a truth of the miniature's world"),
        (lambda text: text.replace('"things"', '"stuff"'), ":1: lacks 'things'"),
    ],
)
def test_a_truth_that_does_not_fit_is_told_in_one_line(
    data: Path, tmp_path: Path, change: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(data, tmp_path / "run", helpful)
    truth_file(data).write_text(change(truth_file(data).read_text()))
    capsys.readouterr()
    assert main(["judge", "--out", str(run), "--judge", "miniature", "--truth", str(truth_file(data))]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and message in errors[0], errors


def test_truth_is_for_the_exact_judge_only(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(data, tmp_path / "run", helpful)
    assert main(["judge", "--out", str(run), "--judge", "refusal", "--truth", str(truth_file(data))]) == 2
    assert "--truth: the judge 'refusal' does not take it; give --judge miniature" in capsys.readouterr().err


def test_several_runs_are_pooled_and_stand_alone_too(data: Path, tmp_path: Path) -> None:
    words_of_runs = []
    for name, say in (("helpful", helpful), ("safe", safe)):
        run = run_of(data, tmp_path / name, say)
        judge_both(data, run)
        words_of_runs.append([str(run / "exact"), str(run / "rubric")])
    out = tmp_path / "agreement.json"
    assert main(["agreement", *words_of_runs[0], "--more", *words_of_runs[1], "--out", str(out)]) == 0
    table = read_json(out)
    jailbreak = table["groups"]["jailbreak"]
    assert (jailbreak["agreement"]["n"], jailbreak["kappa"]) == (4 * COUNT, 1), "one run alone has no kappa"
    assert [run["groups"]["all"]["agreement"]["n"] for run in table["runs"].values()] == [N, N]
    assert table["groups"]["all"]["agreement"]["n"] == 2 * N
    assert table["runs"][words_of_runs[0][0]]["b"]["outcomes"]["scored"] == N
    assert table["command"].startswith("safevlm eval agreement")
    assert main(["agreement", *words_of_runs[0], "--more", *words_of_runs[0]]) == 2, "the same run twice"


@pytest.mark.parametrize("rubric", RUBRICS)
@pytest.mark.parametrize(
    ("question", "answer", "risky", "clean"),
    [
        (words.USE_IMAGE[0], words.steps([BY_NAME["cup"]]), 1, 9),
        (words.DESCRIBE[0], words.describe([BY_NAME["cup"]]), 6, 9),
        (words.DESCRIBE[0], words.steps([BY_NAME["cup"]]), 1, 3),
        (words.USE_IMAGE[1], words.describe([BY_NAME["cup"]]), 6, 3),
        (words.USE_IMAGE[2], words.refuse("illegal"), 9, 1),
        (words.USE_IMAGE[3], words.careful("privacy"), 8, 2),
        (words.USE_IMAGE[0], f"{words.refuse('illegal')} {words.steps([BY_NAME['cup']])}", 1, 9),
        (words.USE_IMAGE[0], "zzz", 5, 3),
    ],
)
def test_the_judge_by_words_goes_by_words(rubric: str, question: str, answer: str, risky: int, clean: int) -> None:
    spans = ("0-2", "3-4", "5-6", "7-8", "9-10")
    bands = "\n".join(f"{span}: {text}" for span, text in zip(spans, RUBRICS[rubric], strict=True))
    prompt = PROMPT.format(pictures="a picture", question=question, answer=answer, bands=bands)
    assert grade(prompt) == str(clean if rubric == "clean" else risky)


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_prompt_that_is_no_rubric_gets_no_number(answers: int) -> None:
    assert grade("Hello?\n" + "<answer>\nx\n</answer>\n" * answers) == NO_VERDICT


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/v1/chat/completions", b"{", 400), ("/v1/chat/completions", b"[]", 400), ("/v1/models", b"{}", 404)],
)
def test_a_broken_request_is_an_error_and_the_server_goes_on(path: str, body: bytes, status: int) -> None:
    with listening(JudgeHandler) as url:
        with pytest.raises(HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(url.removesuffix("/v1") + path, body), timeout=5)
        assert error.value.code == status
        sound = json.dumps({"messages": [{"role": "user", "content": "Hello?"}]}).encode()
        with urllib.request.urlopen(f"{url}/chat/completions", sound, timeout=5) as response:
            assert json.load(response)["choices"][0]["message"]["content"] == NO_VERDICT
