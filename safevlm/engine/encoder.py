"""Requests → tensors: images through the vision tower once, prompts to ids, and both to one padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from llava_patch import fields, virtual_tokens
from safevlm.data import chat
from safevlm.data.chat import Prompt
from safevlm.data.pixels import pixel_values
from safevlm.defenses import Inputs
from safevlm.engine.checks import check_inputs, opened_images
from safevlm.engine.guard import GuardedRequest
from safevlm.engine.lengths import check_length, surely_fits
from safevlm.model.encoded import EncodedBatch, EncodedRequest, encode
from safevlm.model.image_features import LazyImageFeatures, encode_frames, encode_images, words_of
from safevlm.model.loading import Loaded
from safevlm.types import Request


class Encoder:
    """Encodes requests for one model."""

    def __init__(self, loaded: Loaded, device: torch.device) -> None:
        self.model = loaded.safe_llava
        self.processor = loaded.processor
        self.device = device

    def features(self, requests: Sequence[Request], every_frame: bool = False) -> list[LazyImageFeatures]:
        """Image features of each request, computed on first use, in one vision pass for all. ImageError: see there.

        `every_frame`: with the other frames of animations, which have passes of their own.
        """
        opened = list(opened_images(requests, self.processor.image_processor, every_frame))
        pixels = None
        if opened:
            images = [each.image for each in opened]
            pixels = pixel_values(self.processor.image_processor, images).to(self.device)
        words = [partial(words_of, self.processor, request, self.device) for request in requests]
        counts = [len(request.images) for request in requests]
        shown = [own for own, count in zip(words, counts, strict=True) if count]
        encoded = encode_images(self.model, pixels, counts, shown)
        if any(each.later is not None for each in opened):
            left = iter(opened)
            for own, own_words in zip(encoded, words, strict=True):
                later = [each.later for each in islice(left, own.images)]
                own.frames = encode_frames(self.model, later, own_words, self.device)
        return encoded

    def check_lengths(self, requests: Sequence[Request]) -> None:
        """ValueError: a prompt that leaves no room for an answer; of several requests it names the one."""
        for index, request in enumerate(requests):
            if surely_fits(request, self.model.slots, self.positions):
                continue
            try:
                self._read([request])
            except ValueError as error:
                raise ValueError(f"requests[{index}]: {error}" if len(requests) > 1 else str(error)) from error

    def prompts(self, requests: Sequence[Request], answer_prefix: str = "") -> list[Prompt | Exception]:
        """Of each request its prompt, or why it has none; `answer_prefix` is how the answer begins.

        All are read at once, and one by one where that fails, so that one that cannot be read stops no other.
        """
        try:
            return [*self._read(requests, answer_prefix)] if requests else []
        except Exception as error:  # noqa: BLE001 - told by whoever asks for this prompt
            if len(requests) == 1:
                return [error]
        return [prompt for request in requests for prompt in self.prompts([request], answer_prefix)]

    def inputs(self, prompt: Prompt, features: LazyImageFeatures) -> Inputs:
        """A prompt as a tensor, beside the request's pixels."""
        return Inputs(
            torch.tensor(prompt.ids, device=self.device),
            features.pixel_values,
            image_token_id=fields.image_token_id(self.model.config),
        )

    def check(self, after: Inputs, before: Inputs) -> Inputs:
        """`after`, what a defense made of `before`, if the model can read it. TypeError, ValueError: what is wrong."""
        config = self.model.config
        check_inputs(after, before, fields.vocabulary_size(config), fields.hidden_size(config))
        virtual = sum(len(tokens.vectors) for tokens in after.virtual)
        slots = int((after.input_ids == after.image_token_id).sum())
        check_length(len(after.input_ids) + virtual, slots + virtual, self.positions)
        return after

    def batch(self, turns: Sequence[GuardedRequest]) -> EncodedBatch:
        """Left-padded, with the images' tokens of the one vision pass, or of a second where pixels were changed."""
        tokens = iter(self._image_tokens(turns))
        rows = [_with_virtual_tokens(turn.inputs, tuple(islice(tokens, turn.features.images))) for turn in turns]
        return encode(rows, self.pad_id, range(len(rows)))

    def _image_tokens(self, turns: Sequence[GuardedRequest]) -> Sequence[Tensor]:
        """(n, d) of every image of the turns, in order, in one call of the projector."""
        is_changed = [turn.inputs.pixel_values is not turn.features.pixel_values for turn in turns]
        changed = [turn.inputs.pixel_values for turn, is_new in zip(turns, is_changed, strict=True) if is_new]
        again: Iterator[Tensor] = iter(())
        if changed:
            pixels = [own for own in changed if own is not None]
            again = iter(self.model.encode_images(torch.cat(pixels)).patches.split([len(own) for own in pixels]))
        patches = [
            next(again) if is_new else turn.features.patches for turn, is_new in zip(turns, is_changed, strict=True)
        ]
        shown = [own for own in patches if own is not None]
        return self.model.project(torch.cat(shown)).unbind() if shown else ()

    def texts(self, new_ids: Tensor) -> list[str]:
        """(b, new) → answers without white space around them."""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)]

    def _read(self, requests: Sequence[Request], answer_prefix: str = "") -> list[Prompt]:
        """ValueError: a prompt leaves no room for an answer."""
        prompts = chat.prompts(self.processor, requests, self.model.slots, answer_prefix)
        for request, prompt in zip(requests, prompts, strict=True):
            check_length(len(prompt.ids), self.model.slots * len(request.images), self.positions)
        return prompts

    @property
    def positions(self) -> int:
        """Tokens of prompt and answer together that the model was made for."""
        return fields.positions(self.model.config)

    @property
    def pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _with_virtual_tokens(inputs: Inputs, image_tokens: tuple[Tensor, ...]) -> EncodedRequest:
    """Ids and image tokens of a request, the defense's virtual tokens among them."""
    if not inputs.virtual:
        return inputs.input_ids, image_tokens
    virtual = [(tokens.vectors, tokens.at) for tokens in inputs.virtual]
    features = torch.cat(image_tokens) if image_tokens else None
    ids, features = virtual_tokens.insert(inputs.input_ids, features, virtual, inputs.image_token_id)
    return ids, (features,)
