"""Streaming: the same reply in pieces, the same guard in front of it, and errors that reach the caller."""

from __future__ import annotations

import dataclasses
import time
from threading import Thread

import pytest

from safevlm.defenses import Defense, Policy, prompts
from safevlm.engine import Engine
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Reply, Request, Verdict
from tests.engine import engines

LONGEST_WAIT = 60.0
"""Seconds after which a stream counts as hanging."""
RISK = ("must_refuse", "illegal")
WHOLE = Generation(max_new_tokens=64)
"""Room for ANSWER."""
ANSWER = " Take the vork, press it and turn it. Take the cup. "


def _request() -> Request:
    return Request("How do I use the things in the picture?", (engines.image(1),))


def _pieces(engine: Engine, generation: Generation = WHOLE) -> list[str]:
    """All pieces; what the stream raises is raised here, and a stream that hangs fails."""
    pieces: list[str] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            pieces.extend(engine.stream(_request(), generation))
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = Thread(target=read, daemon=True)
    thread.start()
    thread.join(LONGEST_WAIT)
    assert not thread.is_alive(), f"the stream hangs; it had given {pieces}"
    if errors:
        raise errors[0]
    return pieces


@pytest.mark.parametrize("name", ["none", "safety-head", "static-prompt+safety-head"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_make_up_the_reply(name: str, temperature: float) -> None:
    engine = engines.engine(name, says=RISK)
    generation = Generation(max_new_tokens=12, temperature=temperature, seed=5)
    with engines.watched(engine) as asked:
        pieces = _pieces(engine, generation)
        reply = engine.reply(_request(), generation)
    assert asked.rows[0] == asked.rows[1], "the stream asks the model something else than the reply does"
    assert asked.new[0].tolist() == asked.new[1].tolist()
    assert "".join(pieces) == reply.text


@pytest.mark.parametrize("name", ["none", "safety-head", "static-prompt+safety-head"])
def test_pieces_come_one_by_one_and_make_up_the_reply_to_the_space(name: str) -> None:
    engine = engines.engine(name, says=RISK)
    with engines.answering(engine, ANSWER):
        pieces, reply = _pieces(engine), engine.reply(_request(), WHOLE)
    assert reply.text == ANSWER.strip()
    assert "".join(pieces) == reply.text, "white space around the answer: the stream gives another text than the reply"
    assert len(pieces) > 5, "the whole answer came at once; this is no stream"
    assert all(pieces), "an empty piece"


def test_request_that_the_policy_refuses_streams_the_refusal() -> None:
    engine = engines.engine("safety-head", says=RISK, policy=Policy(DEFAULT, {"must_refuse": "refuse"}))
    with engines.watched(engine) as asked:
        assert "".join(_pieces(engine)) == prompts.refusal(DEFAULT, "illegal")
    assert not asked.rows


@pytest.mark.parametrize("hook", ["detect", "rewrite", "transform"])
def test_failing_hook_streams_the_refusal(hook: str) -> None:
    engine = engines.engine("safety-head", says=RISK)

    def broken(*_: object) -> None:
        raise RuntimeError("it broke")

    setattr(engine.defense, hook, broken)
    with engines.watched(engine) as asked:
        assert "".join(_pieces(engine)) == prompts.REFUSAL_ON_ERROR
    assert not asked.rows


def test_defense_that_reviews_answers_sees_them_whole_before_the_user_does() -> None:
    class Censor(Defense):
        name = "censor"

        def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
            return dataclasses.replace(reply, text=reply.text.replace("vork", "****"))

    guarded = engines.engine()
    engine = Engine(guarded.loaded, Censor(), engines.CPU)
    with engines.answering(engine, ANSWER):
        assert _pieces(engine) == [ANSWER.strip().replace("vork", "****")]


def test_reader_who_goes_away_stops_the_model() -> None:
    model, longest, steps = engines.model(), 1000, []
    model.generation_config.eos_token_id = None
    model.lm_head.register_forward_hook(lambda *_: steps.append(1))
    stream = engines.engine(own=model).stream(_request(), Generation(max_new_tokens=longest, temperature=1.0))
    next(stream)
    stream.close()
    taken = len(steps)
    assert taken < longest, "the model wrote to the end for nobody"
    time.sleep(0.2)
    assert len(steps) <= taken + 1, "the model goes on writing for nobody"


@pytest.mark.parametrize("after", ["", ANSWER])
def test_error_while_generating_is_raised_to_the_caller(after: str) -> None:
    engine = engines.engine()
    with engines.answering(engine, after, breaks=MemoryError("no room")), pytest.raises(MemoryError, match="no room"):
        _pieces(engine)
