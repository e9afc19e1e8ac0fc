"""Another family than LLaVA, at a published shape with random weights: training its head alone, and guarded answers.

The guard is that of the recipe `vlm_stage1_head_only`: a resampler, and no tokens for the LLM. So what the LLM reads is
the same with it and without, and so are the answers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch

from llava_patch import fresh
from safevlm.backbones import config_facts, measured
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.config import SafetyConfig
from safevlm.data.collate import IGNORED, columns_before_labels
from safevlm.evaluation.speed import plain
from safevlm.evaluation.speed.gpu_check import answers, models, train
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.miniature import words
from safevlm.model import families
from safevlm.model.loading import Loaded
from safevlm.training import bench

HEAD_ONLY = bench.MODES["stage1-head-only"]
DEFENSES = {name: answers.DEFENSES[name] for name in ("none", "safety-head")}
FEATURES = 64
"""Of an image, for the head, where the shape does not have fewer."""


def head_only(session: Session, *, batch: int, steps: int = train.STEPS) -> dict[str, Any]:
    """Head-only stage 1; the LLM's layers are never built. Images go through the tower at a photograph's size."""
    loaded = _loaded(session, lm=False)
    inputs = _batch(loaded, batch, session.device)
    model = bench.ready(loaded.model, session.shape, HEAD_ONLY)
    image_tokens = _image_tokens(loaded, inputs)
    found = train.timed(session, model, HEAD_ONLY, inputs, steps, image_tokens)
    return found | {"image_tokens": image_tokens, "lm_layers": len(model.lm_layers)}


def generation(session: Session, *, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds until first token and answer of `Engine` with and without the head, over transformers' `generate`."""
    loaded = _loaded(session, lm=True)
    models.settle(loaded.model, len(loaded.processor.tokenizer))
    asked = answers.ways(loaded, _stock_around(loaded, session), DEFENSES, session)
    found = answers.compared(session, loaded, asked, batch=batch, tokens=tokens, rounds=rounds)
    return found | {"image_tokens": _image_tokens(loaded, plain.inputs_of(loaded.processor, models.requests(1)))}


def _loaded(session: Session, *, lm: bool) -> Loaded:
    """A random model and its processor, as if from a checkpoint folder. `lm` False leaves the LLM's layers out."""
    stock, processor = measured.config_and_processor(session.name, words.build_tokenizer())
    kinds = families.classes_of(stock)
    config = kinds.config.from_stock(stock, safety(session.shape))
    layers = config_facts.lm_layers(config) if lm else 0
    with config_facts.with_lm_layers(config, layers):
        model = bench.made_on(session.device, lambda: kinds.model(config))
    families.processor_with_room(processor, config, config.safety_config.lm_tokens)
    return Loaded(model, processor, "full", session.out, session.out, has_lm=lm)


def safety(shape: bench.BenchShape) -> SafetyConfig:
    """The guard's sizes beside a LLaVA of this shape."""
    features = min(FEATURES, shape.safety.projector_tokens)
    return dataclasses.replace(shape.safety, projector="resampler", projector_tokens=features, lm_tokens=0)


def _stock_around(loaded: Loaded, session: Session) -> Any:
    """transformers' own model around the same weights."""
    config, _ = measured.config_and_processor(session.name, words.build_tokenizer())
    stock = fresh.stock_around(loaded.model, config, families.stock_classes_of(config).model)
    models.never_end(stock)
    return stock


def _batch(loaded: Loaded, size: int, device: torch.device) -> dict[str, Any]:
    """A question about one image per row, with labels at random, and no answers: head-only training reads none."""
    requests, taxonomy, noise = models.requests(size), loaded.model.config.taxonomy, torch.Generator().manual_seed(0)
    given = plain.inputs_of(loaded.processor, requests)
    labels = torch.full_like(given["input_ids"], IGNORED)
    backbone = families.backbone_of(loaded.model.config)
    assert backbone is not None
    images = ImageInputs(
        image for request in requests for image in backbone.read(loaded.processor, cast(Any, request.images))
    )
    made = {
        "input_ids": given["input_ids"],
        "attention_mask": given["attention_mask"],
        "pixel_values": images,
        "images_per_row": torch.ones(size, dtype=torch.long),
        "labels": labels,
        "logits_to_keep": columns_before_labels(labels),
        "safe_level": torch.randint(0, len(taxonomy.levels), (size,), generator=noise),
        "safe_type": torch.randint(0, len(taxonomy.categories), (size,), generator=noise),
    }
    return {name: value.to(device) for name, value in made.items()}


def _image_tokens(loaded: Loaded, inputs: Any) -> int:
    """Slots of the first row's image."""
    return int((inputs["input_ids"][0] == loaded.processor.image_token_id).sum())
