"""Image tokens reach the LLM with a transformers whose LLaVA does not know `mm_encoder_outputs` (before 5.18)."""

from __future__ import annotations

import pytest
import torch

from llava_patch import vision
from tests import tiny


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if transformers were an older one: what is done for it, done with this one."""
    monkeypatch.setattr(vision, "TAKES_OUTPUTS", False)
    return monkeypatch


def test_logits_and_loss_are_the_same(older: pytest.MonkeyPatch) -> None:
    model = tiny.safe_llava()
    inputs = tiny.batch([1, 2, 0], model.slots)
    labels = inputs["input_ids"]
    with torch.no_grad():
        by_slots = model(**inputs, labels=labels)
        older.setattr(vision, "TAKES_OUTPUTS", True)
        by_stock = model(**inputs, labels=labels)
        blind = model(input_ids=labels, attention_mask=inputs["attention_mask"], labels=labels)
    assert torch.allclose(by_slots.logits, by_stock.logits, atol=1e-6)
    assert torch.allclose(by_slots.loss, by_stock.loss)
    assert not torch.allclose(by_slots.logits, blind.logits, atol=1e-2), "the images were lost"


def test_generation_is_the_same(older: pytest.MonkeyPatch) -> None:
    model = tiny.safe_llava()
    inputs = tiny.batch([1, 1], model.slots)
    pixels = inputs.pop("pixel_values")

    def generated() -> torch.Tensor:
        tokens = vision.as_encoder_outputs(model.project(model.encode_images(pixels).patches).unbind())
        return model.generate(**inputs, mm_encoder_outputs=tokens, max_new_tokens=5, do_sample=False)

    by_slots = generated()
    older.setattr(vision, "TAKES_OUTPUTS", True)
    assert torch.equal(by_slots, generated())


def test_the_gradient_reaches_the_pixels(older: pytest.MonkeyPatch) -> None:
    model = tiny.safe_llava().requires_grad_(False)
    inputs = tiny.batch([1], model.slots)
    pixels = inputs.pop("pixel_values").requires_grad_()
    model(**inputs, pixel_values=pixels).logits.sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_slots_and_tokens_must_agree(older: pytest.MonkeyPatch) -> None:
    model = tiny.safe_llava()
    inputs = tiny.batch([1], model.slots)
    tokens = vision.as_encoder_outputs([torch.zeros(model.slots + 1, 64)])
    with pytest.raises(ValueError, match="do not match"):
        model(input_ids=inputs["input_ids"], mm_encoder_outputs=tokens)
