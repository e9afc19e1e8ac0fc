"""What a user without this package would call: transformers' processor and its model's own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL.Image import Image

from llava_patch import fresh
from llava_patch.classes import Config, Model, Processor
from safevlm.data import chat_messages
from safevlm.data.rendering import rendered
from safevlm.engine import Engine
from safevlm.model.safe_llava import SafeLlava
from safevlm.types import Generation, Request

OURS = ("model_type", "architectures", "safety", "policy", "base_checkpoint")
"""Fields of a config that a stock one does not have, or has of its own."""

PLAIN = "plain"
"""Name of this way among the measured ones."""
Ask = Callable[[Sequence[Request], int], list[str]]
"""Requests and how many new tokens each at most → answers."""


def stock_of(model: SafeLlava) -> Model:
    """transformers' own LLaVA around the same weights.

    Learned tokens come with the inner model, so both read prompts of one length.
    """
    table = {key: value for key, value in model.config.to_dict().items() if key not in OURS}
    stock = fresh.stock_around(model, Config(**table))
    stock.generation_config = model.generation_config
    return stock


def asking(model: Model, processor: Processor, device: torch.device, *, is_whole: bool = False) -> Ask:
    """Greedy answers, as transformers' documentation shows it. The images of the requests are open ones.

    `is_whole`: every answer has all the tokens that it may have; ValueError otherwise.
    """
    tokenizer, generate = processor.tokenizer, _generate(model)

    @torch.inference_mode()
    def ask(requests: Sequence[Request], tokens: int) -> list[str]:
        inputs = inputs_of(processor, requests).to(device)
        new = generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0)
        new = new[:, inputs["input_ids"].shape[1] :]
        if is_whole and new.shape[1] != tokens:
            raise ValueError(f"{new.shape[1]} tokens were written and not {tokens}; the ways could not be compared")
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]

    return ask


def inputs_of(processor: Any, requests: Sequence[Request]) -> Any:
    """What the processor makes of requests with open images, padded on the left; its own type, on the CPU."""
    texts = rendered(
        processor, [chat_messages.messages_of(request) for request in requests], add_generation_prompt=True
    )
    images = [image for request in requests for image in request.images if isinstance(image, Image)]
    return processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")


def asking_engine(engine: Engine, *, refuses: bool) -> Ask:
    """The same of an engine. ValueError: its guard broke, or did not do what is to be timed."""

    def ask(requests: Sequence[Request], tokens: int) -> list[str]:
        replies = engine.reply_all(
            requests, Generation(max_new_tokens=tokens), batch_size=len(requests), errors="raise"
        )
        for reply in replies:
            if reply.verdict.error or bool(reply.refused_by) != refuses:
                raise ValueError(f"what was timed is not what it should be: {reply.verdict}, {reply.refused_by!r}")
        return [reply.text for reply in replies]

    return ask


def _generate(model: Any) -> Any:
    """Typed by a mixin for decoding by its own self, which a model is not."""
    return model.generate
