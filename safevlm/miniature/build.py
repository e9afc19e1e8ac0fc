"""Trains the small base: CLIP on captions, then a LLaVA whose tower is that CLIP's, frozen.

The base is made with the disease that the papers treat: in words it refuses risky requests, in images it helps
with the same things. It also learns to follow safety notes, since a frozen LLM has to obey the mixer's hint.
Nothing here is a safety training of images; `tests/miniature/test_base.py` measures all four properties.

Every scene is seen anew whenever it is drawn, in another size, place, direction and light (`views`): what the base
knows must not hang on where a pixel lies.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from llava_patch import fresh, vision
from llava_patch.classes import Config, Model, Processor
from llava_patch.fresh import Clip
from safevlm.data import chat
from safevlm.data.made_by import write_result
from safevlm.engine import Engine
from safevlm.miniature import conversations, drawing, properties, words
from safevlm.miniature.conversations import Conversation
from safevlm.miniature.sight import ReadOut, Truth
from safevlm.miniature.splits import split_of
from safevlm.miniature.world import SEED, Scene, sample_scene
from safevlm.worlds.descent import Descent
from safevlm.worlds.pictures import pixels_of
from safevlm.worlds.splits import Split
from safevlm.worlds.tokens import answer_loss, pad
from safevlm.worlds.views import Camera

PATCH = 16
PLACEHOLDER = "<image>" * (drawing.SIZE // PATCH) ** 2
CAPTION_TOKENS = 40
READ_LAYER = -2  # the tower's layer that LLaVA reads
TOWER = fresh.tower_sizes(
    width=128, intermediate=512, layers=3, heads=4, image=drawing.SIZE, patch=PATCH, shared_width=64
)
"""Sizes of the vision tower."""
RUN = "run.json"
"""What made the base, beside it."""
EVALUATED: tuple[Split, ...] = ("validation", "test")
MAX_LOGIT_SCALE = 4.6052  # ln 100, CLIP's own bound


@dataclass(frozen=True)
class BuildConfig:
    """Sizes and lengths of the build; the defaults made the shipped base."""

    seed: int = SEED
    scenes: int = 20_000
    sight_steps: int = 2_500
    """Of the tower alone, on what its patches show; a step is one batch."""
    alone_steps: int = 150
    """The first of them, on scenes of one thing."""
    widening_steps: int = 300
    """After so many steps views differ from the scenes as much as they ever will."""
    sight_and_caption_steps: int = 450
    """Of both towers, on captions as well."""
    caption_steps: int = 1_500
    """On captions alone, of what lies above the layer that LLaVA reads and of the text tower."""
    clip_batch: int = 128
    clip_lr: float = 3e-3
    clip_matrix_lr: float = 8e-3
    lm_steps: int = 650
    lm_alone_steps: int = 100
    """The first of them, on scenes of one thing."""
    crowded_steps: int = 200
    """The last of them, with more crowded scenes."""
    lm_batch: int = 64
    lm_lr: float = 3e-3
    lm_matrix_lr: float = 5e-3
    cases: int = 300
    """Requests for each number that is measured at the end; 0: nothing is."""


@dataclass(frozen=True)
class Pictures:
    """The scenes that a base is built on."""

    scenes: Sequence[Scene]
    pixels: Tensor
    """(scenes, 3, SIZE, SIZE), 0-255."""

    def rows(self, least: int, most: int) -> list[int]:
        """Of the scenes with so many things."""
        return [row for row, scene in enumerate(self.scenes) if least <= len(scene.things) <= most]


def build(out: Path, config: BuildConfig) -> None:
    """Writes a stock LLaVA folder to `out`, and the CLIP it came from, text tower included, to `out/clip`."""
    if not vision.TAKES_OUTPUTS:
        raise ValueError(
            "the base is trained through transformers' own LLaVA on features; that needs transformers 5.18"
        )
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    started = time.monotonic()
    tokenizer = words.build_tokenizer()
    processor = make_processor(tokenizer)
    pictures = draw(rng, config.scenes)
    clip = train_clip(pictures, processor, config)
    llava = train_llava(pictures, clip, processor, config)
    llava.save_pretrained(out)
    processor.save_pretrained(out)
    clip.save_pretrained(out / "clip")
    tokenizer.save_pretrained(out / "clip")
    processor.image_processor.save_pretrained(out / "clip")
    seconds = time.monotonic() - started
    print(f"base written to {out} in {seconds:.0f} s")
    record: dict[str, Any] = asdict(config) | {
        "seconds": round(seconds),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if config.cases:
        record["measured"] = measured(out, config.cases)
    write_result(out / RUN, record, {"model": out, "clip": out / "clip"})


def measured(base: Path, cases: int) -> dict[str, Any]:
    """Properties and utility under changes of a base; whoever changes the build chooses by the validation split."""
    engine = Engine.load(base, defense="none", device="cpu")
    found: dict[str, Any] = {}
    for split in EVALUATED:
        found[split] = {
            "properties": properties.measure(engine, cases, split=split),
            "utility": properties.utility(engine, cases, split=split),
        }
        for name, shares in found[split].items():
            print(f"{split} {name}: " + "  ".join(f"{key} {share:.3f}" for key, share in shares.items()))
    return found


def draw(rng: random.Random, count: int) -> Pictures:
    """Scenes of the whole world but for what is to be fresh later; of words nothing is left out, they are too few."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, "any")
        if scene.word or split_of(scene) == "train":
            scenes.append(scene)
    return Pictures(scenes, pixels_of(scenes, drawing.draw))


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Processor:
    """LLaVA's processor at 64 pixels."""
    return fresh.processor_of(tokenizer, _llava_config(tokenizer), chat.CHAT_TEMPLATE)


def train_clip(pictures: Pictures, processor: Processor, config: BuildConfig) -> Clip:
    """The tower alone, both towers on captions as well, and then, on captions alone, all that LLaVA does not read.

    Telling what the patches show that LLaVA will read teaches shapes far sooner than captions do; what is risky about
    a thing stands in captions only, and takes longest. Every step sees fresh views and fresh captions.
    """
    clip = fresh.clip_of(TOWER, _text_sizes(processor.tokenizer), TOWER["projection_dim"])
    _learn_to_see(clip, pictures, processor, config)
    fresh.freeze_tower_up_to(clip, READ_LAYER)
    _learn_captions(clip, pictures, processor, config)
    return clip.requires_grad_(True).eval()


def _learn_to_see(clip: Clip, pictures: Pictures, processor: Processor, config: BuildConfig) -> None:
    truth, read_out, camera = Truth(pictures.scenes), ReadOut(TOWER["hidden_size"]), _camera(processor, config.seed + 1)
    steps = config.sight_steps + config.sight_and_caption_steps
    descent = Descent(nn.ModuleList([clip, read_out]), steps, config.clip_matrix_lr, config.clip_lr)
    rng = random.Random(config.seed + 1)
    alone, everything = pictures.rows(1, 1), range(len(pictures.scenes))
    with tqdm(range(steps), "sight", mininterval=5) as bar:
        for step in bar:
            rows = rng.sample(alone if step < config.alone_steps else everything, config.clip_batch)
            pixels, view = camera.take(pictures.pixels[rows], min(1.0, step / config.widening_steps))
            if step < config.sight_steps:
                loss = 0.0
                patches = fresh.tower_patches(clip, pixels, READ_LAYER)
            else:
                captions = _captions(processor, rng, pictures, rows)
                output = clip(**captions, pixel_values=pixels, return_loss=True, output_hidden_states=True)
                loss, patches = output.loss, fresh.clip_patches(output, READ_LAYER)
            descent.step(loss + read_out.loss(patches, truth, torch.tensor(rows), view))
            clip.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            bar.set_postfix(loss=f"{descent.last:.3f}", refresh=False)


def _learn_captions(clip: Clip, pictures: Pictures, processor: Processor, config: BuildConfig) -> None:
    descent = Descent(clip, config.caption_steps, config.clip_matrix_lr, config.clip_lr)
    camera, rng = _camera(processor, config.seed + 3), random.Random(config.seed + 3)
    everything = range(len(pictures.scenes))
    with tqdm(range(config.caption_steps), "captions", mininterval=5) as bar:
        for _ in bar:
            rows = rng.sample(everything, config.clip_batch)
            pixels, _view = camera.take(pictures.pixels[rows])
            captions = _captions(processor, rng, pictures, rows)
            descent.step(clip(**captions, pixel_values=pixels, return_loss=True).loss)
            clip.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            bar.set_postfix(loss=f"{descent.last:.3f}", refresh=False)


def _captions(
    processor: Processor, rng: random.Random, pictures: Pictures, rows: Sequence[int]
) -> dict[str, torch.Tensor]:
    return encode_captions(processor.tokenizer, [words.caption(rng, pictures.scenes[row]) for row in rows])


def encode_captions(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """Ids and mask for CLIP's text tower: `<s> caption </s>`, padded on the right."""
    return tokenizer(
        [caption + "</s>" for caption in captions],
        padding=True,
        truncation=True,
        max_length=CAPTION_TOKENS,
        padding_side="right",
        return_tensors="pt",
        return_token_type_ids=False,
    )


def train_llava(pictures: Pictures, clip: Clip, processor: Processor, config: BuildConfig) -> Model:
    """Trains projector and LLM on the world's conversations, the tower frozen."""
    llava = fresh.model_of(_llava_config(processor.tokenizer))
    fresh.take_tower(llava, clip)
    camera = _camera(processor, config.seed + 2)
    descent = Descent(llava, config.lm_steps, config.lm_matrix_lr, config.lm_lr)
    rng = random.Random(config.seed + 2)
    pool: list[list[Conversation]] = []
    with tqdm(range(config.lm_steps), "LLaVA", mininterval=5) as bar:
        for step in bar:
            pool = pool or conversations.batches(
                rng, processor, pictures.scenes, _lesson(pictures, config, step), config.lm_batch, PLACEHOLDER
            )
            descent.step(_answer_loss(llava, camera, pictures.pixels, pool.pop()))
            bar.set_postfix(loss=f"{descent.last:.3f}", refresh=False)
    return llava.requires_grad_(True).eval()


def _lesson(pictures: Pictures, config: BuildConfig, step: int) -> Sequence[int]:
    """Rows to talk about. What a name means is learned from things that stand alone.

    Reading a crowded scene in order, without saying a thing twice, is learned last and needs more of them.
    """
    if step < config.lm_alone_steps:
        return pictures.rows(1, 1)
    everything = range(len(pictures.scenes))
    if step < config.lm_steps - config.crowded_steps:
        return everything
    crowded = pictures.rows(3, 3)
    return [*everything, *crowded, *crowded]


def _answer_loss(llava: Model, camera: Camera, pixels: Tensor, batch: Sequence[Conversation]) -> Tensor:
    rows = [row for row, _ in batch if row is not None]
    projected: Sequence[Tensor] = ()
    if rows:
        seen, _ = camera.take(pixels[rows])
        projected = vision.project(llava, vision.encode_images(llava, seen).patches).unbind()
    inputs = pad([tokens for _, tokens in batch])
    labels = inputs.pop("labels")
    states = llava.model(**inputs, **vision.as_arguments(projected)).last_hidden_state
    return answer_loss(llava.get_output_embeddings(), states, labels)


def _camera(processor: Processor, seed: int) -> Camera:
    images = processor.image_processor
    return Camera(seed, images.image_mean, images.image_std)


def _text_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CAPTION_TOKENS,
        "projection_dim": TOWER["projection_dim"],
        **_ids(tokenizer),
    }


def _llava_config(tokenizer: PreTrainedTokenizerFast) -> Config:
    llm = {
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        **_ids(tokenizer),
    }
    image = tokenizer.vocab["<image>"]
    return fresh.config_of(llm, TOWER, image_token_id=image, pad_token_id=tokenizer.pad_token_id)


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
