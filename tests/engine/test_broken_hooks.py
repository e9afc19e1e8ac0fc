"""Hooks that return what the engine cannot use: their own request is refused, the others of the batch are answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import safevlm
from safevlm.data.images import ImageError
from safevlm.defenses import Defense, DefenseContext, Inputs, Policy, Stack, VirtualTokens, prompts
from safevlm.defenses.adopt import guard
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Reply, Request, Verdict, answered
from tests.engine import engines

QUESTION = "What is in the picture?"
BROKEN = "broken"
"""Id of the request for which a hook misbehaves."""
SAW = Verdict("careful", "privacy", {"careful": 1.0}, {"privacy": 1.0}, "seer")


class Seer(Defense):
    """Sees the same in every request."""

    name = "seer"

    def detect(self, request: Request, features: Any) -> Verdict:
        return SAW


def _engine(**hooks: Callable[..., Any]) -> Engine:
    """A model behind a defense with these hooks."""
    return Engine(engines.engine("none").loaded, type("Own", (Seer,), hooks)(), engines.CPU)


def _requests() -> list[Request]:
    """The first is the one that a hook breaks."""
    return [Request(QUESTION, (engines.image(seed),), id=name) for seed, name in enumerate([BROKEN, "second", "third"])]


def _transforming(change: Callable[[Inputs], Inputs]) -> Engine:
    """Changes the tensors of the first request that it gets."""
    seen: list[Inputs] = []

    def transform(self: Defense, inputs: Inputs, verdict: Verdict) -> Inputs:
        seen.append(inputs)
        return change(inputs) if len(seen) == 1 else inputs

    return _engine(transform=transform)


def _assert_only_the_broken_is_refused(engine: Engine, hook: str, told: str) -> None:
    replies = engine.reply_all(_requests(), engines.SHORT)
    bare = engines.engine("none").reply_all(_requests(), engines.SHORT)
    assert [reply.request.id for reply in replies if reply.refused_by] == [BROKEN]
    assert replies[0].text == prompts.REFUSAL_ON_ERROR
    assert replies[0].verdict.error.startswith(f"{hook}: ") and told in replies[0].verdict.error
    assert [reply.text for reply in replies[1:]] == [reply.text for reply in bare[1:]]


# --- transform --------------------------------------------------------------------------------------------------------


def _ids(change: Callable[[torch.Tensor], Any]) -> Callable[[Inputs], Inputs]:
    return lambda inputs: dataclasses.replace(inputs, input_ids=change(inputs.input_ids))


def _pixels(change: Callable[[torch.Tensor], Any]) -> Callable[[Inputs], Inputs]:
    def changed(inputs: Inputs) -> Inputs:
        assert inputs.pixel_values is not None
        return dataclasses.replace(inputs, pixel_values=change(inputs.pixel_values))

    return changed


def _virtual(vectors: Any, at: int) -> Callable[[Inputs], Inputs]:
    return lambda inputs: dataclasses.replace(inputs, virtual=(VirtualTokens(vectors, at),))


WIDTH = engines.llava_config().text_config.hidden_size
UNREADABLE = {
    "pixels of two images": (_pixels(lambda pixels: pixels.repeat(2, 1, 1, 1)), "shape"),
    "pixels of no image": (_pixels(lambda pixels: pixels[:0]), "shape"),
    "pixels of another size": (_pixels(lambda pixels: pixels[..., 1:]), "shape"),
    "pixels without a batch": (_pixels(lambda pixels: pixels[0]), "shape"),
    "pixels as integers": (_pixels(lambda pixels: pixels.to(torch.uint8)), "float"),
    "pixels without a number": (_pixels(lambda pixels: pixels / 0), "finite"),
    "pixels gone": (_pixels(lambda pixels: None), "None"),
    "pixels as a list": (_pixels(lambda pixels: pixels.tolist()), "list"),
    "ids as a list": (_ids(lambda ids: ids.tolist()), "list"),
    "ids as a batch": (_ids(lambda ids: ids[None]), "(t,)"),
    "ids as floats": (_ids(lambda ids: ids.float()), "int64"),
    "ids gone": (_ids(lambda ids: ids[:0]), "(t,)"),
    "ids without a row": (_ids(lambda ids: torch.cat([ids, torch.tensor([10**6])])), "rows"),
    "ids below zero": (_ids(lambda ids: torch.cat([ids, torch.tensor([-1])])), "rows"),
    "ids with half the slots": (_ids(lambda ids: ids[len(ids) // 2 :]), "slots"),
    "ids with twice the slots": (_ids(lambda ids: torch.cat([ids, ids])), "slots"),
    "virtual tokens of another width": (_virtual(torch.zeros(2, WIDTH + 1), 0), "virtual"),
    "virtual tokens outside": (_virtual(torch.zeros(2, WIDTH), 10**6), "virtual"),
    "virtual tokens without a number": (_virtual(torch.full((2, WIDTH), torch.nan), 0), "finite"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_that_the_model_cannot_read_refuse_their_own_request_only(kind: str) -> None:
    change, told = UNREADABLE[kind]
    _assert_only_the_broken_is_refused(_transforming(change), "transform", told)


# --- rewrite ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [(), (engines.image(7),), (engines.image(7), engines.image(8))])
def test_rewrite_that_changes_the_images_is_refused(images: tuple[Image.Image, ...]) -> None:
    def rewrite(self: Defense, request: Request, verdict: Verdict) -> Request:
        return Request(request.text, images, request.id) if request.id == BROKEN else request

    _assert_only_the_broken_is_refused(_engine(rewrite=rewrite), "rewrite", "images")


def test_rewrite_that_builds_a_new_request_about_the_same_images_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    engines.image(1).save(file)
    engine = _engine(rewrite=lambda self, request, verdict: Request("Name it.", [str(path) for path in request.images]))
    reply = engine.reply(Request(QUESTION, (str(file),)), engines.SHORT)
    assert not reply.refused_by and "Name it." in reply.prompt


# --- replies of hooks -------------------------------------------------------------------------------------------------

ANSWERS = {
    "rewrite": lambda answer: {"rewrite": lambda self, request, verdict: answer(request)},
    "review": lambda answer: {"review": lambda self, request, reply, verdict: answer(request)},
}
BOTH = pytest.mark.parametrize("hook", ANSWERS)


@BOTH
@pytest.mark.parametrize("fields", [{"text": None}, {"text": 3}, {"verdict": "clean"}, {"trace": "x"}, {"prompt": 1}])
def test_reply_that_is_no_text_is_refused(hook: str, fields: dict[str, Any]) -> None:
    engine = _engine(**ANSWERS[hook](lambda request: Reply(**{"text": "No.", "request": request} | fields)))
    reply = engine.reply(_requests()[0], engines.SHORT)
    assert reply.text == prompts.REFUSAL_ON_ERROR and reply.verdict.error.startswith(f"{hook}: ")


@BOTH
def test_reply_of_a_hook_is_about_what_was_asked_and_keeps_the_verdict(hook: str) -> None:
    asked = _requests()[0]
    reply = _engine(**ANSWERS[hook](lambda request: Reply("No.", Request("Another?")))).reply(asked, engines.SHORT)
    assert (reply.text, reply.request, reply.verdict) == ("No.", asked, SAW)
    assert reply.request is asked
    assert reply.refused_by == ("seer" if hook == "rewrite" else "")
    assert bool(reply.prompt) == (hook == "review"), "the prompt is empty when the model was not asked, and only then"


@BOTH
def test_reply_of_a_hook_with_a_verdict_and_a_name_keeps_them(hook: str) -> None:
    own = Verdict("must_refuse", "illegal", source="reader")
    answer = ANSWERS[hook](lambda request: Reply("No.", request, own, "reader", trace=("read it",)))
    reply = _engine(**answer).reply(_requests()[0], engines.SHORT)
    assert (reply.verdict, reply.refused_by, reply.trace) == (own, "reader", ("read it",))


# --- review and streaming ---------------------------------------------------------------------------------------------


def _hides(request: Request, reply: Reply, verdict: Verdict) -> Reply:
    return dataclasses.replace(reply, text="hidden")


def _reviewing_object() -> Defense:
    made = Defense()
    made.review = _hides  # type: ignore[method-assign]  # what this file is about
    return made


def _reviewing_stack() -> Defense:
    made = Stack([Defense()], DEFAULT.level_names)
    made.review = _hides  # type: ignore[method-assign]  # the same
    return made


def _reviewing_adopted() -> Defense:
    made = guard("theirs", SimpleNamespace(rewrite=lambda request, verdict: request), DefenseContext(Policy(DEFAULT)))
    made.review = _hides  # type: ignore[method-assign]  # the same
    return made


REVIEWERS = {
    "object": _reviewing_object,
    "member of a stack": lambda: Stack([Defense(), _reviewing_object()], DEFAULT.level_names),
    "stack": _reviewing_stack,
    "adopted": _reviewing_adopted,
    "attribute of an adopted one": lambda: guard("x", SimpleNamespace(review=_hides), DefenseContext(Policy(DEFAULT))),
}


@pytest.mark.parametrize("kind", REVIEWERS)
def test_stream_never_passes_a_review_by(kind: str) -> None:
    engine = Engine(engines.engine("none").loaded, REVIEWERS[kind](), engines.CPU)
    assert list(engine.stream(Request("Hello"), engines.SHORT)) == ["hidden"]


def test_defense_without_a_review_streams_piece_by_piece() -> None:
    assert not Defense().reviews and not Stack([Defense()], DEFAULT.level_names).reviews


# --- what a caller gives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["Refuse", "ALLOW", "", "ignore", None, True])
def test_unknown_on_error_is_an_error(given: Any) -> None:
    with pytest.raises(ValueError, match="on_error"):
        Engine(engines.engine("none").loaded, Defense(), engines.CPU, given)
    with pytest.raises(ValueError, match="on_error"):
        safevlm.load("no such folder", on_error=given)


@pytest.mark.parametrize("given", ["NF4", "int4", "", None, True])
def test_unknown_quantize_is_an_error(given: Any) -> None:
    with pytest.raises(ValueError, match="quantize"):
        safevlm.load("no such folder", quantize=given)


LONE = "half \ud83d a character"
UNUSABLE = {
    "text": lambda tmp: Request(LONE),
    "system": lambda tmp: Request("x", system=LONE),
    "history": lambda tmp: Request("x", history=(("y", LONE),)),
    "missing file": lambda tmp: Request("x", (tmp / "none.png",)),
    "long path": lambda tmp: Request("x", ("a" * 5000,)),
    "no pixels": lambda tmp: Request("x", (Image.new("RGB", (0, 0)),)),
}


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_request_that_cannot_be_used_is_named_before_any_is_answered(
    kind: str, batch_size: int, tmp_path: Path
) -> None:
    engine = engines.engine("none")
    requests = [Request("One?"), Request("Two?"), UNUSABLE[kind](tmp_path)]
    with engines.watched(engine) as asked:
        with pytest.raises(ValueError, match=r"requests\[2\]") as caught:
            engine.reply_all(requests, Generation(max_new_tokens=1), batch_size=batch_size, errors="raise")
        with pytest.raises(type(caught.value)):
            list(engine.stream(requests[2]))
    assert not asked.rows
    assert isinstance(caught.value, ImageError) == bool(requests[2].images)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_request_that_cannot_be_used_stops_no_other(kind: str, batch_size: int, tmp_path: Path) -> None:
    engine = engines.engine("none")
    good = [Request("One?"), Request("Two?", (engines.image(),)), Request("Three?")]
    requests = [good[0], UNUSABLE[kind](tmp_path), *good[1:]]
    replies = engine.reply_all(requests, Generation(max_new_tokens=3), batch_size=batch_size)
    alone = engine.reply_all(good, Generation(max_new_tokens=3), batch_size=batch_size)
    assert [reply.request for reply in replies] == requests
    assert [reply.text for reply in replies if not reply.error] == [reply.text for reply in alone]
    bad = replies[1]
    assert bad.error.startswith("requests[1]") and bad.text == bad.prompt == ""
    assert not bad.verdict.looked and bad.verdict.error, "nobody looked, and nobody may take it for safe"
    with pytest.raises(ValueError, match=r"requests\[1\]"):
        answered(replies)


def test_what_becomes_of_an_unusable_request_is_return_or_raise() -> None:
    with pytest.raises(ValueError, match="errors='ignore'.*return.*raise"):
        engines.engine("none").reply_all([Request("One?")], errors="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("probability", [float("nan"), float("inf")])
@pytest.mark.parametrize("table", ["level_probabilities", "category_probabilities"])
def test_a_verdict_whose_probabilities_are_no_numbers_refuses_its_request(table: str, probability: float) -> None:
    def detect(self: Defense, request: Request, features: Any) -> Verdict:
        broken = Verdict(**{table: {"safe": probability}}, source="own")
        return broken if request.id == BROKEN else SAW

    _assert_only_the_broken_is_refused(_engine(detect=detect), "detect", str(probability))
