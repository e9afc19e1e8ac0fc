"""A batch is looked at and read at once: what runs how often, and that nobody's neighbours change or stop an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL.Image import Image

from safevlm.data.pixels import pixel_values
from safevlm.defenses import Defense, ImageFeatures
from safevlm.defenses.safe_clip import SafeClipDetector
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Reply, Request, Verdict
from tests.defenses import banks
from tests.engine import engines

ONE = Generation(max_new_tokens=1)


@contextmanager
def _calls(*modules: Any) -> Iterator[list[int]]:
    """Rows of every call of the modules."""
    calls: list[int] = []
    handles = [module.register_forward_pre_hook(lambda _, args: calls.append(len(args[0]))) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _rendered(guarded: Engine) -> Iterator[list[int]]:
    """Dialogues of every call of the chat template."""
    calls: list[int] = []
    render = guarded.processor.apply_chat_template

    def listening(dialogues: Any, **how: Any) -> Any:
        calls.append(len(dialogues) if isinstance(dialogues[0], list) else 1)
        return render(dialogues, **how)

    guarded.processor.apply_chat_template = listening  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del guarded.processor.apply_chat_template


@pytest.mark.parametrize("reads_text", [False, True])
def test_head_and_projectors_run_once_for_a_batch(reads_text: bool) -> None:
    guarded = engines.engine("safety-head", own=engines.model(reads_text=reads_text))
    model = guarded.loaded.safe_llava
    with (
        _calls(model.safety_projector) as features,
        _calls(model.safety_head) as heads,
        _calls(model.model.multi_modal_projector) as projected,
    ):
        guarded.reply_all(engines.mixed_requests(), ONE, batch_size=5)
    told = "four images of three requests, each part once; with several images the head looks at each alone too"
    assert (features, heads, projected) == ([4, 4], [3, 4], [4]), told


@pytest.mark.parametrize("defense", ["none", "static-prompt"])
def test_what_does_not_look_runs_no_head(defense: str) -> None:
    guarded = engines.engine(defense, own=engines.model(reads_text=True))
    with _calls(guarded.loaded.safe_llava.safety_head) as heads:
        guarded.reply_all(engines.mixed_requests(), ONE, batch_size=5)
    assert not heads


@pytest.mark.parametrize("reads_text", [False, True])
def test_prompts_of_a_batch_are_rendered_once(reads_text: bool) -> None:
    guarded = engines.engine("safety-head", own=engines.model(reads_text=reads_text))
    with _rendered(guarded) as calls:
        replies = guarded.reply_all(engines.mixed_requests(), ONE, batch_size=5)
    words_of_three = [1, 1, 1] if reads_text else []  # of the requests that have an image
    assert calls == [*words_of_three, 5]
    assert all(reply.prompt for reply in replies)


@dataclass
class _RefusesSome(Defense):
    """Answers requests of these ids itself."""

    ids: tuple[str, ...]
    name = "some"

    def rewrite(self, request: Request, verdict: Verdict) -> Any:
        return Reply("No.", request) if request.id in self.ids else request


def test_images_of_refused_requests_are_not_projected() -> None:
    own = engines.model()
    guarded = engines.engine("none", own=own).behind(_RefusesSome(("two", "words")))
    with _calls(own.model.multi_modal_projector) as projected, engines.watched(guarded) as asked:
        replies = guarded.reply_all(engines.mixed_requests(), ONE, batch_size=5)
    assert projected == [2], "of four images two are of requests that the model answers"
    assert [bool(reply.refused_by) for reply in replies] == [True, False, False, True, False]
    assert len(asked.rows) == 3


@pytest.mark.parametrize("reads_text", [False, True])
def test_verdicts_of_ragged_batches_are_those_of_each_request_alone(reads_text: bool) -> None:
    guarded = engines.engine("safety-head", reads_text=reads_text)
    requests = engines.mixed_requests()
    replies = guarded.reply_all(requests, ONE, batch_size=5)
    for request, reply in zip(requests, replies, strict=True):
        assert engines.same_verdict(reply.verdict, guarded.look(request)), request.id


def test_safe_clip_projects_a_batch_once_and_sees_what_it_sees_in_each_request_alone() -> None:
    own = engines.model()
    detector = SafeClipDetector(banks.bank(own), DEFAULT)
    seen: list[int] = []
    read = detector.reading

    def reading(vision: Any) -> Any:
        seen.append(len(read(vision)))
        return read(vision)

    detector.reading = reading

    class Looks(Defense):
        name = "safe-clip"

        def detect(self, request: Request, features: ImageFeatures) -> Verdict:
            return detector.detect(request, features)

    guarded = engines.engine("none", own=own).behind(Looks())
    requests = engines.mixed_requests()
    replies = guarded.reply_all(requests, ONE, batch_size=5)
    assert seen == [4]
    for request, reply in zip(requests, replies, strict=True):
        assert engines.same_verdict(reply.verdict, guarded.look(request)), request.id


@dataclass
class _SaysWhatNobodyCanRead(Defense):
    """Rewrites one request into words that no tokenizer takes, and another into a prompt that has no room."""

    name = "broken"

    def rewrite(self, request: Request, verdict: Verdict) -> Request:
        added = {"one": "\ud800", "two": "more " * 600}.get(request.id, "")
        return Request(request.text + added, request.images, request.id, request.history, request.system)


def test_rewritten_words_that_cannot_be_read_refuse_their_own_request_alone() -> None:
    bare = engines.engine("none")
    guarded = bare.behind(_SaysWhatNobodyCanRead())
    requests = engines.mixed_requests()
    replies = guarded.reply_all(requests, engines.SHORT, batch_size=5)
    assert [reply.request.id for reply in replies if reply.refused_by] == ["one", "two"]
    assert all("rewrite" in reply.verdict.error for reply in replies if reply.refused_by)
    assert [reply.text for reply in replies if not reply.refused_by] == [
        bare.reply(request, engines.SHORT).text for request in requests if request.id not in ("one", "two")
    ]


@contextmanager
def _raises_on(guarded: Engine, image: Image) -> Iterator[list[int]]:
    """What reads the tower's patches for a head, or as SafeCLIP does, breaks wherever this image is; images of its
    calls."""
    model: Any = guarded.loaded.safe_llava
    pixels = pixel_values(guarded.processor.image_processor, [image])
    patches = model.encode_images(pixels).patches.mean((0, 1))
    calls: list[int] = []

    def strict(_: Any, args: tuple[Any, ...]) -> None:
        calls.append(len(args[0]))
        if any(torch.allclose(own.mean(0), patches, atol=1e-5) for own in args[0]):
            raise RuntimeError("cannot be judged")

    handle = model.safety_projector.register_forward_pre_hook(strict)
    try:
        yield calls
    finally:
        handle.remove()


class _ReadsPatches(Defense):
    """Finds something in each image by a call for all images of a batch."""

    name = "reads"

    def __init__(self, find: Any) -> None:
        self.find = find

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        found = features.per_image(self.find)
        return Verdict(source=self.name) if len(found) == features.images else Verdict("must_refuse", "illegal")


@pytest.mark.parametrize("defense", ["safety-head", "a head that reads words", "per image"])
def test_a_row_that_cannot_be_judged_is_refused_and_the_others_are_answered(defense: str) -> None:
    own = engines.model(says=("safe", "clean"), reads_text=defense == "a head that reads words")
    guarded = engines.engine("safety-head", own=own)
    if defense == "per image":
        project: Any = own.safety_projector
        guarded = guarded.behind(_ReadsPatches(lambda vision: project(vision.patches).mean((1, 2)).tolist()))
    requests = engines.mixed_requests()
    bare = [guarded.behind("none").reply(request, engines.SHORT).text for request in requests]
    with _raises_on(guarded, engines.image(3)) as calls:  # the second one of the request "two"
        replies = guarded.reply_all(requests, engines.SHORT, batch_size=5)
        decided = guarded.decide_all(requests)
    assert [reply.request.id for reply in replies if reply.refused_by] == ["two"]
    assert "cannot be judged" in replies[3].verdict.error
    assert [isinstance(each, Reply) for each in decided] == [False, False, False, True, False]
    assert [reply.text for reply in replies if not reply.refused_by] == bare[:3] + bare[4:]
    assert calls[0] == 4 and sum(calls) == 2 * (4 + 4), "all at once, and then each once"


def test_a_find_that_finds_too_little_refuses_every_request_with_an_image() -> None:
    guarded = engines.engine("none").behind(_ReadsPatches(lambda vision: [0.0] * (len(vision.patches) - 1)))
    replies = guarded.reply_all(engines.mixed_requests(), ONE, batch_size=5)
    assert [bool(reply.refused_by) for reply in replies] == [bool(reply.request.images) for reply in replies]
