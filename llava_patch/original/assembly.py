"""All weights of a converted LLaVA: whether they are complete, what changes on the way, and the writing of them.

One tensor is in memory at a time, and the shard being filled. The trap: new rows of the vocabulary are the mean of the
old ones, not random, so that a conversion is the same every time; rows beyond the tokenizer's last token only round the
number up to a multiple of 64, as llava-hf folders do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from llava_patch import fields, processor, weights
from llava_patch.classes import Config
from llava_patch.original import config as configs
from llava_patch.original import lora, names, vocabulary
from llava_patch.original.sources import Places, Sources, fetch_tower

ROWS_MULTIPLE = 64


@dataclass(frozen=True)
class _Constant:
    """A weight that lies in no file."""

    tensor: Tensor

    def read(self, name: str) -> Tensor:
        return self.tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


def set_vocabulary(config: Config, words: PreTrainedTokenizerFast, places: Places, where: Path) -> int:
    """Puts the token ids and the new number of rows into the config → the number of rows on disk."""
    if names.EMBEDDINGS not in places:
        raise ValueError(f"{where}: model.embed_tokens.weight is missing; the checkpoint is incomplete")
    stored, name = places[names.EMBEDDINGS]
    rows, image, pad = stored.shape(name)[0], words.convert_tokens_to_ids(vocabulary.IMAGE), words.pad_token_id
    known = len(words) - len({image, pad})
    if known > rows:
        raise ValueError(f"{where}: the tokenizer has {known} tokens, the model rows for {rows}; is --tokenizer right?")
    text = fields.text(config)
    text.vocab_size = -(-max(len(words), rows) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    text.bos_token_id, text.eos_token_id = words.bos_token_id, words.eos_token_id
    text.pad_token_id = config.pad_token_id = pad
    config.image_token_id = image
    config.image_seq_length = processor.slots_per_image(config, 0)
    return rows


def with_identity(sources: Sources, config: Config) -> Places:
    """All weights; a projector of one layer gets an identity behind it, since transformers' always has two."""
    places, width = sources.places(), fields.hidden_size(config)
    if configs.layers_of_projector(sources.table, sources.folder) == 1:
        second = {"weight": torch.eye(width), "bias": torch.zeros(width)}
        already = [name for name in places if name.startswith(names.PROJECTOR_SECOND)]
        if already:
            raise ValueError(f"{sources.folder}: weights of a second projector layer, but mm_projector_type has one")
        for name, tensor in second.items():
            places[names.PROJECTOR_SECOND + name] = (_Constant(tensor), name)
    return places


def check_names(places: Places, config: Config, rows: int, sources: Sources) -> None:
    """ValueError unless exactly the model's weights are there, each in its shape."""
    wanted = names.expected(config)
    for name in (names.EMBEDDINGS, names.LM_HEAD):
        wanted[name] = (rows, *wanted[name][1:])
    missing = sorted(set(wanted) - set(places))
    if missing:
        tower = all(name.startswith(names.TOWER) for name in missing)
        fix = fetch_tower(sources) if tower else "the checkpoint is incomplete"
        raise ValueError(f"{sources.folder}: {len(missing)} weights missing ({', '.join(missing[:3])}); {fix}")
    unexpected = sorted(set(places) - set(wanted))
    if unexpected:
        raise ValueError(
            f"{sources.folder}: {len(unexpected)} weights unexpected ({', '.join(unexpected[:3])}); "
            "config.json describes another model"
        )
    for name, (stored, own) in places.items():
        if stored.shape(own) != wanted[name]:
            raise ValueError(
                f"{sources.folder}: {name} is {stored.shape(own)}, config.json says {wanted[name]}; "
                "base, vision tower and checkpoint must belong together"
            )


def dtype_of(places: Places) -> torch.dtype:
    """The LLM's own type on disk."""
    stored, name = places[names.EMBEDDINGS]
    return stored.read(name).dtype


def write(folder: Path, sources: Sources, places: Places, config: Config, dtype: torch.dtype, shard_bytes: int) -> None:
    """Writes all weights into an existing folder, in this type. ValueError: one is not finite in it."""
    change = _changes(sources, places, fields.vocabulary_size(config))
    writer = weights.Writer(folder, shard_bytes)
    for name, (stored, own) in tqdm(places.items(), desc="weights", disable=None):
        tensor = change[name](stored.read(own)) if name in change else stored.read(own)
        cast = tensor.to(dtype)
        if not torch.isfinite(cast).all():
            raise ValueError(f"{sources.folder}: {name} is not finite in {dtype}; try --dtype bfloat16 or float32")
        writer.add(name, cast.clone() if cast is tensor else cast)  # an mmapped tensor would keep its whole file open
    writer.close()


def _changes(sources: Sources, places: Places, rows: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name → what is done to a weight on its way."""
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    adapter = sources.adapter
    if adapter is not None:
        for target, own in names.translate(list(adapter.pairs), sources.folder).items():
            if target not in places:
                raise ValueError(f"{sources.folder}: the LoRA is for {own!r}, which the base does not have")
            made[target] = _folder(adapter, own)
    for name in (names.EMBEDDINGS, names.LM_HEAD):
        made[name] = _grower(rows, made.get(name))
    return made


def _folder(adapter: lora.Lora, own: str) -> Callable[[Tensor], Tensor]:
    return lambda weight: adapter.fold(own, weight)


def _grower(rows: int, first: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    return lambda weight: grow(first(weight) if first else weight, rows)


def grow(weight: Tensor, rows: int) -> Tensor:
    """(v, d) → (rows, d): new rows are the mean of the old ones."""
    new = rows - len(weight)
    return torch.cat([weight, weight.float().mean(0, keepdim=True).to(weight.dtype).expand(new, -1)])
