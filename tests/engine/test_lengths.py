"""Prompts and answers stay within the positions that the model was made for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from llava_patch import fields
from safevlm.data import chat
from safevlm.defenses import Defense, Inputs
from safevlm.defenses.base import VirtualTokens
from safevlm.engine import Engine
from safevlm.types import Generation, Request, Verdict
from tests.engine import engines

POSITIONS = 64
IMAGE = engines.image()


def _engine(defense: Defense | None = None) -> Engine:
    made = engines.engine(own=engines.model())
    if defense is not None:
        made = Engine(made.loaded, defense, made.device)
    made.model.config.text_config.max_position_embeddings = POSITIONS
    made.model.generation_config.eos_token_id = None  # answers end where they have to
    return made


def _words(count: int) -> str:
    return " ".join(["what"] * count)


def _tokens(engine: Engine, request: Request) -> int:
    return len(chat.prompt_ids(engine.processor, request, engine.loaded.safe_llava.slots))


@pytest.mark.parametrize("images", [(), (IMAGE,)])
def test_a_prompt_without_room_for_an_answer_is_an_error(images: tuple[object, ...]) -> None:
    engine = _engine()
    request = Request(_words(POSITIONS), images)
    for ask in (engine.reply, lambda one: list(engine.stream(one)), lambda one: engine.encoded([one])):
        with pytest.raises(ValueError, match=rf"{_tokens(engine, request)} tokens.* {POSITIONS} positions"):
            ask(request)


def test_earlier_turns_count() -> None:
    history = [(_words(20), _words(20))] * 2
    with pytest.raises(ValueError, match="positions"):
        _engine().reply(Request("what", history=history))


def test_a_prompt_that_is_too_long_is_told_before_any_is_answered() -> None:
    requests = [Request("what"), Request(_words(POSITIONS)), Request("what")]
    with pytest.raises(ValueError, match=r"^requests\[1\]: "):
        _engine().reply_all(requests, engines.SHORT, batch_size=1, errors="raise")


def test_an_answer_stops_at_the_last_position_and_says_so() -> None:
    engine = _engine()
    request = Request(_words(20))
    room = POSITIONS - _tokens(engine, request)
    reply = engine.reply(request, Generation(max_new_tokens=200))
    exact = engine.reply(request, Generation(max_new_tokens=room))
    assert 0 < room < 30 and reply.text == exact.text
    assert any(str(POSITIONS) in line for line in reply.trace) and not exact.trace


def test_room_is_each_requests_own() -> None:
    engine = _engine()
    requests = [Request(_words(20)), Request("what"), Request(_words(22))]
    how = Generation(max_new_tokens=30)
    together = engine.reply_all(requests, how, batch_size=3)
    alone = [engine.reply(request, how) for request in requests]
    assert [(one.text, one.trace) for one in together] == [(one.text, one.trace) for one in alone]
    assert [bool(one.trace) for one in together] == [True, False, True]


def test_an_answer_that_ends_by_itself_is_not_called_cut() -> None:
    engine = _engine()
    request = Request(_words(20))
    with engines.watched(engine) as asked:
        engine.reply(request, Generation(max_new_tokens=3))
    engine.model.generation_config.eos_token_id = int(asked.new[0][0, 2])
    assert not engine.reply(request, Generation(max_new_tokens=200)).trace


class _Wordy(Defense):
    """Adds more than there is room for."""

    name = "wordy"

    def rewrite(self, request: Request, verdict: Verdict) -> Request:
        return dataclasses.replace(request, text=_words(POSITIONS))


class _Crowded(Defense):
    name = "crowded"

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        vectors = torch.zeros(POSITIONS, fields.hidden_size(engines.llava_config()))
        return dataclasses.replace(inputs, virtual=(VirtualTokens(vectors, 0),))


@pytest.mark.parametrize("defense", [_Wordy(), _Crowded()], ids=lambda defense: defense.name)
def test_a_defense_that_leaves_no_room_refuses(defense: Defense) -> None:
    reply = _engine(defense).reply(Request("what"))
    assert reply.refused_by == defense.name and reply.verdict.error
