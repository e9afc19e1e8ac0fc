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
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safevlm.data.pixel_map import PixelMap
from safevlm.defenses import Inputs
from safevlm.engine.encoder import Encoder
from safevlm.engine.guard import GuardedRequest, readable
from safevlm.evaluation.attacks.attacked import AttackedBatch
from safevlm.evaluation.attacks.job import first_image
from safevlm.evaluation.attacks.margins import margins_of
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

    def __getitem__(self, rows: Tensor) -> Losses:
        return Losses(self.margins[rows], self.answer[rows], self.is_answered[rows])


@dataclass(frozen=True)
class Wanted:
    """A request's prompt as the model reads it once its detectors are fooled, with the wanted answer behind it.

    It is about the image as the model reads it, since others may have another number of slots.
    """

    request: Request
    ids: Tensor
    """(t,)."""
    tokens: int
    """Of the answer."""


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

    def losses(self, images: Tensor, rows: Sequence[int] | None = None, with_answer: bool = True) -> Losses:
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
        if said and with_answer and self.engine.loaded.has_lm:
            values, exact = self._answer(batch, wanted, said)
            answer = answer.index_put((torch.tensor(said, device=answer.device),), values)
            is_answered[said] = exact.cpu()
        return Losses(margins, answer, is_answered.to(images.device))

    def _states(self, batch: VisionBatch, requests: Sequence[Request], layers: Sequence[int], tokens: int) -> Tensor:
        """What the LLM makes of the requests as they are asked, for detectors that read that."""
        return self.encoder.states(requests, [_row(batch, row) for row in range(len(requests))], layers, tokens)

    def _wanted(self, request: Request, answer: str) -> Wanted:
        unseen = Verdict(source=self.engine.defense.name)
        rewritten = self.engine.defense.rewrite(request, unseen)
        if isinstance(rewritten, Reply) or not answer:
            return Wanted(request, torch.empty(0, dtype=torch.long), 0)
        features = self.encoder.features([request])
        asked, answered = (
            readable(self.encoder.prompts([rewritten], features, prefix)[0]).ids for prefix in ("", answer)
        )
        shared = next((at for at, pair in enumerate(zip(asked, answered, strict=False)) if pair[0] != pair[1]), None)
        start = len(asked) if shared is None else shared
        return Wanted(rewritten, torch.tensor(answered, device=self.engine.device), len(answered) - start)

    def _answer(self, batch: VisionBatch, wanted: Sequence[Wanted], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(r,) each: the loss of the answer, and whether greedy decoding says it."""
        turns = [self._turn(batch, wanted[row], row) for row in rows]
        encoded = self.encoder.batch(turns)
        lengths = [wanted[row].tokens for row in rows]
        longest = max(lengths)
        logits = self.engine.model(**encoded.model_inputs, logits_to_keep=longest + 1).logits[:, :-1].float()
        targets = encoded.input_ids[:, -longest:]
        is_answer = torch.arange(longest, device=targets.device) >= longest - torch.tensor(
            lengths, device=targets.device
        ).unsqueeze(-1)
        each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * is_answer
        exact = ((logits.argmax(-1) == targets) | ~is_answer).all(-1)
        return each.sum(-1) / is_answer.sum(-1), exact

    def _turn(self, batch: VisionBatch, wanted: Wanted, row: int) -> GuardedRequest:
        features = _row(batch, row)
        unseen = Verdict(source=self.engine.defense.name)
        before = Inputs(wanted.ids, features.pixel_values, image_token_id=self.encoder.image_token_id)
        inputs = self.engine.defense.transform(before, unseen)
        return GuardedRequest(wanted.request, unseen, wanted.request, features, inputs)


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
