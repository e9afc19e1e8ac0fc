"""Step one: a CLIP of the trained styles. The tower alone first, then, on captions, all that LLaVA does not read.

Telling what the patches show that LLaVA will read teaches shapes far sooner than captions do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from llava_patch import fresh
from llava_patch.fresh import Clip
from llava_patch.pretrained import from_folder
from safevlm.data.atomic_write import atomic_file
from safevlm.data.made_by import digest
from safevlm.pictograms.base import captions, llm, naming, steps
from safevlm.pictograms.base.config import PictogramBaseConfig
from safevlm.pictograms.base.restyle import restyle
from safevlm.pictograms.base.scenes import SceneImages, draw, shown_to_tower
from safevlm.pictograms.base.sight import NameReadOut, ThingPlaces
from safevlm.pictograms.base.sizes import PATCH, READ_LAYER, TEXT, TOWER
from safevlm.pictograms.parts import Parts
from safevlm.worlds.descent import Descent
from safevlm.worlds.views import Camera

LR, MATRIX_LR = 1.5e-3, 5e-3
GENTLE = 0.3
"""Of these rates, for a tower that can see."""
SCALE, DEGREES = (0.75, 1.12), 20.0
RESTYLED, CROWDED = 0.85, 0.6
"""Shares of the images that are drawn otherwise, and that show whatever scene, in the end."""
FIRST_STRENGTH = 0.6
"""Of all changes, from the first step on: else drawings are learned by heart, and where they lie."""
KEPT_EVERY = 200
"""Steps, after which a run that is stopped can go on."""
WIDENS = (0.2, 1.0)
"""Shares of the steps between which scenes become as crowded, and views as various, as they ever will be."""
FIRST_SCENES, FIRST_SPREAD = 400, 0.15
"""Scenes from which the first layer begins, and how much its outputs vary."""
MAX_LOGIT_SCALE = 4.6052  # ln 100, CLIP's own bound


def train(
    out: Path,
    parts: Parts,
    styles: Sequence[str],
    source: Path,
    config: PictogramBaseConfig,
    stopped: Path,
    device: torch.device,
    start: Path | None = None,
) -> dict[str, Any]:
    """Writes the CLIP of these styles to `out`; what it names right.

    `source`: the LLM, whose tokenizer it has. `stopped`: where a run that is stopped leaves what it learned. `start`:
    the CLIP of another build, with the same tokenizer, that learns on.
    """
    tokenizer = llm.load_tokenizer(source)
    images = llm.image_processor_of(tokenizer)
    torch.manual_seed(config.seed)
    pictures = draw(random.Random(config.seed), config.scenes, shown_to_tower(styles), parts)
    clip = load_clip(start) if start else _new_clip(tokenizer, pictures)
    moved: Any = clip
    moved.to(device)
    measured = {"sight_loss": learn_to_see(clip, pictures, images, config, stopped, digest(start) if start else "")}
    fresh.freeze_tower_up_to(clip, READ_LAYER)
    _learn_captions(clip, pictures, tokenizer, images, config)
    clip.requires_grad_(True).eval()
    named = naming.by_clip(clip, tokenizer, images, parts, config)
    clip.to(torch.bfloat16).save_pretrained(out)  # type: ignore[arg-type]
    tokenizer.save_pretrained(out)
    images.save_pretrained(out)
    return {**measured, **named}


def load_clip(folder: Path) -> Clip:
    """In float32, whatever it is stored in."""
    clip: Clip = from_folder(Clip, folder, dtype=torch.float32)
    return clip


def camera_of(images: Any, seed: int, device: torch.device, share: float = RESTYLED) -> Camera:
    """Views of scenes, that share of them drawn otherwise."""

    def restyle_some(taken: Tensor, chance: torch.Generator) -> Tensor:
        rows = (torch.rand(len(taken), generator=chance, device=device) < share).nonzero()[:, 0]
        return taken.index_copy(0, rows, restyle(taken[rows], chance))

    return Camera(seed, images.image_mean, images.image_std, SCALE, DEGREES, restyle_some, device)


def _new_clip(tokenizer: PreTrainedTokenizerFast, pictures: SceneImages) -> Clip:
    clip = fresh.clip_of(TOWER, _text_sizes(tokenizer), TOWER["projection_dim"])
    _set_patches(clip, pictures)
    return clip


@torch.no_grad()
def _set_patches(clip: Clip, pictures: SceneImages) -> None:
    """The first layer begins with what patches have most of (their principal components) and where they are."""
    pixels = pictures.pixels[:FIRST_SCENES].float() / 255
    every = F.unfold(pixels - pixels.mean((2, 3), keepdim=True), PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    _left, spread, components = torch.linalg.svd(every - every.mean(0), full_matrices=False)
    weight: Any = clip.vision_model.embeddings.patch_embedding.weight
    kept = min(len(weight), len(components))
    spread = (spread[:kept] / len(every) ** 0.5).clamp(min=1e-3)
    weight[:kept] = (FIRST_SPREAD * components[:kept] / spread[:, None]).view(kept, *weight.shape[1:])
    places: Any = clip.vision_model.embeddings.position_embedding.weight
    places[1:] = FIRST_SPREAD * _waves(len(places) - 1, places.shape[1])


def _waves(patches: int, width: int) -> Tensor:
    """(patches, width): sines and cosines of a patch's row and column, of width / 4 lengths each."""
    side = round(patches**0.5)
    line = torch.arange(side).float()
    angles = line[:, None] * math.pi / side ** (torch.arange(width // 4) / (width // 4))
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], 1)


def learn_to_see(
    clip: Clip, pictures: SceneImages, images: Any, config: PictogramBaseConfig, stopped: Path, start_digest: str = ""
) -> float:
    """The loss at the end. First things that stand alone, as they are drawn; little by little more at once, restyled.

    All at once, what was learned at first is lost again. `stopped`: a file from which a stopped run goes on.
    `start_digest`: of the CLIP that learns on; its tower can see, and learns from everything, at smaller rates.
    """
    device = clip.device
    truth, read_out = ThingPlaces(pictures.scenes).to(device), NameReadOut(TOWER["hidden_size"]).to(device)
    every = pictures.pixels.to(device)
    total, everything = config.sight_steps, range(len(pictures.scenes))
    settings = {**asdict(config), **({"digest of start": start_digest} if start_digest else {})}
    alone = [row for row in everything if len(pictures.scenes[row].things) == 1]
    learned = nn.ModuleList([clip.vision_model, read_out])
    with fresh.tower_read_at(clip, READ_LAYER):
        share = GENTLE if start_digest else 1.0
        descent = Descent(learned, total, share * MATRIX_LR, share * LR, "muon_float32")
        first = _go_on(stopped, learned, descent, settings)
        with tqdm(range(first, total), "sight", mininterval=10) as bar:
            for step in bar:
                rng = random.Random(f"{config.seed} {step}")
                widened = 1.0 if start_digest else _widened(step / total)
                crowded = round(widened * CROWDED * config.clip_batch)
                chosen = rng.choices(everything, k=crowded) + rng.choices(alone, k=config.clip_batch - crowded)
                rows = torch.tensor(chosen, device=device)
                mirrored = truth.turns[rows] & torch.tensor([rng.random() < 0.5 for _ in chosen], device=device)
                strength = FIRST_STRENGTH + (1 - FIRST_STRENGTH) * widened
                camera = camera_of(images, config.seed * total + step, device, RESTYLED * strength)
                pixels, view = camera.take(_mirrored(every[rows], mirrored), strength)
                descent.step(read_out.loss(fresh.tower_patches(clip, pixels, -1), truth, rows, view, mirrored))
                bar.set_postfix(loss=f"{descent.recent:.3f}", refresh=False)
                if (step + 1) % KEPT_EVERY == 0:
                    _keep(stopped, step + 1, learned, descent, settings)
    stopped.unlink(missing_ok=True)
    return round(descent.recent, 4)


def _widened(done: float) -> float:
    """How crowded scenes are, and how various views, of all that they ever will be, at a share of the steps."""
    return min(1.0, max(0.0, (done - WIDENS[0]) / (WIDENS[1] - WIDENS[0])))


def _keep(file: Path, done: int, learned: nn.Module, descent: Descent, settings: Mapping[str, Any]) -> None:
    with atomic_file(file) as partial:
        torch.save(
            {"settings": settings, "done": done, "weights": learned.state_dict(), "descent": descent.state()},
            partial,
        )


def _go_on(file: Path, learned: nn.Module, descent: Descent, settings: Mapping[str, Any]) -> int:
    """Steps that are done. ValueError: with other settings."""
    if not file.is_file():
        return 0
    kept = torch.load(file, map_location="cpu", weights_only=True)
    steps.check_same(file, kept["settings"], settings)
    learned.load_state_dict(kept["weights"])
    descent.go_on(kept["descent"])
    done: int = kept["done"]
    return done


def _learn_captions(
    clip: Clip, pictures: SceneImages, tokenizer: PreTrainedTokenizerFast, images: Any, config: PictogramBaseConfig
) -> None:
    descent = Descent(clip, config.caption_steps, MATRIX_LR, LR, "muon_float32")
    camera, rng = camera_of(images, config.seed + 2, clip.device), random.Random(config.seed + 2)
    with tqdm(range(config.caption_steps), "captions", mininterval=10) as bar:
        for _ in bar:
            rows = rng.sample(range(len(pictures.scenes)), config.clip_batch)
            pixels, _view = camera.take(pictures.pixels[rows].to(clip.device))
            told = [captions.caption(rng, pictures.scenes[row]) for row in rows]
            said = captions.encode(tokenizer, told, clip.device)
            descent.step(clip(**said, pixel_values=pixels, return_loss=True).loss)
            clip.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            bar.set_postfix(loss=f"{descent.last:.3f}", refresh=False)


def _mirrored(pixels: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)


def _text_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**TEXT, "vocab_size": len(tokenizer), **ids}
