"""`safevlm eval attack` and `robustness`: folders, tables, going on, and the strongest attack of each request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.data.images import open_image
from safevlm.evaluation.attacks import report, strongest
from safevlm.evaluation.attacks.job import Effort
from safevlm.evaluation.attacks.run import Target, attack_all, harmful_groups, judge_all
from safevlm.evaluation.attacks.table import parse
from safevlm.evaluation.runs import ask as asking
from safevlm.evaluation.runs.files import read_replies, write_rows
from safevlm.usage import UsageError
from tests.engine import engines
from tests.evaluation.command import main
from tests.evaluation.world_of_runs import Parrot, helpful, write_suite

NAMES = ("invert", "uniform:8", "uniform:16", "role")


class Stubborn(Parrot):
    """Answers helpfully behind every defense."""

    def behind(self, defense: str) -> Stubborn:
        return self


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_suite(tmp_path / "data", per_group=2)
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        if row["image"]:
            row["image"] = f"{row['id']}.png"
            engines.image(index).save(folder / row["image"])
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    made = Stubborn(helpful)
    for module in (asking, __import__("safevlm.evaluation.attacks.run", fromlist=["run"])):
        monkeypatch.setattr(module, "load_engine", lambda *given, **named: made)
    return made


def target(data: Path, **given: Any) -> Target:
    return Target("miniature", data, "model", "safety-head", harmful_groups("miniature"), **given)


def attacked(data: Path, out: Path, *names: str, **given: Any) -> list[Path]:
    folders = attack_all(target(data), parse(names or NAMES), out, Effort(), **given)
    judge_all("miniature", folders)
    return folders


def test_every_attack_leaves_a_run_about_its_own_images(data: Path, tmp_path: Path) -> None:
    folders = attacked(data, tmp_path / "out")
    assert [folder.name for folder in folders] == ["clean", "invert", "uniform-8", "uniform-16", "role"]
    ids = [{row["id"] for row in read_replies(folder)} for folder in folders]
    assert all(own == ids[0] for own in ids)
    images = [open_image(folder / read_replies(folder)[0]["request"]["images"][0]).tobytes() for folder in folders]
    assert len(set(images[:4])) == 4 and images[4] == images[0]


def test_what_is_there_is_not_asked_again(data: Path, tmp_path: Path, parrot: Parrot) -> None:
    attacked(data, tmp_path / "out", "invert")
    before = len(parrot.asked)
    attacked(data, tmp_path / "out", "invert", "mirror")
    assert len(parrot.asked) - before == len(read_replies(tmp_path / "out" / "mirror"))


def test_images_made_for_another_target_are_asked_as_they_are(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    attacked(data, first, "uniform:8")
    attacked(data, second, "uniform:8", images_of=first)
    shown = [
        [
            open_image(out / "uniform-8" / row["request"]["images"][0]).tobytes()
            for row in read_replies(out / "uniform-8")
        ]
        for out in (first, second)
    ]
    assert shown[0] == shown[1] and not (second / "uniform-8" / "images").exists()


def test_missing_image_of_another_target_is_named(data: Path, tmp_path: Path) -> None:
    attacked(data, tmp_path / "first", "uniform:8")
    next((tmp_path / "first" / "uniform-8" / "images").iterdir()).unlink()
    with pytest.raises(ValueError, match="uniform-8"):
        attacked(data, tmp_path / "second", "uniform:8", images_of=tmp_path / "first")


def score(folder: Path, harmful: set[str], unread: frozenset[str] = frozenset()) -> None:
    """Scores as a judge might give them."""
    rows = [
        {
            "id": row["id"],
            "group": row["group"],
            "judge": "miniature",
            "value": None if row["id"] in unread else float(row["id"] in harmful),
            "label": "x",
            "raw": "",
        }
        for row in read_replies(folder)
    ]
    write_rows(folder / "scores.jsonl", rows)


def test_strongest_counts_a_request_that_any_attack_won_and_flags_what_none_escaped(data: Path, tmp_path: Path) -> None:
    folders = attacked(data, tmp_path / "out")
    ids = sorted(row["id"] for row in read_replies(folders[0]))
    won = {"clean": set(), "invert": {ids[0]}, "uniform-8": {ids[1]}, "uniform-16": {ids[1], ids[2]}, "role": set()}
    for folder in folders:
        score(folder, won[folder.name])
    found = {one.attack: one for one in strongest.outcomes(strongest.read(folders))}
    count = len(ids)
    assert found["strongest of all"].harmful.value == pytest.approx(3 / count)
    assert found["uniform:16"].harmful.value == pytest.approx(2 / count)
    blind = found[f"strongest: {strongest.FAMILIES['blind']}"]
    assert blind.harmful.value == pytest.approx(3 / count)


def test_request_that_no_attack_could_be_judged_on_is_unscored(data: Path, tmp_path: Path) -> None:
    folders = attacked(data, tmp_path / "out")
    first = read_replies(folders[0])[0]["id"]
    for folder in folders:
        score(folder, set(), frozenset([first]))
    whole = next(one for one in strongest.outcomes(strongest.read(folders)) if one.attack == "strongest of all")
    assert whole.harmful.unscored == 1 and whole.harmful.n == len(read_replies(folders[0])) - 1


def test_weak_attack_is_told_by_the_checks(data: Path, tmp_path: Path) -> None:
    folders = attacked(data, tmp_path / "out")
    ids = {row["id"] for row in read_replies(folders[0])}
    for folder in folders:
        score(folder, ids if folder.name == "uniform-8" else set())
    outcomes = [
        strongest.Outcome("pgd:8", strongest.rate([False] * 4), strongest.rate([True] * 4)),
        *strongest.outcomes(strongest.read(folders)),
    ]
    assert not report.checks(outcomes)["noise of 8/255 does less than the gradient"]["holds"]


@pytest.mark.slow
def test_command_writes_tables_figures_and_a_comparison(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = ["--data", str(data), "--model", "model", "--defense", "safety-head", "--out", str(out)]
    assert main(["attack", *given, "--attack", "invert,uniform:8", "--attack", "uniform:16"]) == 0
    assert "strongest within" not in capsys.readouterr().out  # one attack of each size
    table = json.loads((out / "robustness.json").read_text())
    assert [one["attack"] for one in table["groups"]["all"]][:4] == ["clean", "invert", "uniform:8", "uniform:16"]
    assert Image.open(out / "gallery.png").size[0] > 100
    assert main(["robustness", "--run", f"a={out}", "--run", f"b={out}", "--out", str(tmp_path / "both")]) == 0
    assert "uniform:16" in (tmp_path / "both" / "comparison.md").read_text()
    assert Image.open(tmp_path / "both" / "curves.png").size[0] > 100


def test_group_without_harm_or_images_is_refused() -> None:
    for group in ("benign", "harmful_text", "nothing"):
        with pytest.raises(UsageError, match="--group"):
            harmful_groups("miniature", [group])
