"""Messages → text → ids: LLaVA-v1.5 by the template beside this file, every other family by its processor's own."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safevlm.backbones import table
from safevlm.data.chat_messages import Message

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.j2").read_text(encoding="utf-8").rstrip("\n")
"""Reads messages as OpenAI's clients and transformers write them; what the model cannot read is an error."""


def rendered(processor: Any, messages: Any, *, add_generation_prompt: bool = False) -> Any:
    """A conversation as text, or several as texts."""
    if table.of_processor(processor) is None:
        return processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, chat_template=CHAT_TEMPLATE
        )
    # the tokenizer's method is the same without the processor's looking for videos
    return processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt, chat_template=processor.chat_template
    )


def expanded(processor: Any, text: str, placeholders: Sequence[str]) -> str:
    """The text with its image tokens, in order, written out. ValueError: another number of them."""
    parts = text.split(processor.image_token)
    if len(parts) != len(placeholders) + 1:
        raise ValueError(f"{len(parts) - 1} image tokens in the prompt of a request with {len(placeholders)} images")
    return "".join(piece for pair in zip(parts, [*placeholders, ""], strict=True) for piece in pair)


def ids_of(processor: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of whole prompts; a template that writes the first token itself does not get another one."""
    return processor.tokenizer(list(texts), add_special_tokens=not writes_first_token(processor, texts))["input_ids"]


def writes_first_token(processor: Any, texts: Sequence[str]) -> bool:
    """Whether the token that the tokenizer would put first is in these prompts, at their beginning or behind images."""
    first = processor.tokenizer.bos_token
    return bool(first and texts and first in texts[0])


def as_text(processor: Any, message: Message) -> Message:
    """A message in which control tokens that somebody wrote stay text."""
    content = [
        {**part, "text": without_control_tokens(processor, part["text"])} if part["type"] == "text" else part
        for part in message["content"]
    ]
    return {**message, "content": content}


def without_control_tokens(processor: Any, text: str) -> str:
    """Breaks control tokens that somebody wrote (`<image>` → `< image>`), so that they stay text."""
    tokenizer = processor.tokenizer
    known = (*tokenizer.all_special_tokens, *tokenizer.added_tokens_encoder, processor.image_token)
    control = _any_of(frozenset(known))
    return control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


@functools.lru_cache
def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)))
