"""The checks of a checkpoint, alone (`Subject`) or as the start of a run (`safevlm.check.plan.Plan`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from transformers import GenerationConfig

from llava_patch import fields
from llava_patch import processor as processors
from llava_patch.classes import Processor
from llava_patch.pretrained import from_folder
from safevlm.backbones import config_facts
from safevlm.check import checkpoint as checkpoints
from safevlm.check.checkpoint import Checkpoint
from safevlm.check.findings import Finding, listed, size
from safevlm.check.lazy_parts import lazy_part
from safevlm.data import chat, chat_messages
from safevlm.data.pixels import read_images, slot_id, slot_texts
from safevlm.defenses.policy import policy_from
from safevlm.model import families, loading
from safevlm.taxonomy import Taxonomy

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
GENERATION = "generation_config.json"
TRIALS = ((640, 480), (336, 336), (1024, 768))
"""Images whose tokens are counted, where images differ in them: width and height."""
BEFORE_CROP = (3, 2)
"""Sides of the trial image, in images' sides: no square, so that padding and cropping show."""


class Examined(Protocol):
    """What a check of a checkpoint needs."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def taxonomy(self) -> Taxonomy: ...
    @property
    def skeleton(self) -> Any: ...
    @property
    def processor(self) -> Processor: ...


@dataclass
class Subject:
    """A checkpoint that nobody is going to train."""

    path: Path
    base: str | None = None

    @lazy_part
    def checkpoint(self) -> Checkpoint:
        return checkpoints.of_folder(self.path, self.base)

    @lazy_part
    def taxonomy(self) -> Taxonomy:
        return self.checkpoint.config.taxonomy

    @lazy_part
    def skeleton(self) -> Any:
        return checkpoints.skeleton(self.checkpoint.config)

    @lazy_part
    def processor(self) -> Processor:
        return fitting_processor(self.checkpoint, self.skeleton.slots)


def kind(subject: Examined) -> Iterator[Finding]:
    found = subject.checkpoint
    safety = found.config.safety_config
    parts = [
        f"base: {found.weights}" * (found.weights != found.folder),
        f"safety modules: projector {safety.projector}, {safety.lm_tokens} LM tokens, {safety.head_tokens} head tokens",
        f"categories: {', '.join(subject.taxonomy.category_names)}",
        f"levels: {', '.join(subject.taxonomy.level_names)}",
    ]
    yield Finding(True, f"model: {found.folder} ({found.kind})", "\n".join(line for line in parts if line))


def policy(subject: Examined) -> Iterator[Finding]:
    """The checkpoint's own policy; a recipe's is checked with its taxonomy."""
    table = subject.checkpoint.config.policy
    policy_from(table or {}, subject.taxonomy, subject.checkpoint.folder / "config.json")
    yield Finding(True, f"policy: {'its own' if table else 'the default one'}")


def weights(subject: Examined) -> Iterator[Finding]:
    """Names and shapes of all weights, from the headers of their files."""
    problems = list(checkpoints.incomplete(subject.checkpoint))
    if problems:
        yield Finding(False, "weights: the checkpoint is incomplete", listed(problems))
        return
    found = subject.checkpoint
    loading.check_base(found.folder, found.kind, found.weights)
    sizes = checkpoints.stored_bytes(found.weights)
    stored = ", ".join(f"{size(amount)} {name}" for name, amount in sizes.items())
    count = sum(weight.numel() for weight in checkpoints.skeleton(subject.checkpoint.config).parameters())
    yield Finding(True, f"weights: complete, {count:,} parameters; on the disk {stored}")


def processor(subject: Examined) -> Iterator[Finding]:
    """A trial image has been encoded: ids, slots and pixels are what the model takes."""
    made, config = subject.processor, subject.checkpoint.config
    template = "in the folder" if _has_template(subject.checkpoint.folder) else "SafeVLM's; the folder has none"
    if families.backbone_of(config) is not None:
        yield Finding(True, f"processor: {_tried(made)}", f"{type(made).__name__}\nchat template: {template}")
        return
    pads = getattr(made.image_processor, "do_pad", False)
    crops = getattr(made.image_processor, "do_center_crop", False)
    how = "pads to a square" if pads else "crops the middle" if crops else "squeezes"
    counted = f"{processors.describe(made)}; {type(made.image_processor).__name__} {how}"
    side = fields.image_size(config)
    title = f"processor: {subject.skeleton.slots} image tokens and 3 x {side} x {side} pixels per image"
    yield Finding(True, title, f"{counted}\nchat template: {template}")


def _tried(made: Any) -> str:
    """How many tokens some images take, where images differ in them."""
    counts = [(width, height, _slots(made, width, height)) for width, height in TRIALS]
    return ", ".join(f"{slots} tokens for {width} x {height} pixels" for width, height, slots in counts)


def _slots(made: Any, width: int, height: int) -> int:
    read = read_images(made, [[Image.new("RGB", (width, height))]])
    return made.tokenizer(slot_texts(made, read, 0)[0])["input_ids"].count(slot_id(made))


def fitting_processor(found: Checkpoint, slots: int | None) -> Processor:
    """The folder's processor. ValueError: it makes other ids, slots or pixels than the model takes."""
    made = loading.load_processor(found.folder, found.config)
    problems = list(_differences(made, found.config, slots))
    if problems:
        raise ValueError(f"{found.folder} does not fit its model: {'; '.join(problems)}")
    return made


def _differences(made: Processor, config: Any, slots: int | None) -> Iterator[str]:
    image_token = config_facts.image_token_id(config)
    if slot_id(made) != image_token:
        yield f"{made.image_token} is {slot_id(made)} for the tokenizer, {image_token} in config.json"
    if made.tokenizer.pad_token_id is None:
        yield "the tokenizer has no pad token; set pad_token in tokenizer_config.json"
        return
    if slots is None:
        if not _slots(made, *TRIALS[0]):
            yield "an image becomes no image token"
        return
    side = fields.image_size(config)
    image = Image.new("RGB", (BEFORE_CROP[0] * side, BEFORE_CROP[1] * side))
    encoded = chat.encode_dialogues(
        made, [[chat_messages.user("What is this?", 1), chat_messages.assistant("A wall.")]], [[image]]
    )
    pixels = tuple(encoded["pixel_values"].shape)
    found = int((encoded["input_ids"] == made.image_token_id).sum())
    if pixels != (1, 3, side, side):
        yield f"an image becomes {pixels}, the tower takes (1, 3, {side}, {side}); mend size and crop_size"
    if found != slots:
        yield f"an image becomes {found} image tokens, the model takes {slots}"


def _has_template(folder: Path) -> bool:
    return (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file()


def generation(subject: Examined) -> Iterator[Finding]:
    """transformers refuses to save contradicting options, when training is over (base facts §1, row 11)."""
    folder = subject.checkpoint.weights
    if not (folder / GENERATION).is_file():
        yield Finding(True, "generation config: none; the default one")
        return
    config = from_folder(GenerationConfig, folder)
    if not config.do_sample:
        config.temperature = config.top_p = None  # as `safevlm merge` does
    try:
        config.validate(strict=True)
    except ValueError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        fix = f"generation config: {folder / GENERATION} cannot be saved again; remove these options"
        yield Finding(False, fix, "\n".join(lines))
        return
    yield Finding(True, "generation config: can be saved again")


def small_files(folder: Path) -> int:
    """Bytes of everything beside the weights, which every checkpoint has a copy of."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file() and file.suffix not in WEIGHTS)


CHECKS: tuple[tuple[str, Callable[[Subject], Iterable[Finding]]], ...] = (
    ("model", kind),
    ("policy", policy),
    ("weights", weights),
    ("processor", processor),
    ("generation config", generation),
)
