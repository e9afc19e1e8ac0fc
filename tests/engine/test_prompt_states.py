"""What the LLM makes of a prompt, as a detector gets it: one pass for a batch, no deeper than asked, no LoRA in it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from safevlm.config import LoraSettings
from safevlm.engine import Engine
from safevlm.engine.encoder import Encoder
from safevlm.model.image_features import PromptBatch
from safevlm.model.prompt_states import last_states
from safevlm.training.lora import with_lora
from safevlm.types import Generation, Request
from tests import tiny
from tests.engine import engines


@contextmanager
def _layer_calls(engine: Engine) -> Iterator[list[int]]:
    """Layers of the LLM in the order in which they run."""
    calls: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
        for number, layer in enumerate(engine.loaded.safe_llava.lm_layers, 1)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def test_a_detector_gets_what_the_bare_model_would_read() -> None:
    engine, requests = engines.engine("none"), engines.mixed_requests()
    features = Encoder(engine.loaded, engine.device).features(requests)
    encoded = engine.encoded(requests)
    assert encoded is not None
    expected = last_states(engine.model, engine.loaded.safe_llava, encoded, tokens=3)
    for row, own in enumerate(features):
        assert torch.allclose(own.states([2, 1], 3), expected[row].flip(0), atol=1e-4)


def test_layers_behind_the_deepest_do_not_run_and_a_batch_passes_once() -> None:
    engine = engines.engine("probe", own=engines.model())
    with _layer_calls(engine) as calls:
        engine.decide_all(engines.mixed_requests())
    assert calls == [1]


def test_a_prompt_that_cannot_be_read_stops_no_other() -> None:
    def read(rows: slice, layers: object, tokens: int) -> torch.Tensor:
        if 1 in range(rows.start, rows.stop):
            raise ValueError("no prompt")
        return torch.full((rows.stop - rows.start, 1, tokens, 2), float(rows.start))

    batch = PromptBatch(3, read)
    assert [batch.states(row, [1], 1)[0, 0, 0].item() for row in (0, 2)] == [0.0, 2.0]
    with pytest.raises(ValueError, match="no prompt"):
        batch.states(1, [1], 1)


@pytest.mark.parametrize("turn", [0, 1])
def test_a_frame_is_read_as_the_only_image_of_the_request_in_its_own_turn(turn: int) -> None:
    frames = [engines.image(seed) for seed in (1, 2, 3)]
    stored = io.BytesIO()
    frames[0].save(stored, "PNG", save_all=True, append_images=frames[1:])
    counts = (1, 1) if turn else (2, 0)
    request = Request("And?", (engines.image(7), stored.getvalue()), history=(("What is it?", "A cup."),))
    request = dataclasses.replace(request, images_per_turn=counts)
    encoder = Encoder(engines.engine("none").loaded, engines.CPU)
    with torch.inference_mode():
        (features,) = encoder.features([request], every_frame=True)
        assert len(features.frames) == 2
        for frame, image in zip(features.frames, frames[1:], strict=True):
            alone = dataclasses.replace(request, images=(image,), images_per_turn=(1 - turn, turn))
            (expected,) = encoder.features([alone])
            assert torch.allclose(frame.features.states([1], 2), expected.states([1], 2), atol=1e-4)


def test_a_lora_changes_the_answers_and_not_what_a_detector_reads() -> None:
    bare = engines.engine("probe", own=engines.model())
    wrapped = with_lora(engines.model(), LoraSettings(r=4, alpha=64, dropout=0.0), autocast=False)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".lora_B." in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    loaded = dataclasses.replace(bare.loaded, model=wrapped.eval(), kind="adapter")
    tuned = Engine(loaded, bare.defense, engines.CPU)
    requests = [Request("What is it?", (engines.image(seed),)) for seed in range(4)]
    for request in requests:
        assert engines.same_verdict(bare.look(request), tuned.look(request))
    one, other = ([reply.text for reply in each.reply_all(requests, Generation(4))] for each in (bare, tuned))
    assert one != other


def test_no_hook_stays_behind_where_the_pass_breaks() -> None:
    engine = engines.engine("none", own=engines.model())
    layer = engine.loaded.safe_llava.lm_layers[0]
    encoded = engine.encoded([Request("What is it?")])
    assert encoded is not None
    with torch.inference_mode():
        last_states(engine.model, engine.loaded.safe_llava, encoded)
    before = list(layer._forward_hooks)  # transformers may leave its own
    broken = dataclasses.replace(encoded, input_ids=encoded.input_ids + tiny.VOCABULARY * 9)
    with pytest.raises((IndexError, RuntimeError)):
        last_states(engine.model, engine.loaded.safe_llava, broken)
    assert list(layer._forward_hooks) == before
