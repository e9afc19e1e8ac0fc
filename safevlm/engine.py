"""The only door to a model: look → detect → rewrite → encode → transform → generate → review.

Command line, server, web page and evaluation all come through here. One vision pass per picture: detectors read it,
and generation gets its projected tokens. A detector or hook that breaks makes the request refused, not unguarded.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from llava_patch import vision
from safevlm import defenses
from safevlm.config import Quantization
from safevlm.data import chat
from safevlm.data.images import open_image
from safevlm.defenses import Defense, Inputs, Setting, prompts
from safevlm.defenses.policy import read_policy
from safevlm.model import loading
from safevlm.model.sight import Sight, look, words_of
from safevlm.types import Reply, Request, Verdict

log = logging.getLogger(__name__)

Result = TypeVar("Result")
OnError = Literal["refuse", "allow"]


@dataclass(frozen=True)
class Generation:
    """How the model writes."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    seed: int = 0
    """For temperatures above 0: the same seed gives the same reply."""


@dataclass(frozen=True)
class _Turn:
    """A request on its way: either still a request with its tensors, or answered."""

    request: Request
    verdict: Verdict
    rewritten: Request
    inputs: Inputs | None = None
    reply: Reply | None = None


class Engine:
    """A model behind a defence."""

    def __init__(
        self, loaded: loading.Loaded, defense: Defense, device: torch.device, on_error: OnError = "refuse"
    ) -> None:
        self.loaded = loaded
        self.defense = defense
        self.device = device
        self.on_error = on_error
        self.model = loaded.model.to(device)
        self.processor = loaded.processor
        self.taxonomy = loaded.safe_llava.config.taxonomy

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        defense: str = "auto",
        policy: str | Path | None = None,
        device: str = "auto",
        base: str | Path | None = None,
        quantize: Quantization = "none",
        truths: Mapping[str, Verdict] | None = None,
        on_error: OnError = "refuse",
    ) -> Engine:
        """Loads any checkpoint folder and puts a defence, by name, in front of it."""
        place = loading.default_device(device)
        loaded = loading.load(
            path,
            base=base,
            dtype=loading.default_dtype(place),
            quantize=quantize,
            device=place,
            guard=defense != "none",
        )
        inner = loaded.safe_llava
        setting = Setting(
            policy=read_policy(policy, inner.config.taxonomy, inner.config.policy),
            has_head=inner.safety_head is not None,
            truths=truths or {},
        )
        return cls(loaded, defenses.build(defense, setting), place, on_error)

    def reply(self, request: Request, generation: Generation | None = None) -> Reply:
        """Answers one request."""
        return self._reply_batch([request], generation or Generation())[0]

    def reply_all(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = 8,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Reply]:
        """Answers many requests, in order. Greedy replies are the same whatever the batch size (float32)."""
        generation = Generation(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        batches = [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]
        return [reply for batch in batches for reply in self._reply_batch(batch, generation)]

    def stream(self, request: Request, generation: Generation | None = None) -> Iterator[str]:
        """The answer piece by piece; in one piece when the defence reviews whole answers, or refuses."""
        generation = generation or Generation()
        turn = self._prepare([request])[0]
        if turn.reply is not None:
            yield turn.reply.text
        elif self.defense.reviews:
            yield self._finish([turn], generation)[0].text
        else:
            yield from self._stream(turn, generation)

    @torch.inference_mode()
    def look(self, request: Request) -> Verdict:
        """The defence's verdict alone; the LLM is not run."""
        return self._detect(request, self._sights([request])[0])

    @torch.inference_mode()
    def _reply_batch(self, requests: Sequence[Request], generation: Generation) -> list[Reply]:
        started = time.perf_counter()
        turns = self._prepare(requests)
        asked = iter(self._finish([turn for turn in turns if turn.reply is None], generation))
        replies = [turn.reply or next(asked) for turn in turns]
        seconds = (time.perf_counter() - started) / max(1, len(requests))
        return [dataclasses.replace(reply, seconds=seconds) for reply in replies]

    @torch.inference_mode()
    def _prepare(self, requests: Sequence[Request]) -> list[_Turn]:
        return [self._turn(request, sight) for request, sight in zip(requests, self._sights(requests), strict=True)]

    def _sights(self, requests: Sequence[Request]) -> list[Sight]:
        pictures = [open_image(image) for request in requests for image in request.images]
        pixels = None
        if pictures:
            pixels = self.processor.image_processor(pictures, return_tensors="pt")["pixel_values"].to(self.device)
        model = self.loaded.safe_llava
        words = [words_of(model, self.processor, request, self.device) for request in requests]
        return look(model, pixels, [len(request.images) for request in requests], words)

    def _turn(self, request: Request, sight: Sight) -> _Turn:
        """Runs the hooks before generation. Whatever breaks in them refuses this request."""
        verdict = self._detect(request, sight)
        if verdict.error and self.on_error == "refuse":
            return _Turn(request, verdict, request, reply=self._refusal(request, verdict))
        if verdict.error:
            return _Turn(request, verdict, request, inputs=self._encode(request, sight))
        hook = "rewrite"
        try:
            rewritten = self.defense.rewrite(request, verdict)
            if isinstance(rewritten, Reply):
                return _Turn(request, verdict, request, reply=dataclasses.replace(rewritten, request=request))
            inputs = self._encode(_given(Request, rewritten), sight)
            hook = "transform"
            inputs = _given(Inputs, self.defense.transform(inputs, verdict))
        except Exception as error:  # noqa: BLE001 - a guard that breaks in any way must not let the request through
            broken = self._broken(hook, verdict, error)
            return _Turn(request, broken, request, reply=self._refusal(request, broken))
        return _Turn(request, verdict, rewritten, inputs=inputs)

    def _detect(self, request: Request, sight: Sight) -> Verdict:
        try:
            return _given(Verdict, self.defense.detect(request, sight))
        except Exception as error:  # noqa: BLE001 - the same: fail closed
            return self._broken("detect", Verdict(source=self.defense.name), error)

    def _broken(self, hook: str, verdict: Verdict, error: Exception) -> Verdict:
        log.error("defense %s failed in %s: %s", self.defense.name, hook, error, exc_info=error)
        return dataclasses.replace(verdict, error=f"{hook}: {type(error).__name__}: {error}")

    def _refusal(self, request: Request, verdict: Verdict) -> Reply:
        return Reply(
            text=prompts.REFUSAL_ON_ERROR,
            request=request,
            verdict=verdict,
            refused_by=self.defense.name,
            trace=(f"refused: the defense failed ({verdict.error})",),
        )

    def _encode(self, request: Request, sight: Sight) -> Inputs:
        return Inputs(self._ids(request, slots=self.loaded.safe_llava.slots), sight.image_tokens)

    def _ids(self, request: Request, slots: int) -> Tensor:
        return torch.tensor(chat.prompt_ids(self.processor, request, slots), device=self.device)

    def _finish(self, turns: Sequence[_Turn], generation: Generation) -> list[Reply]:
        """Generates for all turns at once and reviews each answer."""
        if not turns:
            return []
        new_ids = self._generate([turn.inputs for turn in turns if turn.inputs is not None], generation)
        texts = self.processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        return [self._reviewed(turn, text.strip()) for turn, text in zip(turns, texts, strict=True)]

    def _reviewed(self, turn: _Turn, text: str) -> Reply:
        reply = Reply(
            text=text,
            request=turn.request,
            verdict=turn.verdict,
            prompt=chat.prompt_text(self.processor, turn.rewritten),
            trace=self._trace(turn),
        )
        try:
            return _given(Reply, self.defense.review(turn.request, reply, turn.verdict))
        except Exception as error:  # noqa: BLE001 - the same: fail closed
            refusal = self._refusal(turn.request, self._broken("review", turn.verdict, error))
            return dataclasses.replace(refusal, prompt=reply.prompt)

    @staticmethod
    def _trace(turn: _Turn) -> tuple[str, ...]:
        if turn.verdict.error:
            return (f"unguarded: the defense failed ({turn.verdict.error}) and the caller chose to go on",)
        asked = turn.request.text.split("\n")
        added = "\n".join(line for line in turn.rewritten.text.split("\n") if line not in asked)
        return (f"added to the question: {added}",) if added else ()

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Inputs], generation: Generation, **options: Any) -> Tensor:
        """Left-padded batch → the new ids only, (b, new)."""
        ids, mask = _left_pad([row.input_ids for row in rows], self._pad_id)
        tokens = [picture for row in rows for picture in row.image_tokens]
        sampling = generation.temperature > 0
        with torch.random.fork_rng(enabled=sampling):
            if sampling:
                torch.manual_seed(generation.seed)
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                mm_encoder_outputs=vision.as_encoder_outputs(tokens) if tokens else None,
                max_new_tokens=generation.max_new_tokens,
                do_sample=sampling,
                temperature=generation.temperature if sampling else None,
                top_p=generation.top_p if sampling else None,
                top_k=None,
                pad_token_id=self._pad_id,
                **options,
            )
        return output[:, ids.shape[1] :]

    def _stream(self, turn: _Turn, generation: Generation) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []
        gone = Event()

        def work() -> None:
            try:
                self._generate(
                    [turn.inputs], generation, streamer=streamer, stopping_criteria=[lambda *_, **__: gone.is_set()]
                )
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
                failure.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from _stripped(streamer)
        finally:
            gone.set()  # the reader may have gone away
            thread.join()
        if failure:
            raise failure[0]

    @property
    def _pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _given(kind: type[Result], value: Any) -> Result:
    """What a hook returned, if it is what the hook must return."""
    if not isinstance(value, kind):
        raise TypeError(f"gave {value!r}, not a {kind.__name__}")
    return value


def _stripped(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces without the white space around the whole, as a reply has it."""
    held, started = "", False
    for piece in pieces:
        held = held + piece if started else piece.lstrip()
        ready = held.rstrip()
        held, started = held[len(ready) :], started or bool(ready)
        if ready:
            yield ready


def _left_pad(rows: Sequence[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """[(t,)] → ids and mask, (b, longest)."""
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=pad_id) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    return ids, mask
