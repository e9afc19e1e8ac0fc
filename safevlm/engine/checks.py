"""What is checked before it reaches the model: requests of a caller, and tensors and replies of a defense's hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from safevlm.backbones.image_inputs import ImageInputs
from safevlm.data.images import ImageError, name_of, open_frames
from safevlm.data.pixels import Pixels, check_fits, join_images, open_fitting, read_images
from safevlm.defenses import Inputs
from safevlm.types import ImageSource, Reply, Request, Verdict

ID_TYPES = (torch.int32, torch.int64)
"""What an embedding takes."""


def check_requests(requests: Sequence[Request], first: int = 0) -> Sequence[Request]:
    """The requests, if a tokenizer can read their words. TypeError: no Request; ValueError names request and field.

    `first`: index of the first of them among those that the caller gave.
    """
    for index, request in enumerate(requests, start=first):
        if not isinstance(request, Request):
            raise TypeError(f"{request!r} is not a Request; write Request('What is in the picture?', images=(…,))")
        said = [("text", request.text), ("system", request.system)]
        said += [(f"history[{turn}]", text) for turn, pair in enumerate(request.history) for text in pair]
        for name, text in said:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"requests[{index}].{name}: cannot be written as UTF-8 ({error})") from error
    return requests


OnUnusable = Literal["return", "raise"]
"""What becomes of a request, among many, whose image or words cannot be used."""


@dataclass(frozen=True)
class OpenedImage:
    """An image of a request as the model gets it."""

    image: Image
    later: Pixels | None = None
    """Its other frames or pages, prepared for the tower; None where there are none, or nobody looks."""


def opened_images(requests: Sequence[Request], processor: Any, every_frame: bool) -> Iterator[OpenedImage]:
    """All images in order, each opened when its turn comes. ImageError; it names the request.

    `processor`: the checkpoint's. `every_frame`: the other frames of an animation too, for a detector.
    """
    for index, request in enumerate(requests):
        for source in request.images:
            try:
                yield _opened(source, processor, every_frame)
            except ImageError as error:
                told = [f"requests[{index}]"] if len(requests) > 1 else []
                told += [f"id {request.id!r}"] if request.id else []
                raise ImageError(": ".join([*told, str(error)])) from error


def _opened(source: ImageSource, processor: Any, every_frame: bool) -> OpenedImage:
    if not every_frame:
        return OpenedImage(open_fitting(processor.image_processor, source))
    name, frames = name_of(source), open_frames(source)
    first = next(frames)
    check_fits(processor.image_processor, first, name)
    later = []
    for frame in frames:  # one at a time: pages of a scan are large, and what the tower reads of them is small
        check_fits(processor.image_processor, frame, name)
        later.append(read_images(processor, [[frame]]))
    return OpenedImage(first, join_images(later) if later else None)


def check_rewritten(request: Request, rewritten: Request) -> Request:
    """The rewritten request, if it is about the same images, which are those that the detector looked at."""
    same = len(rewritten.images) == len(request.images)
    if not same or not all(_same_image(*pair) for pair in zip(request.images, rewritten.images, strict=True)):
        raise ValueError("rewrite changed the images of the request; it changes words only, transform changes pixels")
    return rewritten


def check_inputs(given: Inputs, before: Inputs, vocabulary: int, width: int) -> Inputs:
    """What `transform` made of `before`, if the model can read it in a batch. TypeError, ValueError: what is wrong.

    `vocabulary`: rows of the embedding table; `width`: d, the LLM's width. Image slots and pixels keep their number and
    shape, so that no request of a batch reads another one's image.
    """
    _check_ids(given.input_ids, before, vocabulary)
    if given.image_token_id != before.image_token_id:
        raise ValueError(f"image_token_id {given.image_token_id} is not the model's {before.image_token_id}")
    _check_pixels(given.pixel_values, before.pixel_values)
    for tokens in given.virtual:
        vectors = _tensor("vectors of virtual tokens", tokens.vectors)
        if vectors.dim() != 2 or vectors.shape[1] != width:
            raise ValueError(f"virtual tokens of shape {tuple(vectors.shape)}, not (k, {width})")
        _check_numbers("vectors of virtual tokens", vectors)
        if not 0 <= tokens.at <= len(given.input_ids):
            raise ValueError(f"virtual tokens at {tokens.at} of a prompt of {len(given.input_ids)} tokens")
    return given


def _check_ids(ids: object, before: Inputs, vocabulary: int) -> None:
    ids = _tensor("input_ids", ids)
    if ids.dim() != 1 or ids.dtype not in ID_TYPES or not len(ids):
        raise ValueError(f"input_ids of shape {tuple(ids.shape)} and type {ids.dtype}, not (t,) of int64")
    if ids.device != before.input_ids.device:
        raise ValueError(f"input_ids on {ids.device}, not on {before.input_ids.device}")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= vocabulary:
        raise ValueError(f"input_ids from {least} to {most}; the embedding has rows 0 to {vocabulary - 1}")
    slots, needed = (int((each == before.image_token_id).sum()) for each in (ids, before.input_ids))
    if slots != needed:
        raise ValueError(f"input_ids with {slots} image slots; the request's images need {needed}")


def _check_pixels(pixels: object, before: Pixels | None) -> None:
    if before is None or pixels is None:
        if pixels is not before:
            raise ValueError("pixel_values are None without images, and only then")
        return
    if isinstance(before, ImageInputs):
        _check_images(pixels, before)
    else:
        _check_values(pixels, before)


def _check_images(images: object, before: ImageInputs) -> None:
    if not isinstance(images, ImageInputs):
        raise TypeError(f"pixel_values: {type(images).__name__}; those of this family of models are ImageInputs")
    if len(images) != len(before):
        raise ValueError(f"pixel_values of {len(images)} images, not of {len(before)}")
    for image, own in zip(images, before, strict=True):
        bare, own_bare = (dataclasses.replace(each, tensors={}) for each in (image, own))
        if bare != own_bare or image.tensors.keys() != own.tensors.keys():
            raise ValueError(
                "pixel_values: of an image the values alone may change, not its slots or its tensors' names"
            )
        for name, values in image.tensors.items():
            if values is not own.tensors[name]:
                _check_values(values, own.tensors[name])


def _check_values(pixels: object, before: Tensor) -> None:
    pixels = _tensor("pixel_values", pixels)
    if pixels.shape != before.shape:
        raise ValueError(f"pixel_values of shape {tuple(pixels.shape)}, not {tuple(before.shape)}")
    if pixels.device != before.device:
        raise ValueError(f"pixel_values on {pixels.device}, not on {before.device}")
    _check_numbers("pixel_values", pixels)


def _tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {type(value).__name__} is no tensor")
    return value


def _check_numbers(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ValueError(f"{name} of type {values.dtype}, not a float type")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} hold values that are not finite")


def settled(reply: Reply, asked: Reply) -> Reply:
    """What a hook answered, with what it left out taken from `asked`. TypeError: a field of the wrong type.

    `asked`: the reply as the engine knows it. The request is always the caller's own, and what the model read and wrote
    is as the engine counts it; a verdict, prompt and trace that the hook does not give are those of the engine.
    """
    if reply is asked:
        return asked
    for name in ("text", "refused_by", "prompt"):
        if not isinstance(getattr(reply, name), str):
            raise TypeError(f"gave a Reply with {name}={getattr(reply, name)!r}, which is not text")
    if not isinstance(reply.verdict, Verdict):
        raise TypeError(f"gave a Reply with verdict={reply.verdict!r}, which is not a Verdict")
    if isinstance(reply.trace, str) or not all(isinstance(line, str) for line in reply.trace):
        raise TypeError(f"gave a Reply with trace={reply.trace!r}, which is not a tuple of lines")
    return dataclasses.replace(
        reply,
        request=asked.request,
        verdict=asked.verdict if reply.verdict == Verdict.not_looked() else reply.verdict,
        prompt=reply.prompt or asked.prompt,
        trace=tuple(reply.trace) or asked.trace,
        prompt_tokens=asked.prompt_tokens,
        answer_tokens=asked.answer_tokens,
        ended=asked.ended,
    )


def _same_image(one: ImageSource, other: ImageSource) -> bool:
    """The same object, or the same path or bytes."""
    return one is other or (isinstance(one, str | Path | bytes) and type(one) is type(other) and one == other)
