"""One look gives what LLaVA's projector reads and what CLIP's text space expects, and a graph only when asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, LlavaForConditionalGeneration

from llava_patch import vision
from tests import tiny

LAYERS = [-2, 1, [-2, -1]]


def _fed_to_projector(llava: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What stock `get_image_features` gives its projector."""
    seen: list[Tensor] = []
    handle = llava.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        llava.get_image_features(pixels)
    handle.remove()
    return seen[0]


def _clip_around(llava: LlavaForConditionalGeneration) -> CLIPModel:
    """A CLIP with LLaVA's tower as its image side."""
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=50,
        max_position_embeddings=16,
        projection_dim=24,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=llava.config.vision_config, projection_dim=24)).eval()
    clip.vision_model.load_state_dict(llava.model.vision_tower.state_dict())
    return clip


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_patches_are_what_the_stock_projector_reads(layer: int | list[int], strategy: str) -> None:
    llava = tiny.stock_llava(vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    pixels = tiny.pixels(2)
    patches = vision.encode_images(llava, pixels).patches
    assert patches.shape[:2] == (2, tiny.PATCHES + (strategy == "full"))
    assert torch.equal(patches, _fed_to_projector(llava, pixels))


@pytest.mark.parametrize(("layer", "strategy"), [(-2, "default"), (-1, "default"), (1, "full")])
def test_cls_is_clips_own_at_the_selected_layer(layer: int, strategy: str) -> None:
    llava = tiny.stock_llava(vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    clip, pixels = _clip_around(llava), tiny.pixels(2)
    with torch.no_grad():
        hidden = clip.vision_model(pixels, output_hidden_states=True).hidden_states
    cls = vision.encode_images(llava, pixels).cls
    assert torch.equal(cls, hidden[layer][:, 0])
    assert not torch.equal(cls, hidden[layer][:, 1]), "a patch was taken for CLS"


@pytest.mark.parametrize("layer", [-2, 1])
def test_clip_cls_is_clips_pooled_vector_whatever_layer_llava_reads(layer: int) -> None:
    llava = tiny.shake(tiny.stock_llava(vision_feature_layer=layer))  # shaken: a fresh layer norm hides its own absence
    clip, pixels = _clip_around(llava), tiny.pixels(2)
    with torch.no_grad():
        pooled = clip.vision_model(pixels).pooler_output
    assert torch.equal(vision.encode_images(llava, pixels).clip_cls, pooled)


@contextmanager
def _layer_runs(llava: LlavaForConditionalGeneration) -> Iterator[list[int]]:
    """Indexes of the tower's layers, in the order in which they run."""
    runs: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
        for index, layer in enumerate(llava.model.vision_tower.encoder.layers)
    ]
    yield runs
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(("layer", "read"), [(-3, 1), (-2, 2), (-1, 3), (1, 1)])
def test_layers_behind_the_selected_one_run_once_and_only_for_the_last_cls(layer: int, read: int) -> None:
    llava = tiny.stock_llava(vision_feature_layer=layer)
    layers = list(range(len(llava.model.vision_tower.encoder.layers)))
    with _layer_runs(llava) as runs:
        seen = vision.encode_images(llava, tiny.pixels(2))
        assert seen.patches.isfinite().all() and seen.cls.isfinite().all()
        assert runs == layers[:read]
        for part in (seen[:1], seen[1:], seen):
            assert len(part.clip_cls) == len(part.patches)
        assert runs == layers, "a slice ran them again"


@pytest.mark.parametrize("wants", [False, True])
def test_the_last_cls_has_a_graph_when_the_pixels_wanted_one_whoever_reads_it_first(wants: bool) -> None:
    llava = tiny.stock_llava().requires_grad_(False)
    seen = vision.encode_images(llava, tiny.pixels(1).requires_grad_(wants))
    with torch.no_grad():
        assert seen.last_cls.requires_grad is wants


def test_a_tower_whose_forward_somebody_wrapped_gives_the_same() -> None:
    llava, pixels = tiny.stock_llava(), tiny.pixels(2)
    own = vision.encode_images(llava, pixels)
    tower = llava.model.vision_tower
    tower.forward = partial(type(tower).forward, tower)  # as accelerate does, and compiling
    wrapped = vision.encode_images(llava, pixels)
    assert torch.equal(wrapped.patches, own.patches) and torch.equal(wrapped.last_cls, own.last_cls)


def test_clip_cls_through_visual_projection_is_clips_image_embedding() -> None:
    llava = tiny.shake(tiny.stock_llava())
    clip, pixels = _clip_around(llava), tiny.pixels(2)
    with torch.no_grad():
        features = clip.get_image_features(pixels)
        # transformers 5.23 returns an output object, earlier releases the tensor itself
        expected = features if isinstance(features, Tensor) else features.pooler_output
        assert torch.equal(clip.visual_projection(vision.encode_images(llava, pixels).clip_cls), expected)


def test_frozen_tower_builds_no_graph() -> None:
    llava = tiny.stock_llava().train()
    llava.model.vision_tower.requires_grad_(False)
    seen = vision.encode_images(llava, tiny.pixels(1))
    assert not any(tensor.requires_grad for tensor in (seen.patches, seen.cls, seen.clip_cls))


def test_frozen_tower_builds_no_graph_under_gradient_checkpointing() -> None:
    llava = tiny.stock_llava().train()
    llava.model.vision_tower.requires_grad_(False)
    llava.gradient_checkpointing_enable({"use_reentrant": False})
    llava.enable_input_require_grads()
    assert not vision.encode_images(llava, tiny.pixels(1)).patches.requires_grad


def test_trainable_tower_learns() -> None:
    llava = tiny.stock_llava()
    vision.encode_images(llava, tiny.pixels(1)).patches.sum().backward()
    assert llava.model.vision_tower.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("part", ["patches", "cls", "clip_cls"])
def test_gradient_reaches_pixels_that_want_one_through_a_frozen_tower(part: str) -> None:
    llava = tiny.shake(tiny.stock_llava(), std=0.05)
    llava.requires_grad_(False)
    pixels = tiny.pixels(2).requires_grad_()
    (getattr(vision.encode_images(llava, pixels), part)[0] ** 2).sum().backward()
    assert pixels.grad[0].abs().sum() > 0, "a visual security tensor could not learn"
    assert not pixels.grad[1].any(), "images are mixed"


def test_slicing_a_pass_slices_every_part() -> None:
    seen = vision.encode_images(tiny.stock_llava(), tiny.pixels(3))
    part = seen[1:2]
    for name in ("patches", "cls", "clip_cls", "normed_cls", "last_cls"):
        assert torch.equal(getattr(part, name), getattr(seen, name)[1:2]), name


def test_cls_before_and_after_post_layernorm_is_that_of_each_layer() -> None:
    llava = tiny.shake(tiny.stock_llava(vision_feature_layer=[-2, -1]))
    norm, width = llava.model.vision_tower.post_layernorm, llava.config.vision_config.hidden_size
    seen = vision.encode_images(llava, tiny.pixels(2))
    with torch.no_grad():
        assert torch.equal(seen.normed_cls[:, :width], norm(seen.cls[:, :width]))
        assert torch.equal(seen.normed_cls[:, width:], seen.clip_cls)
        assert torch.equal(seen.last_cls, seen.cls[:, width:])
        assert torch.equal(seen.clip_cls, norm(seen.last_cls))


def test_encoder_outputs_stand_in_for_pixels() -> None:
    llava = tiny.stock_llava()
    inputs = tiny.batch([1, 2], tiny.PATCHES)
    with torch.no_grad():
        expected = llava(**inputs).logits
        projected = llava.model.multi_modal_projector(vision.encode_images(llava, inputs.pop("pixel_values")).patches)
        logits = llava(**inputs, mm_encoder_outputs=vision.as_encoder_outputs(projected.unbind())).logits
    assert torch.equal(logits, expected)


def test_pixels_are_cast_to_the_towers_type() -> None:
    llava = tiny.stock_llava().to(torch.bfloat16)
    assert vision.encode_images(llava, tiny.pixels(1)).patches.dtype == torch.bfloat16
