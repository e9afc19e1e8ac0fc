"""The kept words of the untouched model: what their KL is beside the KL over all words."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from safevlm.model.losses import divergence
from safevlm.training import top_words

TOKENS, WORDS = 7, 40


def _logits(seed: int, spread: float = 3.0) -> Tensor:
    return torch.randn(TOKENS, WORDS, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("count", [WORDS, 10 * WORDS])
def test_with_all_words_kept_loss_and_gradient_are_the_exact_ones(count: int) -> None:
    ours, exact_ours, theirs = (_logits(seed).requires_grad_() for seed in (1, 1, 2))
    kept = top_words.divergence(ours, top_words.top_words(theirs.detach(), count))
    exact = divergence(exact_ours, theirs.detach())
    torch.testing.assert_close(kept.total, exact.total)
    assert int(kept.count) == int(exact.count) == TOKENS
    kept.total.backward()
    exact.total.backward()
    torch.testing.assert_close(ours.grad, exact_ours.grad)


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("count", [1, 5, WORDS - 1])
def test_the_difference_is_the_rests_share_of_the_kl_within_the_rest(count: int, spread: float) -> None:
    ours, theirs = _logits(1, spread), _logits(2, spread)
    words = top_words.top_words(theirs, count)
    difference = divergence(ours, theirs).total - top_words.divergence(ours, words).total
    left = theirs.scatter(-1, words.ids.long(), -torch.inf).log_softmax(-1)
    others = ours.scatter(-1, words.ids.long(), -torch.inf).log_softmax(-1)
    within = F.kl_div(others.nan_to_num(neginf=0), left.nan_to_num(neginf=-1e9), reduction="none", log_target=True)
    expected = (words.rest.exp() * within.sum(-1)).sum()
    torch.testing.assert_close(difference, expected, rtol=1e-3, atol=1e-3)
    assert difference > -1e-3, "fewer outcomes never have a larger KL"


def test_nothing_is_lost_to_rounding_where_the_kept_words_have_nearly_everything() -> None:
    theirs = torch.zeros(1, WORDS)
    theirs[0, 0] = 30.0
    words = top_words.top_words(theirs, 1)
    assert words.rest.item() == pytest.approx(torch.tensor(WORDS - 1.0).log().item() - 30.0, abs=1e-4)
    ours = torch.zeros(1, WORDS, requires_grad=True)
    top_words.divergence(ours, words).total.backward()
    assert ours.grad is not None and ours.grad.isfinite().all()


def test_pieces_put_together_are_the_whole_and_do_not_hold_it() -> None:
    words = top_words.top_words(_logits(1), 5)
    pieces = list(words.split([3, 4]))
    assert all(torch.equal(one, other) for one, other in zip(top_words.joined(pieces), words, strict=True))
    assert sum(piece.bytes for piece in pieces) == words.bytes == TOKENS * (5 * 8 + 4)
    assert pieces[0].top.untyped_storage().nbytes() == 3 * 5 * 4
