"""What every defense promises, whoever wrote it. A defense that joins the table is under this contract at once."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from safevlm.defenses import DEFENSES, Defense, DefenseContext, Inputs, Policy, Stack, build, prompts
from safevlm.engine import Engine
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Generation, Reply, Request, Verdict
from tests.engine import engines

STACKS = [
    "safety-head+static-prompt",
    "static-prompt+safety-head",
    "safety-head+safe-clip",
    "safe-clip+self-check",
    "safety-head+eta",
    "safety-head+security-tensor:visual",
    "safety-head+probe",
]
EVERY = pytest.mark.parametrize("name", [*DEFENSES, *STACKS])
HOOKS = pytest.mark.parametrize("hook", ["detect", "rewrite", "transform", "review"])

CHANGES_EVERY_PROMPT = {
    "static-prompt": "a fixed prompt on every request is all that it is",
    "safety-head+static-prompt": "static-prompt is in it",
    "static-prompt+safety-head": "static-prompt is in it",
    "security-tensor:textual": "its virtual tokens stand in the prompt of every image; no verdict comes before them",
}
"""Defenses that may touch the prompt of a clean request, and why."""

ASKS_AGAIN = {
    "self-check": "the model is asked about every answer to an image",
    "safe-clip+self-check": "self-check is in it",
}
"""Defenses that ask the model again though nothing was seen, and why; the request itself goes first, unchanged."""

RISK = ("may_refuse", "illegal")
NOTHING = (SAFE, CLEAN)
WHY = "the guard's lamp went out"


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    engines.cut_asks(monkeypatch, 4)


def _guarded(name: str, says: tuple[str, str] = RISK, **options: Any) -> Engine:
    """An engine whose every detector says `says` of every image."""
    truths = {request.id: Verdict(*says, source="oracle") for request in engines.mixed_requests()}
    return engines.engine(name, says=says, truths=truths, **options)


def _about_an_image() -> Request:
    return next(request for request in engines.mixed_requests() if request.id == "one")


def _break(defense: Defense, hook: str) -> None:
    """Makes one hook of a defense fail; in a stack, the last member's."""

    def broken(*_: object) -> None:
        raise RuntimeError(WHY)

    setattr(defense.members[-1] if isinstance(defense, Stack) else defense, hook, broken)


def _snapshot(request: Request) -> tuple[object, ...]:
    words = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    images = words.pop("images")
    return words, [(id(image), image.mode, image.size, image.tobytes()) for image in images]


def _copy(inputs: Inputs) -> Inputs:
    pixels = None if inputs.pixel_values is None else inputs.pixel_values.clone()
    return dataclasses.replace(inputs, input_ids=inputs.input_ids.clone(), pixel_values=pixels)


def _equal(one: Inputs, other: Inputs) -> bool:
    same_pixels = one.pixel_values is other.pixel_values or torch.equal(one.pixel_values, other.pixel_values)
    return torch.equal(one.input_ids, other.input_ids) and same_pixels and one.virtual == other.virtual


# --- hooks ------------------------------------------------------------------------------------------------------------


@EVERY
def test_inputs_are_not_mutated(name: str) -> None:
    engine, request = _guarded(name), _about_an_image()
    before, handed = _snapshot(request), []
    detect, transform, review = engine.defense.detect, engine.defense.transform, engine.defense.review

    def watched_detect(request: Request, features: Any) -> Verdict:
        verdict = detect(request, features)
        handed.append((verdict, copy.deepcopy(verdict), lambda one, other: one == other))
        return verdict

    def watched_transform(inputs: Inputs, verdict: Verdict) -> Inputs:
        handed.append((inputs, _copy(inputs), _equal))
        return transform(inputs, verdict)

    def watched_review(request: Request, reply: Reply, verdict: Verdict) -> Reply:
        handed.append((reply, dataclasses.replace(reply), lambda one, other: one == other))
        return review(request, reply, verdict)

    engine.defense.detect, engine.defense.transform = watched_detect, watched_transform
    engine.defense.review = watched_review
    reply = engine.reply(request, engines.SHORT)
    assert not reply.verdict.error, reply.verdict.error
    assert len(handed) == 3, "a hook was not called"
    assert _snapshot(request) == before, "the request, or an image in it, was changed in place"
    for kept, as_it_was, same in handed:
        assert same(kept, as_it_was), f"a {type(kept).__name__} was changed in place after a hook got it"


@EVERY
def test_text_only_works(name: str) -> None:
    engine, request = _guarded(name), Request("How do I use the cup?", id="words")
    with engines.tower_calls(engine) as calls:
        reply = engine.reply(request, engines.SHORT)
    assert not reply.verdict.error and not reply.refused_by, f"a question in words was refused: {reply.verdict.error}"
    assert request.text in reply.prompt
    assert "<image>" not in reply.prompt
    assert not calls, "the vision tower ran without an image"


@EVERY
def test_batched_equals_one_by_one(name: str) -> None:
    requests = engines.mixed_requests()
    seen = [NOTHING, ("careful", "privacy"), NOTHING, ("may_refuse", "insults"), ("must_refuse", "illegal")]
    truths = {request.id: Verdict(*verdict) for request, verdict in zip(requests, seen, strict=True)}
    engine = engines.engine(name, truths=truths, policy=Policy(DEFAULT, {"must_refuse": "refuse"}))
    batched = engine.reply_all(requests, Generation(max_new_tokens=4), batch_size=len(requests))
    alone = engine.reply_all(requests, Generation(max_new_tokens=4), batch_size=1)
    assert len({reply.text for reply in alone}) > 2, "the replies are all alike; this test would see nothing"
    for one, other in zip(batched, alone, strict=True):
        assert engines.same_verdict(one.verdict, other.verdict), f"{one.request.id}: the batch changes the verdict"
        assert (one.prompt, one.refused_by, one.trace) == (other.prompt, other.refused_by, other.trace)
        assert one.text == other.text, f"{one.request.id}: the reply depends on its neighbours in the batch"
        assert one.request is other.request


@EVERY
def test_same_seed_same_reply(name: str) -> None:
    engine, request = _guarded(name, NOTHING), _about_an_image()

    def sample(seed: int) -> str:
        return engine.reply(request, Generation(max_new_tokens=4, temperature=1.0, seed=seed)).text

    torch.manual_seed(1)
    first = sample(0)
    torch.manual_seed(2)
    assert sample(0) == first, "the reply hangs on torch's own state, not on the seed"
    if name not in ASKS_AGAIN:  # an answer from the caption is greedy
        assert {sample(seed) for seed in (1, 2)} != {first}, "no seed changes anything: this is not sampling"


@EVERY
def test_clean_verdict_leaves_the_prompt_byte_for_byte(name: str) -> None:
    # A detector of any kind is made to see nothing; what its other hooks do then is the point.
    bare, guarded = engines.engine("none"), _guarded(name, NOTHING)
    guarded.defense.detect = lambda request, features: Verdict(source="a detector that sees nothing")
    requests = engines.mixed_requests()
    with engines.watched(bare) as plain, engines.watched(guarded) as asked:
        expected = bare.reply_all(requests, Generation(max_new_tokens=1))
        replies = guarded.reply_all(requests, Generation(max_new_tokens=1))
    rows = asked.rows[: len(plain.rows)] if name in ASKS_AGAIN else asked.rows
    unchanged = plain.rows == rows and [reply.prompt for reply in expected] == [reply.prompt for reply in replies]
    if name in CHANGES_EVERY_PROMPT:
        assert not unchanged, f"{name} leaves clean prompts alone; take it out of CHANGES_EVERY_PROMPT"
    else:
        assert unchanged, f"{name} changes the prompt of a request in which nothing was seen"
        assert not any(reply.refused_by for reply in replies)
        assert bool(asked.rows[len(plain.rows) :]) == any(reply.trace for reply in replies) == (name in ASKS_AGAIN)


@pytest.mark.parametrize("seen", [(SAFE, CLEAN), ("must_refuse", CLEAN), (SAFE, "illegal")])
@pytest.mark.parametrize("name", ["safety-head", "oracle"])
def test_detector_that_sees_nothing_leaves_the_prompt(name: str, seen: tuple[str, str]) -> None:
    bare, guarded, request = engines.engine("none"), _guarded(name, seen), _about_an_image()
    with engines.watched(bare) as plain, engines.watched(guarded) as asked:
        bare.reply(request, engines.SHORT)
        reply = guarded.reply(request, engines.SHORT)
    assert (reply.verdict.level, reply.verdict.category) == seen, "the detector did not say what it was made to say"
    assert plain.rows == asked.rows, "level safe or category clean, either is enough to leave the prompt alone"


@pytest.mark.parametrize("name", ["safety-head", "oracle", *STACKS])
def test_detector_that_sees_a_risk_puts_a_hint_into_the_prompt(name: str) -> None:
    reply = _guarded(name).reply(_about_an_image(), engines.SHORT)
    assert prompts.hint(DEFAULT, *RISK) in reply.prompt, f"{name} saw {RISK} and did nothing"
    assert prompts.hint(DEFAULT, *RISK) in " ".join(reply.trace), "the trace does not say what was added"


# --- failing ----------------------------------------------------------------------------------------------------------


@HOOKS
@EVERY
def test_failing_hook_refuses(name: str, hook: str) -> None:
    engine = _guarded(name)
    _break(engine.defense, hook)
    with engines.watched(engine) as asked:
        reply = engine.reply(_about_an_image(), engines.SHORT)
    assert reply.refused_by == engine.defense.name, f"{name}: {hook} failed, and the request went through"
    assert reply.text == prompts.REFUSAL_ON_ERROR
    assert WHY in reply.verdict.error, "the verdict does not say what failed"
    assert reply.verdict.error.startswith(f"{hook}: "), f"{hook} failed, and the error blames {reply.verdict.error!r}"
    assert WHY in " ".join(reply.trace)
    assert bool(asked.rows) == (hook == "review"), "the model was asked although the guard had failed"
    assert bool(reply.prompt) == bool(asked.rows), "the prompt is empty when the model was not asked, and only then"


@HOOKS
def test_hook_that_returns_nothing_refuses_its_own_request_only(hook: str) -> None:
    # A forgotten `return` is the likeliest bug of a defense; it must not take the batch down, nor let anything through.
    engine, requests = _guarded("safety-head"), engines.mixed_requests()
    whole, told = getattr(engine.defense, hook), iter(range(len(requests)))
    setattr(engine.defense, hook, lambda *given: None if next(told) == 1 else whole(*given))
    replies = engine.reply_all(requests, Generation(max_new_tokens=1))
    assert [reply.request.id for reply in replies if reply.refused_by] == ["one"]
    assert replies[1].verdict.error.startswith(f"{hook}: "), replies[1].verdict.error


@EVERY
def test_failing_detector_refuses_its_own_request_only(name: str) -> None:
    engine = _guarded(name)
    detect = engine.defense.detect

    def sometimes(request: Request, features: Any) -> Verdict:
        if request.id == "one":
            raise RuntimeError(WHY)
        return detect(request, features)

    engine.defense.detect = sometimes
    replies = engine.reply_all(engines.mixed_requests(), Generation(max_new_tokens=1))
    assert [reply.request.id for reply in replies if reply.verdict.error] == ["one"]
    assert [reply.request.id for reply in replies if reply.refused_by] == ["one"]


@EVERY
def test_failing_detector_lets_the_bare_request_through_where_the_caller_chose_so(name: str) -> None:
    bare, engine, request = engines.engine("none"), _guarded(name, on_error="allow"), _about_an_image()
    for member in engine.defense.members if isinstance(engine.defense, Stack) else [engine.defense]:
        _break(member, "detect")
    with engines.watched(bare) as plain, engines.watched(engine) as asked:
        expected = bare.reply(request, engines.SHORT)
        reply = engine.reply(request, engines.SHORT)
    assert asked.rows == plain.rows and reply.text == expected.text
    assert not reply.refused_by
    assert WHY in reply.verdict.error
    assert any("unguarded" in line and WHY in line for line in reply.trace), "the trace hides that nothing was guarded"


# --- names ------------------------------------------------------------------------------------------------------------

SETTING = DefenseContext(policy=Policy(DEFAULT), has_head=True)


@EVERY
def test_defense_is_known_by_the_name_it_was_asked_for(name: str) -> None:
    assert engines.engine(name).defense.name == name


@pytest.mark.parametrize("name", ["magic", "safety-head+magic", "", "safety-head+"])
def test_unknown_defense_names_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match="unknown defense") as caught:
        build(name, SETTING)
    missing = [choice for choice in (*DEFENSES, "auto") if choice not in str(caught.value)]
    assert not missing, f"choices that the message does not name: {missing}"


@pytest.mark.parametrize(("has_head", "name"), [(True, "safety-head"), (False, "none")])
def test_auto_is_the_safety_head_where_there_is_one(has_head: bool, name: str) -> None:
    assert build("auto", DefenseContext(policy=Policy(DEFAULT), has_head=has_head)).name == name


@pytest.mark.parametrize("name", ["safety-head", "eta", *(name for name in STACKS if "safety-head" in name)])
def test_safety_head_on_a_checkpoint_without_one_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="this checkpoint has no safety head; train one"):
        build(name, DefenseContext(policy=Policy(DEFAULT), has_head=False))


def test_oracle_without_the_truth_refuses() -> None:
    reply = engines.engine("oracle").reply(Request("What is it?", (engines.image(),), id="stranger"), engines.SHORT)
    assert reply.refused_by == "oracle"
    assert "stranger" in reply.verdict.error
