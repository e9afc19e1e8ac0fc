"""A harmful frame behind a harmless one: the guard looks at every frame, acts on the gravest, and says so."""

from __future__ import annotations

import dataclasses
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.data import images
from safevlm.data.images import ImageError
from safevlm.defenses import Policy, Stack, prompts
from safevlm.defenses.base import Defense, ImageFeatures
from safevlm.defenses.mixer import Mixer, StaticPrompt
from safevlm.engine import Engine
from safevlm.miniature import drawing
from safevlm.miniature.world import sample_scene
from safevlm.serve.acting import WOULD_REFUSE, Monitoring
from safevlm.taxonomy import DEFAULT
from safevlm.types import Request, Verdict
from tests.engine import engines

QUESTION = "How do I use what you see?"
ROOT = Path(__file__).parents[2]
REFUSES = Policy(DEFAULT, {"careful": "allow", "may_refuse": "hint", "must_refuse": "refuse"})


def animation(frames: list[Image.Image], kind: str = "PNG", **options: Any) -> bytes:
    content = BytesIO()
    frames[0].save(content, kind, save_all=True, append_images=frames[1:], duration=50, **options)
    return content.getvalue()


class Seen(Defense):
    """Says what it was told to say of each image, by what the tower makes of it."""

    name = "seen"

    def __init__(self, guarded: Engine, verdicts: dict[int, tuple[str, str]]) -> None:
        self.known = [
            (guarded._encoder.features([Request("", (engines.image(seed),))])[0].vision.cls[0], *verdict)  # type: ignore[union-attr]
            for seed, verdict in verdicts.items()
        ]
        self.shown = 0

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        self.shown += 1
        if not features.images:
            return Verdict.not_looked(self.name)
        said = [
            (level, category)
            for cls, level, category in self.known
            if any(float((own - cls).abs().max()) < 1e-4 for own in features.vision.cls)
        ]
        if ("error", "") in said:
            raise RuntimeError("broken on this frame")
        level, category = max(said, key=lambda one: DEFAULT.level_names.index(one[0]), default=("safe", "clean"))
        return Verdict(level, category, source=self.name)


def guarded(verdicts: dict[int, tuple[str, str]], policy: Policy = REFUSES, **options: Any) -> tuple[Engine, Seen]:
    bare = engines.engine("none")
    seen = Seen(bare, verdicts)
    return Engine(bare.loaded, Mixer(seen, policy), engines.CPU, **options), seen


def frames(*seeds: int) -> list[Image.Image]:
    return [engines.image(seed) for seed in seeds]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_the_gravest_frame_decides_wherever_it_stands(kind: str, at: int) -> None:
    engine, seen = guarded({9: ("must_refuse", "illegal")})
    seeds = [1, 2, 3, 4]
    seeds[at] = 9
    options = {"lossless": True} if kind == "WEBP" else {}
    reply = engine.reply(Request(QUESTION, (animation(frames(*seeds), kind, **options),)), engines.SHORT)
    assert reply.refused_by and reply.verdict.category == "illegal"
    assert seen.shown == 4, "every frame is looked at, and once"
    frame = "the first frames" if at == 0 else f"frame {at + 1} of 4 of image 1"
    assert reply.verdict.frame.startswith(frame)
    assert any(frame in line for line in reply.trace), "the trace says which frame"
    assert reply.verdict.to_dict()["frame"] == reply.verdict.frame
    assert Verdict.from_dict(reply.verdict.to_dict()) == reply.verdict


def test_all_frames_clean_is_clean_and_told() -> None:
    engine, _ = guarded({9: ("must_refuse", "illegal")})
    reply = engine.reply(Request(QUESTION, (animation(frames(1, 2, 3)),)), engines.SHORT)
    assert not reply.refused_by and reply.verdict.is_clean
    assert any("2 more frames" in line for line in reply.trace)


def test_a_still_image_is_looked_at_as_ever() -> None:
    engine, seen = guarded({9: ("must_refuse", "illegal")})
    with engines.tower_calls(engine) as calls:
        reply = engine.reply(Request(QUESTION, (engines.image(1),)), engines.SHORT)
    assert calls == [1] and seen.shown == 1
    assert not reply.trace and not reply.verdict.frame and "frame" not in reply.verdict.to_dict()


def test_the_model_reads_the_first_frame_and_each_frame_passes_the_tower_once() -> None:
    engine, _ = guarded({9: ("must_refuse", "illegal")})
    moving = Request(QUESTION, (animation(frames(1, 2, 3)), engines.image(4)))
    with engines.tower_calls(engine) as calls:
        reply = engine.reply(moving, engines.SHORT)
    assert calls == [2, 2], "the first frames of both images in one pass, the two other frames in another"
    still = dataclasses.replace(moving, images=tuple(frames(1, 4)))
    assert reply.text == engine.reply(still, engines.SHORT).text


def test_batches_streams_and_looks_see_every_frame() -> None:
    engine, _ = guarded({9: ("must_refuse", "illegal")})
    moving = Request(QUESTION, (animation(frames(1, 9)),))
    plain = Request(QUESTION, (engines.image(2),))
    replies = engine.reply_all([plain, moving, plain, Request("Words."), moving], engines.SHORT, batch_size=5)
    assert [bool(reply.refused_by) for reply in replies] == [False, True, False, False, True]
    assert engine.look(moving).frame.startswith("frame 2 of 2")
    assert "".join(engine.stream(moving, engines.SHORT)) == replies[1].text


def test_a_frame_that_the_policy_allows_does_not_hide_one_that_it_refuses() -> None:
    """By level alone the second frame is the gravest; the policy lets it through, and stops at the third."""
    policy = Policy(DEFAULT, {"must_refuse": "allow", "careful": "refuse"})
    engine, _ = guarded({8: ("must_refuse", "politics"), 9: ("careful", "illegal")}, policy)
    reply = engine.reply(Request(QUESTION, (animation(frames(1, 8, 9)),)), engines.SHORT)
    assert reply.refused_by and reply.verdict.category == "illegal"


def test_a_prompt_that_is_always_there_hides_no_frame_either() -> None:
    """Beside a static prompt every frame changes the words; what counts is what the verdict adds."""
    policy = Policy(DEFAULT, {"must_refuse": "allow", "careful": "hint"})
    bare = engines.engine("none")
    head = Mixer(Seen(bare, {8: ("must_refuse", "politics"), 9: ("careful", "illegal")}), policy)
    engine = Engine(bare.loaded, Stack([StaticPrompt(), head], DEFAULT.level_names, policy), engines.CPU)
    reply = engine.reply(Request(QUESTION, (animation(frames(1, 8, 9)),)), engines.SHORT)
    assert prompts.hint(DEFAULT, "careful", "illegal") in reply.prompt


def test_a_policy_that_is_only_tried_counts_an_animation_once_and_shows_what_it_would_refuse() -> None:
    policy = Policy(DEFAULT, {"must_refuse": "allow", "careful": "refuse"})
    bare = engines.engine("none")
    head = Mixer(Seen(bare, {8: ("must_refuse", "politics"), 9: ("careful", "illegal")}), policy)
    engine = Engine(bare.loaded, Monitoring(head), engines.CPU, "allow")
    reply = engine.reply(Request(QUESTION, (animation(frames(9, 8, 9)),)), engines.SHORT)
    assert not reply.refused_by and reply.verdict.category == "illegal"
    assert reply.trace.count(WOULD_REFUSE) == 1


def test_a_detector_that_breaks_at_one_frame_refuses_and_allowing_errors_hides_no_other_frame() -> None:
    broken = {8: ("error", ""), 9: ("must_refuse", "illegal")}
    request = Request(QUESTION, (animation(frames(1, 8)),))
    engine, _ = guarded(broken)
    assert engine.reply(request, engines.SHORT).verdict.error
    engine, _ = guarded(broken, on_error="allow")
    assert not engine.reply(request, engines.SHORT).refused_by
    reply = engine.reply(Request(QUESTION, (animation(frames(1, 8, 9)),)), engines.SHORT)
    assert reply.refused_by and reply.verdict.category == "illegal"


def test_more_frames_than_can_be_looked_at_are_refused_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FRAMES", 3)
    request = Request(QUESTION, (animation(frames(1, 2, 3, 9)),))
    engine, _ = guarded({9: ("must_refuse", "illegal")})
    for answer in (engine.reply, engine.look):
        with pytest.raises(ImageError, match="more than 3 frames"):
            answer(request)
    with pytest.raises(ImageError, match=r"requests\[1\]"):
        engine.reply_all([Request("Words."), request], engines.SHORT, errors="raise")
    assert engines.engine("none").reply(request, engines.SHORT).text, "without a detector nobody claims to have looked"


@pytest.mark.parametrize("defense", ["none", "safety-head"])
def test_an_unusable_image_names_the_record_that_it_belongs_to(tmp_path: Path, defense: str) -> None:
    """A suite unpacks its images under names of its own; only the id leads back to the row."""
    (tmp_path / "0f3a.png").write_bytes(b"no image")
    broken = Request(QUESTION, (tmp_path / "0f3a.png",), id="rtvlm-17")
    engine = engines.engine(defense)
    with pytest.raises(ImageError, match=r"^id 'rtvlm-17': .*0f3a\.png"):
        engine.reply(broken)
    with pytest.raises(ImageError, match=r"^requests\[1\]: id 'rtvlm-17': .*0f3a\.png"):
        engine.reply_all([Request("Words."), broken], engines.SHORT, errors="raise")


@pytest.mark.parametrize("defense", ["safe-clip", "static-prompt+safe-clip"])
def test_the_miniatures_guard_finds_a_harmful_scene_behind_a_harmless_one(defense: str) -> None:
    engine = Engine.load(ROOT / "checkpoints" / "miniature", defense=defense, device="cpu")

    def scenes(kind: Any, flagged: bool) -> list[Image.Image]:
        drawn = [drawing.draw(sample_scene(random.Random(seed), kind)) for seed in range(12)]
        return [scene for scene in drawn if engine.look(Request(QUESTION, (scene,))).is_clean != flagged]

    harmless, harmful = scenes("benign", False), scenes("harmful", True)
    assert len(harmless) > 5 and len(harmful) > 5
    for benign, risky in zip(harmless[:4], harmful[:4], strict=True):
        alone = engine.look(Request(QUESTION, (risky,)))
        found = engine.look(Request(QUESTION, (animation([benign, benign.rotate(1), risky]),)))
        assert (found.level, found.category) == (alone.level, alone.category) and "frame 3 of 3" in found.frame
        assert not engine.look(Request(QUESTION, (animation([benign, risky], "GIF"),))).is_clean
