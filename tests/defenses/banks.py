"""Concept banks and CLIPs around the tiny models of `tests.engine.engines`: seeded, offline, in milliseconds.

The weights are random, so that what is seen means nothing; it hangs on every image, though.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

from llava_patch.fingerprint import fingerprint
from safevlm.defenses.bank import BANK_FILE, Bank, BankFacts, write_bank
from safevlm.defenses.concepts import Concept
from safevlm.model.safe_llava import SafeLlava
from safevlm.taxonomy import CLEAN, SAFE
from tests.engine import engines

SURE = 1e30
"""A prior that no image outweighs."""
WIDTH = 24
"""Of the text space."""
CONCEPTS = (
    Concept("plain", CLEAN, SAFE, ("a plain thing", "everyday life")),
    Concept("vork", "politics", "must_refuse", ("a vork", "politics")),
    Concept("brax", "illegal", "may_refuse", ("a brax", "something illegal")),
    Concept("klet", "insults", "careful", ("a klet", "insults")),
)


def bank(
    model: SafeLlava, concepts: tuple[Concept, ...] = CONCEPTS, tau: float = 0.3, seed: int = 0, scale: float = 5.0
) -> Bank:
    """A bank of this model's tower with random texts; its projection leaves out what all images have in common."""
    noise = torch.Generator().manual_seed(seed)
    alike = F.normalize(cls_of(model).mean(0, keepdim=True), dim=-1)
    projection = torch.randn(WIDTH, alike.shape[1], generator=noise)
    templates = sum(len(concept.templates) for concept in concepts)
    return Bank(
        BankFacts("pooled", tau, scale, clip="0" * 64, file="0" * 64),
        concepts,
        F.normalize(torch.randn(templates, WIDTH, generator=noise), dim=-1),
        projection - projection @ alike.T @ alike,
        fingerprint(model.model.vision_tower.state_dict()),
    )


def cls_of(model: SafeLlava, images: int = 5) -> Tensor:
    """(images, v), as CLIP's projection expects them."""
    drawn = [engines.image(seed) for seed in range(images)]
    pixels = engines.processor_of(model).image_processor(drawn, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model.encode_images(pixels).clip_cls


def saying(level: str, category: str) -> tuple[Concept, ...]:
    """Concepts of which the last one is seen in every image."""
    told = Concept("told", category, level, ("anything",), prior=SURE)
    neutral = [] if category == CLEAN else [Concept("plain", CLEAN, SAFE, ("nothing",))]
    risky = [Concept("other", "illegal", "careful", ("something",))] if category == CLEAN else []
    return (*neutral, *risky, told)


def write(model: SafeLlava, folder: Path, says: tuple[str, str] | None = None) -> Path:
    """A bank for this model in `folder`; `says` is the level and category that it finds in every image."""
    file = folder / BANK_FILE
    write_bank(bank(model, saying(*says) if says else CONCEPTS), file)
    return file


def clip_of(model: SafeLlava, positions: int = 16) -> CLIPModel:
    """A CLIP whose image side is this model's tower, with a random text side that reads the miniature's words."""
    words = engines.tokenizer()
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=len(words),
        max_position_embeddings=positions,
        projection_dim=WIDTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=model.config.vision_config, projection_dim=WIDTH))
    clip.vision_model.load_state_dict(model.model.vision_tower.state_dict())
    return clip.eval()


def write_companion(model: SafeLlava, folder: Path, says: tuple[str, str] | None = None) -> Path:
    """A companion whose tower is this model's own, image processor and bank included."""
    clip_of(model).save_pretrained(folder)
    engines.processor_of(model).image_processor.save_pretrained(folder)
    write(model, folder, says)
    return folder


def clip_folder(model: SafeLlava, folder: Path, positions: int = 16) -> Path:
    clip_of(model, positions).save_pretrained(folder)
    engines.tokenizer().save_pretrained(folder)
    return folder
