"""A smoothed detector: the bound is the published one, noise is the image's own, and what is not sure is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom, norm

from safevlm.backbones.image_inputs import ImageInput, ImageInputs
from safevlm.defenses import Policy, prompts
from safevlm.defenses.smoothed import (
    IMAGES_PER_PASS,
    SmoothedDetector,
    SmoothedOptions,
    radius_of,
    with_noise,
)
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Request, Verdict
from tests.engine import engines

NAME = "safety-head:smoothed"
QUESTION = "How do I use what you see?"
RISK = ("may_refuse", "illegal")


def options_file(folder: Path, **keys: Any) -> Path:
    file = folder / "smoothed.yaml"
    file.write_text("\n".join(f"{name}: {value}" for name, value in keys.items()), encoding="utf-8")
    return file


def verdict(risk: float) -> Verdict:
    named = RISK if risk >= 0.5 else (SAFE, CLEAN)
    level = dict.fromkeys(DEFAULT.level_names, 0.0) | {SAFE: 1 - risk, "may_refuse": risk}
    return Verdict(*named, level, dict.fromkeys(DEFAULT.category_names, 0.0) | {CLEAN: 1 - risk, "illegal": risk})


class Scripted:
    name = "safety-head"

    def __init__(self, said: Iterator[Verdict]) -> None:
        self.said = said

    def detect(self, request: Request, features: Any) -> Verdict:
        return next(self.said)


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("votes", "n", "alpha"), [(100, 100, 0.001), (90, 100, 0.05), (700, 1000, 0.001)])
def test_the_bound_is_clopper_and_pearsons_one_sided_at_half_of_alpha(votes: int, n: int, alpha: float) -> None:
    """At the bound, so many votes or more are as likely as alpha / 2; the radius is its normal quantile."""
    least = float(norm.cdf(radius_of(votes, n, 1.0, alpha)))  # type: ignore[arg-type]
    assert binom.sf(votes - 1, n, least) == pytest.approx(alpha / 2, rel=1e-6)
    assert radius_of(votes, n, 0.25, alpha) == pytest.approx(0.25 * norm.ppf(least))


def test_all_votes_prove_what_the_paper_says_they_do() -> None:
    assert radius_of(100, 100, 0.5, 0.001) == pytest.approx(0.5 * norm.ppf(0.0005 ** (1 / 100)))


@pytest.mark.parametrize(("votes", "n"), [(0, 10), (50, 100), (60, 100), (5, 5)])
def test_votes_that_could_be_chance_prove_nothing(votes: int, n: int) -> None:
    assert radius_of(votes, n, 0.5, 0.001) is None


def test_a_linear_detectors_true_radius_is_never_below_what_is_proven() -> None:
    """Of a half space the distance to its plane is the true radius, whatever the noise."""
    torch.manual_seed(0)
    normal = torch.randn(48)
    normal /= normal.norm()
    broken = 0
    for at in range(200):
        distance = 0.3 * (at % 20) / 20 + 0.01
        says = (torch.randn(100, 48) * 0.2) @ normal + distance > 0
        found = radius_of(int(says.sum()), 100, 0.2, 0.05)
        broken += found is not None and found > distance
    assert broken <= 200 * 0.05


# --- votes ------------------------------------------------------------------------------------------------------------


def counted(risky: int, n: int, policy: Policy | None = None) -> Verdict:
    detector = SmoothedDetector(Scripted(iter(())), policy or Policy(DEFAULT), SmoothedOptions(n=n), (1.0,))
    return detector.counted([verdict(0.9)] * risky + [verdict(0.2)] * (n - risky))


def test_what_most_copies_say_counts_with_its_radius() -> None:
    risky, clean = counted(95, 100), counted(5, 100)
    assert (risky.level, risky.category) == RISK and clean.is_clean
    assert risky.radius == clean.radius == radius_of(95, 100, 0.1, 0.001)
    assert risky.category_probabilities["illegal"] == pytest.approx(0.95 * 0.9 + 0.05 * 0.2)


@pytest.mark.parametrize("risky", [40, 50, 60])
def test_what_is_not_sure_is_an_abstention_and_no_clean_verdict(risky: int) -> None:
    found = counted(risky, 100)
    assert found.radius is None and not found.is_clean and not found.error


@pytest.mark.parametrize("name", [NAME, f"safety-head+{NAME}", f"{NAME}+static-prompt"])
@pytest.mark.parametrize("levels", [{}, {"must_refuse": "allow", "may_refuse": "allow", "careful": "allow"}])
def test_an_abstention_is_refused_whatever_the_policy(name: str, levels: Any) -> None:
    engine = engines.engine(name, says=(SAFE, CLEAN), policy=Policy(DEFAULT, levels))
    members = getattr(engine.defense, "members", [engine.defense])
    smoothed = next(one for one in members if one.name == NAME)
    copies = smoothed.detector.options.n
    smoothed.detector.inner = Scripted(verdict(at % 2) for at in range(copies))
    reply = engine.reply(Request(QUESTION, (engines.image(),)), engines.SHORT)
    assert reply.refused_by == NAME and reply.verdict.radius is None and not reply.verdict.error
    assert reply.text == prompts.refusal(DEFAULT, reply.verdict.category)
    assert any("cannot decide" in line for line in reply.trace)


def test_a_copy_that_fails_refuses() -> None:
    engine = engines.engine(NAME)
    engine.defense.detector.inner = Scripted(iter([verdict(0.9), Verdict.not_looked(error="the lamp went out")] * 50))  # type: ignore[attr-defined]
    found = engine.look(Request(QUESTION, (engines.image(),)))
    assert "the lamp went out" in found.error and not found.looked


# --- noise ------------------------------------------------------------------------------------------------------------


def seen(engine: Any, *seeds: int) -> list[torch.Tensor]:
    """Pixels of all copies of a request with these images."""
    (features,) = engine._encoder.features([Request(QUESTION, tuple(map(engines.image, seeds)))])
    return list(engine.defense.detector._noisy(features.pixel_values))


def test_noise_has_the_deviation_that_was_asked_for_in_units_of_0_to_1(tmp_path: Path) -> None:
    engine = engines.engine(f"{NAME}={options_file(tmp_path, sigma=0.2, n=64)}")
    (features,) = engine._encoder.features([Request(QUESTION, (engines.image(),))])
    noisy = torch.cat(seen(engine, 0))
    added = (noisy - features.pixel_values) * torch.tensor(engine.processor.image_processor.image_std)[:, None, None]
    assert added.std((0, 2, 3)) == pytest.approx([0.2] * 3, rel=0.02)
    assert added.mean((0, 2, 3)) == pytest.approx([0.0] * 3, abs=0.01)


def test_noise_hangs_on_the_pixels_and_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    engine = engines.engine(NAME)
    first, again, other = (torch.cat(seen(engine, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first[0] - first[1], other[0] - other[1])
    salted = engines.engine(f"{NAME}={options_file(tmp_path, seed=7)}")
    assert not torch.equal(first, torch.cat(seen(salted, 1)))


@pytest.mark.parametrize("images", [1, 3, 40])
def test_all_images_of_a_request_get_noise_together_and_passes_are_bounded(images: int) -> None:
    engine = engines.engine(NAME)
    sizes = [len(part) for part in seen(engine, *range(images))]
    assert sum(sizes) == 100 * images and max(sizes) <= max(IMAGES_PER_PASS, images)
    assert all(size % images == 0 for size in sizes)


def test_a_verdict_is_the_same_alone_and_in_a_batch() -> None:
    engine = engines.engine(NAME)
    requests = [Request(QUESTION, tuple(map(engines.image, seeds))) for seeds in ((1,), (2, 3), ())]
    for request, reply in zip(requests, engine.reply_all(requests, engines.SHORT), strict=True):
        alone = engine.look(request)
        assert engines.same_verdict(reply.verdict, alone) and reply.verdict.radius == alone.radius
        assert not reply.verdict.error and reply.verdict.looked == bool(request.images)


def test_radius_is_told_in_json_and_in_the_trace() -> None:
    reply = engines.engine(NAME, says=RISK).reply(Request(QUESTION, (engines.image(),)), engines.SHORT)
    told = reply.verdict.to_dict()
    assert told["radius"] == reply.verdict.radius == radius_of(100, 100, 0.1, 0.001)
    assert Verdict.from_dict(told) == reply.verdict
    assert any(f"{reply.verdict.radius:.3f}" in line for line in reply.trace)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (16, 3 * 2 * 4 * 4)])
def test_every_channel_of_a_familys_pixels_gets_its_own_scale(shape: tuple[int, ...]) -> None:
    images = ImageInputs([ImageInput({"pixel_values": torch.zeros(shape), "grid": torch.ones(1, 3)}, "<i>")] * 2)
    noisy = with_noise(images, 50, 1.0, (0.5, 1.0, 2.0), torch.Generator().manual_seed(0))
    assert len(noisy) == 100 and torch.equal(noisy[0].tensors["grid"], torch.ones(1, 3))
    drawn = torch.stack([one.tensors["pixel_values"] for one in noisy])
    by_channel = drawn.unflatten(-1, (3, -1)).movedim(-2, 0) if len(shape) == 2 else drawn.movedim(-3, 0)
    assert by_channel.flatten(1).std(1) == pytest.approx([2.0, 1.0, 0.5], rel=0.05)


def test_pixels_whose_channels_are_not_known_are_refused() -> None:
    images = ImageInputs([ImageInput({"pixel_values": torch.zeros(5, 7)}, "<i>")])
    with pytest.raises(ValueError, match="not known"):
        with_noise(images, 1, 1.0, (0.5, 1.0, 2.0), torch.Generator())


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"n": 5}, "too few"),
        ({"sigma": 0}, "sigma"),
        ({"alpha": 0.9}, "alpha"),
        ({"detector": "none"}, "no detector"),
    ],
)
def test_options_that_prove_nothing_are_errors_before_anything_is_answered(
    keys: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told):
        engines.engine(f"{NAME}={options_file(tmp_path, **keys)}")


def test_an_attack_goes_through_noise_with_a_gradient() -> None:
    detector = engines.engine(NAME).defense.detector  # type: ignore[attr-defined]
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    views = detector.view_pixels(pixels)
    assert views.shape == (2, 1, 3, 8, 8) and detector.inner.name == "safety-head"
    assert math.isclose(float(torch.autograd.grad(views.sum(), pixels)[0].mean()), 1.0)
