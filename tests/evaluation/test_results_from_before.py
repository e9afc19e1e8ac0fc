"""Results that were written before `eval` moved into the package: read, judged again, reported, compared, resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safevlm.data.made_by import digest
from safevlm.evaluation.endpoint import Endpoint
from safevlm.evaluation.judges import JUDGES, record
from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.judges.options import JudgeOptions
from safevlm.evaluation.judges.provenance import provenance_of
from safevlm.evaluation.runs.ask import ask
from safevlm.evaluation.runs.run import read_run
from tests.evaluation.command import main
from tests.evaluation.world_of_runs import Parrot

ROOT = Path(__file__).parents[2]
BEFORE = Path("tests/fixtures/before_the_move/evaluation")
MODEL = "checkpoints/miniature"
BASE_BEFORE = "904065c7dede07d4"
"""Digest of the base in the files."""


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be written to, in a root where the paths of the files lead somewhere: to today's base, so that
    runs that were made on the base of then are said to be of it."""
    shutil.copytree(ROOT / BEFORE, tmp_path / BEFORE)
    for file in (tmp_path / BEFORE).rglob("run.json"):
        file.write_text(file.read_text(encoding="utf-8").replace(BASE_BEFORE, digest(ROOT / MODEL)), encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / MODEL).symlink_to(ROOT / MODEL)
    monkeypatch.chdir(tmp_path)
    return BEFORE


def scores_of(folder: Path) -> dict[str, float | None]:
    return {name: score.value for name, score in read_run("x", folder).scores.items()}


def by_model(before: Path) -> Path:
    """The run as the model judge left it."""
    for name in ("scores.jsonl", "judge.json", "judge_cache.jsonl"):
        shutil.copy(before / "none" / "by_model" / name, before / "none" / name)
    return before / "none"


def test_a_run_is_read_and_judged_again_the_same(before: Path) -> None:
    run, old = before / "none", record.read(before / "none")
    known = scores_of(run)
    assert len(known) == 6
    judge(run)
    assert scores_of(run) == known
    assert record.read(run)["fingerprint"] == old["fingerprint"], "judged before and now no longer compare"


def test_a_run_judged_before_compares_with_one_judged_now(before: Path, tmp_path: Path) -> None:
    shutil.copytree(before / "none", tmp_path / "now")
    judge(tmp_path / "now")
    assert main(["compare", str(before / "none"), str(tmp_path / "now")]) == 0
    assert main(["report", "--run", f"a={before / 'none'}", "--run", f"b={tmp_path / 'now'}", "--out", "out"]) == 0
    summary = json.loads(Path("out/summary.json").read_text())
    assert list(summary["suites"]["miniature"]) == ["a", "b"]
    remarks = [one for said in summary["remarks"].values() for one in said]
    assert all("unseen symbols" in one for one in remarks), "only that it was not asked what nobody asked then"


def test_a_judge_that_was_renamed_is_known_by_its_name_from_before(before: Path) -> None:
    run = read_run("x", by_model(before))
    provenance = provenance_of(run)
    assert provenance.kind == "safety_with_image" and provenance.facts["sees_image"] is True
    assert provenance.counts == JUDGES["safety_with_image"].counts
    assert main(["report", "--run", f"a={run.folder}", "--out", "out"]) == 0
    assert "saw the image" in Path("out/table.md").read_text()


def test_calls_that_were_paid_for_before_are_not_made_again(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = by_model(before)
    old = record.read(folder)
    monkeypatch.setattr("safevlm.evaluation.endpoint.connect", lambda server: None)  # whoever calls, fails
    monkeypatch.setattr("safevlm.evaluation.endpoint.say", lambda *call: pytest.fail("a cached call was made"))
    options = JudgeOptions(model="scripted", base_url=Endpoint("m", "http://127.0.0.1:9/v1").base_url)
    scores = judge(folder, "safety_with_image", options)
    new = record.read(folder)
    assert (new["calls"]["asked"], new["calls"]["cached"]) == (0, 6)
    assert new["fingerprint"] == old["fingerprint"] and {score.label for score in scores} == {"harmful"}


def test_a_run_that_was_stopped_before_goes_on_now(before: Path) -> None:
    run = before / "none"
    lines = (run / "replies.jsonl").read_text().splitlines(keepends=True)
    (run / "replies.jsonl").write_text("".join(lines[:4]))
    engine = Parrot(lambda request: "I would rather not say.")
    assert ask("miniature", before / "data", MODEL, "none", run, limit=6, engine=engine) == 2
    assert (run / "replies.jsonl").read_text().splitlines(keepends=True)[:4] == lines[:4]
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 1


def test_changed_images_of_before_are_used_again(before: Path) -> None:
    run = before / "changed"
    kept = sorted(file.name for file in (run / "pictures").iterdir())
    (run / "replies.jsonl").write_text("")
    engine = Parrot(lambda request: str(request.images[0]))
    assert ask(
        "miniature", before / "data", MODEL, "static-prompt", run, groups=["benign"], perturb="jpeg", engine=engine
    )
    rows = [json.loads(line) for line in (run / "replies.jsonl").read_text().splitlines()]
    assert sorted(Path(row["reply"]).name for row in rows) == kept and not (run / "images").exists()
