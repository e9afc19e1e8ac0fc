"""The builder at tiny size: a stock LLaVA and its CLIP from a seed, and the record of what made them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, LlavaForConditionalGeneration

from llava_patch import fresh
from safevlm.miniature import properties
from safevlm.miniature.build import READ_LAYER, TOWER, BuildConfig, build
from safevlm.worlds.descent import Descent

TINY = BuildConfig(
    scenes=40, sight_steps=1, alone_steps=1, sight_and_caption_steps=1, caption_steps=1, clip_batch=8, lm_steps=2,
    lm_alone_steps=1, crowded_steps=1, lm_batch=4, cases=0,
)  # fmt: skip
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.mark.slow
def test_a_build_is_fixed_by_its_seed_and_tells_what_made_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        build(tmp_path / name, replace(TINY, seed=seed, cases=1 if name == "a" else 0))
    records = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in "abc"}
    digests = {name: record["made_by"]["digests"] for name, record in records.items()}
    assert digests["a"] == digests["b"] and not set(digests["a"].values()) & set(digests["c"].values())
    one = records["a"]
    assert one["seed"] == 5 and one["seconds"] >= 0 and {"commit", "command", "versions"} <= set(one["made_by"])
    for split in ("validation", "test"):
        assert set(one["measured"][split]["properties"]) == set(properties.AT_LEAST)
        assert set(one["measured"][split]["utility"]) == {"clean", *properties.CHANGES}
    assert "utility" in capsys.readouterr().out
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "a")
    tower = CLIPModel.from_pretrained(tmp_path / "a" / "clip").vision_model.state_dict()
    assert all(torch.equal(weight, llava.model.vision_tower.state_dict()[name]) for name, weight in tower.items())


def test_captions_leave_the_layers_alone_that_llava_reads() -> None:
    clip = fresh.clip_of(TOWER, {**TEXT, "vocab_size": 9}, 8)
    fresh.freeze_tower_up_to(clip, READ_LAYER)
    pixels = torch.rand(2, 3, TOWER["image_size"], TOWER["image_size"], requires_grad=True)
    assert fresh.tower_patches(clip, pixels, READ_LAYER).grad_fn is not None, "gradients still pass through"
    clip.vision_model(pixel_values=pixels.detach()).pooler_output.sum().backward()
    learned = {name for name, weight in clip.vision_model.named_parameters() if weight.grad is not None}
    last = f"encoder.layers.{TOWER['num_hidden_layers'] - 1}."
    assert learned and all(name.startswith((last, "post_layernorm")) for name in learned)


def test_a_descent_goes_down_and_refuses_a_loss_that_is_no_number() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(8, 8)]), "out": torch.nn.Linear(8, 1)})
    descent, x = Descent(model, 150, 1e-2, 3e-2), torch.randn(32, 8)
    losses = []
    for _ in range(150):
        loss = (model["out"](model["layers"][0](x)) - x[:, :1]).square().mean()
        descent.step(loss)
        losses.append(descent.last)
    assert losses[-1] < 0.1 * losses[0]
    with pytest.raises(FloatingPointError, match="learning rate"):
        descent.step(torch.tensor(float("nan"), requires_grad=True))
