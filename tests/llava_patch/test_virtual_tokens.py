"""Virtual tokens: learned vectors in image slots."""

from __future__ import annotations

import pytest
import torch

from llava_patch import vision
from llava_patch.virtual_tokens import insert
from tests import tiny

IMAGE = tiny.IMAGE


def _vectors(count: int, width: int = 3, start: float = 100.0) -> torch.Tensor:
    return torch.arange(count * width, dtype=torch.float32).reshape(count, width) + start


def test_each_slot_gets_its_own_vector_wherever_the_virtual_tokens_stand() -> None:
    ids = torch.tensor([1, 7, IMAGE, IMAGE, 8, IMAGE, 9])
    features = torch.tensor([[1.0], [2.0], [3.0]])
    virtual = [(torch.tensor([[20.0], [21.0]]), 4), (torch.tensor([[10.0]]), 0), (torch.tensor([[30.0]]), 7)]
    new_ids, rows = insert(ids, features, virtual, IMAGE)
    assert new_ids.tolist() == [IMAGE, 1, 7, IMAGE, IMAGE, IMAGE, IMAGE, 8, IMAGE, 9, IMAGE]
    assert rows.flatten().tolist() == [10, 1, 2, 20, 21, 3, 30]


def test_vectors_at_one_place_keep_their_order() -> None:
    _, rows = insert(torch.tensor([1, 2]), None, [(torch.tensor([[5.0]]), 1), (torch.tensor([[6.0]]), 1)], IMAGE)
    assert rows.flatten().tolist() == [5, 6]


@pytest.mark.parametrize("at", [-1, 4])
def test_index_outside_is_an_error(at: int) -> None:
    with pytest.raises(ValueError, match=f"virtual tokens at {at}"):
        insert(torch.tensor([1, 2, 3]), None, [(_vectors(1), at)], IMAGE)


def test_features_that_do_not_fill_the_slots_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 image features for 1 image slots"):
        insert(torch.tensor([1, IMAGE]), torch.zeros(2, 3), [(_vectors(1), 0)], IMAGE)


def test_virtual_token_with_a_words_embedding_is_that_word() -> None:
    model = tiny.safe_llava()
    ids = torch.tensor([1, 7, 8, 9])
    word = model.get_input_embeddings()(torch.tensor([8])).detach()
    new_ids, rows = insert(torch.tensor([1, 7, 9]), None, [(word, 2)], IMAGE)
    with torch.no_grad():
        expected = model(input_ids=ids[None]).logits
        found = model(input_ids=new_ids[None], mm_encoder_outputs=vision.as_encoder_outputs([rows])).logits
    assert torch.allclose(found, expected, atol=1e-6)


def test_gradient_reaches_the_virtual_tokens() -> None:
    model = tiny.safe_llava().requires_grad_(False)
    learned = torch.randn(2, model.config.text_config.hidden_size, requires_grad=True)
    ids, rows = insert(torch.tensor([1, 7, 9]), None, [(learned, 0)], IMAGE)
    model(input_ids=ids[None], mm_encoder_outputs=vision.as_encoder_outputs([rows])).logits.sum().backward()
    assert (learned.grad.abs().sum(1) > 0).all()
