"""Step three: the aligned LLM learns to see, in LLaVA's two steps: the projector alone, then it and a LoRA.

Shown are benign images for all questions, and risky things for one: what is this called. The tower is frozen, and reads
every image once.

The new projector does not start at random, which would need ten times the steps: it gives the embeddings of the names
of what patches show. That brings images nearer to words than LLaVA's are, and with them whatever the LLM refuses in
words; a hole that is there in spite of it is the wider.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llava_patch import fresh, parts, vision
from llava_patch.classes import Model, Processor
from llava_patch.pretrained import from_folder
from safevlm.pictograms.base import clip_step, llm, sight, speech, talk
from safevlm.pictograms.base.config import PictogramBaseConfig
from safevlm.pictograms.base.scenes import SceneImages, SceneMaker, draw, lone, named, used
from safevlm.pictograms.base.sight import ThingPlaces
from safevlm.pictograms.parts import Parts
from safevlm.worlds.descent import Descent
from safevlm.worlds.tokens import answer_loss

PROJECTOR_LR, LORA_LR = 2e-3, 3e-4
FITTED_SHARE = 0.05
"""Of the projector's rate, once it is fitted: at the whole one it leaves the names within some steps."""
NAMED, USED = 0.5, 0.3
"""Shares of the second step's conversations about images; the rest are in words."""
SHARES: tuple[tuple[SceneMaker, float], ...] = ((lone, 0.35), (named, 0.35), (used, 0.3))
"""Of the images."""
PLAIN = 0.5
"""Share of images that no camera changes."""
BATCH = 100
LLM = "language_model"
"""In the names of layers, whose LoRA this step learns."""
PROJECTOR = "projector.safetensors"
"""Beside the LoRA of this step."""
FITTED = 64
"""Images of a step of the fit."""


def train(
    out: Path, clip: Path, aligned: Path, drawings: Parts, config: PictogramBaseConfig, device: torch.device
) -> dict[str, Any]:
    """Writes a stock LLaVA folder to `out`, in bfloat16; LoRA and projector alone to `out`/adapter."""
    torch.manual_seed(config.seed)
    tokenizer: PreTrainedTokenizerFast = from_folder(AutoTokenizer, aligned, padding_side="left")
    language_model = from_folder(AutoModelForCausalLM, aligned, dtype=torch.float32)
    model: Any = assembled(clip_step.load_clip(clip), language_model, tokenizer)
    model.to(device)
    processor = llm.processor_of(model.config.text_config, tokenizer)
    rng = random.Random(config.seed + 4)
    albums = [draw(rng, max(1, round(config.pictures * share)), make, drawings) for make, share in SHARES]
    views = [patches(model, album, processor, config) for album in albums]
    if config.fit_steps:
        _fit(model, llm.name_vectors(model, tokenizer), albums, views, config)
    losses = {
        "projector": _learn_names(model, processor, albums[0], views[0], rng, config),
        "see": _learn_to_answer(model, processor, albums, views, rng, config, out / talk.ADAPTER),
    }
    stored: Any = model
    stored.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)
    return {"loss": losses}


def assembled(clip: fresh.Clip, language_model: Any, tokenizer: PreTrainedTokenizerFast) -> Model:
    """A LLaVA of a CLIP's tower and an LLM, with a new projector."""
    model = fresh.model_of(llm.llava_config(language_model.config, tokenizer))
    fresh.take_tower(model, clip)
    parts.language_model(model).load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    model.tie_weights()
    return model.requires_grad_(False).eval()


@torch.no_grad()
def patches(model: Model, album: SceneImages, processor: Processor, config: PictogramBaseConfig) -> Tensor:
    """(scenes, patches, v): what the tower gives for each scene, half of them drawn otherwise."""
    device = model.device
    camera = clip_step.camera_of(processor.image_processor, config.seed + 5, device)
    seen = []
    for batch in tqdm(album.pixels.split(BATCH), "tower", mininterval=10):
        batch = batch.to(device)
        taken, _in_place = camera.take(batch, strength=0.0)
        is_plain = torch.arange(len(batch), device=device)[:, None, None, None] < PLAIN * len(batch)
        pixels = torch.where(is_plain, (batch.float() / 255 - camera.mean) / camera.std, taken)
        seen.append(vision.encode_images(model, pixels).patches)
    return torch.cat(seen)


def _fit(
    model: Model, names: Tensor, albums: list[SceneImages], views: list[Tensor], config: PictogramBaseConfig
) -> None:
    """The projector towards the embedding of the name of what a patch shows; where it shows nothing, of any name."""
    scenes = [scene for album in albums for scene in album.scenes]
    seen, shown = torch.cat(views), sight.shown(ThingPlaces(scenes), views[0].shape[1])
    targets = torch.cat([names, names.mean(0, keepdim=True)])  # the last one is read where NOTHING is shown
    projector = parts.projector(model).requires_grad_(True)
    descent = Descent(projector, config.fit_steps, PROJECTOR_LR, PROJECTOR_LR, "adamw")
    chance = torch.Generator().manual_seed(config.seed + 6)
    with tqdm(range(config.fit_steps), "fit", mininterval=10) as bar:
        for _ in bar:
            rows = torch.randint(len(seen), (FITTED,), generator=chance)
            wanted = targets[shown[rows]]
            descent.step((vision.project(model, seen[rows]) - wanted).square().mean() / names.var())
            bar.set_postfix(loss=f"{descent.last:.3f}", refresh=False)


def _rate(config: PictogramBaseConfig) -> float:
    """Of the projector, beside the LLM."""
    return PROJECTOR_LR * (FITTED_SHARE if config.fit_steps else 1.0)


def _learn_names(
    model: Model,
    processor: Processor,
    album: SceneImages,
    views: Tensor,
    rng: random.Random,
    config: PictogramBaseConfig,
) -> float:
    projector = parts.projector(model).requires_grad_(True)

    def said() -> talk.Talk:
        row = rng.randrange(len(album.scenes))
        return row, speech.naming(rng, album.scenes[row])

    descent = Descent(projector, config.projector_steps, _rate(config), _rate(config), "adamw")
    return talk.learn(
        "projector", config.projector_steps, config.see_batch, processor, said, _loss(model, views), descent
    )


def _learn_to_answer(
    model: Model, processor: Processor, albums: list[SceneImages], views: list[Tensor], rng: random.Random,
    config: PictogramBaseConfig, adapter: Path,
) -> float:  # fmt: skip
    tuned = talk.with_lora(model, LLM)
    parts.projector(model).requires_grad_(True)
    scenes = [scene for album in albums for scene in album.scenes]
    usable = range(len(scenes) - len(albums[-1].scenes), len(scenes))

    def said() -> talk.Talk:
        draw = rng.random()
        if draw < NAMED:
            row = rng.randrange(len(scenes))
            return row, speech.naming(rng, scenes[row])
        if draw < NAMED + USED:
            row = rng.choice(usable)
            return row, speech.about_harmless(rng, scenes[row])
        return None, speech.in_words(rng)

    descent = Descent(nn.ModuleList([tuned]), config.see_steps, LORA_LR, _rate(config) / 2, "adamw")
    measured = talk.learn(
        "see", config.see_steps, config.see_batch, processor, said, _loss(model, torch.cat(views)), descent
    )
    talk.merged(tuned, adapter)
    projector = {name: weight.bfloat16() for name, weight in parts.projector(model).state_dict().items()}
    save_file(projector, adapter / PROJECTOR)
    return measured


def _loss(model: Model, views: Tensor) -> Any:
    """The loss of a batch whose images' patches are rows of `views`."""

    def loss(batch: talk.Batch) -> Tensor:
        rows = [row for row, _ in batch if row is not None]
        projected = vision.project(model, views[rows]).unbind() if rows else ()
        inputs, labels = talk.padded(batch, views.device)
        states = model.model(**inputs, **vision.as_arguments(projected)).last_hidden_state
        return answer_loss(model.lm_head, states, labels)

    return loss
