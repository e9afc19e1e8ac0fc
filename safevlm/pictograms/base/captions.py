"""What is said about scenes to CLIP: some of their things, with or without what kind of thing they are."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from safevlm.pictograms import words
from safevlm.pictograms.base.sizes import TEXT
from safevlm.pictograms.world import Pictogram, PictogramScene
from safevlm.worlds.sentences import listed


def caption(rng: random.Random, scene: PictogramScene) -> str:
    """A random part of the scene, most often with the large thing in it."""
    if scene.word:
        return _named(rng, scene.word, rng.choice(("the words {}", "{} in writing", "{}")), scene.word.name)
    main, *others = scene.things
    chosen = rng.sample(others, rng.randint(0, len(others)))
    said = [_named(rng, thing, "{}", words.with_article(thing)) for thing in (main, *chosen)]
    return rng.choice(("{}", "{}", "a picture of {}", "a drawing of {}")).format(listed(said))


def encode(tokenizer: PreTrainedTokenizerFast, said: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Ids and mask for CLIP's text tower, with the end at which it pools, padded on the right."""
    encoded = tokenizer(
        [f"{caption}{tokenizer.eos_token}" for caption in said],
        padding=True,
        truncation=True,
        max_length=TEXT["max_position_embeddings"],
        padding_side="right",
        return_tensors="pt",
    )
    return {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}


def _named(rng: random.Random, thing: Pictogram, frame: str, name: str) -> str:
    """The thing, the thing and its kind, or its kind alone."""
    kind = f"a kind of {thing.kind}"
    return rng.choice((frame.format(name),) * 6 + (f"{frame.format(name)}, {kind}",) * 2 + (kind,))
