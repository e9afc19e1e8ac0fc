"""What the model says to a batch of requests, generated at once; and what the defense lets through of it."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

import torch

from safevlm.engine.encoder import Encoder
from safevlm.engine.growing import BatchRequest, GrowingAnswer, GrowingAnswers, sampling_of, written_by
from safevlm.engine.guard import Guard, GuardedRequest
from safevlm.engine.lengths import WrittenAnswer, cut_to_room
from safevlm.model.loading import Loaded
from safevlm.types import Reply


class AnswerWriter:
    """The LLM, with a guard that reviews what it says."""

    def __init__(self, loaded: Loaded, encoder: Encoder, guard: Guard) -> None:
        self._loaded = loaded
        self._encoder = encoder
        self._guard = guard

    def replies(
        self, turns: Sequence[GuardedRequest], asked: Sequence[BatchRequest], stop: Event | None = None
    ) -> list[Reply]:
        """Generates for all turns at once and reviews each answer."""
        if not turns:
            return []
        growing = [self._growing(each) for each in asked]
        answers, prompt_tokens = self.generate(turns, asked, stop, growing)
        rows = zip(turns, growing, answers, self._encoder.texts(answers), prompt_tokens, strict=True)
        return [self._guard.review(row[0], self._written(*row)) for row in rows]

    @torch.inference_mode()
    def generate(
        self,
        turns: Sequence[GuardedRequest],
        asked: Sequence[BatchRequest],
        stop: Event | None = None,
        growing: Sequence[GrowingAnswer | None] = (),
    ) -> tuple[list[WrittenAnswer], Sequence[int]]:
        """Answers, and the tokens of each prompt. `stop` ends them at the next token, the model's positions at the last
        one that they have. Nothing is reviewed.

        ValueError: there is no LLM, or requests that are drawn differently.
        """
        if not self._loaded.has_lm:
            raise ValueError("this engine was loaded without its LLM; it looks at requests and answers none")
        model = self._loaded.model
        batch = self._encoder.batch(turns)
        room = [self._encoder.positions - tokens for tokens in batch.tokens]
        wanted = [each.generation.max_new_tokens for each in asked]
        limits = [min(pair) for pair in zip(room, wanted, strict=True)]
        start = batch.input_ids.shape[1]
        how = sampling_of(asked)
        ends = model.generation_config.eos_token_id
        end_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
        with torch.random.fork_rng(enabled=how.temperature > 0):
            if how.temperature > 0:
                torch.manual_seed(how.seed)
            output = model.generate(
                **batch.model_inputs,
                generation_config=written_by(how, max(limits), self._encoder.pad_id),
                stopping_criteria=[GrowingAnswers(start, limits, end_ids, growing, stop)],
            )
        return cut_to_room(output[:, start:], room, wanted, end_ids), batch.tokens

    def _growing(self, asked: BatchRequest) -> GrowingAnswer | None:
        """None where nobody hears the answer before its end, and nothing but its length ends it."""
        on_text = None if self._guard.defense.reviews else asked.on_text
        if on_text is None and not asked.generation.stop:
            return None
        return GrowingAnswer(self._loaded.processor.tokenizer, asked.generation.stop, on_text)

    def _written(
        self, turn: GuardedRequest, grown: GrowingAnswer | None, answer: WrittenAnswer, text: str, prompt_tokens: int
    ) -> Reply:
        """The model's own words, before the defense reviews them."""
        is_stopped = answer.has_ended or (grown is not None and grown.is_stopped)
        return Reply(
            text=text if grown is None else grown.text,
            request=turn.request,
            verdict=turn.verdict,
            prompt=turn.prompt,
            trace=(*turn.trace, *self._told(answer.is_cut)),
            prompt_tokens=prompt_tokens,
            answer_tokens=len(answer.ids) if grown is None else grown.tokens,
            ended="stop" if is_stopped else "length",
        )

    def _told(self, is_cut: bool) -> tuple[str, ...]:
        """Lines of the trace about an answer."""
        return (f"the answer stops where the model's {self._encoder.positions} positions end",) if is_cut else ()
