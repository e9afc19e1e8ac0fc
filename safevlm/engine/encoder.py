"""Requests → tensors: images through the vision tower once, prompts to ids, and both to one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from llava_patch import fields, virtual_tokens
from safevlm.data import chat
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
        words = [words_of(self.processor, request, self.device) for request in requests]
        encoded = encode_images(self.model, pixels, [len(request.images) for request in requests], words)
        left = iter(opened)
        for own in encoded:
            later = [each.later for each in islice(left, own.images)]
            own.frames = encode_frames(self.model, later, own, self.device)
        return encoded

    def check_lengths(self, requests: Sequence[Request]) -> None:
        """ValueError: a prompt that leaves no room for an answer; of several requests it names the one."""
        for index, request in enumerate(requests):
            if surely_fits(request, self.model.slots, self.positions):
                continue
            try:
                self._prompt_ids(request)
            except ValueError as error:
                raise ValueError(f"requests[{index}]: {error}" if len(requests) > 1 else str(error)) from error

    def inputs(self, request: Request, features: LazyImageFeatures, answer_prefix: str = "") -> Inputs:
        """The request's prompt as ids, beside its pixels. `answer_prefix` is how the answer begins.

        ValueError: the prompt leaves no room for an answer.
        """
        ids = self._prompt_ids(request, answer_prefix)
        return Inputs(
            torch.tensor(ids, device=self.device),
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
        changed = [turn for turn in turns if turn.inputs.pixel_values is not turn.features.pixel_values]
        all_features = {id(turn): turn.features for turn in turns}
        if changed:
            pixels = torch.cat([turn.inputs.pixel_values for turn in changed if turn.inputs.pixel_values is not None])
            counts, words = [turn.features.images for turn in changed], [turn.features.words for turn in changed]
            again = encode_images(self.model, pixels, counts, words)
            all_features |= {id(turn): features for turn, features in zip(changed, again, strict=True)}
        rows = [_with_virtual_tokens(turn.inputs, all_features[id(turn)].image_tokens) for turn in turns]
        return encode(rows, self.pad_id, range(len(rows)))

    def texts(self, new_ids: Tensor) -> list[str]:
        """(b, new) → answers without white space around them."""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)]

    def _prompt_ids(self, request: Request, answer_prefix: str = "") -> list[int]:
        ids = chat.prompt_ids(self.processor, request, self.model.slots, answer_prefix)
        check_length(len(ids), self.model.slots * len(request.images), self.positions)
        return ids

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
