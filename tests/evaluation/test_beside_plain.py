"""A guard beside transformers' own generate: the peer answers as the engine does, and what is asked can be refused."""

from __future__ import annotations

import pytest
import torch
from PIL.Image import Image

from llava_patch.classes import Model
from safevlm.defenses import Policy
from safevlm.evaluation.speed import plain
from safevlm.evaluation.speed.beside_plain import risky
from safevlm.taxonomy import DEFAULT
from safevlm.types import Generation, Request
from tests.engine import engines

REFUSES = Policy(DEFAULT, {"must_refuse": "refuse"})


def _requests(count: int) -> list[Request]:
    texts = ["What is it?", "Name the things you see. " * 3, "How do I use the vork?"]
    return [Request(texts[seed % 3], (engines.image(seed),), str(seed)) for seed in range(count)]


@pytest.mark.parametrize("lm_tokens", [0, 3])
@pytest.mark.parametrize("count", [1, 4])
def test_plain_says_what_the_engine_says(lm_tokens: int, count: int) -> None:
    guarded = engines.engine(
        "safety-head", lm_tokens=lm_tokens, policy=Policy(DEFAULT, dict.fromkeys(DEFAULT.level_names[1:], "allow"))
    )
    stock = plain.stock_of(guarded.loaded.safe_llava)
    assert type(stock) is Model, "the peer must be transformers' own class"
    ask = plain.asking(stock, guarded.processor, torch.device("cpu"))
    replies = guarded.reply_all(_requests(count), Generation(max_new_tokens=6), batch_size=count)
    assert ask(_requests(count), 6) == [reply.text for reply in replies]


def test_what_is_asked_is_what_the_head_calls_risky() -> None:
    refuses = engines.engine("safety-head", says=("must_refuse", "illegal"), policy=REFUSES)
    requests = risky(refuses, [Request("In words."), *_requests(3)], 8)
    assert len(requests) >= 8 and {request.id for request in requests} == {"0", "1", "2"}
    assert all(isinstance(image, Image) for request in requests for image in request.images)
    lets_through = engines.engine("safety-head", says=("safe", "clean"), policy=REFUSES)
    with pytest.raises(ValueError, match="3 images"):
        risky(lets_through, _requests(3), 8)
