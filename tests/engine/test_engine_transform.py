"""What a defense does to tensors: changed pixels, virtual tokens, and asking the model again."""

from __future__ import annotations

import dataclasses

import torch

from safevlm.defenses import Defense, Inputs, VirtualTokens
from safevlm.engine import Engine
from safevlm.types import Generation, Reply, Request, Verdict
from tests.engine import engines

QUESTION = "What is in the picture?"


class Brighter(Defense):
    """Changes the pixels of every image but those of one request."""

    name = "brighter"

    def __init__(self, amount: float, spared: int = -1) -> None:
        self.amount, self.spared, self.seen = amount, spared, 0

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        self.seen += 1
        if inputs.pixel_values is None or self.seen - 1 == self.spared:
            return inputs
        return dataclasses.replace(inputs, pixel_values=inputs.pixel_values + self.amount)


class Prefix(Defense):
    name = "prefix"

    def __init__(self, vectors: torch.Tensor, at: int) -> None:
        self.vectors, self.at = vectors, at

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        return dataclasses.replace(inputs, virtual=(*inputs.virtual, VirtualTokens(self.vectors, self.at)))


def _engine(defense: Defense) -> Engine:
    bare = engines.engine("none")
    return Engine(bare.loaded, defense, engines.CPU)


def _features(engine: Engine, request: Request) -> torch.Tensor:
    return torch.cat(engine.encoded([request]).image_tokens)


def test_changed_pixels_are_what_the_model_gets() -> None:
    request = Request(QUESTION, (engines.image(1),))
    bare, brighter = engines.engine("none"), _engine(Brighter(0.5))
    with torch.no_grad():
        pixels = bare.processor.image_processor(list(request.images), return_tensors="pt")["pixel_values"] + 0.5
        model = bare.loaded.safe_llava
        expected = model.project(model.encode_images(pixels).patches)[0]
    assert torch.allclose(_features(brighter, request), expected, atol=1e-6)
    assert not torch.allclose(_features(bare, request), expected, atol=1e-3)


def test_changed_pixels_without_a_detector_cost_one_pass() -> None:
    engine = _engine(Brighter(0.5))
    with engines.tower_calls(engine) as calls:
        engine.reply(Request(QUESTION, (engines.image(1), engines.image(2))), engines.SHORT)
    assert calls == [2], f"nobody looked at the clean pixels; the tower ran on {calls}"


def test_changed_pixels_of_some_requests_cost_one_more_pass_for_those() -> None:
    engine = _engine(Brighter(0.5, spared=0))
    requests = [Request(QUESTION, (engines.image(seed),)) for seed in range(3)]
    with engines.tower_calls(engine) as calls:
        engine.reply_all(requests, Generation(max_new_tokens=1))
    assert sorted(calls) == [2, 3]


def test_changed_pixels_batched_equal_one_by_one() -> None:
    requests = engines.mixed_requests()
    together = _engine(Brighter(0.5)).reply_all(requests, Generation(max_new_tokens=4))
    alone = _engine(Brighter(0.5)).reply_all(requests, Generation(max_new_tokens=4), batch_size=1)
    assert [reply.text for reply in together] == [reply.text for reply in alone]


def test_virtual_tokens_batched_equal_one_by_one_and_streamed() -> None:
    engine = engines.engine("none")
    width = engine.loaded.safe_llava.config.text_config.hidden_size
    prefixed = _engine(Prefix(torch.randn(3, width, generator=torch.Generator().manual_seed(0)), at=1))
    requests = engines.mixed_requests()
    together = prefixed.reply_all(requests, Generation(max_new_tokens=4))
    alone = prefixed.reply_all(requests, Generation(max_new_tokens=4), batch_size=1)
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    streamed = "".join(prefixed.stream(requests[1], dataclasses.replace(engines.SHORT, max_new_tokens=4)))
    assert streamed == alone[1].text
    bare = engine.reply_all(requests, Generation(max_new_tokens=4))
    assert [reply.text for reply in alone] != [reply.text for reply in bare], "the virtual tokens change nothing"


def test_encoded_leaves_out_what_the_defense_answers() -> None:
    class Answers(Defense):
        def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
            return Reply("no", request) if request.id == "two" else request

    requests = engines.mixed_requests()
    encoded = _engine(Answers()).encoded(requests)
    assert encoded.requests == (0, 1, 2, 4)
    assert len(encoded.input_ids) == 4 and len(encoded.image_tokens) == 2


# --- asking again -----------------------------------------------------------------------------------------------------


def test_asking_again_is_what_the_bare_model_says() -> None:
    requests = engines.mixed_requests()
    engine = engines.engine("safety-head", says=("must_refuse", "illegal"))
    expected = engines.engine("none").reply_all(requests, Generation(max_new_tokens=4))
    assert engine.defense.ask(requests, max_new_tokens=4) == [reply.text for reply in expected]


def test_asking_again_reaches_every_member_of_a_stack() -> None:
    engine = engines.engine("safety-head+static-prompt")
    assert all(member.ask([Request("Hello")], max_new_tokens=1) for member in engine.defense.members)


def test_answer_prefix_is_read_by_the_model_and_not_repeated() -> None:
    engine, request = engines.engine("none"), Request("How do I use the cup?")
    with engines.watched(engine) as asked:
        text = engine.defense.ask([request], max_new_tokens=4, answer_prefix="Take the cup")[0]
    prompt = engine.processor.tokenizer.decode(asked.rows[0])
    assert prompt.endswith("ASSISTANT: Take the cup")
    assert not text.startswith("Take the cup")


def test_samples_of_one_request_in_a_batch_differ_and_hang_on_the_seed() -> None:
    engine, copies = engines.engine("none"), [Request("How do I use the cup?")] * 4
    first = engine.defense.ask(copies, max_new_tokens=6, temperature=1.0, seed=1)
    assert len(set(first)) > 1
    assert engine.defense.ask(copies, max_new_tokens=6, temperature=1.0, seed=1) == first
    assert engine.defense.ask(copies, max_new_tokens=6, temperature=1.0, seed=2) != first
