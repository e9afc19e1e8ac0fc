"""A guarded model with its insides open: images → every detector's margin and how likely the wanted answer is.

What the attacker minimises is what the engine runs: the same map from 8-bit values to the model's input, the same
tower, detectors, hints of a defense that never looks, virtual tokens and LLM. The answer's part assumes that the
detectors are fooled, since otherwise there is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from safevlm.data.pixel_map import PixelMap
from safevlm.engine.encoder import Encoder
from safevlm.evaluation.attacks.attacked import AttackedBatch
from safevlm.evaluation.attacks.job import first_image
from safevlm.evaluation.attacks.margins import margins_of
from safevlm.evaluation.attacks.wanted import Wanted, answer_losses
from safevlm.model.image_features import LazyImageFeatures, VisionBatch, words_of
from safevlm.types import Reply, Request, Sample, Verdict


@dataclass(frozen=True)
class Losses:
    """Of b attacked images."""

    margins: Tensor
    """(b, d): of every detector; above 0 it sees a risk."""
    answer: Tensor
    """(b,): mean negative log-likelihood of the tokens of the wanted answer; 0 where none is wanted."""
    is_answered: Tensor
    """(b,), bool: greedy decoding would say the wanted answer, token for token."""

    @property
    def is_unseen(self) -> Tensor:
        """(b,), bool: no detector sees a risk."""
        return (self.margins < 0).all(-1)


class WhiteBox:
    """A guarded model, for requests with one image each and all of one size."""

    def __init__(self, engine: Any, samples: Sequence[Sample], answers: Sequence[str]) -> None:
        """`answers`: what each is to be answered; an empty one wants nothing but unseeing detectors.

        ValueError: a request without its one image, or a processor whose work has no gradient. UsageError: a detector
        that nobody can see through.
        """
        several = [sample.request.id for sample in samples if len(sample.request.images) != 1]
        if several:
            raise ValueError(f"{several[0]}: attacks by gradient take requests with one image")
        self.engine = engine
        self.model = engine.loaded.safe_llava
        self.samples = list(samples)
        self.margins = margins_of(engine.defense)
        self.unseen = Verdict(source=engine.defense.name)
        """What is said of an image in which no detector sees a risk."""
        self.encoder = Encoder(engine.loaded, engine.device)
        images = [first_image(sample) for sample in samples]
        self.map = PixelMap.of(engine.processor, images[0])
        self.originals = torch.stack([self.map.native(image) for image in images]).to(engine.device)
        """(b, 3, h, w) uint8: the images as the model reads them."""
        self.read = [
            dataclasses.replace(sample.request, images=(image,))
            for sample, image in zip(samples, to_images(self.originals), strict=True)
        ]
        self.wanted = [self._wanted(request, answer) for request, answer in zip(self.read, answers, strict=True)]

    def losses(self, images: Tensor, rows: Sequence[int] | None = None) -> Losses:
        """Of (b, 3, h, w) images in 0-1; `rows`: which samples they are of."""
        chosen = list(rows if rows is not None else range(len(self.wanted)))
        wanted = [self.wanted[row] for row in chosen]
        requests = [each.request for each in wanted]
        words = [partial(words_of, self.engine.processor, request, self.engine.device) for request in requests]
        batch = AttackedBatch(self.model, self.map, images, words)
        batch.read_prompts = partial(self._states, batch, [self.read[row] for row in chosen])
        found = [margin(batch) for margin in self.margins]
        margins = torch.stack(found, -1) if found else images.new_full((len(images), 1), -1.0)
        answer, is_answered = images.new_zeros(len(images)), torch.ones(len(images), dtype=torch.bool)
        said = [row for row, each in enumerate(wanted) if each.tokens]
        if said and self.engine.loaded.has_lm:
            values, exact = self._answer(batch, wanted, said)
            answer = answer.index_put((torch.tensor(said, device=answer.device),), values)
            is_answered[said] = exact.cpu()
        return Losses(margins, answer, is_answered.to(images.device))

    def _states(self, batch: VisionBatch, requests: Sequence[Request], layers: Sequence[int], tokens: int) -> Tensor:
        """What the LLM makes of the requests as they are asked, for detectors that read that."""
        return self.encoder.states(requests, [_row(batch, row) for row in range(len(requests))], layers, tokens)

    def _wanted(self, request: Request, answer: str) -> Wanted:
        """About the image as the model reads it, since others may have another number of slots."""
        rewritten = self.engine.defense.rewrite(request, self.unseen)
        if isinstance(rewritten, Reply) or not answer:
            return Wanted(request, torch.empty(0, dtype=torch.long), 0)
        return Wanted.of(self.encoder, rewritten, self.encoder.features([request])[0], answer)

    def _answer(self, batch: VisionBatch, wanted: Sequence[Wanted], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(r,) each: the loss of the answer, and whether greedy decoding says it."""
        chosen = [(wanted[row], _row(batch, row)) for row in rows]
        turns = [each.turn(self.engine, self.encoder, features, self.unseen) for each, features in chosen]
        return answer_losses(self.engine, self.encoder, turns, [each.tokens for each, _ in chosen])


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(b, 3, h, w) of whole numbers → images."""
    return [Image.fromarray(each.permute(1, 2, 0).to(torch.uint8).cpu().numpy()) for each in pixels]


def _row(batch: VisionBatch, row: int) -> LazyImageFeatures:
    return LazyImageFeatures(batch, row, slice(row, row + 1))


def frozen(engine: Any) -> Any:
    """The engine, its weights without gradients: only images want one."""
    engine.model.requires_grad_(False)
    engine.loaded.safe_llava.requires_grad_(False)
    return engine
