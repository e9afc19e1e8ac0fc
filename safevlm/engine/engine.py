"""A model behind a defense: encode images → detect → rewrite → encode → transform → generate → review.

Command line, servers, evaluation and the public API all come through here. One vision pass per image: detectors read
it, and generation gets its projected tokens. A detector or hook that breaks makes the request refused, not unguarded.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Event, RLock
from typing import Any, get_args

import torch

from safevlm import defenses
from safevlm.config import Quantization
from safevlm.defenses import Defense
from safevlm.defenses.policy import read_policy
from safevlm.engine.answer_writer import AnswerWriter
from safevlm.engine.checks import OnUnusable, check_requests, opened_images
from safevlm.engine.encoder import Encoder
from safevlm.engine.growing import BatchRequest, OnText, sampling_of
from safevlm.engine.guard import Decision, Guard, GuardedRequest, OnError, check_on_error
from safevlm.engine.setting import setting_of
from safevlm.engine.streaming import in_thread, pieces, stream_in_thread
from safevlm.model import loading
from safevlm.model.encoded import EncodedBatch
from safevlm.model.image_features import LazyImageFeatures
from safevlm.types import Generation, Reply, Request, Verdict


def load(
    path: str | Path,
    *,
    defense: str | Defense = "auto",
    policy: str | Path | Mapping[str, Any] | None = None,
    device: str = "auto",
    base: str | Path | None = None,
    quantize: Quantization = "none",
    on_error: OnError = "refuse",
) -> Engine:
    """Loads a checkpoint folder of any kind, or a training run, with a defense in front of it.

    `defense`: a name as on the command line (`none`, `safety-head`, `a+b`, …; `auto`: the safety head where the
    checkpoint has one, else none), or an object. `policy`: a YAML file or its table, what to do per category and
    level; none: the checkpoint's own. `device`: `auto`, `cpu`, `cuda`, `cuda:1`. `base`: where the base model lies, if
    it has moved. `quantize`: `none`, `int8` or `nf4` for the LLM. `on_error`: what becomes of a request whose detector
    failed; `allow` lets it through unguarded.

    CheckpointError (a ValueError): no such folder, or a checkpoint that is incomplete. ValueError: a defense or policy
    that is unknown or does not fit the checkpoint, a device that is not there, or an unknown `quantize` or `on_error`.
    """
    return Engine.load(
        path, defense=defense, policy=policy, device=device, base=base, quantize=quantize, on_error=on_error
    )


class Engine:
    """A model behind a defense.

    Every method may be called from several threads; they take turns at the model. The `async` forms run in one thread
    of the engine's own, in the order in which they were called.
    """

    def __init__(
        self, loaded: loading.Loaded, defense: Defense, device: torch.device, on_error: OnError = "refuse"
    ) -> None:
        self.loaded = loaded
        self.defense = defense
        self.defense.attach(self._ask)
        self.on_error = on_error
        self.device = device
        self.model = loaded.model.to(device)
        self.processor = loaded.processor
        self.taxonomy = loaded.safe_llava.config.taxonomy
        self._guard = Guard(defense, on_error, self.taxonomy.level_names)
        self._encoder = Encoder(loaded, device)
        self._writer = AnswerWriter(loaded, self._encoder, self._guard)
        self._turn_at_the_model = RLock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        defense: str | Defense = "auto",
        policy: str | Path | Mapping[str, Any] | None = None,
        device: str = "auto",
        base: str | Path | None = None,
        quantize: Quantization = "none",
        truths: Mapping[str, Verdict] | None = None,
        on_error: OnError = "refuse",
        lm: bool = True,
    ) -> Engine:
        """As `safevlm.load`. `truths`: true verdicts by request id, which only the defense `oracle` reads.

        `lm` False leaves the LLM on the disk: `look` and `decide_all` work, and answering is a ValueError.
        """
        if not isinstance(defense, str | Defense):
            raise TypeError(
                f"defense={defense!r} is neither a name nor a Defense; give an object of a class that derives from "
                "safevlm.Defense, or the name package.module:Attribute"
            )
        check_on_error(on_error)
        place = loading.default_device(device)
        loaded = loading.load(
            path,
            base=base,
            dtype=loading.default_dtype(place),
            quantize=quantize,
            device=place,
            guard=defense != "none",
            lm=lm,
        )
        guard = _built(defense, policy, loaded, place, truths)
        if policy is not None and type(guard) is Defense:
            raise ValueError(f"policy {policy}: no effect, since defense none never looks; name one with a detector")
        return cls(loaded, guard, place, on_error)

    def behind(
        self, defense: str | Defense, policy: str | Path | Mapping[str, Any] | None = None, on_error: OnError = "refuse"
    ) -> Engine:
        """The same model behind another defense or policy, as in `load`; both engines take turns at it."""
        engine = Engine(self.loaded, _built(defense, policy, self.loaded, self.device), self.device, on_error)
        engine._turn_at_the_model = self._turn_at_the_model
        return engine

    def reply(self, request: Request, generation: Generation | None = None) -> Reply:
        """Answers one request. ImageError (a ValueError): an image that cannot be used."""
        return self._reply_all([request], generation, 1, "raise")[0]

    def reply_all(
        self,
        requests: Sequence[Request],
        generation: Generation | None = None,
        *,
        batch_size: int = 8,
        errors: OnUnusable = "return",
    ) -> list[Reply]:
        """Answers many requests, in order. Greedy replies are the same whatever the batch size (float32).

        A request whose image or words cannot be used does not stop the others: its reply has `error`, with the
        request's index, and no text. `errors="raise"`: all are checked before the first is answered, and the first that
        cannot be used is raised, an ImageError or ValueError.
        """
        return self._reply_all(requests, generation, batch_size, errors)

    def read_ahead(self, requests: Sequence[Request]) -> None:
        """Begins to read the images of the next batch, in a thread, while the model answers another; returns at once.

        These very requests are then given to `reply_all`, as one batch. Only the last such call counts; an image that
        cannot be used is told there.
        """
        if any(request.images for request in requests):
            self._encoder.ahead.begin(requests, self.defense.detects)

    def reply_each(self, asked: Sequence[BatchRequest], stop: Event | None = None) -> list[Reply]:
        """Answers requests as one batch, in order: each with a length and stop texts of its own, and heard as it grows.

        `stop` ends all answers at the next token. ValueError: requests that cannot share a batch, since they are drawn
        differently; and as `reply` for one that cannot be used, which then stops all of them.
        """
        if not asked:
            return []
        sampling_of(asked)
        return self._reply_batch(asked, stop)

    def stream(self, request: Request, generation: Generation | None = None) -> Generator[str, None, None]:
        """The answer piece by piece; in one piece when the defense reviews whole answers, or refuses.

        Generation goes on in a thread while a piece is read; closing the generator stops it.
        """
        return self._stream(request, generation, Event())

    def look(self, request: Request) -> Verdict:
        """The defense's verdict alone; the LLM does not answer. A hook that fails is told in `Verdict.error`."""
        with self._turn_at_the_model, torch.inference_mode():
            return self._guard.detect(request, self._features(check_requests([request]))[0])

    def decide_all(self, requests: Sequence[Request]) -> list[Decision | Reply]:
        """What the defense makes of each request for a model that is somewhere else: the words in which it is to be
        asked, or the reply in its place. One vision pass for all; the LLM does not answer, and nothing is transformed.

        ImageError, ValueError: one that cannot be used.
        """
        with self._turn_at_the_model, torch.inference_mode():
            pairs = zip(requests, self._features(check_requests(requests)), strict=True)
            return [self._guard.decide(request, features) for request, features in pairs]

    async def areply(self, request: Request, generation: Generation | None = None) -> Reply:
        """`reply` in the engine's thread. Cancelling stops generation at its next token."""
        return (await self.areply_all([request], generation, batch_size=1, errors="raise"))[0]

    async def areply_all(
        self,
        requests: Sequence[Request],
        generation: Generation | None = None,
        *,
        batch_size: int = 8,
        errors: OnUnusable = "return",
    ) -> list[Reply]:
        """`reply_all` in the engine's thread. Cancelling stops generation at its next token."""
        return await in_thread(
            self._thread, lambda stop: self._reply_all(requests, generation, batch_size, errors, stop)
        )

    async def astream(self, request: Request, generation: Generation | None = None) -> AsyncIterator[str]:
        """`stream` in the engine's thread. Cancelling, or closing the iterator, stops generation at its next token."""
        async for piece in stream_in_thread(self._thread, lambda stop: self._stream(request, generation, stop)):
            yield piece

    async def alook(self, request: Request) -> Verdict:
        """`look` in the engine's thread."""
        return await in_thread(self._thread, lambda stop: self.look(request))

    @property
    def positions(self) -> int:
        """Tokens of a prompt and its answer together that the model was made for."""
        return self._encoder.positions

    def encoded(self, requests: Sequence[Request]) -> EncodedBatch | None:
        """What the model would read after detect, rewrite and transform; None: the defense answers all of them itself.

        ValueError: the defense broke, which is no answer.
        """
        with self._turn_at_the_model, torch.inference_mode():
            prepared = self._prepare(requests)
            broken = next((each.verdict.error for each in prepared if each.verdict.error), "")
            if broken:
                raise ValueError(f"the defense {self.defense.name} failed: {broken}")
            asked = {row: turn for row, turn in enumerate(prepared) if isinstance(turn, GuardedRequest)}
            if not asked:
                return None
            return dataclasses.replace(self._encoder.batch(list(asked.values())), requests=tuple(asked))

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
        generation = Generation(max_new_tokens, temperature, top_p, seed)
        with self._turn_at_the_model, torch.inference_mode():
            encoded = self._encoder.features(requests)
            turns = self._encoder.bare_turns(requests, encoded, answer_prefix)
            answers, _ = self._writer.generate(turns, [BatchRequest(request, generation) for request in requests])
            return self._encoder.texts(answers)

    def _reply_all(
        self,
        requests: Sequence[Request],
        generation: Generation | None,
        batch_size: int,
        errors: OnUnusable,
        stop: Event | None = None,
    ) -> list[Reply]:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is too small; give 1 or more")
        if errors not in get_args(OnUnusable):
            raise ValueError(f"errors={errors!r} is unknown; one of {list(get_args(OnUnusable))}")
        how = _how(generation)
        if errors == "raise" and len(requests) > batch_size:  # a single batch is checked before it is answered anyway
            self._encoder.check_lengths(check_requests(requests))
            self._open_all(requests)
        replies: list[Reply] = []
        for start in range(0, len(requests), batch_size):
            if stop is not None and stop.is_set():  # nobody waits for them any more
                break
            batch = requests[start : start + batch_size]
            if errors == "raise":
                replies += self._reply_batch([BatchRequest(request, how) for request in batch], stop)
            else:
                replies += self._reply_usable(batch, start, how, stop)
        return replies

    def _reply_usable(self, batch: Sequence[Request], first: int, how: Generation, stop: Event | None) -> list[Reply]:
        """Which of a batch cannot be used is looked for only where the batch fails; `first`: its first one's index."""
        try:
            return self._reply_batch([BatchRequest(request, how) for request in batch], stop)
        except ValueError:
            faults = [self._unusable(request, first + index) for index, request in enumerate(batch)]
            if not any(faults):
                raise
        usable = [BatchRequest(request, how) for request, fault in zip(batch, faults, strict=True) if not fault]
        given = iter(self._reply_batch(usable, stop) if usable else ())
        return [
            Reply("", request, Verdict.not_looked(error=fault), error=fault) if fault else next(given)
            for request, fault in zip(batch, faults, strict=True)
        ]

    def _unusable(self, request: Request, index: int) -> str:
        """Why a request cannot be used, with its index; empty where it can."""
        try:
            check_requests([request], first=index)
        except ValueError as error:
            return str(error)
        try:
            self._encoder.check_lengths([request])
            self._open_all([request])
        except ValueError as error:
            return f"requests[{index}]: {error}"
        return ""

    def _open_all(self, requests: Sequence[Request]) -> None:
        """ImageError: an image that cannot be used."""
        for _ in opened_images(requests, self.processor, self.defense.detects):
            pass

    def _reply_batch(self, asked: Sequence[BatchRequest], stop: Event | None) -> list[Reply]:
        with self._turn_at_the_model, torch.inference_mode():
            started = time.perf_counter()
            prepared = self._prepare([each.request for each in asked])
            pairs = list(zip(prepared, asked, strict=True))
            answers = iter(
                self._writer.replies(
                    [turn for turn in prepared if isinstance(turn, GuardedRequest)],
                    [each for turn, each in pairs if isinstance(turn, GuardedRequest)],
                    stop,
                )
            )
            replies = [next(answers) if isinstance(each, GuardedRequest) else each for each in prepared]
            seconds = (time.perf_counter() - started) / max(1, len(asked))
            return [dataclasses.replace(reply, seconds=seconds) for reply in replies]

    def _stream(self, request: Request, generation: Generation | None, stop: Event) -> Generator[str, None, None]:
        how = _how(generation)
        with self._turn_at_the_model, torch.inference_mode():
            prepared = self._prepare([request])[0]
        if isinstance(prepared, Reply):
            yield prepared.text
            return
        turn = prepared
        if self.defense.reviews:
            with self._turn_at_the_model:
                reply = self._writer.replies([turn], [BatchRequest(request, how)], stop)[0]
            yield reply.text
            return

        def generate(on_text: OnText) -> None:
            with self._turn_at_the_model:
                self._writer.replies([turn], [BatchRequest(request, how, on_text)], stop)

        yield from pieces(generate, stop)

    def _prepare(self, requests: Sequence[Request]) -> list[GuardedRequest | Reply]:
        """Runs the hooks before generation; a Reply where the defense answers in the model's place."""
        self._encoder.check_lengths(check_requests(requests))
        encoded = self._features(requests)
        if self._encoder.learns_slots_from_images:
            self._encoder.check_lengths(requests, encoded)
        decided = [self._guard.decide(request, own) for request, own in zip(requests, encoded, strict=True)]
        pairs = list(zip(decided, encoded, strict=True))
        passing = [(each.rewritten, own) for each, own in pairs if isinstance(each, Decision)]
        prompts = iter(self._encoder.prompts([request for request, _ in passing], [own for _, own in passing]))
        return [
            self._guard.transform(each, features, next(prompts), self._encoder.inputs, self._encoder.check)
            if isinstance(each, Decision)
            else each
            for each, features in pairs
        ]

    def _features(self, requests: Sequence[Request]) -> list[LazyImageFeatures]:
        """Of every frame where the defense looks at images; the model itself reads the first."""
        return self._encoder.features(requests, every_frame=self.defense.detects)

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        """The one thread of the async forms."""
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="safevlm-engine")


def _built(
    defense: str | Defense,
    policy: str | Path | Mapping[str, Any] | None,
    loaded: loading.Loaded,
    device: torch.device,
    truths: Mapping[str, Verdict] | None = None,
) -> Defense:
    """The defense of this name, or the object itself; the policy is read and checked either way."""
    config = loaded.safe_llava.config
    setting = setting_of(loaded, read_policy(policy, config.taxonomy, config.policy), truths or {}, device)
    return defense if isinstance(defense, Defense) else defenses.build(defense, setting)


def _how(generation: Generation | None) -> Generation:
    if generation is None:
        return Generation()
    if not isinstance(generation, Generation):
        raise TypeError(f"{generation!r} is not a Generation; write Generation(max_new_tokens=64)")
    return generation
