"""A frozen LLaVA and the one tensor in front of it that learns (methods §3).

textual   [δ | prompt | answer] ─▶ LLM           visual   tower(pixels + δ) ─▶ projector ─▶ LLM
          the gradient goes back through the LLM          …and on through projector and tower

b rows · t tokens · n answer tokens of the batch, row after row · k virtual tokens · d LLM width
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llava_patch import fields, patch_basis, virtual_tokens, vision
from safevlm.config import TensorSettings
from safevlm.data.collate import IGNORED
from safevlm.defenses.learned_inputs import place
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig

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
    features: Tensor
    """(slots, d): what stands in its image slots."""


class TensorLearner(nn.Module):
    def __init__(self, llava: SafeLlava, settings: TensorSettings) -> None:
        super().__init__()
        self.llava = llava
        self.settings = settings
        in_patches = settings.basis == "patches"
        shape = patch_basis.shape_of(llava.config) if in_patches else shape_of(llava.config, settings)
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
        """The LLaVA stays as it is at inference; gradient checkpointing alone needs its training mode."""
        super().train(mode)
        self.llava.train(mode and self.llava.is_gradient_checkpointing)
        return self

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        self.llava.gradient_checkpointing_enable(**options)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, labels: Tensor, untouched: Tensor
    ) -> AnswerLogits:
        """(b, t), (b, t), (i, 3, h, w), (b, t), and (b,) bool: rows whose answers the bare model is asked about too."""
        images = self.llava.images_per_row(input_ids)
        is_visual = self.settings.kind == "visual"
        features = self._encode_images(pixel_values + self.values() if is_visual else pixel_values)
        bare = None
        if untouched.any():
            own = untouched.repeat_interleave(torch.tensor(images, device=untouched.device))
            with torch.no_grad():
                clean = self._encode_images(pixel_values[own]) if is_visual else features[own]
                counts = [count for count, wanted in zip(images, untouched.tolist(), strict=True) if wanted]
                bare = self._answers(_rows(input_ids, attention_mask, labels, untouched, clean.split(counts)))
        rows = _rows(input_ids, attention_mask, labels, torch.ones_like(untouched), features.split(images))
        return AnswerLogits(self._answers(rows if is_visual else [self._with_tokens(row) for row in rows]), bare)

    def _encode_images(self, pixel_values: Tensor) -> Tensor:
        """(i, 3, h, w) → (i, n, d)."""
        return self.llava.project(self.llava.encode_images(pixel_values).patches)

    def _with_tokens(self, row: TensorRecord) -> TensorRecord:
        image, virtual = fields.image_token_id(self.llava.config), self.values()
        at = place(row.ids, image, self.settings.position)
        ids, features = virtual_tokens.insert(row.ids, row.features, [(virtual, at)], image)
        unlabelled = row.labels.new_full((len(virtual),), IGNORED)
        return TensorRecord(ids, torch.cat([row.labels[:at], unlabelled, row.labels[at:]]), features)

    def _answers(self, rows: Sequence[TensorRecord]) -> Tensor:
        """(n, vocabulary): logits that predict the labelled tokens, row after row."""
        ids, labels, features = zip(*rows, strict=True)
        lengths = torch.tensor([len(row) for row in ids], device=ids[0].device)
        wanted = pad_sequence(list(labels), batch_first=True, padding_value=IGNORED)[:, 1:] != IGNORED
        columns = wanted.any(0).nonzero().squeeze(1)
        logits = self.llava(
            input_ids=pad_sequence(list(ids), batch_first=True),
            attention_mask=(torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]).long(),
            **vision.as_arguments(features),
            logits_to_keep=columns,
            use_cache=False,
        ).logits
        return logits[wanted[:, columns]]


def shape_of(config: SafeLlavaConfig, settings: TensorSettings) -> tuple[int, ...]:
    """From the config alone: no image is needed to start (methods §3.6, trap 8)."""
    if settings.kind == "textual":
        return settings.tokens, fields.hidden_size(config)
    return fields.pixel_shape(config)


def _rows(ids: Tensor, mask: Tensor, labels: Tensor, wanted: Tensor, features: Sequence[Tensor]) -> list[TensorRecord]:
    """The wanted rows of a batch; `features` are theirs, (images, n, d) each."""
    real = zip(ids[wanted], mask[wanted].bool(), labels[wanted], features, strict=True)
    return [TensorRecord(row[kept], targets[kept], images.flatten(0, 1)) for row, kept, targets, images in real]
