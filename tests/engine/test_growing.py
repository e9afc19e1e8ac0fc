"""Answers of one batch: each with its own length, its own stop texts and its own reader."""

from __future__ import annotations

import dataclasses

import pytest

from safevlm.engine import BatchRequest
from safevlm.engine.growing import GrowingAnswer
from safevlm.types import Generation, Request
from tests.engine import engines

ANSWER = " Take the vork, press it and turn it. Take the cup.\n"
QUESTIONS = ("What is it?", "How do I use it?", "What do you see?")
LENGTHS = (3, 9, 6)


def _asked(**of_each: object) -> list[BatchRequest]:
    return [
        BatchRequest(Request(question, (engines.image(),)), Generation(max_new_tokens=length), **of_each)
        for question, length in zip(QUESTIONS, LENGTHS, strict=True)
    ]


@pytest.mark.parametrize("is_heard", [False, True])
def test_each_answer_of_a_batch_is_as_long_as_its_request_wants(is_heard: bool) -> None:
    engine = engines.engine()
    heard: list[list[str]] = [[], [], []]
    asked = [
        dataclasses.replace(each, on_text=(lambda piece, own=own: not own.append(piece)) if is_heard else None)
        for each, own in zip(_asked(), heard, strict=True)
    ]
    together = engine.reply_each(asked)
    alone = [engine.reply(each.request, each.generation) for each in asked]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert [(r.prompt_tokens, r.answer_tokens, r.ended) for r in together] == [
        (r.prompt_tokens, r.answer_tokens, r.ended) for r in alone
    ]
    assert len({reply.text for reply in together}) == 3
    if is_heard:
        assert ["".join(own) for own in heard] == [reply.text for reply in together]


def test_a_reader_who_goes_away_ends_his_answer_and_no_other() -> None:
    engine = engines.engine()
    heard: list[str] = []
    first, second, third = _asked()
    long = Generation(max_new_tokens=30)
    left = dataclasses.replace(second, generation=long, on_text=lambda piece: bool(heard.append(piece)))
    replies = engine.reply_each([first, left, third])
    assert heard and "".join(heard) == replies[1].text
    assert len(replies[1].text) < len(engine.reply(second.request, long).text)
    assert replies[0].text == engine.reply(first.request, first.generation).text
    assert replies[2].text == engine.reply(third.request, third.generation).text


@pytest.mark.parametrize("defense", ["none", "safety-head"])
@pytest.mark.parametrize("stop", [(" press",), ("turn it", "press it"), ("vork, press it a",), ("no such text",)])
def test_an_answer_ends_before_its_stop_text_and_no_piece_of_it_is_heard(defense: str, stop: tuple[str, ...]) -> None:
    engine = engines.engine(defense)
    how = Generation(max_new_tokens=64, stop=stop)
    with engines.answering(engine, ANSWER):
        reply = engine.reply(Request("What is it?"), how)
        streamed = list(engine.stream(Request("What is it?"), how))
    ends = [at for at in (ANSWER.find(text) for text in stop) if at >= 0]
    assert reply.text == ANSWER[: min(ends, default=len(ANSWER))].strip()
    assert "".join(streamed) == reply.text
    assert reply.ended == "stop" if ends else reply.ended == "length"


def test_characters_of_several_tokens_are_said_whole() -> None:
    tokenizer = engines.tokenizer()
    text = "Ein Maß für größere Übel: 猫 🐈."
    pieces: list[str] = []
    answer = GrowingAnswer(tokenizer, (), lambda piece: not pieces.append(piece))
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        answer.hear(token)
    answer.finish()
    assert "".join(pieces) == answer.text == text and not any("\ufffd" in piece for piece in pieces)


def test_requests_that_are_drawn_differently_do_not_share_a_batch() -> None:
    drawn = [BatchRequest(Request("What is it?"), Generation(temperature=1.0, seed=seed)) for seed in (1, 2)]
    with pytest.raises(ValueError, match="seed"):
        engines.engine().reply_each(drawn)


@pytest.mark.parametrize("stop", ["x", ("",), (3,)])
def test_stop_texts_are_texts(stop: object) -> None:
    with pytest.raises(TypeError, match="stop"):
        Generation(stop=stop)  # type: ignore[arg-type]  # what a caller without types may give
