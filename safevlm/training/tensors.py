"""A frozen model and the one tensor in front of it that learns (methods §3).

textual   [δ | prompt | answer] ─▶ LLM           visual   tower(pixels + δ) ─▶ projector ─▶ LLM
          the gradient goes back through the LLM          …and on through projector and tower

A textual tensor fits any family of models; a visual one those whose images are one square of pixels, which their
processor leaves whole (`safevlm.data.dense_pixels`).

b rows · t tokens · i images · n answer tokens of the batch, row after row · k virtual tokens · d LLM width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import accumulate, chain, compress, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llava_patch import patch_basis
from safevlm.backbones import config_facts, virtual_tokens
from safevlm.config import TensorSettings
from safevlm.data import dense_pixels
from safevlm.data.collate import IGNORED
from safevlm.data.pixels import Pixels, join_images, read_singly
from safevlm.defenses.learned_inputs import place
from safevlm.model.encoded import ImageVectors
from safevlm.model.safe_llava import SafeLlava

NAME = "security_tensor"
"""Of the parameter; the only one that trains."""


class AnswerLogits(NamedTuple):
    logits: Tensor
    """(n, vocabulary): what the model behind the tensor says of each answer token."""
    untouched: Tensor | None
    """The same without the tensor and without a gradient, for the rows that were asked for."""
    idle: None = None
    """As in `SafeLlavaOutput`; here every batch has a gradient."""


class TensorRecord(NamedTuple):
    """One record without its padding."""

    ids: Tensor
    """(t,)."""
    labels: Tensor
    """(t,)."""
    pixels: Pixels
    """Of its images."""
    tokens: tuple[ImageVectors, ...] = ()
    """What stands in its image slots, in order."""


class TensorLearner(nn.Module):
    def __init__(self, llava: SafeLlava, settings: TensorSettings) -> None:
        super().__init__()
        self.llava: Any = llava  # or the model of another family
        self.settings = settings
        shape = shape_of(llava, settings)
        if settings.basis == "patches":
            shape = patch_basis.shape_of(llava.config)
        self.security_tensor = nn.Parameter(torch.randn(shape) * settings.init_std)

    @cached_property
    def _inverse(self) -> Tensor:
        return patch_basis.inverse_of(self.llava)

    def values(self) -> Tensor:
        """The tensor as it is used and saved, of `shape_of`."""
        if self.settings.basis == "patches":
            return patch_basis.pixels_of(self.security_tensor, self._inverse)
        return self.security_tensor

    def train(self, mode: bool = True) -> TensorLearner:
        """The model stays as it is at inference; gradient checkpointing alone needs its training mode."""
        super().train(mode)
        self.llava.train(mode and self.llava.is_gradient_checkpointing)
        return self

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        self.llava.gradient_checkpointing_enable(**options)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Pixels,
        labels: Tensor,
        untouched: Tensor,
        images_per_row: Tensor | None = None,
    ) -> AnswerLogits:
        """(b, t), (b, t), images, (b, t), and (b,) bool: rows whose answers the bare model is asked about too.

        `images_per_row` (b,), where images differ in their number of slots.
        """
        unseen = self._unseen(input_ids, attention_mask, pixel_values, labels, images_per_row)
        is_visual = self.settings.kind == "visual"
        rows = self._seen(unseen, self.values() if is_visual else None)
        bare = None
        if untouched.any():
            with torch.no_grad():
                clean = compress(unseen if is_visual else rows, untouched.tolist())
                bare = self._answers(self._seen(list(clean)) if is_visual else list(clean))
        return AnswerLogits(self._answers(rows if is_visual else [self._with_tokens(row) for row in rows]), bare)

    @torch.no_grad()
    def untouched(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Pixels,
        labels: Tensor,
        images_per_row: Tensor | None = None,
    ) -> Tensor:
        """(n, vocabulary): what the bare model says of each answer token; arguments are those of `forward`."""
        return self._answers(self._seen(self._unseen(input_ids, attention_mask, pixel_values, labels, images_per_row)))

    def _unseen(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Pixels,
        labels: Tensor,
        images_per_row: Tensor | None,
    ) -> list[TensorRecord]:
        counts = self.llava.images_per_row(input_ids) if images_per_row is None else images_per_row.tolist()
        return list(_rows(input_ids, attention_mask, labels, pixel_values, counts))

    def _seen(self, rows: Sequence[TensorRecord], change: Tensor | None = None) -> list[TensorRecord]:
        """The rows with what one vision pass gives for their images, `change` (3, h, w) added to each of these."""
        pixels = join_images([row.pixels for row in rows])
        vision = self.llava.encode_images(pixels if change is None else dense_pixels.plus(pixels, change))
        tokens = iter(self.llava.image_tokens([vision]))
        return [row._replace(tokens=tuple(islice(tokens, len(row.pixels)))) for row in rows]

    def _with_tokens(self, row: TensorRecord) -> TensorRecord:
        image, virtual = config_facts.image_token_id(self.llava.config), self.values()
        at = place(row.ids, image, self.settings.position)
        ids, tokens = virtual_tokens.insert(row.ids, row.tokens, [(virtual, at)], image)
        unlabelled = row.labels.new_full((len(virtual),), IGNORED)
        labels = torch.cat([row.labels[:at], unlabelled, row.labels[at:]])
        return TensorRecord(ids, labels, row.pixels, (tokens,))

    def _answers(self, rows: Sequence[TensorRecord]) -> Tensor:
        """(n, vocabulary): logits that predict the labelled tokens, row after row."""
        ids, labels, pixels, tokens = zip(*rows, strict=True)
        padded = pad_sequence(list(ids), batch_first=True)
        lengths = torch.tensor([len(row) for row in ids], device=ids[0].device)
        said = pad_sequence(list(labels), batch_first=True, padding_value=IGNORED)
        wanted = said[:, 1:] != IGNORED
        columns = wanted.any(0).nonzero().squeeze(1)
        logits = self.llava(
            input_ids=padded,
            attention_mask=(torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]).long(),
            **self.llava.lm_arguments(padded, list(chain.from_iterable(tokens)), pixels, said),
            logits_to_keep=columns,
            use_cache=False,
        ).logits
        return logits[wanted[:, columns]]


def shape_of(model: SafeLlava, settings: TensorSettings) -> tuple[int, ...]:
    """From the config alone: no image is needed to start (methods §3.6, trap 8).

    ValueError: a visual tensor for a family whose images differ in shape, or in a basis that is not of its tower.
    """
    if settings.kind == "textual":
        return settings.tokens, config_facts.hidden_size(model.config)
    if settings.basis == "patches" and not isinstance(model, SafeLlava):
        raise ValueError("tensor.basis: patches is written for LLaVA's tower; use pixels")
    return _pixel_shape(model)


def check_pixels(model: SafeLlava, processor: Any, settings: TensorSettings) -> None:
    """ValueError: a visual tensor, and a processor that makes something else of images than the config says."""
    if settings.kind == "visual":
        _pixel_shape(model, partial(read_singly, processor))


def _pixel_shape(model: SafeLlava, read: dense_pixels.Read | None = None) -> dense_pixels.Shape:
    try:
        return dense_pixels.checked(model.pixel_shape, read)
    except ValueError as error:
        raise ValueError(
            "tensor.kind: visual is one change of the pixels of all images, and not for this "
            f"{model.config.model_type}: {error}; use textual"
        ) from error


def _rows(ids: Tensor, mask: Tensor, labels: Tensor, pixels: Pixels, images: Sequence[int]) -> Iterator[TensorRecord]:
    """The rows of a batch without padding; `images` of each."""
    ends = accumulate(images)
    for row, real, targets, count, end in zip(ids, mask.bool(), labels, images, ends, strict=True):
        yield TensorRecord(row[real], targets[real], pixels[end - count : end])
