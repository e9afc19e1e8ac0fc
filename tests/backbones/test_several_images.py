"""Several images in a request: a verdict on each alone and one on the request, and the mixer names the risky ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from safevlm.defenses import Policy
from safevlm.defenses.base import ImageFeatures
from safevlm.defenses.mixer import Mixer
from safevlm.engine import Engine
from safevlm.serve.console.account import why
from safevlm.serve.settlement import verdict_table
from safevlm.taxonomy import DEFAULT
from safevlm.types import Request, Verdict
from tests.backbones import families
from tests.backbones.features import FEATURES
from tests.backbones.test_contract import SHORT, counted, guarded
from tests.engine import engines
from tests.engine.test_animations import animation

ASKED = "Which is larger?"
GRAVE = ("must_refuse", "illegal")
COLOURS = ("black", "white", "red", "blue")
NEVER, SURE, TINY = -1e4, 10.0, 1e-30
REFUSES = Policy(DEFAULT, {"must_refuse": "refuse"})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def ask(*images: Any) -> Request:
    return Request(ASKED, images=images)


def clean_and_risky(engine: Engine) -> tuple[list[Image], list[Image]]:
    """Sets the head so that it sees a grave risk in two of four images, and none in the others."""
    head, level, category = engine.model.safety_head, *map(list.index, (LEVELS, CATEGORIES), GRAVE)
    images = [PIL.Image.new("RGB", (24 + 4 * at, 40 - 4 * at), colour) for at, colour in enumerate(COLOURS)]
    with torch.no_grad():
        head.category.weight.zero_()
        head.category.bias.fill_(0)[category] = engines.SURE
        head.level.weight[0] = 0
        head.level.bias.fill_(NEVER)[[0, level]] = 0
        for _ in range(4):  # random heads tell random images apart by very little, and by very different amounts
            odds = [_odds(engine.look(ask(own))) for own in images]
            low, high = sorted(odds)[1:3]
            scale = min(1e4, 2 * SURE / max(high - low, TINY))
            head.level.weight *= scale
            head.level.bias[level] = scale * (head.level.bias[level] - (low + high) / 2)
    assert high - low > SURE, "the head tells these images too little apart"
    return (
        [own for own, seen in zip(images, odds, strict=True) if seen <= low],
        [own for own, seen in zip(images, odds, strict=True) if seen >= high],
    )


LEVELS, CATEGORIES = list(DEFAULT.level_names), list(DEFAULT.category_names)


def _odds(verdict: Verdict) -> float:
    risky, safe = (max(verdict.level_probabilities[name], TINY) for name in (GRAVE[0], "safe"))
    return math.log(risky / safe)


def check(engine: Engine) -> None:
    clean, risky = clean_and_risky(engine)
    cases = (
        ((clean[0], risky[0]), "image 2 of 2"),
        ((risky[0], clean[0]), "image 1 of 2"),
        ((risky[0], clean[0], risky[1]), "images 1 and 3 of 3"),
        (tuple(clean), ""),
    )
    with counted(engine.model.tower) as passes:
        together = engine.reply_all([ask(*images) for images, _ in cases], SHORT, batch_size=8, errors="raise")
    assert len(passes) == 1, "each image alone is looked at in the pass of all of them"
    for (images, named), reply in zip(cases, together, strict=True):
        own = [engine.look(ask(image)) for image in images]
        assert [_said(seen) for seen in reply.verdict.images] == [_said(seen) for seen in own]
        for seen, alone in zip(reply.verdict.images, own, strict=True):
            assert engines.same_verdict(seen, alone, 1e-3) and not alone.images
        assert reply.prompt.count(" of 2.") + reply.prompt.count(" of 3.") == bool(named)
        assert f"This is about {named}." in reply.prompt or not named
        assert not named or _said(reply.verdict) == GRAVE, "an image beside it hides the risk"
        assert Verdict.from_dict(reply.verdict.to_dict()) == reply.verdict
    refusing = engine.behind(Mixer(engine.defense.detector, REFUSES))  # type: ignore[attr-defined]
    refused = refusing.reply(ask(clean[0], risky[0]), SHORT)
    assert refused.refused_by and refused.text.endswith("This is about image 2 of 2.")
    assert [line for line in why(refused) if line.startswith("image 2 alone: verdict: level must_refuse")]


def _said(verdict: Verdict) -> tuple[str, str]:
    return verdict.level, verdict.category


def test_the_mixer_names_the_risky_image_and_no_other_on_llava() -> None:
    check(engines.engine("safety-head", own=engines.model()))


@families.few(FEATURES["several images, the risky one named"])
def test_the_mixer_names_the_risky_image_and_no_other(home: Path, family: str) -> None:
    check(guarded(home, family))


TOLD = (
    "safe-clip",
    "safe-clip:companion",
    "fusion:max",
    "fusion:mean",
    "safety-head:either",
    "safety-head:consistent",
    "safety-head+static-prompt",
)


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_of_an_image_beside_others_is_what_is_told_of_it_alone(name: str) -> None:
    engine = engines.engine(name)
    images = [engines.image(seed) for seed in range(3)]
    verdict = engine.look(ask(*images))
    assert len(verdict.images) == 3
    for seen, image in zip(verdict.images, images, strict=True):
        assert engines.same_verdict(seen, engine.look(ask(image)))


@pytest.mark.parametrize("name", ["safety-head:smoothed", "probe", "oracle", "none"])
def test_what_looks_at_all_images_together_tells_none_apart(name: str) -> None:
    engine = engines.engine(name, truths={"both": Verdict(*GRAVE, source="oracle")})
    verdict = engine.look(Request(ASKED, (engines.image(0), engines.image(1)), id="both"))
    assert not verdict.images and not verdict.error


class _Says:
    """Of all images together one thing, of each alone another."""

    name, tells_images = "says", True

    def __init__(self, together: tuple[str, str], *alone: tuple[str, str]) -> None:
        self.together, self.alone = together, alone

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        said = self.alone[features.number - 1] if features.images == 1 else self.together
        return Verdict(*said, source=self.name)


CLEAN, MILD = ("safe", "clean"), ("careful", "politics")


@pytest.mark.parametrize(
    ("together", "alone", "counts", "named"),
    [
        (MILD, (CLEAN, GRAVE), GRAVE, "image 2 of 2."),
        (GRAVE, (CLEAN, MILD), GRAVE, "image 2 of 2."),
        (GRAVE, (MILD, GRAVE), GRAVE, "image 2 of 2."),
        (CLEAN, (MILD, CLEAN), MILD, "image 1 of 2."),
        (GRAVE, (CLEAN, CLEAN), GRAVE, ""),
        (CLEAN, (CLEAN, CLEAN), CLEAN, ""),
    ],
)
def test_the_gravest_counts_and_what_alone_is_risky_is_named(
    together: tuple[str, str], alone: tuple[tuple[str, str], ...], counts: tuple[str, str], named: str
) -> None:
    engine = engines.engine("none").behind(Mixer(_Says(together, *alone), Policy(DEFAULT)))
    reply = engine.reply(ask(engines.image(0), engines.image(1)), SHORT)
    assert _said(reply.verdict) == counts and [_said(own) for own in reply.verdict.images] == list(alone)
    assert ("This is about" in reply.prompt) == bool(named) and f"This is about {named}" * bool(named) in reply.prompt


class _Sees:
    """Sees a grave risk in one image, by what the tower makes of it; fails on another."""

    name, tells_images = "sees", True

    def __init__(self, engine: Engine, risky: Image, failing: Image | None = None) -> None:
        self.risky, self.failing = (own and _made_of(engine, own) for own in (risky, failing))

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        alone = features.vision.cls if features.images == 1 else features.vision.cls[:0]
        if any(self.failing is not None and torch.allclose(own, self.failing, atol=1e-4) for own in alone):
            raise RuntimeError("broken on this image")
        is_risky = any(torch.allclose(own, self.risky, atol=1e-4) for own in alone)
        return Verdict(*(GRAVE if is_risky else ("safe", "clean")), source=self.name)


def _made_of(engine: Engine, image: Image) -> Tensor:
    seen: Tensor = engine._encoder.features([ask(image)])[0].vision.cls[0]  # type: ignore[union-attr]
    return seen


def test_a_risky_frame_is_told_of_its_image() -> None:
    bare = engines.engine("none")
    moving = animation([engines.image(1), engines.image(2)])
    engine = bare.behind(Mixer(_Sees(bare, engines.image(2)), REFUSES))
    refused = engine.reply(ask(engines.image(0), moving), SHORT)
    assert refused.text.endswith("image 2 of 2.")
    first, second = refused.verdict.images
    assert first.is_clean and second.frame == refused.verdict.frame == "frame 2 of 2 of image 2"


def test_an_image_that_cannot_be_judged_alone_refuses_the_request_and_is_named_in_the_error() -> None:
    bare = engines.engine("none")
    engine = bare.behind(Mixer(_Sees(bare, engines.image(2), engines.image(1)), REFUSES))
    refused = engine.reply(ask(engines.image(0), engines.image(1)), SHORT)
    assert refused.refused_by == "sees" and "image 2: RuntimeError" in refused.verdict.error
    told = verdict_table(refused.verdict)
    assert told["error"] is True and [own["error"] for own in told["images"]] == [False, True]
