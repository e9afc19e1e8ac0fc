"""Answers of a batch while they grow: words as soon as they stand, an own length and own stop texts for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from safevlm.types import Generation, Request

OnText = Callable[[str], bool]
"""Gets each piece of an answer in the model's thread; False: nobody reads on, and the answer may end."""


@dataclass(frozen=True)
class BatchRequest:
    """A request on its way into a batch."""

    request: Request
    generation: Generation = Generation()
    on_text: OnText | None = None
    """Hears the model's own words; what the defense says in its place, or reviews, stands in the reply alone."""


class GrowingAnswer:
    """One answer's words: without white space around the whole, and ended before a stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], on_text: OnText | None) -> None:
        self.text = ""
        self.is_over = False
        self.is_stopped = False
        """Whether a stop text ended it."""
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = ""
        self._stop = tuple(stop)
        self._on_text = on_text
        self._held = ""
        """Said by the model, and not yet sure to be part of the answer."""

    @property
    def tokens(self) -> int:
        """Heard so far."""
        return len(self._ids)

    def hear(self, token: int) -> None:
        """The next token."""
        if self.is_over:
            return
        self._ids.append(token)
        piece = self._decoder.step(self._tokenizer.backend_tokenizer, token)
        if piece:
            self._take(piece)

    def finish(self) -> None:
        """The answer is over: what was held back can become neither a stop text nor a whole character any more."""
        if self.is_over:
            return
        whole = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        if len(whole) > len(self._decoded) and whole.startswith(self._decoded):
            self._take(whole[len(self._decoded) :])
        if not self.is_over:
            self._release(len(self._held.rstrip()))
            self.is_over = True

    def _take(self, piece: str) -> None:
        self._decoded += piece
        self._held += piece
        if not self.text:
            self._held = self._held.lstrip()
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._release(len(self._held[: min(found)].rstrip()))
            self.is_over = self.is_stopped = True
        else:
            self._release(len(self._held[: len(self._held) - self._perhaps_stop()].rstrip()))

    def _perhaps_stop(self) -> int:
        """Characters at the end with which a stop text may begin."""
        longest = max(map(len, self._stop), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(self._held[-size:]) for stop in self._stop)), 0)

    def _release(self, count: int) -> None:
        piece, self._held = self._held[:count], self._held[count:]
        self.text += piece
        if piece and self._on_text is not None and not self._on_text(piece):
            self.is_over = True


class GrowingAnswers:
    """Ends each answer of a batch at its own length, at its stop texts, and when nobody reads it any more.

    A stopping criterion of `generate`: (b, t) ids → (b,) which answers are over.
    """

    def __init__(
        self,
        prompt_tokens: int,
        limits: Sequence[int],
        end_ids: Sequence[int],
        growing: Sequence[GrowingAnswer | None],
        stop: Event | None,
    ) -> None:
        """`prompt_tokens`: t before the first new token. `limits`: new tokens of each. `end_ids`: tokens that end an
        answer. `stop` ends all of them."""
        self.prompt_tokens = prompt_tokens
        self.limits = torch.tensor(limits)
        self.end_ids = frozenset(end_ids)
        self.growing = growing
        self.stop = stop

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        new = input_ids.shape[1] - self.prompt_tokens
        over = self.limits <= new
        if self.stop is not None and self.stop.is_set():
            over = torch.ones_like(over)
        newest = input_ids[:, -1].tolist() if any(self.growing) else []  # once: a GPU is waited for at each reading
        for row, (token, answer) in enumerate(zip(newest, self.growing, strict=False)):
            if answer is not None:
                answer.hear(token)
                if over[row] or token in self.end_ids:
                    answer.finish()
                over[row] |= answer.is_over
        return over.to(input_ids.device)


def sampling_of(asked: Sequence[BatchRequest]) -> Generation:
    """How the tokens of a batch are drawn. ValueError: its requests want different things, or draw beside others."""
    first = asked[0].generation
    if any(key(each.generation) != key(first) for each in asked):
        raise ValueError("requests that are answered together must have the same temperature, top_p and seed")
    return first


def written_by(generation: Generation, max_new_tokens: int, pad_id: int) -> GenerationConfig:
    """The same as `generate` reads it; what it does not say is the checkpoint's own."""
    is_drawn = generation.temperature > 0
    drawing: dict[str, Any] = {"temperature": generation.temperature, "top_p": generation.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens, pad_token_id=pad_id, do_sample=is_drawn, **(drawing if is_drawn else {})
    )


def key(generation: Generation) -> tuple[float, float, int]:
    """What requests must share to be answered in one batch; greedy decoding knows neither top_p nor seed."""
    greedy = generation.temperature == 0
    return (0.0, 1.0, 0) if greedy else (generation.temperature, generation.top_p, generation.seed)
