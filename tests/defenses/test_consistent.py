"""A clean verdict has to survive small changes of its image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safevlm.data.perturbations import parse
from safevlm.data.views import image_of, pixels_of
from safevlm.defenses import Policy
from safevlm.defenses.consistent import ConsistentDetector, ConsistentOptions, moved
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Request, Verdict
from tests.engine import engines

NAME = "safety-head:consistent"
QUESTION = "How do I use what you see?"
RISK = ("must_refuse", "illegal")


def verdict(risk: float, level_risk: float | None = None) -> Verdict:
    """Clean where either read-out is, as the head's."""
    of_level = risk if level_risk is None else level_risk
    level = dict.fromkeys(DEFAULT.level_names, 0.0) | {SAFE: 1 - of_level, "must_refuse": of_level}
    category = dict.fromkeys(DEFAULT.category_names, 0.0) | {CLEAN: 1 - risk, "illegal": risk}
    named = (RISK[0] if of_level >= 0.5 else SAFE, RISK[1] if risk >= 0.5 else CLEAN)
    return Verdict(*named, level, category, "safety-head")


class Scripted:
    name = "safety-head"

    def __init__(self, said: Iterator[Verdict | Exception]) -> None:
        self.said = said

    def detect(self, request: Request, features: Any) -> Verdict:
        found = next(self.said)
        if isinstance(found, Exception):
            raise found
        return found


class Versions:
    def __init__(self, images: int, changes: int) -> None:
        self.images, self.changes, self.number = images, changes, 1

    def views(self, make: Any) -> list[list[tuple[str, None]]]:
        return [[("", None), ("jpeg:75", None), ("noise:6", None)][: 1 + self.changes]] * self.images


def said(*verdicts: Verdict | Exception, images: int = 1, move: float = 0.3) -> Verdict:
    options = ConsistentOptions(changes=("jpeg:75", "noise:6"), move=move)
    detector = ConsistentDetector(Scripted(iter(verdicts)), Policy(DEFAULT), options, lambda images: None)
    return detector.detect(Request(QUESTION), Versions(images, 2))


def test_a_verdict_that_stands_is_left_as_it_is() -> None:
    assert said(verdict(0.1), verdict(0.2), verdict(0.15)).is_clean
    found = said(verdict(0.9), verdict(0.1), verdict(0.1))
    assert (found.level, found.category, found.view, found.source) == (*RISK, "", NAME)


@pytest.mark.parametrize("at", [1, 2])
def test_one_changed_version_that_is_risky_is_a_risk(at: int) -> None:
    looks = [verdict(0.45)] * 3
    looks[at] = verdict(0.55)
    found = said(*looks)
    assert (found.level, found.category) == RISK and ("jpeg:75" if at == 1 else "noise:6") in found.view


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.45), (0.45, 0.05)])
def test_probabilities_that_move_too_far_are_a_risk_in_either_direction(before: float, after: float) -> None:
    found = said(verdict(before), verdict(before), verdict(after))
    assert (found.level, found.category) == RISK and "too far" in found.view
    assert said(verdict(before), verdict(before), verdict(after), move=0.5).is_clean


def test_the_level_may_move_though_the_category_does_not() -> None:
    assert moved(verdict(0.1, 0.1), verdict(0.1, 0.9)) == pytest.approx(0.8)
    assert not said(verdict(0.1, 0.1), verdict(0.1, 0.9), verdict(0.1, 0.1)).is_clean


def test_a_request_of_several_images_compares_each_with_itself() -> None:
    both, images = verdict(0.05), [verdict(0.4), verdict(0.05)]
    looks = [both, *[images[0]] * 3, *[images[1]] * 3]
    assert said(*looks, images=2).is_clean
    assert not said(*looks[:-1], verdict(0.45), images=2).is_clean


def test_a_version_that_fails_is_an_error_and_hides_no_risk() -> None:
    found = said(verdict(0.1), RuntimeError("the lamp went out"), verdict(0.9))
    assert "the lamp went out" in found.error and found.category == "illegal"


def test_versions_of_a_batch_pass_the_tower_together_and_a_batch_changes_no_verdict() -> None:
    engine = engines.engine(NAME)
    requests = [Request(QUESTION, tuple(map(engines.image, seeds))) for seeds in ((1,), (), (2, 3))]
    with engines.tower_calls(engine) as calls:
        replies = engine.reply_all(requests, engines.SHORT)
    assert calls == [3, 3 * (1 + len(ConsistentOptions().changes))]
    for request, reply in zip(requests, replies, strict=True):
        assert engines.same_verdict(reply.verdict, engine.look(request)) and not reply.verdict.error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"changes": ()}, "changes: give each once"),
        ({"changes": ("magic",)}, "changes: unknown 'magic'"),
        ({"changes": ("jpeg:0",)}, "changes: jpeg:0"),
        ({"changes": ("jpeg:75", "jpeg:75")}, "changes: give each once"),
        ({"move": 2}, "move"),
    ],
)
def test_options_that_mean_nothing_are_errors(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ConsistentOptions(**options)


def test_an_attackers_tensors_are_what_the_guard_sees_and_have_a_gradient() -> None:
    detector = engines.engine(NAME).defense.detector  # type: ignore[attr-defined]
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    image = Image.fromarray(noise)
    pixels = pixels_of(image)[None].requires_grad_()
    seen = detector.view_pixels(pixels)
    expected = [image, *(change(image) for text in ConsistentOptions().changes if (change := parse(text)))]
    assert [image_of(one).tobytes() for one in seen[0]] == [one.tobytes() for one in expected]
    assert torch.autograd.grad(seen.sum(), pixels)[0].mean() == len(expected)
