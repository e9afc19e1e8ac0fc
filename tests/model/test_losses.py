"""Loss terms are sums and counts: the same total however a batch is cut, and nothing from what has no label."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from safevlm.data.collate import columns_before_labels
from safevlm.model import losses
from safevlm.model.losses import IGNORED


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _labels(rows: int, length: int, classes: int) -> torch.Tensor:
    """Random labels; every row has another number of ignored ones in front, the last row only ignored ones."""
    labels = torch.randint(classes, (rows, length), generator=torch.Generator().manual_seed(1))
    for index in range(rows):
        labels[index, : index + 1] = IGNORED
    labels[-1] = IGNORED
    return labels


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 8])
def test_language_modeling_total_is_the_same_however_the_step_is_cut(micro_batch: int) -> None:
    logits, labels = _noise(8, 10, 20), _labels(8, 10, 20)
    whole = losses.language_modeling(logits, labels)
    cuts = range(0, 8, micro_batch)
    parts = [losses.language_modeling(logits[i : i + micro_batch], labels[i : i + micro_batch]) for i in cuts]
    assert sum(part.count for part in parts) == whole.count
    torch.testing.assert_close(sum(part.total for part in parts), whole.total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 8])
def test_classification_total_is_the_same_however_the_step_is_cut(micro_batch: int) -> None:
    logits, labels = _noise(8, 4), torch.tensor([0, 3, IGNORED, 2, IGNORED, IGNORED, 1, 1])
    whole = losses.classification(logits, labels)
    cuts = range(0, 8, micro_batch)
    parts = [losses.classification(logits[i : i + micro_batch], labels[i : i + micro_batch]) for i in cuts]
    assert sum(part.count for part in parts) == whole.count == 5
    torch.testing.assert_close(sum(part.total for part in parts), whole.total, rtol=1e-5, atol=1e-5)


def test_label_t_is_scored_against_the_logits_of_position_t_minus_1() -> None:
    # prompt 7 8, answer 5 6: position 1 must predict 5, position 2 must predict 6, the rest is free
    labels = torch.tensor([[IGNORED, IGNORED, 5, 6]])
    logits = torch.zeros(1, 4, 10)
    logits[0, 1, 5] = logits[0, 2, 6] = 50.0
    right = losses.language_modeling(logits, labels)
    assert right.count == 2, "exactly the answer's tokens count"
    assert right.total < 1e-3, "logits that predict the NEXT token perfectly must cost nothing: is there a shift?"
    unshifted = torch.zeros(1, 4, 10)
    unshifted[0, 2, 5] = unshifted[0, 3, 6] = 50.0
    assert losses.language_modeling(unshifted, labels).total > 1, "labels are compared with their own position"


def test_first_label_counts_for_nothing_since_nothing_predicts_it() -> None:
    logits = _noise(1, 4, 10)
    with_first = losses.language_modeling(logits, torch.tensor([[3, IGNORED, 5, 6]]))
    without = losses.language_modeling(logits, torch.tensor([[IGNORED, IGNORED, 5, 6]]))
    assert with_first.count == without.count == 2
    assert with_first.total == without.total


def test_logits_of_prompt_positions_do_not_reach_the_loss() -> None:
    logits, labels = _noise(2, 6, 10), torch.tensor([[IGNORED, IGNORED, IGNORED, 4, 5, 6]] * 2)
    changed = logits.clone()
    changed[:, :2] = _noise(2, 2, 10, seed=9) * 100  # they predict positions 1 and 2: prompt
    changed[:, 5] = 1e4  # it predicts what comes after the record
    assert losses.language_modeling(changed, labels).total == losses.language_modeling(logits, labels).total


def test_a_label_more_is_a_term_more() -> None:
    logits, labels = _noise(1, 6, 10), torch.tensor([[IGNORED, IGNORED, IGNORED, 4, 5, 6]])
    fewer = labels.clone()
    fewer[0, 3] = IGNORED
    more, less = losses.language_modeling(logits, labels), losses.language_modeling(logits, fewer)
    single = F.cross_entropy(logits[0, 2:3], torch.tensor([4]))
    assert (more.count - less.count) == 1
    torch.testing.assert_close(more.total - less.total, single)


@pytest.mark.parametrize("labelled", ["some", "none"])
def test_logits_of_the_columns_before_labels_give_the_same_sum_and_gradients(labelled: str) -> None:
    labels = _labels(4, 9, 20) if labelled == "some" else torch.full((4, 9), IGNORED)
    labels[:, 4:6] = IGNORED
    columns = columns_before_labels(labels)
    assert len(columns) == (6 if labelled == "some" else 0)
    whole, some = (_noise(4, 9, 20).requires_grad_() for _ in range(2))
    expected, found = (
        losses.language_modeling(whole, labels),
        losses.language_modeling(some[:, columns], labels, columns),
    )
    assert found.total == expected.total and found.count == expected.count
    expected.total.backward()
    found.total.backward()
    assert torch.equal(some.grad, whole.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ignored_is_zero_of_zero_and_has_a_gradient_of_zeros(dtype: torch.dtype) -> None:
    logits = _noise(2, 5, 10).to(dtype).requires_grad_()
    rows = _noise(2, 4).to(dtype).requires_grad_()
    terms = (
        losses.language_modeling(logits, torch.full((2, 5), IGNORED)),
        losses.classification(rows, torch.full((2,), IGNORED)),
    )
    for term in terms:
        assert term.total == 0 and term.count == 0, f"nothing is labelled, but the term is {term}"
        term.total.backward()
    assert not logits.grad.any() and not rows.grad.any(), "a record without labels must not move a weight, nor make NaN"


def test_bf16_logits_are_summed_in_float32() -> None:
    logits = _noise(4, 100, 50).bfloat16()
    labels = torch.randint(50, (4, 100), generator=torch.Generator().manual_seed(2))
    term = losses.language_modeling(logits, labels)
    assert term.total.dtype == torch.float32, "a sum of some hundred terms has no digits left in bfloat16"
    exact = F.cross_entropy(logits[:, :-1].double().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert abs(term.total.item() - exact.item()) < 1e-4 * exact.item()
    assert losses.classification(_noise(4, 4).bfloat16(), torch.tensor([0, 1, 2, 3])).total.dtype == torch.float32


def test_gradient_of_a_term_does_not_depend_on_the_cut() -> None:
    labels = _labels(4, 6, 10)
    whole, cut = (_noise(4, 6, 10).requires_grad_() for _ in range(2))
    losses.language_modeling(whole, labels).total.backward()
    for index in range(4):
        losses.language_modeling(cut[index : index + 1], labels[index : index + 1]).total.backward()
    torch.testing.assert_close(cut.grad, whole.grad)
