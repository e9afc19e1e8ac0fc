"""Trains the small base: CLIP on captions, then a LLaVA whose tower is that CLIP's, frozen.

The base is made with the disease that the papers treat: in words it refuses risky requests, in images it helps
with the same things. It also learns to follow safety notes, since a frozen LLM has to obey the mixer's hint.
Nothing here is a safety training of images; `tests/miniature/test_base.py` measures all four properties.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from llava_patch import fresh, vision
from llava_patch.classes import Config, Model, Processor
from llava_patch.fresh import Clip
from safevlm.data import chat
from safevlm.data.collate import IGNORED
from safevlm.engine import Engine
from safevlm.miniature import drawing, properties, words
from safevlm.miniature.world import FRAME_SHIFT, RISKY, THINGS, Scene, sample_scene
from safevlm.taxonomy import CLEAN

PATCH = 16
PATCHES = (drawing.SIZE // PATCH) ** 2
CAPTION_TOKENS = 40
READ_LAYER = -2  # the tower's layer that LLaVA reads
TOWER = fresh.tower_sizes(
    width=128, intermediate=512, layers=3, heads=4, image=drawing.SIZE, patch=PATCH, shared_width=64
)
"""Sizes of the vision tower."""
MAX_LOGIT_SCALE = 4.6052  # ln 100, CLIP's own bound


Tokens = tuple[list[int], list[int]]
"""Ids and labels of a conversation."""
Conversation = tuple[int | None, Tokens]
"""The row of its image, if it has one, and its tokens."""


@dataclass(frozen=True)
class BuildConfig:
    """Sizes and lengths of the build; the defaults made the shipped base."""

    seed: int = 256
    scenes: int = 20_000
    clip_steps: int = 1_800
    clip_batch: int = 128
    clip_lr: float = 2e-3
    lm_steps: int = 1_600
    crowded_steps: int = 500
    lm_batch: int = 64
    lm_lr: float = 2e-3


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
    scenes = [sample_scene(rng, "any") for _ in tqdm(range(config.scenes), "scenes")]
    pixels = _pixels(processor, scenes)
    clip = train_clip(scenes, pixels, tokenizer, config)
    llava = train_llava(scenes, pixels, clip, processor, config)
    llava.save_pretrained(out)
    processor.save_pretrained(out)
    clip.save_pretrained(out / "clip")
    tokenizer.save_pretrained(out / "clip")
    print(f"base written to {out} in {time.monotonic() - started:.0f} s")
    shares = properties.measure(Engine.load(out, defense="none", device="cpu"))
    print("  ".join(f"{name} {share:.3f}" for name, share in shares.items()))


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Processor:
    """LLaVA's processor at 64 pixels."""
    return fresh.processor_of(tokenizer, _llava_config(tokenizer), chat.CHAT_TEMPLATE)


def train_clip(
    scenes: Sequence[Scene], pixels: torch.Tensor, tokenizer: PreTrainedTokenizerFast, config: BuildConfig
) -> Clip:
    """Contrastive training of both towers, with a fresh caption for a scene whenever it is drawn.

    A tag loss (which things and which frame are there, read from the patches that LLaVA will read) teaches shapes
    far sooner than captions alone; its read-out is thrown away. What is risky about a thing stands in captions only.
    """
    clip = fresh.clip_of(TOWER, _text_sizes(tokenizer), TOWER["projection_dim"])
    tags = _tags(scenes)
    tagger = nn.Sequential(nn.LayerNorm(TOWER["hidden_size"]), nn.Linear(TOWER["hidden_size"], tags.shape[1]))
    trained = nn.ModuleList([clip, tagger])
    optimizer, schedule = _optimizer(trained.parameters(), config.clip_lr, config.clip_steps)
    rng = random.Random(config.seed + 1)
    alone = [row for row, scene in enumerate(scenes) if len(scene.things) == 1]
    with tqdm(range(config.clip_steps), "CLIP") as bar:
        for step in bar:
            # what a name means is learned from things that stand alone; then come the crowded scenes
            rows = rng.sample(alone if step < config.clip_steps // 3 else range(len(scenes)), config.clip_batch)
            text = encode_captions(tokenizer, [words.caption(rng, scenes[row]) for row in rows])
            output = clip(**text, pixel_values=pixels[rows], return_loss=True, output_hidden_states=True)
            patches = fresh.clip_patches(output, READ_LAYER)
            found = tagger(patches).logsumexp(1)
            loss = output.loss + F.binary_cross_entropy_with_logits(found, tags[rows], reduction="sum") / len(rows)
            _step(loss, trained, optimizer, schedule)
            clip.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return clip.eval()


def _tags(scenes: Sequence[Scene]) -> torch.Tensor:
    """(scenes, things + frames), 1 where something is in the image, drawn or written."""
    frames = [frame for frame in FRAME_SHIFT if frame != "none"]
    return torch.tensor(
        [[thing in scene.things for thing in THINGS] + [scene.frame == frame for frame in frames] for scene in scenes]
    ).float()


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


def train_llava(
    scenes: Sequence[Scene], pixels: torch.Tensor, clip: Clip, processor: Processor, config: BuildConfig
) -> Model:
    """Trains projector and LLM on the world's conversations, the tower frozen and its features computed once."""
    llava = fresh.model_of(_llava_config(processor.tokenizer))
    fresh.take_tower(llava, clip)
    features = _patch_features(llava, pixels)
    everything = range(len(scenes))
    crowded = [row for row in everything if len(scenes[row].things) > 2]
    # reading a crowded scene in order, without saying a thing twice, is learned last and needs more of them
    lessons = ((everything, config.lm_steps), ([*everything, *crowded, *crowded], config.crowded_steps))
    for number, (rows, steps) in enumerate(lessons):
        _teach(llava, processor, scenes, features, rows, config, steps, config.seed + 2 + number)
    return llava.requires_grad_(True).eval()


def _teach(
    llava: Model,
    processor: Processor,
    scenes: Sequence[Scene],
    features: torch.Tensor,
    rows: Sequence[int],
    config: BuildConfig,
    steps: int,
    seed: int,
) -> None:
    """Trains on conversations about the scenes of these rows, and about words."""
    trained = [parameter for parameter in llava.parameters() if parameter.requires_grad]
    optimizer, schedule = _optimizer(trained, config.lm_lr, steps)
    rng = random.Random(seed)
    pool: list[list[Conversation]] = []
    with tqdm(range(steps), "LLaVA") as bar:
        for _ in bar:
            pool = pool or _batches(rng, processor, scenes, rows, config.lm_batch)
            batch = pool.pop()
            images = [row for row, _ in batch if row is not None]
            projected = vision.project(llava, features[images]).unbind() if images else ()
            loss = llava(**_pad([tokens for _, tokens in batch]), **vision.as_arguments(projected)).loss
            _step(loss, llava, optimizer, schedule)
            bar.set_postfix(loss=f"{loss.item():.3f}")


def _batches(
    rng: random.Random, processor: Processor, scenes: Sequence[Scene], rows: Sequence[int], size: int
) -> list[list[Conversation]]:
    """Eight batches, sorted by length before they are cut so that little is padding, in random order."""
    made = [_conversation(rng, scenes, rows) for _ in range(8 * size)]
    tokens = _tokenize(processor, [messages for _, messages in made])
    paired = sorted(zip([row for row, _ in made], tokens, strict=True), key=lambda pair: len(pair[1][0]))
    batches = [paired[start : start + size] for start in range(0, len(paired), size)]
    rng.shuffle(batches)
    return batches


def _conversation(
    rng: random.Random, scenes: Sequence[Scene], rows: Sequence[int]
) -> tuple[int | None, list[chat.Message]]:
    """One training conversation and the row of its image, if it has one."""
    if rng.random() < 0.2:
        return None, _about_words(rng)
    row = rng.choice(rows)
    return row, _about_image(rng, scenes[row])


def _about_words(rng: random.Random) -> list[chat.Message]:
    thing = rng.choice(THINGS if rng.random() < 0.7 else RISKY)
    if rng.random() < 0.25:
        return [chat.user(rng.choice(words.ABOUT_TEXT).format(name=thing.name)), chat.assistant(words.about(thing))]
    question = rng.choice(words.USE_TEXT).format(name=thing.name)
    plain = words.steps([thing]) if thing.category == CLEAN else words.refuse(thing.category)
    return _with_note(rng, question, plain, images=0)


def _about_image(rng: random.Random, scene: Scene) -> list[chat.Message]:
    if rng.random() < 0.5:
        return _with_note(rng, rng.choice(words.DESCRIBE), words.describe(scene.things), images=1)
    return _with_note(rng, rng.choice(words.USE_IMAGE), words.steps(scene.things), images=1)


def _with_note(rng: random.Random, question: str, plain: str, images: int) -> list[chat.Message]:
    """The plain answer; or, after a safety note, what the note asks for; or the plain one after an empty aside."""
    draw = rng.random()
    if draw < 0.3:
        level, category = rng.choice((1, 2, 3)), rng.choice(list(words.RISKY_CATEGORIES))
        answer = words.careful(category) if level == 1 else words.refuse(category)
        return [chat.user(f"{question}\n{words.note(rng, level, category)}", images), chat.assistant(answer)]
    if draw < 0.4:
        question = f"{question}\n{rng.choice(words.ASIDES)}"
    return [chat.user(question, images), chat.assistant(plain)]


def _tokenize(processor: Processor, dialogues: Sequence[list[chat.Message]]) -> list[Tokens]:
    """Ids and labels per dialogue; labels are the answer, found by character offsets of the template's mark."""
    rows = []
    for messages in dialogues:
        text = chat.dialogue_text(processor, messages).replace("<image>", "<image>" * PATCHES)
        answer = f" {messages[-1]['content'][0]['text']}</s>"
        encoded = processor.tokenizer(text, return_offsets_mapping=True)
        border = len(text) - len(answer)
        ids = encoded["input_ids"]
        labels = [i if end > border else IGNORED for i, (_, end) in zip(ids, encoded["offset_mapping"], strict=True)]
        rows.append((ids, labels))
    return rows


def _pad(rows: Sequence[Tokens]) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[0] * (longest - len(i)) + i for i, _ in rows])
    labels = torch.tensor([[IGNORED] * (longest - len(row)) + row for _, row in rows])
    mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i, _ in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@torch.no_grad()
def _patch_features(llava: Model, pixels: torch.Tensor) -> torch.Tensor:
    """(scenes, patches, width) of the layer that LLaVA reads."""
    return torch.cat([vision.encode_images(llava, batch).patches for batch in tqdm(pixels.split(512), "features")])


def _pixels(processor: Processor, scenes: Sequence[Scene]) -> torch.Tensor:
    chunks = [scenes[start : start + 500] for start in range(0, len(scenes), 500)]
    drawn = ([drawing.draw(scene) for scene in chunk] for chunk in tqdm(chunks, "images"))
    return torch.cat([processor.image_processor(images, return_tensors="pt")["pixel_values"] for images in drawn])


def _step(loss: torch.Tensor, model: torch.nn.Module, optimizer: AdamW, schedule: OneCycleLR) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}; lower the learning rate")
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _optimizer(parameters: Iterable[nn.Parameter], lr: float, steps: int) -> tuple[AdamW, OneCycleLR]:
    optimizer = AdamW(parameters, lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.08)
    return optimizer, schedule


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
