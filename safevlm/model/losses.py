"""Named loss terms as sums and counts, so that the total does not depend on how a step is cut into micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from safevlm.data.collate import IGNORED


@dataclass(frozen=True)
class Term:
    """A loss term over a micro-batch: the sum over its items, and how many there are."""

    total: Tensor
    count: Tensor


def language_modeling(logits: Tensor, labels: Tensor, columns: Tensor | None = None) -> Term:
    """(b, t, vocabulary), (b, t) → cross-entropy of each next token that has a label, in float32.

    `columns` (c,): the positions that `logits` (b, c, vocabulary) stand for, where a model was asked for no others.
    Every position before a label is one of them (`safevlm.data.collate.columns_before_labels`).
    """
    targets = labels[:, 1:]
    if columns is None:
        return _cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
    return _cross_entropy(logits.flatten(0, 1), targets[:, columns].flatten())


def classification(logits: Tensor, labels: Tensor) -> Term:
    """(b, classes), (b,) → cross-entropy of each row that has a label."""
    return _cross_entropy(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Term:
    kept = labels != IGNORED
    return Term(F.cross_entropy(logits[kept].float(), labels[kept], reduction="sum"), kept.sum())


def divergence(logits: Tensor, reference: Tensor) -> Term:
    """(n, classes) twice → KL(reference ‖ logits) of each row, in float32. Gradients go into both."""
    ours, theirs = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return Term(F.kl_div(ours, theirs, reduction="sum", log_target=True), torch.tensor(len(logits)))
