"""What one vision pass gives for the requests of a batch. Tower and head run on first use, and once for all of them.

So does the LLM, where a detector asks what it makes of their prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, islice
from typing import Any, TypeAlias, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_patch.classes import Processor
from llava_patch.vision import VisionPass
from safevlm.data import chat, chat_messages
from safevlm.data.images import open_frames, open_image
from safevlm.data.pixels import Pixels, join_images
from safevlm.model.head import HeadLogits
from safevlm.model.precision import for_verdicts
from safevlm.types import ImageSource, Request

Words: TypeAlias = "Callable[[], Tensor]"
"""(w,) ids of a row's words (`words_of`); called only for a head that reads text, when it first looks."""
Reopen: TypeAlias = "Callable[[slice], Iterator[Image]]"
"""Opens those images of a batch once more, upright and RGB, one at a time. ImageError: as `open_image`."""
ViewsOf: TypeAlias = "Callable[[Image], tuple[Sequence[str], Pixels | None]]"
"""An image, upright and RGB → names of its views, and their pixels as the model reads images; None: it has no view."""
Named: TypeAlias = "Sequence[tuple[str, LazyImageFeatures]]"
"""Views of an image, each as a request's only one."""
Found = TypeVar("Found")

FRAMES_PER_PASS = 16
"""Bounds the memory of an animation's vision passes."""
VIEWS_PER_PASS = 32
"""Likewise of the views of images, and of changed copies of a request."""


@dataclass(frozen=True)
class RiskProbabilities:
    """The head's probabilities by name."""

    level: Mapping[str, float]
    category: Mapping[str, float]


class VisionBatch:
    """One pass of the tower over the images of a batch, and what is made of it, when somebody first asks for it."""

    def __init__(
        self,
        model: Any,
        pixel_values: Pixels,
        images: Sequence[int],
        words: Sequence[Words],
        reopen: Reopen,
        shared: VisionBatch | None = None,
    ) -> None:
        """`model`: one of ours; `pixel_values` of all rows, `images` of each row, one at least; `words` of the rows,
        for a head that reads text; `reopen`: of all images; `shared`: a batch of the same images in other rows."""
        self._shared = shared
        self._model = model
        self._words = [cache(own) for own in words]
        self._reopen = reopen
        self.pixel_values = pixel_values
        self.images = list(images)
        self._made: dict[Callable[[Any], Sequence[Any]], list[Any]] = {} if shared is None else shared._made
        self._views: dict[ViewsOf, list[Named | Exception]] = {} if shared is None else shared._views
        self.read_prompts: Callable[[Sequence[int], int], Tensor] | None = None
        """Layers and tokens → (b, l, k, d) of all rows; set by whoever knows their prompts and wants a gradient."""

    @cached_property
    def vision(self) -> VisionPass:
        return self._model.encode_images(self.pixel_values) if self._shared is None else self._shared.vision

    @cached_property
    def apart(self) -> VisionBatch:
        """The same images, each as the only one of its row. What was found image by image is there already."""
        count = len(self.pixel_values)
        return VisionBatch(self._model, self.pixel_values, [1] * count, self._words_by_image(), self._reopen, self)

    def _words_by_image(self) -> list[Words]:
        return [own for own, count in zip(self._words, self.images, strict=True) for _ in range(count)]

    @cached_property
    def risks(self) -> list[RiskProbabilities | Exception]:
        """The head's opinion of every row, in one call, or why it has none."""
        ends = list(accumulate(self.images, initial=0))
        return _each(lambda rows: self._judged(rows, slice(ends[rows.start], ends[rows.stop])), range(len(self.images)))

    def head_logits(self) -> HeadLogits:
        """The head's read-outs of all rows, with a gradient where the pixels want one. ValueError without a head."""
        return self._read_outs(slice(0, len(self.images)), slice(0, sum(self.images)))

    def _read_outs(self, rows: slice, images: slice) -> HeadLogits:
        read = [words() for words in self._words[rows]] if self._model.reads_text else []
        words, mask = _padded(read) if read else (None, None)
        with for_verdicts(self.pixel_values.device):
            logits: HeadLogits = self._model.judge(self.vision.patches[images], self.images[rows], words, mask)
        return logits

    def _judged(self, rows: slice, images: slice) -> list[RiskProbabilities]:
        logits = self._read_outs(rows, images)
        levels = _probabilities(logits.level, self.level_names)
        categories = _probabilities(logits.category, self.category_names)
        return [RiskProbabilities(*both) for both in zip(levels, categories, strict=True)]

    @property
    def level_names(self) -> Sequence[str]:
        """Of the head's read-out of levels, in its order."""
        names: Sequence[str] = self._model.level_names
        return names

    @property
    def category_names(self) -> Sequence[str]:
        """Of the head's read-out of categories, in its order."""
        names: Sequence[str] = self._model.category_names
        return names

    def states(self, layers: Sequence[int], tokens: int) -> Tensor:
        """(b, l, k, d): as `LazyImageFeatures.states`, of all rows, with a gradient where the pixels want one.

        ValueError: nobody told this batch its prompts.
        """
        if self.read_prompts is None:
            raise ValueError("the prompts of these images are not known; set `read_prompts` (Encoder.states)")
        return self.read_prompts(layers, tokens)

    def per_image(self, make: Callable[[VisionPass], Sequence[Found]]) -> list[Found | Exception]:
        """What `make` finds in the whole pass, one thing per image, or why it finds none; it is called once."""
        if make not in self._made:
            self._made[make] = _each(lambda images: make(self.vision[images]), range(len(self.pixel_values)))
        return self._made[make]

    def per_opened(self, make: Callable[[Iterator[Image]], Sequence[Found]]) -> list[Found | Exception]:
        """The same of the images themselves, which are opened once more, one at a time."""
        if make not in self._made:
            self._made[make] = _each(lambda images: make(self._reopen(images)), range(len(self.pixel_values)))
        return self._made[make]

    def views(self, make: ViewsOf) -> list[Named | Exception]:
        """Of every image its views; `VIEWS_PER_PASS` of the batch in a vision pass."""
        if make not in self._views:
            read = _each(lambda images: list(map(make, self._reopen(images))), range(len(self.pixel_values)))
            self._views[make] = self._seen(read)
        return self._views[make]

    def _seen(self, read: Sequence[tuple[Sequence[str], Pixels | None] | Exception]) -> list[Named | Exception]:
        parts, every = [], []
        for each, own in zip(read, self._words_by_image(), strict=True):
            if not isinstance(each, Exception) and each[1] is not None:
                parts.append(each[1])
                every += [own] * len(each[1])
        features: list[LazyImageFeatures] = []
        for part in join_images(parts).split(VIEWS_PER_PASS) if parts else ():
            own_words = every[len(features) : len(features) + len(part)]
            features += self._encoded(part, [1] * len(part), own_words)
        left = iter(features)
        return [each if isinstance(each, Exception) else [(name, next(left)) for name in each[0]] for each in read]

    def copies(self, row: int, pixels: Pixels) -> list[LazyImageFeatures]:
        """Features of a row with other pixels in the place of its own, in one vision pass; those of all its images, as
        often as there are copies."""
        count = self.images[row]
        copies = len(pixels) // count
        return self._encoded(pixels, [count] * copies, [self._words[row]] * copies)

    def _encoded(self, pixels: Pixels, images: Sequence[int], words: Sequence[Words]) -> list[LazyImageFeatures]:
        return encode_images(self._model, pixels.to(self.pixel_values.device), images, words, _not_a_file)


class PromptBatch:
    """What the LLM makes of the prompts of a batch, once for all of them, where and as far as somebody asks."""

    def __init__(self, prompts: int, read: Callable[[slice, Sequence[int], int], Tensor]) -> None:
        """`read`: some of the prompts, layers and tokens → (b, l, k, d)."""
        self._prompts = prompts
        self._read = read
        self._made: dict[tuple[tuple[int, ...], int], list[Tensor | Exception]] = {}

    def states(self, row: int, layers: Sequence[int], tokens: int) -> Tensor:
        """(l, k, d) of one prompt; why there is none, is raised."""
        wanted = tuple(layers), tokens
        if wanted not in self._made:
            self._made[wanted] = _each(lambda rows: list(self._read(rows, *wanted)), range(self._prompts))
        return _found(self._made[wanted][row])


class LazyImageFeatures:
    """One request's part of a `VisionBatch`."""

    def __init__(self, vision_batch: VisionBatch | None, row: int, images: slice, number: int = 1) -> None:
        """`row`: of the request in the batch; `images`: its own among those of the batch. None: it has no image."""
        self.number = number
        """Of the first of these images among those of the request."""
        self._vision_batch = vision_batch
        self.row = row
        self.rows = images
        self.images = images.stop - images.start
        self.frames: tuple[Frame, ...] = ()
        """Of images with several frames or pages, all but the first one of each. The model never reads them."""
        self.prompt: tuple[PromptBatch, int] | None = None
        """The request's own words and images as a prompt, and its row among others; set by the engine."""

    @cached_property
    def pixel_values(self) -> Pixels | None:
        """Of the request's images."""
        return self._vision_batch.pixel_values[self.rows] if self._vision_batch is not None else None

    @cached_property
    def vision(self) -> VisionPass | None:
        return self._vision_batch.vision[self.rows] if self._vision_batch is not None else None

    @cached_property
    def patches(self) -> Tensor | None:
        """(i, p, v): what the projector reads."""
        return self._vision_batch.vision.patches[self.rows] if self._vision_batch is not None else None

    @property
    def risk(self) -> RiskProbabilities | None:
        return _found(self._vision_batch.risks[self.row]) if self._vision_batch is not None else None

    def alone(self) -> Sequence[LazyImageFeatures]:
        """Each of this request's images as its only one; they share its vision pass."""
        if self._vision_batch is None:
            return ()
        places = range(self.rows.start, self.rows.stop)
        return [
            LazyImageFeatures(self._vision_batch.apart, place, slice(place, place + 1), number)
            for number, place in enumerate(places, 1)
        ]

    def per_image(self, make: Callable[[VisionPass], Sequence[Found]]) -> Sequence[Found]:
        """What `make` finds in this request's images; it sees those of the whole batch, once."""
        found = self._vision_batch.per_image(make)[self.rows] if self._vision_batch is not None else ()
        return [_found(each) for each in found]

    def per_opened(self, make: Callable[[Iterator[Image]], Sequence[Found]]) -> Sequence[Found]:
        """What `make` finds in this request's images themselves; it sees those of the whole batch, once."""
        found = self._vision_batch.per_opened(make)[self.rows] if self._vision_batch is not None else ()
        return [_found(each) for each in found]

    def views(self, make: ViewsOf) -> Sequence[Named]:
        """Of each of this request's images its views, with their names, each as a request's only image.

        `make` gets the images themselves, opened once more; views of the whole batch pass the tower together.
        """
        found = self._vision_batch.views(make)[self.rows] if self._vision_batch is not None else ()
        return [_found(each) for each in found]

    def copies(self, pixels: Pixels) -> Sequence[LazyImageFeatures]:
        """Features of this request with other pixels in the place of its own, all in one vision pass.

        `pixels`: (c * i, 3, h, w), all images of the first copy first.
        """
        return self._vision_batch.copies(self.row, pixels) if self._vision_batch is not None else ()

    def states(self, layers: Sequence[int], tokens: int) -> Tensor:
        """(l, k, d) float32: what the LLM makes of the request (`safevlm.model.prompt_states`)."""
        if self.prompt is None:
            raise ValueError("the prompt of these images is not known")
        batch, row = self.prompt
        return batch.states(row, layers, tokens)


@dataclass(frozen=True)
class Frame:
    """A frame of an animation, or a page, as a request's only image."""

    name: str
    image: int
    """Index of the request's image that it is a frame of."""
    features: LazyImageFeatures


def encode_frames(
    model: Any,
    sources: Sequence[ImageSource],
    later: Sequence[Pixels | None],
    words: Words,
    device: torch.device,
) -> tuple[Frame, ...]:
    """Frames of a request's images behind the first of each, `FRAMES_PER_PASS` in a vision pass.

    `later`: per image (f, 3, h, w), or None; `words`: (w,) of the request.
    """
    frames: list[Frame] = []
    for image, (source, pixels) in enumerate(zip(sources, later, strict=True)):
        count = 1 if pixels is None else 1 + len(pixels)
        for at, part in enumerate(() if pixels is None else pixels.split(FRAMES_PER_PASS)):
            first = 1 + at * FRAMES_PER_PASS
            reopen = reopened_frames(source, first)
            of_part = encode_images(model, part.to(device), [1] * len(part), [words] * len(part), reopen)
            for row, features in enumerate(of_part):
                name = f"frame {first + row + 1} of {count} of image {image + 1}"
                frames.append(Frame(name, image, features))
    return tuple(frames)


def reopened(sources: Sequence[ImageSource]) -> Reopen:
    """Of images of which the first frame is looked at."""
    return lambda images: map(open_image, sources[images])


def reopened_frames(source: ImageSource, first: int) -> Reopen:
    """Of the frames or pages of one image, from the index `first` on."""
    return lambda frames: islice(open_frames(source), first + frames.start, first + frames.stop)


def _not_a_file(images: slice) -> Iterator[Image]:
    raise ValueError("a view of an image is no file that could be opened once more")


def words_of(processor: Processor, request: Request, device: torch.device) -> Tensor:
    """(w,) ids of a request's words, as the collator hands them to a head that reads text."""
    return torch.tensor(chat.question_ids(processor, chat_messages.messages_of(request)), device=device)


def encode_images(
    model: Any, pixel_values: Pixels | None, images: Sequence[int], words: Sequence[Words], reopen: Reopen
) -> list[LazyImageFeatures]:
    """Features for each request of a batch; they share one vision pass and one call of the head.

    `images`: images of each request; `words`: of those that have any; `reopen`: of all images of the batch.
    """
    shown = [count for count in images if count]
    vision_batch = None
    if pixel_values is not None and shown:
        vision_batch = VisionBatch(model, pixel_values, shown, words, reopen)
    rows, ends = accumulate(count > 0 for count in images), accumulate(images)
    return [
        LazyImageFeatures(vision_batch if count else None, row - 1, slice(end - count, end))
        for count, row, end in zip(images, rows, ends, strict=True)
    ]


def _each(find: Callable[[slice], Sequence[Found]], rows: range) -> list[Found | Exception]:
    """What is found of each row: of all at once, and one by one where that fails, so that one row stops no other."""
    try:
        found = list(find(slice(rows.start, rows.stop)))
        if len(found) != len(rows):
            raise ValueError(f"{len(found)} things were found for {len(rows)}")
    except Exception as error:  # noqa: BLE001 - raised for whoever asks about this row
        if len(rows) == 1:
            return [error]
        return [each for row in rows for each in _each(find, range(row, row + 1))]
    return [*found]


def _found(outcome: Found | Exception) -> Found:
    """What was found; its error, if it has one, is raised."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(w,) each → (b, w) and its mask, True at words."""
    words = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=words.device)
    return words, torch.arange(words.shape[1], device=words.device) < lengths[:, None]


def _probabilities(logits: Tensor, names: Sequence[str]) -> list[dict[str, float]]:
    return [dict(zip(names, row, strict=True)) for row in logits.float().softmax(-1).tolist()]
