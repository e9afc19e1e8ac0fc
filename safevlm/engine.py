"""The only door to a model: look → detect → rewrite → encode → transform → generate → review.

Command line, server, web page and evaluation all come through here. One vision pass per image: detectors read it,
and generation gets its projected tokens. A detector or hook that breaks makes the request refused, not unguarded.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from llava_patch import fields, parts, virtual_tokens
from safevlm import defenses
from safevlm.config import Quantization
from safevlm.data import chat
from safevlm.data.images import open_image
from safevlm.defenses import FOLDER, Defense, DefenseContext, Inputs, ModelFacts, prompts
from safevlm.defenses.policy import Policy, read_policy
from safevlm.model import loading
from safevlm.model.encoded import EncodedBatch, EncodedRequest, encode
from safevlm.model.image_features import LazyImageFeatures, encode_images, words_of
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
    features: LazyImageFeatures
    inputs: Inputs | None = None
    reply: Reply | None = None


class Engine:
    """A model behind a defense."""

    def __init__(
        self, loaded: loading.Loaded, defense: Defense, device: torch.device, on_error: OnError = "refuse"
    ) -> None:
        self.loaded = loaded
        self.defense = defense
        self.defense.attach(self._ask)
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
        """Loads any checkpoint folder and puts a defense, by name, in front of it."""
        place = loading.default_device(device)
        loaded = loading.load(
            path,
            base=base,
            dtype=loading.default_dtype(place),
            quantize=quantize,
            device=place,
            guard=defense != "none",
        )
        config = loaded.safe_llava.config
        setting = setting_of(loaded, read_policy(policy, config.taxonomy, config.policy), truths or {}, place)
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
        """The answer piece by piece; in one piece when the defense reviews whole answers, or refuses."""
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
        """The defense's verdict alone; the LLM is not run."""
        return self._detect(request, self._encode_images([request])[0])

    @torch.inference_mode()
    def encoded(self, requests: Sequence[Request]) -> EncodedBatch | None:
        """What the model would read after detect, rewrite and transform; None: the defense answers all of them itself.

        ValueError: the defense broke, which is no answer.
        """
        turns = self._prepare(requests)
        broken = next((turn.verdict.error for turn in turns if turn.verdict.error), "")
        if broken:
            raise ValueError(f"the defense {self.defense.name} failed: {broken}")
        asked = [row for row, turn in enumerate(turns) if turn.reply is None]
        if not asked:
            return None
        return dataclasses.replace(self._encoded([turns[row] for row in asked]), requests=tuple(asked))

    @torch.inference_mode()
    def _ask(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        answer_prefix: str = "",
    ) -> list[str]:
        """The bare model's answers, for defenses that ask it again (`safevlm.defenses.Ask`)."""
        pairs = zip(requests, self._encode_images(requests), strict=True)
        turns = [
            _Turn(request, Verdict(), request, features, self._inputs(request, features, answer_prefix))
            for request, features in pairs
        ]
        generation = Generation(max_new_tokens, temperature, top_p, seed)
        return self._texts(self._generate(turns, generation))

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
        return [
            self._turn(request, features)
            for request, features in zip(requests, self._encode_images(requests), strict=True)
        ]

    def _encode_images(self, requests: Sequence[Request]) -> list[LazyImageFeatures]:
        images = [open_image(image) for request in requests for image in request.images]
        pixels = None
        if images:
            pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"].to(self.device)
        model = self.loaded.safe_llava
        words = [words_of(model, self.processor, request, self.device) for request in requests]
        return encode_images(model, pixels, [len(request.images) for request in requests], words)

    def _turn(self, request: Request, features: LazyImageFeatures) -> _Turn:
        """Runs the hooks before generation. Whatever breaks in them refuses this request."""
        verdict = self._detect(request, features)
        if verdict.error and self.on_error == "refuse":
            return _Turn(request, verdict, request, features, reply=self._refusal(request, verdict))
        if verdict.error:
            return _Turn(request, verdict, request, features, self._inputs(request, features))
        hook = "rewrite"
        try:
            rewritten = self.defense.rewrite(request, verdict)
            if isinstance(rewritten, Reply):
                return _Turn(request, verdict, request, features, reply=dataclasses.replace(rewritten, request=request))
            inputs = self._inputs(_given(Request, rewritten), features)
            hook = "transform"
            inputs = _given(Inputs, self.defense.transform(inputs, verdict))
        except Exception as error:  # noqa: BLE001 - a guard that breaks in any way must not let the request through
            broken = self._broken(hook, verdict, error)
            return _Turn(request, broken, request, features, reply=self._refusal(request, broken))
        return _Turn(request, verdict, rewritten, features, inputs)

    def _detect(self, request: Request, features: LazyImageFeatures) -> Verdict:
        try:
            return _given(Verdict, self.defense.detect(request, features))
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

    def _inputs(self, request: Request, features: LazyImageFeatures, answer_prefix: str = "") -> Inputs:
        model = self.loaded.safe_llava
        ids = torch.tensor(chat.prompt_ids(self.processor, request, model.slots, answer_prefix), device=self.device)
        return Inputs(ids, features.pixel_values, image_token_id=fields.image_token_id(model.config))

    def _encoded(self, turns: Sequence[_Turn]) -> EncodedBatch:
        """Left-padded, with the images' tokens of the one vision pass, or of a second where pixels were changed."""
        changed = [turn for turn in turns if turn.inputs.pixel_values is not turn.features.pixel_values]
        all_features = {id(turn): turn.features for turn in turns}
        if changed:
            pixels = torch.cat([turn.inputs.pixel_values for turn in changed])
            counts, ids = [turn.features.images for turn in changed], [turn.inputs.input_ids for turn in changed]
            again = encode_images(self.loaded.safe_llava, pixels, counts, ids)
            all_features |= {id(turn): features for turn, features in zip(changed, again, strict=True)}
        rows = [_with_virtual_tokens(turn.inputs, all_features[id(turn)].image_tokens) for turn in turns]
        return encode(rows, self._pad_id, range(len(rows)))

    def _finish(self, turns: Sequence[_Turn], generation: Generation) -> list[Reply]:
        """Generates for all turns at once and reviews each answer."""
        if not turns:
            return []
        texts = self._texts(self._generate(turns, generation))
        return [self._reviewed(turn, text) for turn, text in zip(turns, texts, strict=True)]

    def _texts(self, new_ids: Tensor) -> list[str]:
        return [text.strip() for text in self.processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)]

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
    def _generate(self, turns: Sequence[_Turn], generation: Generation, **options: Any) -> Tensor:
        """→ the new ids only, (b, new)."""
        batch = self._encoded(turns)
        sampling = generation.temperature > 0
        with torch.random.fork_rng(enabled=sampling):
            if sampling:
                torch.manual_seed(generation.seed)
            output = self.model.generate(
                **batch.model_inputs,
                max_new_tokens=generation.max_new_tokens,
                do_sample=sampling,
                temperature=generation.temperature if sampling else None,
                top_p=generation.top_p if sampling else None,
                top_k=None,
                pad_token_id=self._pad_id,
                **options,
            )
        return output[:, batch.input_ids.shape[1] :]

    def _stream(self, turn: _Turn, generation: Generation) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []
        gone = Event()

        def work() -> None:
            try:
                self._generate(
                    [turn], generation, streamer=streamer, stopping_criteria=[lambda *_, **__: gone.is_set()]
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


def setting_of(
    loaded: loading.Loaded, policy: Policy, truths: Mapping[str, Verdict], device: torch.device
) -> DefenseContext:
    """What a defense in front of this checkpoint may be built from."""
    model = loaded.safe_llava
    facts = ModelFacts(
        hidden_size=fields.hidden_size(model.config),
        pixel_shape=fields.pixel_shape(model.config),
        image_token_id=fields.image_token_id(model.config),
        image_std=tuple(loaded.processor.image_processor.image_std),
        device=device,
        tower=functools.partial(parts.tower_state, model),
    )
    return DefenseContext(
        policy=policy,
        has_head=model.safety_head is not None,
        truths=truths,
        facts=facts,
        folders=tuple(dict.fromkeys((loaded.path / FOLDER, loaded.base / FOLDER))),
    )


def _with_virtual_tokens(inputs: Inputs, image_tokens: tuple[Tensor, ...]) -> EncodedRequest:
    """Ids and image tokens of a request, the defense's virtual tokens among them."""
    if not inputs.virtual:
        return inputs.input_ids, image_tokens
    virtual = [(tokens.vectors, tokens.at) for tokens in inputs.virtual]
    features = torch.cat(image_tokens) if image_tokens else None
    ids, features = virtual_tokens.insert(inputs.input_ids, features, virtual, inputs.image_token_id)
    return ids, (features,)


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
