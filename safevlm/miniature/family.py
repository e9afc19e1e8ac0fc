"""A small base of another family, out of the miniature, in a few minutes.

As real models of these families are made, tower and LLM come first: here they start as the miniature's. The family's
own are what is between them, the processor, the template, and a tower without CLS that is read behind its last norm.

    see    tower and projector learn to give the image tokens that the miniature gives, and to tell what they show
    speak  the whole model learns the world's conversations in the family's template
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
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoTokenizer

from llava_patch import parts, vision
from llava_patch.classes import Model
from llava_patch.pretrained import from_folder
from safevlm.backbones import fresh, shared_pass
from safevlm.backbones.fresh import FRESH, SmallSizes
from safevlm.backbones.image_tokens import ImageTokens
from safevlm.backbones.table import BACKBONES
from safevlm.data.made_by import write_result
from safevlm.engine import Engine
from safevlm.miniature import conversations, drawing, properties
from safevlm.miniature.build import EVALUATED, RUN, Pictures, draw
from safevlm.miniature.conversations import Conversation
from safevlm.miniature.sight import ReadOut, Truth
from safevlm.miniature.world import SEED
from safevlm.worlds.descent import Descent
from safevlm.worlds.tokens import answer_loss, pad
from safevlm.worlds.views import Camera

FAMILIES = tuple(FRESH)
"""Of which a small base can be made."""
UNLIKE = 5.0
"""Weight of how unlike the miniature's an image's tokens are, beside what they are asked (`sight`)."""
JOINED = 1
"""Patches on a side that become one image token."""


@dataclass(frozen=True)
class FamilyConfig:
    """SmallSizes and lengths of the build."""

    seed: int = SEED
    scenes: int = 8_000
    sight_steps: int = 400
    """A step is one batch."""
    sight_batch: int = 128
    sight_lr: float = 3e-3
    sight_matrix_lr: float = 8e-3
    lm_steps: int = 300
    lm_batch: int = 64
    lm_lr: float = 1e-3
    lm_matrix_lr: float = 2e-3
    cases: int = 300
    """Requests for each number that is measured at the end; 0: nothing is."""


def build(out: Path, family: str, miniature: Path, config: FamilyConfig) -> None:
    """Writes a stock folder of the family to `out`. It starts from the weights of `miniature`, a folder."""
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    started = time.monotonic()
    learner = Learner(family, miniature)
    pictures = draw(rng, config.scenes)
    learner.see(pictures, config)
    learner.speak(pictures, config)
    learner.save(out)
    seconds = time.monotonic() - started
    print(f"base written to {out} in {seconds:.0f} s")
    record: dict[str, Any] = asdict(config) | {
        "family": family,
        "seconds": round(seconds),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if config.cases:
        engine = Engine.load(out, defense="none", device="cpu")
        record["properties"] = {split: properties.measure(engine, config.cases, split=split) for split in EVALUATED}
        print(record["properties"])
    write_result(out / RUN, record, {"model": out, "from": miniature})


class Learner:
    """A new model of a family, and what teaches it."""

    def __init__(self, family: str, miniature: Path) -> None:
        own = FRESH[family]
        self.family = family
        self.row = BACKBONES[family]
        self.miniature = from_folder(Model, miniature).eval().requires_grad_(False)
        self.tokenizer = from_folder(AutoTokenizer, miniature)
        self.tokenizer.add_tokens(list(own.marks), special_tokens=True)
        self.tokenizer.eos_token = own.end
        llm: Any = self.miniature.config.text_config
        text = llm.to_dict()
        text |= {"vocab_size": len(self.tokenizer), "eos_token_id": self.tokenizer.eos_token_id}
        self.sizes = SmallSizes(text, _tower_sizes(self.miniature), JOINED)
        self.model, self.processor = fresh.build(family, self.tokenizer, self.sizes)
        take_llm(self.model, self.model.get_submodule(self.row.llm), self.miniature)
        with torch.no_grad():
            own.take_tower(self.model.get_submodule(self.row.tower), parts.vision_tower(self.miniature))
        self.theirs = from_folder(AutoImageProcessor, miniature)

    def see(self, pictures: Pictures, config: FamilyConfig) -> None:
        """Tower and projector learn the image tokens of the miniature, and to tell what stands where."""
        camera, rng = self._camera(config.seed + 1), random.Random(config.seed + 1)
        truth, read_out = Truth(pictures.scenes), ReadOut(self.sizes.llm["hidden_size"])
        trained = nn.ModuleList([*(self.model.get_submodule(name) for name in self.row.seen), read_out])
        descent = Descent(trained, config.sight_steps, config.sight_matrix_lr, config.sight_lr)
        with tqdm(range(config.sight_steps), "sight", mininterval=5) as bar:
            for _ in bar:
                rows = rng.sample(range(len(pictures.scenes)), min(config.sight_batch, len(pictures.scenes)))
                pixels, view = camera.take(pictures.pixels[rows])
                tokens, wanted = torch.stack([each.tokens for each in self._look(pixels)]), self._wanted(pixels, camera)
                unlike = F.mse_loss(tokens, wanted) / wanted.var()
                descent.step(UNLIKE * unlike + read_out.loss(tokens, truth, torch.tensor(rows), view))
                bar.set_postfix(loss=f"{descent.last:.3f}", refresh=False)

    def _wanted(self, pixels: Tensor, camera: Camera) -> Tensor:
        """(b, n, d): image tokens of the miniature for pixels that are normalised as this family does it."""
        mean, std = (torch.tensor(value)[:, None, None] for value in (self.theirs.image_mean, self.theirs.image_std))
        shown = (pixels * camera.std + camera.mean - mean) / std
        return vision.project(self.miniature, vision.encode_images(self.miniature, shown).patches)

    def speak(self, pictures: Pictures, config: FamilyConfig) -> None:
        """The whole model learns the world's conversations."""
        camera, rng = self._camera(config.seed + 2), random.Random(config.seed + 2)
        descent = Descent(self.model, config.lm_steps, config.lm_matrix_lr, config.lm_lr)
        placeholder = self.row.read(self.processor, [drawing.draw(pictures.scenes[0])])[0].placeholder
        pool: list[list[Conversation]] = []
        with tqdm(range(config.lm_steps), "LLM", mininterval=5) as bar:
            for _ in bar:
                pool = pool or conversations.batches(
                    rng, self.processor, pictures.scenes, range(len(pictures.scenes)), config.lm_batch, placeholder
                )
                descent.step(self._answer_loss(camera, pictures.pixels, pool.pop()))
                bar.set_postfix(loss=f"{descent.last:.3f}", refresh=False)
        self.model.eval()

    def save(self, out: Path) -> None:
        """The folder as a user has it."""
        self.model.save_pretrained(out)
        self.processor.save_pretrained(out)

    def _answer_loss(self, camera: Camera, pixels: Tensor, batch: Sequence[Conversation]) -> Tensor:
        rows = [row for row, _ in batch if row is not None]
        tokens = self._look(camera.take(pixels[rows])[0]) if rows else ()
        inputs = pad([tokens for _, tokens in batch])
        labels = inputs.pop("labels")
        arguments = shared_pass.forward_arguments(self.row, tokens)
        states = self.model.model(**inputs, **arguments).last_hidden_state
        return answer_loss(self.model.get_output_embeddings(), states, labels)

    def _look(self, pixels: Tensor) -> Sequence[ImageTokens]:
        return shared_pass.encode(self.row, self.model, fresh.images_of(self.family, pixels)).image_tokens

    def _camera(self, seed: int) -> Camera:
        images = self.processor.image_processor
        return Camera(seed, images.image_mean, images.image_std)


def _tower_sizes(miniature: Model) -> dict[str, Any]:
    """Of the miniature's tower as far as LLaVA reads it."""
    tower: Any = miniature.config.vision_config
    theirs = tower.to_dict()
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size", "hidden_act")
    return {name: theirs[name] for name in names} | {
        "num_hidden_layers": theirs["num_hidden_layers"] + 1 + miniature.config.vision_feature_layer
    }


def take_llm(model: Any, llm: Any, source: Model) -> None:
    """Copies the LLM of `source`; embeddings of tokens that it has not stay as they are."""
    theirs: Any = parts.language_model(source)
    llm.layers.load_state_dict(theirs.layers.state_dict())
    llm.norm.load_state_dict(theirs.norm.state_dict())
    with torch.no_grad():
        for table in ("get_input_embeddings", "get_output_embeddings"):
            known = getattr(source, table)().weight
            getattr(model, table)().weight[: len(known)] = known
