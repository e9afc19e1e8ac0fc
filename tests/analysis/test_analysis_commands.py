"""The three commands from the command line to their files, on a random tiny model."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from safevlm.__main__ import main
from safevlm.analysis import calibration, detection, features, tsne
from safevlm.analysis.labelled_images import read_sets
from safevlm.commands import FINDING, OK, WRONG_USAGE
from safevlm.defenses import Policy
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from safevlm.training.merge import fold
from safevlm.types import Request
from tests.analysis import scenes

WORDS = ("--iterations", "250", "--perplexity", "5")
EASY = ("--target-fpr", "0.3", "--confidence", "0.8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis")
    scenes.rows(folder / "data")
    scenes.checkpoint(folder / "model")
    return folder


def _analyze(place: Path, kind: str, out: str, *flags: str, model: str = "model") -> Path:
    where = ["--model", str(place / model), "--data", str(place / "data" / "eval.jsonl"), "--out", str(place / out)]
    assert main(["analyze", kind, *where, *flags]) == OK
    return place / out


def _summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))


def _drawn(out: Path, names: list[str]) -> None:
    for name in names:
        assert (out / name).stat().st_size > 1000 or not name.endswith(("png", "svg")), name


# --- tsne -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tsne_gives_points_numbers_and_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _analyze(place, "tsne", "tsne", *WORDS)
    numbers = _summary(out)
    _drawn(out, numbers["files"])
    assert numbers["n"] == 48 and set(numbers["separation"]) >= {"category, all", "level, risky"}
    with (out / "points.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48 and {"category", "predicted_level", "patches_x", "head_y"} <= set(rows[0])
    assert "silhouette" in capsys.readouterr().out
    where = ["--model", str(place / "model"), "--data", str(place / "data" / "eval.jsonl"), "--out", str(out)]
    for kind, flags, told in (("head", (), 'analysis "tsne" -> "head"'), ("tsne", ("--seed", "3"), "seed 0 -> 3")):
        assert main(["analyze", kind, *where, *(WORDS if kind == "tsne" else ()), *flags]) == FINDING
        assert told in capsys.readouterr().err, "two analyses in one folder"
    assert _summary(out) == numbers


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes(place: Path) -> None:
    first, second = (_analyze(place, "tsne", name, *WORDS, "--spaces", "cls,head") for name in ("again", "more"))
    for name in ("tsne.svg", "tsne.png", "points.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), f"{name} differs between two runs"


@pytest.mark.parametrize(
    ("flags", "told", "code"),
    [
        (("--perplexity", "30"), "--perplexity 30: between 1 and 16 for 48 images", FINDING),
        (("--spaces", "pixels"), "--spaces", WRONG_USAGE),
    ],
)
def test_wrong_flag_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], told: str, code: int
) -> None:
    where = ["--model", str(place / "model"), "--data", str(place / "data" / "eval.jsonl"), "--out", str(place / "x")]
    assert main(["analyze", "tsne", *where, *flags]) == code
    assert told in capsys.readouterr().err


def test_features_are_those_of_the_model_and_of_the_engine(place: Path) -> None:
    """Batched looking gives each image's own tensors, and the verdict that chat would give."""
    loaded = detection.load(place / "model", "cpu")
    sets = read_sets([str(place / "data" / "eval.jsonl")], DEFAULT)
    images = sets[0].images[:5]
    guard = detection.detector(loaded, "safety-head", Policy(DEFAULT), sets)
    found = features.extract(loaded, guard, images, batch_size=3)
    engine = Engine.load(place / "model", device="cpu")
    model = engine.loaded.safe_llava
    for at, image in enumerate(images):
        alone = Request(image.request.text, image.request.images)
        verdict = engine.look(alone)
        assert found.verdicts[at].category == verdict.category
        assert found.verdicts[at].category_probabilities == pytest.approx(verdict.category_probabilities, abs=1e-5)
        with torch.no_grad():
            seen = engine._encoder.features([alone])[0].vision
            ours = model.safety_features(seen.patches).mean((0, 1))
            read_out = model.safety_head.category(torch.tensor(found.spaces["head"][at])).softmax(-1)
        assert found.spaces["patches"][at] == pytest.approx(seen.patches.mean((0, 1)).numpy(), abs=1e-5)
        assert found.spaces["cls"][at] == pytest.approx(seen.cls[0].numpy(), abs=1e-5)
        assert found.spaces["safety"][at] == pytest.approx(ours.numpy(), abs=1e-5)
        assert read_out.tolist() == pytest.approx(list(verdict.category_probabilities.values()), abs=1e-5)


def test_at_most_so_many_images_are_drawn_and_in_order(place: Path) -> None:
    sets = read_sets([str(place / "data" / "eval.jsonl")], DEFAULT)
    drawn = [image.place for _, image in tsne.drawn(sets, 10, seed=0)]
    everything = [image.place for image in sets[0].images]
    assert len(drawn) == 10 and drawn == [place for place in everything if place in drawn]


# --- head -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_head_measures_every_group(place: Path) -> None:
    out = _analyze(place, "head", "head", "--by-group")
    numbers = _summary(out)
    _drawn(out, numbers["files"])
    assert set(numbers["sets"]) == {
        "harmful_seen",
        "harmful_unseen",
        "typographic",
        "typographic_unseen",
        "benign",
        "lookalike",
        "all",
    }
    assert numbers["sets"]["all"]["n"] == 48
    assert numbers["sets"]["harmful_unseen"]["risk"]["negatives"] == 16, "clean images of the other sets"


def test_oracle_is_always_right(place: Path) -> None:
    numbers = _summary(_analyze(place, "head", "oracle", "--defense", "oracle"))["sets"]["eval"]
    assert numbers["category"]["accuracy"]["value"] == numbers["level"]["accuracy"]["value"] == 1
    assert numbers["risk"]["false_positive_rate"]["value"] == 0


def test_defense_without_eyes_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--model", str(place / "model"), "--data", str(place / "data" / "eval.jsonl"), "--out", str(place / "x")]
    assert main(["analyze", "head", *where, "--defense", "static-prompt"]) == WRONG_USAGE
    assert "no detector" in capsys.readouterr().err


# --- certified --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_certified_curve_falls_from_the_share_that_is_right(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "smoothed.yaml").write_text("{n: 24, sigma: 0.02, alpha: 0.05}", encoding="utf-8")
    flags = ("--defense", f"safety-head:smoothed={place / 'smoothed.yaml'}")
    numbers = _summary(_analyze(place, "certified", "certified", *flags))
    _drawn(place / "certified", numbers["files"])
    assert "abstained" in capsys.readouterr().out and numbers["options"]["sigma"] == 0.02
    for part, n in (("risky", 32), ("clean", 16)):
        one = numbers["sets"]["eval"][part]
        curve = [point["value"] for point in one["curve"]]
        assert one["n"] == n and curve[0] == one["right"]["value"] and curve == sorted(curve, reverse=True)
        assert sum(one[name]["value"] for name in ("right", "wrong", "abstained")) == pytest.approx(1)


def test_a_detector_that_proves_nothing_has_no_certified_curve(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--model", str(place / "model"), "--data", str(place / "data" / "eval.jsonl"), "--out", str(place / "x")]
    assert main(["analyze", "certified", *where, "--defense", "safety-head"]) == WRONG_USAGE
    assert "safety-head:smoothed" in capsys.readouterr().err


# --- calibration ------------------------------------------------------------------------------------------------------


def test_written_calibration_is_what_chat_uses(place: Path) -> None:
    shutil.copytree(place / "model", place / "own")
    out = _analyze(place, "calibration", "calibration", *EASY, "--write", model="own")
    numbers = _summary(out)
    _drawn(out, numbers["files"])
    own, file = (
        Engine.load(place / "own", device="cpu"),
        Engine.load(place / "model", device="cpu", policy=out / "policy.yaml"),
    )
    assert own.defense.policy == file.defense.policy, "config.json and policy.yaml disagree"
    assert own.defense.policy.calibration["safety-head"].risk == numbers["chosen"]
    for image in read_sets([str(place / "data" / "eval.jsonl")], DEFAULT)[0].images[:8]:
        verdict = own.look(image.request)
        reached = sum(p for name, p in verdict.category_probabilities.items() if name != "clean") >= numbers["chosen"]
        assert verdict.is_clean != reached
        assert verdict == file.look(image.request)


@pytest.mark.slow
def test_a_guarded_folder_keeps_its_calibration_beside_the_stock_model(place: Path) -> None:
    """Stock servers read the other config.json, and must find nothing of ours in it."""
    fold(str(place / "model"), place / "guarded", stock=True)
    before = (place / "guarded" / "config.json").read_bytes()
    out = _analyze(place, "calibration", "calibration_guarded", *EASY, "--write", model="guarded")
    assert (place / "guarded" / "config.json").read_bytes() == before
    policy = Engine.load(place / "guarded", device="cpu").defense.policy
    assert policy.calibration["safety-head"].risk == _summary(out)["chosen"]


def test_only_the_policy_in_config_json_changes(place: Path) -> None:
    before = json.loads((place / "model" / "config.json").read_text(encoding="utf-8"))
    after = json.loads((place / "own" / "config.json").read_text(encoding="utf-8"))
    assert after.pop("policy")["calibration"] and not before.get("policy")
    assert {name: value for name, value in before.items() if name != "policy"} == after


def test_calibrating_anew_starts_from_raw_probabilities(place: Path) -> None:
    """A second run on its own result must not temper what is tempered, and must keep the rest of the policy."""
    path = place / "own" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["policy"]["levels"] = {"careful": "allow"}
    path.write_text(json.dumps(config), encoding="utf-8")
    again = _summary(_analyze(place, "calibration", "calibrated_again", *EASY, "--write", model="own"))
    assert again["temperatures"] == _summary(place / "calibration")["temperatures"]
    policy = json.loads(path.read_text(encoding="utf-8"))["policy"]
    assert policy["levels"] == {"careful": "allow"}


@pytest.mark.slow
def test_trials_report_every_rule(place: Path) -> None:
    fresh = f"fresh={place / 'data/train.jsonl'}"
    flags = ("--target-fpr", "0.5", "--confidence", "0.7", "--trials", "5", "--test", fresh)
    numbers = _summary(_analyze(place, "calibration", "trials", *flags))
    assert set(numbers["trials"]["rules"]) == set(calibration.rules(calibration.Promise(0.5, 0.7)))
    assert set(numbers["measured"]) == {"held-out half", "fresh"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--confidence", "0.99"), "too few"),
        ((*EASY, "--trials", "3", "--per-category"), "--trials|too few"),
        ((*EASY, "--defense", "oracle"), "no probabilities"),
    ],
)
def test_what_cannot_be_calibrated_is_an_error(place: Path, flags: tuple[str, ...], told: str) -> None:
    data = (str(place / "data" / "eval.jsonl"),)
    given = dict(zip((flag.lstrip("-").replace("-", "_") for flag in flags[::2]), flags[1::2], strict=False))
    options = calibration.CalibrationOptions(
        str(place / "model"),
        data,
        place / "x",
        defense=given.get("defense", "safety-head"),
        target_fpr=float(given.get("target_fpr", 0.05)),
        confidence=float(given.get("confidence", 0.95)),
        trials=int(given.get("trials", 0)),
        per_category="--per-category" in flags,
        device="cpu",
    )
    with pytest.raises(ValueError, match=told):
        calibration.run(options)
