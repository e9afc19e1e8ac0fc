"""Models that can be asked, without a checkpoint: random weights of a shape, the miniature's words, drawn images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_patch import fields, fresh, parts
from llava_patch.classes import Model, Processor
from llava_patch.fingerprint import fingerprint
from llava_patch.processor import make_room
from safevlm import defenses
from safevlm.data.chat import CHAT_TEMPLATE
from safevlm.defenses import Defense
from safevlm.defenses.bank import Bank, BankFacts
from safevlm.defenses.concepts import DEFAULT_CONCEPTS, Concept
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.policy import Action, Policy
from safevlm.defenses.safe_clip import SafeClipDetector
from safevlm.engine import Engine, setting_of
from safevlm.evaluation.speed.gpu_check.session import Session
from safevlm.files import read_yaml
from safevlm.miniature import drawing, words
from safevlm.miniature.world import sample_scene
from safevlm.model.loading import Loaded
from safevlm.model.safe_llava import SafeLlava
from safevlm.taxonomy import CLEAN
from safevlm.training import bench
from safevlm.training.bench import BenchShape
from safevlm.types import Request

TEXT_SPACE = 768
"""Width of CLIP-L's text space."""
SURE = 20.0
"""A bias that no logit of a random head comes near."""
PHOTO = (640, 480)
"""Width and height of the drawn images, a photograph's."""


def answering(session: Session, shape: BenchShape | None = None) -> Loaded:
    """A random model that reads the miniature's words, and its processor, as if from a checkpoint folder.

    `shape`: the session's where none is given.
    """
    shape, tokenizer = shape or session.shape, words.build_tokenizer()
    model = bench.random_model(shape, session.device, image_token=tokenizer.get_vocab()["<image>"])
    settle(model, len(tokenizer))
    processor = fresh.processor_of(tokenizer, model.config, CHAT_TEMPLATE)
    make_room(processor, model.config, model.config.safety_config.lm_tokens)
    return Loaded(model, processor, "full", session.out, session.out)


def settle(model: Any, words: int) -> None:
    """Makes a random model, in place, say what can be compared.

    Its head, if it has one, says the same of every image, the gravest level, so that a policy alone decides what
    becomes of a request. It never ends an answer by itself, so that all answers are equally long. It writes the first
    `words` tokens only, those that can be read.
    """
    never_end(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[words:] = 0
    if model.safety_head is not None:
        taxonomy = model.config.taxonomy
        _say(model, taxonomy.level_names[-1], next(name for name in taxonomy.category_names if name != CLEAN))


def looking(session: Session, image_token: int = 4) -> SafeLlava:
    """The same without the LLM's layers: what looks at images, and cannot answer."""
    return bench.random_model(session.shape, session.device, lm=False, image_token=image_token)


def plain(loaded: Loaded, session: Session) -> Model:
    """transformers' own LLaVA around the same weights: what a user without this package would call.

    The learned tokens come with the inner model, so both read prompts of one length.
    """
    ours = loaded.safe_llava
    stock = fresh.stock_around(ours, bench.stock_config(session.shape, fields.image_token_id(ours.config)))
    never_end(stock)
    return stock


def engine(loaded: Loaded, defense: str, session: Session, action: Action) -> Engine:
    """The model behind a defense whose policy does the same at every level."""
    taxonomy = loaded.safe_llava.config.taxonomy
    policy = Policy(taxonomy, levels={name: action for name in taxonomy.level_names[1:]})
    setting = setting_of(loaded, policy, {}, session.device)
    made = _safe_clip(loaded, policy, session) if defense == "safe-clip" else defenses.build(defense, setting)
    return Engine(loaded, made, session.device)


def _safe_clip(loaded: Loaded, policy: Policy, session: Session) -> Defense:
    bank = random_bank(loaded.safe_llava).to(torch.device(session.device))
    return Mixer(SafeClipDetector(bank, policy.taxonomy), policy)


def random_bank(model: SafeLlava) -> Bank:
    """A concept bank for this model's tower: the shipped concepts, and random unit vectors for their texts."""
    noise = torch.Generator().manual_seed(0)
    rows = read_yaml(DEFAULT_CONCEPTS)["concepts"]  # not `read_concepts`: a bare machine has no pydantic
    concepts = tuple(Concept(**{**row, "templates": tuple(row["templates"])}) for row in rows)
    templates = sum(len(concept.templates) for concept in concepts)
    texts = torch.nn.functional.normalize(torch.randn(templates, TEXT_SPACE, generator=noise), dim=-1)
    width = fields.tower_width(model.config)
    projection = torch.randn(TEXT_SPACE, width, generator=noise) / width**0.5
    facts = BankFacts("pooled", tau=0.6, scale=100.0, clip="random", file="")
    return Bank(facts, concepts, texts, projection, fingerprint(parts.tower_state(model)))


def requests(count: int, seed: int = 0) -> list[Request]:
    """Questions of about sixty tokens about different images."""
    question = " ".join([*words.USE_IMAGE, *words.DESCRIBE])
    return [Request(question, (photo(seed + index),), id=str(index)) for index in range(count)]


def photo(seed: int) -> Image.Image:
    """A scene of the miniature at a photograph's size, with noise that no compression takes away."""
    scene = drawing.draw(sample_scene(random.Random(seed), "any")).resize(PHOTO)
    noise = np.random.default_rng(seed).integers(-20, 20, (PHOTO[1], PHOTO[0], 3))
    return Image.fromarray((np.asarray(scene).astype(int) + noise).clip(0, 255).astype(np.uint8))


def image_side(session: Session) -> Processor:
    """A processor for the images of a model that has no words."""
    return fresh.processor_of(words.build_tokenizer(), bench.stock_config(session.shape), CHAT_TEMPLATE)


def pixels(session: Session, images: Sequence[Image.Image]) -> Tensor:
    """(n, 3, h, w) on the device, as the processor prepares them."""
    prepared = image_side(session).image_processor(list(images), return_tensors="pt")["pixel_values"]
    return prepared.to(session.device)


def never_end(model: Any) -> None:
    model.generation_config.eos_token_id = None


def _say(model: Any, level: str, category: str) -> None:
    """Makes the head see this in every image."""
    head, taxonomy = model.safety_head, model.config.taxonomy
    with torch.no_grad():
        for read_out, label in (
            (head.level, taxonomy.level_id(level)),
            (head.category, taxonomy.category_id(category)),
        ):
            read_out.bias.zero_()
            read_out.bias[label] = SURE
