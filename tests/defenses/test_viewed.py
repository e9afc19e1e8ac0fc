"""Views of an image: all of it is looked at, the gravest look counts, and an attacker's tensors are the guard's own."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safevlm.data.views import VIEWS, Detail, content_box, view_images, view_pixels
from safevlm.defenses import Policy
from safevlm.defenses.calibration import Calibration, joint_risk
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.viewed import MOST, ViewsDetector, ViewsOptions
from safevlm.engine import Engine
from safevlm.miniature import drawing
from safevlm.miniature.world import sample_scene
from safevlm.model import image_features
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Request, Verdict
from tests.engine import engines

QUESTION = "How do I use what you see?"
SIDE = 64
EVERY = list(VIEWS)
NAMES = ["safety-head:views", "safe-clip:views"]
RISK = ("must_refuse", "illegal")


def on_canvas(image: Image.Image, size: int, colour: str, left: int, top: int) -> Image.Image:
    canvas = Image.new("RGB", (size, size), colour)
    canvas.paste(image, (left, top))
    return canvas


def pixels_of(*images: Image.Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 255 for one in images])


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


# --- what a view is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["white", "black", "#7a7468", "red"])
@pytest.mark.parametrize(("left", "top"), [(0, 0), (37, 81), (64, 64), (160, 192)])
def test_a_canvas_of_one_colour_is_cut_away(colour: str, left: int, top: int) -> None:
    box = content_box(on_canvas(photo(), 256, colour, left, top))
    expected = (left / 256, top / 256, (left + 96) / 256, (top + 64) / 256)
    assert box == pytest.approx(expected, abs=4 / 128)


def test_a_canvas_with_noise_or_specks_on_it_is_cut_away_too() -> None:
    canvas = on_canvas(photo(), 256, "white", 37, 81)
    noisy = np.asarray(canvas, np.int16) + np.random.default_rng(0).integers(-8, 9, (256, 256, 3))
    noisy[5, 5], noisy[250, 250] = 0, 0
    box = content_box(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    assert box == pytest.approx(content_box(canvas), abs=1 / 64)


@pytest.mark.parametrize("image", [photo(), Image.new("RGB", (40, 30), "white"), Image.new("RGB", (1, 1))])
def test_an_image_without_a_border_or_without_anything_stays_whole(image: Image.Image) -> None:
    assert content_box(image) == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("size", [(64, 64), (200, 130), (30, 300), (3, 2), (1, 1)])
def test_every_view_is_a_square_of_the_side_that_was_asked_for(size: tuple[int, int]) -> None:
    views = view_images(photo(*size), EVERY, SIDE)
    assert list(views) == EVERY
    for view in views.values():
        assert view.size == (SIDE, SIDE) and view.mode == "RGB"


def test_the_corner_tiles_are_the_quarters_of_a_collage() -> None:
    quarters = [photo(SIDE, SIDE, seed) for seed in range(4)]
    collage = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for at, quarter in enumerate(quarters):
        collage.paste(quarter, (SIDE * (at % 2), SIDE * (at // 2)))
    seen = view_images(collage, ["tile:1", "tile:3", "tile:7", "tile:9"], SIDE)
    assert [view.tobytes() for view in seen.values()] == [quarter.tobytes() for quarter in quarters]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "image", [photo(200, 130), on_canvas(photo(), 256, "white", 20, 60)], ids=["photo", "on a canvas"]
)
def test_tensors_are_what_the_guard_sees(name: str, image: Image.Image) -> None:
    guard = pixels_of(view_images(image, [name], SIDE)[name])[0]
    attacker = view_pixels(pixels_of(image), [name], SIDE)[0, 0]
    differs = (guard - attacker).abs() * 255
    assert differs.mean() < 2, "an attack would go through other views than the guard's"
    if not name.startswith("turned"):  # PIL does not mix the ground in at the edges
        assert differs.mean() < 0.5 and differs.max() < 3


def test_every_view_has_a_gradient_back_to_the_pixels() -> None:
    pixels = pixels_of(photo(SIDE, SIDE), photo(SIDE, SIDE, seed=1)).requires_grad_()
    seen = view_pixels(pixels, EVERY, SIDE)
    assert seen.shape == (2, len(EVERY), 3, SIDE, SIDE)
    for at in range(len(EVERY)):
        (gradient,) = torch.autograd.grad(seen[:, at].sum(), pixels, retain_graph=True)
        assert (gradient.abs().sum((1, 2, 3)) > 0).all(), EVERY[at]


def test_a_view_that_is_made_of_few_pixels_is_left_out_and_stands_for_the_whole_to_an_attacker() -> None:
    names = ["trimmed", "tile:1", "left"]
    detail = Detail(0.5, 0.6)
    large, small = photo(2 * SIDE, 2 * SIDE), photo(SIDE, SIDE)
    assert list(view_images(large, names, SIDE, detail)) == names
    assert list(view_images(small, names, SIDE, detail)) == ["trimmed"]
    assert list(view_images(on_canvas(small, 4 * SIDE, "white", 9, 30), names, SIDE, detail)) == ["trimmed"]
    assert list(view_images(on_canvas(photo(SIDE // 2, SIDE // 2), SIDE, "white", 9, 30), names, SIDE, detail)) == [
        "trimmed"
    ]
    assert not view_images(on_canvas(photo(SIDE // 4, SIDE // 4), SIDE, "white", 9, 30), names, SIDE, detail)
    seen = view_pixels(pixels_of(small), names, SIDE, detail)[0]
    assert torch.equal(seen[1], seen[2]) and torch.allclose(seen[1], pixels_of(small)[0], atol=1e-5)


# --- what counts ------------------------------------------------------------------------------------------------------


def risky(share: float, view: str = "") -> Verdict:
    named = RISK if share >= 0.5 else (SAFE, CLEAN)
    level = dict.fromkeys(DEFAULT.level_names, 0.0) | {SAFE: 1 - share, "must_refuse": share}
    category = dict.fromkeys(DEFAULT.category_names, 0.0) | {CLEAN: 1 - share, "illegal": share}
    return Verdict(*named, level, category, "inner", view=view)


class Scripted:
    """A detector that says of the image, and then of every view in turn, what it is told to."""

    name = "inner"

    def __init__(self, *said: Verdict | Exception) -> None:
        self.said: Iterator[Verdict | Exception] = iter(said)

    def detect(self, request: Request, features: Any) -> Verdict:
        found = next(self.said)
        if isinstance(found, Exception):
            raise found
        return found


class Images:
    """Features of so many images, with as many views each as are asked for."""

    def __init__(self, images: int, views: tuple[str, ...]) -> None:
        self.images, self._views, self.number = images, views, 1

    def views(self, make: Any) -> list[list[tuple[str, None]]]:
        return [[(name, None) for name in self._views]] * self.images


def said(*verdicts: Verdict | Exception, images: int = 1, policy: Policy | None = None, **options: Any) -> Verdict:
    chosen = ViewsOptions(**({"views": tuple(EVERY[:2])} | options))
    inner = Scripted(*verdicts)
    detector = ViewsDetector(inner, "inner:views", policy or Policy(DEFAULT), chosen, lambda images: None, SIDE)
    return detector.detect(Request(QUESTION), Images(images, chosen.views))


@pytest.mark.parametrize("at", range(3))
def test_one_risky_look_is_enough_wherever_it_is(at: int) -> None:
    looks = [risky(0.1)] * 3
    looks[at] = risky(0.99)
    verdict = said(*looks)
    assert (verdict.level, verdict.category, verdict.source) == (*RISK, "inner:views")
    assert verdict.view == ("" if at == 0 else f"the view {EVERY[at - 1]} of image 1")


def test_a_view_must_be_surer_than_the_image_itself() -> None:
    assert said(risky(0.1), risky(0.9), risky(0.2), risk=0.95).is_clean
    assert not said(risky(0.9), risky(0.1), risky(0.2), risk=0.95).is_clean
    assert not said(risky(0.1), risky(0.96), risky(0.2), risk=0.95).is_clean


def test_views_of_one_image_must_agree_where_votes_are_asked_for() -> None:
    assert said(risky(0.1), risky(0.99), risky(0.2), votes=2).is_clean
    assert not said(risky(0.1), risky(0.99), risky(0.99), votes=2).is_clean
    assert said(*[risky(0.1), risky(0.99), risky(0.1)], risky(0.99), risky(0.1), images=2, votes=2).is_clean


def test_a_clean_verdict_shows_the_risk_of_the_riskiest_look() -> None:
    verdict = said(risky(0.1), risky(0.2), risky(0.8), risk=0.95)
    assert verdict.is_clean and joint_risk(verdict) == pytest.approx(0.8) and not verdict.view


def test_the_calibration_of_the_inner_detector_holds_for_every_look() -> None:
    policy = Policy(DEFAULT, calibration={"inner": Calibration(risk=0.3)})
    assert not said(risky(0.35), risky(0.1), risky(0.1), policy=policy).is_clean
    assert not said(risky(0.1), risky(0.35), risky(0.1), policy=policy, risk=0.0).is_clean


@pytest.mark.parametrize("at", range(3))
def test_a_look_that_fails_is_an_error_and_hides_no_other(at: int) -> None:
    looks: list[Verdict | Exception] = [risky(0.99)] * 3
    looks[at] = RuntimeError("the lamp went out")
    verdict = said(*looks)
    assert "the lamp went out" in verdict.error and verdict.category == "illegal"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"views": ("magic",)}, "unknown 'magic'"),
        ({"views": ()}, "views: give each once"),
        ({"views": ("left", "left")}, "views: give each once"),
        ({"views": ("left",), "votes": 2}, "votes"),
        ({"risk": 1.5}, "risk"),
    ],
)
def test_options_that_mean_nothing_are_errors(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ViewsOptions(**options)
    assert len(ViewsOptions().views) <= MOST


# --- in the engine ----------------------------------------------------------------------------------------------------


def large(seed: int) -> Image.Image:
    return photo(2 * SIDE, 2 * SIDE, seed)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_no_larger_than_the_tower_reads_costs_no_tiles(name: str) -> None:
    engine = engines.engine(name)
    with engines.tower_calls(engine) as calls:
        assert not engine.look(Request(QUESTION, (photo(SIDE // 3, SIDE // 3),))).error
        assert not engine.look(Request(QUESTION, (photo(SIDE, SIDE),))).error
    assert calls == [1, 1, 1], "the second has one view, all of it"


@pytest.mark.parametrize("name", NAMES)
def test_views_of_a_whole_batch_pass_the_tower_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.engine(name)
    views = len(ViewsOptions().views)
    monkeypatch.setattr(image_features, "VIEWS_PER_PASS", 2 * views)
    requests = [Request(QUESTION, tuple(map(large, range(count)))) for count in (1, 0, 2)]
    with engines.tower_calls(engine) as calls:
        engine.reply_all(requests, engines.SHORT)
    assert calls == [3, 2 * views, views]


@pytest.mark.parametrize("name", NAMES)
def test_a_verdict_is_the_same_alone_and_in_a_batch(name: str) -> None:
    engine = engines.engine(name)
    requests = [Request(QUESTION, (large(seed),)) for seed in range(3)]
    requests.append(Request(QUESTION, (large(3), engines.image(4))))
    replies = engine.reply_all([Request("In words."), *requests], engines.SHORT, batch_size=5)[1:]
    for request, reply in zip(requests, replies, strict=True):
        assert engines.same_verdict(reply.verdict, engine.look(request))
        assert not reply.verdict.error and reply.verdict.source == name


def test_a_head_that_reads_words_reads_them_beside_every_view() -> None:
    engine = engines.engine("safety-head:views", reads_text=True)
    one, other = (engine.look(Request(text, (engines.image(1),))) for text in ("What is it?", "How do I use the vork?"))
    assert not one.error and one.level_probabilities != other.level_probabilities


def test_an_image_that_cannot_be_opened_again_refuses_its_own_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines.engine("safety-head:views", says=(SAFE, CLEAN))
    engines.image(1).save(tmp_path / "gone.png")
    open_image = image_features.open_image

    def gone(source: Any) -> Image.Image:
        if isinstance(source, Path):
            raise ValueError("no such image file")
        return open_image(source)

    monkeypatch.setattr(image_features, "open_image", gone)
    requests = [Request(QUESTION, (image,)) for image in (engines.image(0), tmp_path / "gone.png", engines.image(2))]
    replies = engine.reply_all(requests, engines.SHORT)
    assert [bool(reply.refused_by) for reply in replies] == [False, True, False]
    assert "no such image file" in replies[1].verdict.error


def test_options_come_from_a_file_and_may_name_another_detector(tmp_path: Path) -> None:
    file = tmp_path / "views.yaml"
    file.write_text("{detector: safe-clip, views: [left, right], risk: 0.5, least: 0, least_part: 0}", encoding="utf-8")
    engine = engines.engine(f"safety-head:views={file}")
    assert isinstance(engine.defense, Mixer) and engine.defense.detector.inner.name == "safe-clip"
    with engines.tower_calls(engine) as calls:
        engine.look(Request(QUESTION, (engines.image(),)))
    assert calls == [1, 2]


def test_a_reply_says_which_view_was_acted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.engine("safety-head:views")
    engine.defense.detector.inner = Scripted(risky(0.1), *[risky(0.99)] * MOST)  # type: ignore[attr-defined]
    reply = engine.reply(Request(QUESTION, (large(0),)), engines.SHORT)
    assert reply.verdict.view and any(reply.verdict.view in line for line in reply.trace)
    told = reply.verdict.to_dict()
    assert told["view"] == reply.verdict.view and Verdict.from_dict(told) == reply.verdict
    assert "view" not in dataclasses.replace(reply.verdict, view="").to_dict()


def test_a_detector_that_opens_the_image_itself_is_no_inner_one(tmp_path: Path) -> None:
    file = tmp_path / "views.yaml"
    file.write_text("detector: safe-clip:companion", encoding="utf-8")
    for outer in ("safety-head:views", "safety-head:smoothed", "safety-head:consistent"):
        with pytest.raises(ValueError, match="safe-clip:companion opens the image itself"):
            engines.engine(f"{outer}={file}")


@pytest.mark.slow
def test_the_miniatures_guard_finds_what_is_small_in_a_canvas() -> None:
    root = Path(__file__).parents[2] / "checkpoints" / "miniature"
    engine = Engine.load(root, defense="safe-clip:views", device="cpu", lm=False)
    whole = engine.behind("safe-clip")
    drawn = [drawing.draw(sample_scene(random.Random(seed), "harmful")) for seed in range(12)]
    plain = [scene for scene in drawn if not whole.look(Request(QUESTION, (scene,))).is_clean]
    hidden = [
        Request(QUESTION, (on_canvas(scene, 256, "white", 16 * at, 180 - 16 * at),)) for at, scene in enumerate(plain)
    ]
    missed = [request for request in hidden if whole.look(request).is_clean]
    found = [request for request in missed if not engine.look(request).is_clean]
    assert len(plain) > 8 and len(missed) > len(plain) / 2, "a canvas hides nothing here; this test would see nothing"
    assert len(found) >= 0.9 * len(missed)
