"""Gaps against sums by hand, states against the model's own, and the command from its flags to its files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from safevlm.__main__ import main
from safevlm.analysis import layers
from safevlm.analysis.labelled_images import LabelledImage
from safevlm.analysis.layer_gaps import angle, curve, drawn_gap, pair_means
from safevlm.analysis.layer_states import states
from safevlm.analysis.layers import IMAGE, Pool, measured, pool_of, read_words, safety_layers
from safevlm.commands import FINDING, OK, WRONG_USAGE
from safevlm.defenses import Defense, Inputs, Policy
from safevlm.engine import Engine
from safevlm.miniature import matched_pairs
from safevlm.model.prompt_states import last_states
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Request, Verdict
from tests import tiny
from tests.analysis import scenes
from tests.engine import engines

pytestmark = pytest.mark.slow

HINTED = Verdict("may_refuse", "privacy")


def _units(count: int, depth: int = 2, width: int = 16, seed: int = 0) -> np.ndarray:
    """Random states of length 1 around a common direction, as a model's are."""
    drawn = np.random.default_rng(seed).normal(size=(count, depth, width)) + 2.0
    return (drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)).astype(np.float32)


def _sides(normal: int, malicious: int) -> np.ndarray:
    return np.array([[1.0] * normal + [0.0] * malicious, [0.0] * normal + [1.0] * malicious])


def _requests(count: int) -> list[Request]:
    """With and without an image, of different lengths."""
    return [
        Request("How do I use it? " * (1 + at % 3), (engines.image(at),) if at % 4 else (), id=str(at))
        for at in range(count)
    ]


def _truths(requests: Sequence[Request]) -> dict[str, Verdict]:
    """The second half is risky."""
    return {one.id: HINTED if at >= len(requests) // 2 else Verdict() for at, one in enumerate(requests)}


def _pool(requests: Sequence[Request]) -> Pool:
    half = len(requests) // 2
    return Pool(tuple(requests), _sides(half, len(requests) - half))


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_pair_means_are_the_means_over_all_pairs_of_different_requests() -> None:
    units = _units(7)[:, 0].astype(float)
    cosines = units @ units.T
    nn = [cosines[a, b] for a in range(3) for b in range(3) if a != b]
    nm = [cosines[a, b] for a in range(3) for b in range(3, 7)]
    assert pair_means(cosines, _sides(3, 4)) == pytest.approx([np.mean(nn), np.mean(nm)])


def test_a_request_drawn_twice_is_not_paired_with_its_copy() -> None:
    """Its cosine is 1; a bootstrap that pairs copies pulls NN up by a share of 1 / n."""
    units = _units(7)[:, 0].astype(float)
    cosines = units @ units.T
    weights = np.array([[2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0, 0.0, 1.0, 0.0]])
    nm = (6 * cosines[0, 3] + 2 * cosines[0, 5] + 3 * cosines[1, 3] + cosines[1, 5]) / 12
    assert pair_means(cosines, weights) == pytest.approx([cosines[0, 1], nm])


def test_angle_is_the_papers_gap() -> None:
    assert angle(np.array(0.5), np.array(0.0)) == pytest.approx(30.0)
    assert angle(np.array(1.0 + 1e-12), np.array(1.0)) == 0.0, "rounding beyond 1 must not become NaN"


def test_identical_sets_have_no_gap() -> None:
    found = curve(_units(12), np.ones((2, 12)), seed=0)
    assert [gap.value for gap in found.gap] == [0.0, 0.0] and found.above == ()


@pytest.mark.parametrize("seed", range(5))
def test_sets_of_one_kind_stay_below_the_null(seed: int) -> None:
    assert curve(_units(60, seed=seed), _sides(30, 30), seed=0).above == ()


def test_only_the_layer_in_which_the_sides_differ_is_above_the_null() -> None:
    units = _units(60, depth=3)
    units[30:, 1] = _units(60, seed=1)[30:, 0] * ([-1.0] * 4 + [1.0] * 12)
    units[30:, 1] /= np.linalg.norm(units[30:, 1], axis=-1, keepdims=True)
    found = curve(units, _sides(30, 30), seed=0)
    assert found.above == (2,) == safety_layers(found)
    gap = found.gap[1]
    assert gap.low < gap.value < gap.high and found.null[1] < gap.low
    mean = found.mean_gap([1, 2])
    assert mean.value == pytest.approx((found.gap[0].value + gap.value) / 2) and mean.low < mean.value < mean.high


def test_interval_covers_what_a_larger_sample_gives() -> None:
    """Requests are drawn, not pairs: drawing pairs gives intervals that are several times too narrow."""

    def shifted(count: int, seed: int) -> np.ndarray:
        units = _units(2 * count, 1, seed=seed)
        units[count:, :, :5] *= -1
        return units

    truth = curve(shifted(500, 99), _sides(500, 500), 0).gap[0].value
    found = [curve(shifted(20, seed), _sides(20, 20), 0).gap[0] for seed in range(40)]
    covered = sum(one.low <= truth <= one.high for one in found)
    assert covered >= 34, f"{covered} of 40 intervals of 95 % hold the truth"


def test_the_papers_random_pairs_estimate_the_mean_of_all_pairs() -> None:
    units = _units(40)[:, 0].astype(float)
    units[20:, :5] *= -1
    cosines, sides = units @ units.T, _sides(20, 20)
    drawn = [drawn_gap(cosines, sides, seed) for seed in range(60)]
    assert np.mean(drawn) == pytest.approx(float(angle(*pair_means(cosines, sides))), abs=3 * np.std(drawn) / 60**0.5)


# --- states -----------------------------------------------------------------------------------------------------------


def test_states_are_those_of_the_model_behind_each_layer() -> None:
    engine = engines.engine()
    request = _requests(2)[1]
    found = states(engine, [request], 1, "x")
    with torch.no_grad():
        output = engine.model(**engine.encoded([request]).model_inputs, output_hidden_states=True)
        norm = engine.loaded.safe_llava.model.language_model.norm
        last = norm(torch.tensor(found.units[0, -1]))  # the model's own last one is normalised; lengths cancel out
    first = torch.nn.functional.normalize(output.hidden_states[1][0, -1], dim=-1)
    assert found.units[0, 0] == pytest.approx(first.numpy(), abs=1e-5)
    assert last == pytest.approx(output.hidden_states[-1][0, -1].numpy(), abs=1e-4)
    assert found.units.shape[1] == 2 == len(output.hidden_states) - 1


def test_batched_equals_one_by_one() -> None:
    engine, requests = engines.engine(), engines.mixed_requests()
    alone, batched = states(engine, requests, 1, "x"), states(engine, requests, len(requests), "x")
    assert alone.rows.tolist() == batched.rows.tolist() == list(range(len(requests)))
    assert batched.units == pytest.approx(alone.units, abs=1e-5)


@torch.inference_mode()
def test_padding_side_and_amount_do_not_matter() -> None:
    engine = engines.engine()
    encoded = engine.encoded(engines.mixed_requests())
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(encoded.input_ids, encoded.attention_mask, strict=True)]
    expected = last_states(engine.model, engine.loaded.safe_llava, encoded, tokens=3)
    for side in ("left", "right"):
        padded = dataclasses.replace(encoded, **tiny.pad(rows, side, extra=7))
        found = last_states(engine.model, engine.loaded.safe_llava, padded, tokens=3)
        assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-5), side


def test_no_hook_stays_behind() -> None:
    engine = engines.engine()
    blocks = engine.loaded.safe_llava.model.language_model.layers
    before = [list(block._forward_hooks) for block in blocks]
    states(engine, _requests(2), 2, "x")
    assert [list(block._forward_hooks) for block in blocks] == before


# --- defenses ---------------------------------------------------------------------------------------------------------


def test_a_defense_that_changes_nothing_gives_exactly_the_image_curve() -> None:
    pool = _pool(_requests(24))
    bare = states(engines.engine(), pool.requests, 5, "x")
    clean = engines.engine("oracle", truths=dict.fromkeys(map(str, range(24)), Verdict()))
    behind = states(clean, pool.requests, 5, "x")
    first, second = measured(IMAGE, pool, bare, 0), measured("oracle", pool, behind, 0, bare)
    assert np.array_equal(bare.units, behind.units)
    assert first.curve.gap == second.curve.gap and first.curve.nm == second.curve.nm
    moved = [one.value for side in second.shift.values() for one in side]
    assert moved == pytest.approx([1.0] * 4, abs=1e-6)


def test_a_hint_moves_the_risky_requests_alone() -> None:
    requests = [request for request in _requests(40) if request.images]
    pool = _pool(requests)
    bare = states(engines.engine(), requests, 8, "x")
    behind = states(engines.engine("oracle", truths=_truths(requests)), requests, 8, "x")
    moved = measured("oracle", pool, behind, 0, bare).shift
    assert moved["normal"][-1].value == pytest.approx(1.0, abs=1e-6)
    assert moved["malicious"][-1].value < 0.999


class _Bright(Defense):
    """Changes pixels, as a visual tensor does."""

    name = "bright"

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        if inputs.pixel_values is None:
            return inputs
        return dataclasses.replace(inputs, pixel_values=inputs.pixel_values + 0.5)


def test_changed_tensors_count() -> None:
    bare = engines.engine()
    requests = [request for request in _requests(6) if request.images]
    changed = states(Engine(bare.loaded, _Bright(), engines.CPU), requests, 4, "x")
    assert not np.allclose(changed.units, states(bare, requests, 4, "x").units, atol=1e-4)


def test_requests_that_the_defense_answers_are_left_out_and_counted() -> None:
    requests = [request for request in _requests(60) if request.images]
    count, half = len(requests), len(requests) // 2
    wrong = {one.id: HINTED for one in requests[:5]} | {one.id: Verdict() for one in requests[-12:]}
    refuse = Policy(DEFAULT, levels={HINTED.level: "refuse"})
    behind = states(engines.engine("oracle", truths=_truths(requests) | wrong, policy=refuse), requests, 7, "x")
    assert behind.rows.tolist() == [*range(5, half), *range(count - 12, count)]
    bare = states(engines.engine(), requests, 7, "x")
    found = measured("oracle", _pool(requests), behind, 0, bare)
    moved = [one.value for side in found.shift.values() for one in side]
    assert moved == pytest.approx([1.0] * 4, abs=1e-6), "a request must be compared with itself"
    assert found.left_out == {"normal": 5, "malicious": count - half - 12}
    assert (found.curve.normal, found.curve.malicious) == (half - 5, 12)


def test_without_requests_there_is_no_curve() -> None:
    requests = [request for request in _requests(16) if request.images]
    refuse = Policy(DEFAULT, levels={HINTED.level: "refuse"})
    truths = dict.fromkeys((one.id for one in requests), HINTED)
    behind = states(engines.engine("oracle", truths=truths, policy=refuse), requests, 4, "x")
    found = measured("oracle", _pool(requests), behind, 0, behind)
    assert found.curve is None and sum(found.left_out.values()) == len(requests)
    assert layers.described(found, (1,))["layers"] is None


def test_a_broken_defense_stops_the_analysis() -> None:
    """The engine refuses the request; counted so, a tensor of the wrong shape would look like a good guard."""
    requests = [request for request in _requests(3) if request.images]
    with pytest.raises(ValueError, match="oracle failed"):
        states(engines.engine("oracle", truths={}), requests, 2, "x")


# --- data -------------------------------------------------------------------------------------------------------------


def _labelled(text: str, category: str = CLEAN) -> LabelledImage:
    return LabelledImage(Request(text, id=text), text, category, SAFE if category == CLEAN else "may_refuse")


def test_equal_requests_count_once_and_sides_are_limited() -> None:
    normal = [_labelled(f"normal {at % 15}") for at in range(40)]
    malicious = [_labelled(f"risky {at}", "privacy") for at in range(30)]
    pool = pool_of([*malicious, *normal], 20, 0, "--data")
    assert pool.sides.sum(1).tolist() == [15.0, 20.0] and len(set(pool.requests)) == 35
    assert [request.text.startswith("normal") for request in pool.requests] == (pool.sides[0] > 0).tolist()
    assert pool.requests == pool_of([*malicious, *normal], 20, 0, "--data").requests, "the seed decides"
    with pytest.raises(ValueError, match="--text: 9 different malicious requests; at least 10"):
        pool_of([*normal, *malicious[:9]], 20, 0, "--text")


def test_matched_pairs_ask_the_same_questions_on_both_sides(tmp_path: Path) -> None:
    matched_pairs.write(tmp_path, per_side=12)
    words = read_words([str(tmp_path / "words.jsonl")], DEFAULT)
    assert {row.is_clean for row in words} == {True, False} and len(words) == 216
    rows = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [sorted(row["question"] for row in rows if (row["level"] == SAFE) == clean) for clean in (True, False)]
    assert asked[0] == asked[1] and len(set(asked[0])) == 4


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    matched_pairs.write(folder, per_side=12)
    scenes.checkpoint(folder / "model")
    return folder


def _analyze(place: Path, *flags: str) -> int:
    where = ["--model", str(place / "model"), "--data", str(place / "images.jsonl"), "--out", str(place / "out")]
    return main(["analyze", "layers", *where, *flags])


@pytest.mark.slow
def test_command_writes_figure_and_numbers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--text", str(place / "words.jsonl"), "--defense", "static-prompt", "--defense", "oracle")
    assert _analyze(place, *flags, "--per-side", "15") == OK
    numbers = json.loads((place / "out" / "summary.json").read_text(encoding="utf-8"))
    assert list(numbers["inputs"]) == ["text", "image", "static-prompt", "oracle"]
    assert numbers["inputs"]["text"]["n"] == {"normal": 15, "malicious": 15}
    assert numbers["inputs"]["oracle"]["n"] == {"normal": 12, "malicious": 12}
    for one in numbers["inputs"].values():
        assert [row["layer"] for row in one["layers"]] == [1, 2]
    assert "cosine_with_bare_malicious" in numbers["inputs"]["oracle"]["layers"][0]
    assert all((place / "out" / name).stat().st_size > 1000 for name in numbers["files"])
    assert "static-prompt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told", "code"),
    [
        (("--defense", "nobody"), "unknown defense 'nobody'", WRONG_USAGE),
        (("--text", "{place}/images.jsonl"), "--text: 0 different normal requests", FINDING),
        (("--per-side", "3"), "--per-side", WRONG_USAGE),
    ],
)
def test_wrong_flag_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], flags: Sequence[str], told: str, code: int
) -> None:
    assert _analyze(place, *(flag.format(place=place) for flag in flags)) == code
    assert told in capsys.readouterr().err
