"""Requests → tensors: images through the vision tower once, prompts to ids, and both to one padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice, pairwise
from typing import Any

import torch
from torch import Tensor

from safevlm.backbones import config_facts, virtual_tokens
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.data import chat
from safevlm.data.chat import Prompt
from safevlm.data.pixels import join_images
from safevlm.defenses import Inputs
from safevlm.engine.checks import check_inputs
from safevlm.engine.guard import GuardedRequest, readable
from safevlm.engine.lengths import WrittenAnswer, check_length, surely_fits
from safevlm.engine.reading import ReadAhead, images_of
from safevlm.model.encoded import EncodedBatch, EncodedRequest, ImageVectors, encode
from safevlm.model.image_features import (
    FRAMES_PER_PASS,
    LazyImageFeatures,
    PromptBatch,
    encode_frames,
    encode_images,
    reopened,
    words_of,
)
from safevlm.model.loading import Loaded
from safevlm.model.prompt_states import last_states
from safevlm.types import Request, Verdict


class Encoder:
    """Encodes requests for one model."""

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        self.model: Any = loaded.safe_llava
        self.processor = loaded.processor
        self.device = device
        self.ahead = ReadAhead(self.processor)
        self.image_token_id = config_facts.image_token_id(self.model.config)
        self._without_lora = getattr(loaded.model, "disable_adapter", nullcontext)

    def features(self, requests: Sequence[Request], every_frame: bool = False) -> list[LazyImageFeatures]:
        """Image features of each request, computed on first use, in one vision pass for all. ImageError: see there.

        `every_frame`: with the other frames of animations, which have passes of their own.
        """
        images = self.ahead.take(requests, every_frame) or images_of(requests, self.processor, every_frame)
        counts = [len(request.images) for request in requests]
        pixels = images.pixels.to(self.device) if images.pixels is not None else None
        words = [partial(words_of, self.processor, request, self.device) for request in requests]
        shown = [own for own, count in zip(words, counts, strict=True) if count]
        sources = [source for request in requests for source in request.images]
        encoded = encode_images(self.model, pixels, counts, shown, reopened(sources))
        if any(each is not None for each in images.later):
            left = iter(images.later)
            for request, own, own_words in zip(requests, encoded, words, strict=True):
                later = list(islice(left, own.images))
                own.frames = encode_frames(self.model, request.images, later, own_words, self.device)
                for first in range(0, len(own.frames), FRAMES_PER_PASS):
                    part = own.frames[first : first + FRAMES_PER_PASS]
                    alone = [_of_one_image(request, frame.image) for frame in part]
                    self._tell_prompts(alone, [frame.features for frame in part])
        self._tell_prompts(requests, encoded)
        return encoded

    def _tell_prompts(self, requests: Sequence[Request], features: Sequence[LazyImageFeatures]) -> None:
        prompts = PromptBatch(
            len(requests), lambda rows, layers, tokens: self.states(requests[rows], features[rows], layers, tokens)
        )
        for row, own in enumerate(features):
            own.prompt = prompts, row

    def states(
        self,
        requests: Sequence[Request],
        features: Sequence[LazyImageFeatures],
        layers: Sequence[int],
        tokens: int,
    ) -> Tensor:
        """(b, l, k, d) float32: what the LLM, without a LoRA, makes of the requests (`safevlm.model.prompt_states`).

        There is a gradient wherever the caller allows one. ValueError: a request without a prompt.
        """
        with self._without_lora():
            batch = self.batch(self.bare_turns(requests, features))
            return last_states(self.model, self.model, batch, layers, tokens)

    def bare_turns(
        self, requests: Sequence[Request], features: Sequence[LazyImageFeatures], answer_prefix: str = ""
    ) -> list[GuardedRequest]:
        """The requests as if there were no defense. ValueError: one of them has no prompt."""
        prompts = self.prompts(requests, features, answer_prefix)
        return [
            GuardedRequest(request, Verdict.not_looked(), request, own, self.inputs(readable(prompt), own))
            for request, own, prompt in zip(requests, features, prompts, strict=True)
        ]

    def check_lengths(
        self, requests: Sequence[Request], features: Sequence[LazyImageFeatures | None] | None = None
    ) -> None:
        """ValueError: a prompt that leaves no room for an answer; of several requests it names the one.

        `features`: of the requests, where their images have been read. Where images differ in their number of slots,
        nobody knows it before.
        """
        read = features or [None] * len(requests)
        for index, (request, own) in enumerate(zip(requests, read, strict=True)):
            slots = self._slots(request, own)
            if surely_fits(request, self._most_tokens(slots), self.positions):
                continue
            try:
                self._read([request], [slots])
            except ValueError as error:
                raise ValueError(f"requests[{index}]: {error}" if len(requests) > 1 else str(error)) from error

    @property
    def learns_slots_from_images(self) -> bool:
        """Whether images differ in their number of slots, so that lengths are checked again once they are read."""
        return self.model.slots is None

    def prompts(
        self, requests: Sequence[Request], features: Sequence[LazyImageFeatures], answer_prefix: str = ""
    ) -> list[Prompt | Exception]:
        """Of each request its prompt, or why it has none; `answer_prefix` is how the answer begins.

        All are read at once, and one by one where that fails, so that one that cannot be read stops no other.
        """
        try:
            slots = [self._slots(request, own) for request, own in zip(requests, features, strict=True)]
            return [*self._read(requests, slots, answer_prefix)] if requests else []
        except Exception as error:  # noqa: BLE001 - told by whoever asks for this prompt
            if len(requests) == 1:
                return [error]
        pairs = zip(requests, features, strict=True)
        return [prompt for request, own in pairs for prompt in self.prompts([request], [own], answer_prefix)]

    def inputs(self, prompt: Prompt, features: LazyImageFeatures) -> Inputs:
        """A prompt as a tensor, beside the request's pixels."""
        return Inputs(
            torch.tensor(prompt.ids, device=self.device),
            features.pixel_values,
            image_token_id=self.image_token_id,
        )

    def check(self, after: Inputs, before: Inputs) -> Inputs:
        """`after`, what a defense made of `before`, if the model can read it. TypeError, ValueError: what is wrong."""
        config = self.model.config
        check_inputs(after, before, config_facts.vocabulary_size(config), config_facts.hidden_size(config))
        virtual = sum(len(tokens.vectors) for tokens in after.virtual)
        slots = int((after.input_ids == after.image_token_id).sum())
        check_length(len(after.input_ids) + virtual, slots + virtual, self.positions)
        return after

    def batch(self, turns: Sequence[GuardedRequest]) -> EncodedBatch:
        """Left-padded, with the images' tokens of the one vision pass, or of a second where pixels were changed."""
        tokens = iter(self._image_tokens(turns))
        rows = [_with_virtual_tokens(turn.inputs, tuple(islice(tokens, turn.features.images))) for turn in turns]
        images = [turn.inputs.pixel_values for turn in turns if turn.inputs.pixel_values is not None]
        return encode(rows, self.pad_id, range(len(rows)), partial(self.model.lm_arguments, images=images))

    def _image_tokens(self, turns: Sequence[GuardedRequest]) -> Sequence[ImageVectors]:
        """Those of every image of the turns, in order, in one call of the projector."""
        is_changed = [turn.inputs.pixel_values is not turn.features.pixel_values for turn in turns]
        changed = [turn.inputs.pixel_values for turn, is_new in zip(turns, is_changed, strict=True) if is_new]
        again: Iterator[Any] = iter(())
        if changed:
            pixels = [own for own in changed if own is not None]
            vision, ends = self.model.encode_images(join_images(pixels)), [0, *accumulate(map(len, pixels))]
            again = (vision[start:end] for start, end in pairwise(ends))
        passes = [
            next(again) if is_new else turn.features.vision for turn, is_new in zip(turns, is_changed, strict=True)
        ]
        return self.model.image_tokens([own for own in passes if own is not None])

    def texts(self, answers: Sequence[WrittenAnswer]) -> list[str]:
        """Answers without white space around them."""
        ids = [answer.ids for answer in answers]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _slots(self, request: Request, features: LazyImageFeatures | None) -> list[str]:
        """What stands in the prompt for each image; one slot each, where images have not been read and differ."""
        images = features.pixel_values if features is not None else None
        if isinstance(images, ImageInputs):
            return images.placeholders
        return [self.processor.image_token * (self.model.slots or 1)] * len(request.images)

    def _most_tokens(self, slots: Sequence[str]) -> int:
        """A bound of the tokens of what stands for some images: their number, or that of their letters."""
        return sum(map(len, slots)) if self.learns_slots_from_images else len(slots) * self.model.slots

    def _read(
        self, requests: Sequence[Request], slots: Sequence[Sequence[str]], answer_prefix: str = ""
    ) -> list[Prompt]:
        """ValueError: a prompt leaves no room for an answer."""
        prompts = chat.prompts(self.processor, requests, slots, answer_prefix)
        for prompt in prompts:
            check_length(len(prompt.ids), prompt.ids.count(self.image_token_id), self.positions)
        return prompts

    @property
    def positions(self) -> int:
        """Tokens of prompt and answer together that the model was made for."""
        return config_facts.positions(self.model.config)

    @property
    def pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _of_one_image(request: Request, image: int) -> Request:
    """The request as if it were about one of its images alone."""
    turns = (turn for turn, (_, count) in enumerate(request.turns) for _ in range(count))
    own = next(islice(turns, image, None))
    counts = tuple(int(turn == own) for turn in range(len(request.turns)))
    return replace(request, images=request.images[image : image + 1], images_per_turn=counts)


def _with_virtual_tokens(inputs: Inputs, image_tokens: tuple[ImageVectors, ...]) -> EncodedRequest:
    """Ids and image tokens of a request, the defense's virtual tokens among them."""
    if not inputs.virtual:
        return inputs.input_ids, image_tokens
    virtual = [(tokens.vectors, tokens.at) for tokens in inputs.virtual]
    ids, joined = virtual_tokens.insert(inputs.input_ids, image_tokens, virtual, inputs.image_token_id)
    return ids, (joined,)
