"""Engines on tiny random models that read and write the miniature's language: seeded, offline, in milliseconds.

The weights are random, so a reply means nothing; it hangs on every token of the prompt and on every image, though.
What a detector sees is set by hand: `says` for the safety head, `truths` for the oracle.
"""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast

from llava_patch.processor import make_room
from safevlm import defenses
from safevlm.defenses import Policy
from safevlm.engine import Engine, OnError, setting_of
from safevlm.miniature import drawing, words
from safevlm.miniature.build import PATCH, make_processor
from safevlm.miniature.world import sample_scene
from safevlm.model.loading import Loaded
from safevlm.model.safe_llava import SafeLlava
from safevlm.types import Generation, Request, Verdict
from tests import tiny
from tests.engine import defense_files

SHORT = Generation(max_new_tokens=6)
CPU = torch.device("cpu")
SPARE_WORDS = 4
"""Rows of the embedding that no word of the tokenizer has, as padded checkpoints have them."""
SURE = 20.0
"""A bias that no other logit of a tiny head comes near."""


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    return words.build_tokenizer()


def llava_config() -> LlavaConfig:
    """A stock config that fits the miniature's images and words."""
    config = tiny.stock_config(image_size=drawing.SIZE, patch=PATCH)
    config.text_config.vocab_size = len(tokenizer()) + SPARE_WORDS
    config.text_config.max_position_embeddings = 512
    return config


def model(says: tuple[str, str] | None = None, **safety: Any) -> SafeLlava:
    """A random SafeLlava, the caller's own; `safety` overrides `tiny.SAFETY`, `says` is as in `engine`."""
    return copy.deepcopy(_shared(says, json.dumps(safety, sort_keys=True)))


@functools.cache
def _shared(says: tuple[str, str] | None, safety: str) -> SafeLlava:
    made = tiny.safe_llava(llava_config(), **json.loads(safety))
    if made.safety_head is not None:
        tiny.shake(made.safety_head)
    if says is not None:
        say(made, *says)
    return made


def say(guarded: SafeLlava, level: str, category: str) -> None:
    """Makes the head see this in every image, whatever the image."""
    head, taxonomy = guarded.safety_head, guarded.config.taxonomy
    assert head is not None
    with torch.no_grad():
        for read_out, label in (
            (head.level, taxonomy.level_id(level)),
            (head.category, taxonomy.category_id(category)),
        ):
            read_out.weight.zero_()
            read_out.bias.zero_()
            read_out.bias[label] = SURE


def processor_of(guarded: SafeLlava) -> LlavaProcessor:
    return make_room(make_processor(tokenizer()), guarded.config, guarded.config.safety_config.lm_tokens)


def loaded(guarded: SafeLlava, folder: Path = Path("tiny")) -> Loaded:
    """The model as if it came from a folder."""
    return Loaded(guarded, processor_of(guarded), "full", folder, folder)


def engine(
    defense: str = "none",
    *,
    own: SafeLlava | None = None,
    says: tuple[str, str] | None = None,
    policy: Policy | None = None,
    truths: Mapping[str, Verdict] | None = None,
    on_error: OnError = "refuse",
    **safety: Any,
) -> Engine:
    """A model behind a defense; `says` is every detector's level and category for every image.

    Engines share a model for speed: a test that changes weights or leaves a hook gives its `own`.
    """
    guarded = own or _shared(says, json.dumps(safety, sort_keys=True))
    made = loaded(guarded, defense_files.folder(guarded, says))
    setting = setting_of(made, policy or Policy(guarded.config.taxonomy), truths or {}, CPU)
    return Engine(made, defenses.build(defense, setting), CPU, on_error)


def image(seed: int = 0) -> Image:
    return drawing.draw(sample_scene(random.Random(seed), "any"))


def mixed_requests() -> list[Request]:
    """Without, with one and with two images; short and long; a conversation."""
    long = "Tell me how to use what you see. " * 4
    return [
        Request("How do I use the cup?", id="words"),
        Request("What is in the picture?", (image(1),), id="one"),
        Request(long, id="long words"),
        Request(f"{long}Name the things you see.", (image(2), image(3)), id="two"),
        Request("And?", (image(4),), id="talk", history=(("What is it?", "There is a cup."),), system="Be brief."),
    ]


@dataclass
class BatchRequest:
    """What the model was asked, and what it wrote."""

    rows: list[list[int]] = field(default_factory=list)
    """Ids of every prompt, without padding."""
    new: list[Tensor] = field(default_factory=list)
    """(b, new) per call of `generate`."""

    def image_slots(self) -> list[int]:
        return [row.count(tiny.IMAGE) for row in self.rows]


@contextmanager
def watched(guarded: Engine) -> Iterator[BatchRequest]:
    """Listens to the model's `generate`."""
    asked, generate = BatchRequest(), guarded.model.generate

    def listening(**inputs: Any) -> Tensor:
        pairs = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        asked.rows += [ids[mask.bool()].tolist() for ids, mask in pairs]
        output = generate(**inputs)
        asked.new.append(output[:, inputs["input_ids"].shape[1] :])
        return output

    with generating(guarded, listening):
        yield asked


@contextmanager
def answering(guarded: Engine, text: str, breaks: Exception | None = None) -> Iterator[None]:
    """The model says `text`, token by token, and then `breaks`."""
    new = tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]

    def scripted(input_ids: Tensor, stopping_criteria: Any = (), **_: Any) -> Tensor:
        said = input_ids
        for token in new[0]:
            said = torch.cat([said, token.expand(len(said), 1)], 1)
            if all(bool(torch.as_tensor(ends(said, None)).all()) for ends in stopping_criteria):
                break
        if breaks is not None:
            raise breaks
        return said

    with generating(guarded, scripted):
        yield


@contextmanager
def generating(guarded: Engine, generate: Any) -> Iterator[None]:
    guarded.model.generate = generate
    try:
        yield
    finally:
        del guarded.model.generate


def cut_asks(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Random models do not stop by themselves; what a defense asks them ends after so many tokens."""
    ask = Engine._ask
    monkeypatch.setattr(Engine, "_ask", lambda *given, **options: ask(*given, **options | {"max_new_tokens": tokens}))


@contextmanager
def tower_calls(guarded: Engine) -> Iterator[list[int]]:
    """Images per call of the vision tower."""
    calls: list[int] = []
    handle = guarded.loaded.safe_llava.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


def same_verdict(one: Verdict, other: Verdict, tolerance: float = 1e-5) -> bool:
    """Equal but for the last bits of the probabilities."""
    tables = [
        (one.level_probabilities, other.level_probabilities),
        (one.category_probabilities, other.category_probabilities),
    ]
    return (one.level, one.category, one.source, one.error) == (
        other.level,
        other.category,
        other.source,
        other.error,
    ) and all(
        mine.keys() == theirs.keys() and all(abs(mine[name] - theirs[name]) < tolerance for name in mine)
        for mine, theirs in tables
    )
