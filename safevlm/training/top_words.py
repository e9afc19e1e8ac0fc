"""The untouched model's next-token probabilities, kept: the likeliest words of each answer token, and the rest as one.

The KL over these outcomes is the KL over all words less `rest share x KL within the rest` (the chain rule of relative
entropy; Cover & Thomas, Elements of Information Theory, theorem 2.5.3): never more than it, and equal with all words.

n answer tokens · k words kept · v words of the vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safevlm.model import losses


class TopWords(NamedTuple):
    ids: Tensor
    """(n, k) int32, of the likeliest words."""
    top: Tensor
    """(n, k) float32, their log-probabilities."""
    rest: Tensor
    """(n,) float32, the logarithm of what all others have together; -inf where there are none."""

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for each in self)

    def to(self, device: torch.device | str) -> TopWords:
        return TopWords(*(each.to(device) for each in self))

    def split(self, sizes: Sequence[int]) -> Iterator[TopWords]:
        """Pieces of so many tokens each, which may outlive the whole."""
        pieces = (each.split(list(sizes)) for each in self)
        yield from (TopWords(*(each.clone() for each in piece)) for piece in zip(*pieces, strict=True))

    def of(self, tokens: Tensor) -> TopWords:
        """Those at which `tokens` (n,) is True."""
        return TopWords(*(each[tokens] for each in self))


def top_words(logits: Tensor, count: int) -> TopWords:
    """(n, v) → the `count` likeliest words of each token, or all of them."""
    words = logits.float().log_softmax(-1)
    top, ids = words.topk(min(count, words.shape[-1]))
    return TopWords(ids.int(), top, _without(words, ids))


def joined(pieces: Sequence[TopWords]) -> TopWords:
    """One after the other."""
    return TopWords(*map(torch.cat, zip(*pieces, strict=True)))


def divergence(logits: Tensor, untouched: TopWords) -> losses.Term:
    """(n, v) → forward KL(untouched ‖ model) of each answer token over its kept words and the rest, in float32."""
    words, ids = logits.float().log_softmax(-1), untouched.ids.long()
    total = (untouched.top.exp() * (untouched.top - words.gather(-1, ids))).sum()
    if ids.shape[-1] < words.shape[-1]:
        total = total + (untouched.rest.exp() * (untouched.rest - _without(words, ids))).sum()
    return losses.Term(total, torch.tensor(len(logits)))


def _without(words: Tensor, ids: Tensor) -> Tensor:
    """(n, v) log-probabilities, (n, k) → (n,) the logarithm of what all words but these have together.

    As a sum of what is left: one less the kept would be lost to rounding where they have nearly everything.
    """
    return words.scatter(-1, ids, -torch.inf).logsumexp(-1)
