"""Original LLaVA-v1.5 folders → the llava-hf layout that everything else here reads (`safevlm convert`).

    SRC (full, projector, LoRA) ─┐
    --base (Vicuna, LLaVA) ──────┼─▶ names ─▶ LoRA folded (float32) ─▶ rows for <image>, <pad> ─▶ shards of 5 GB
    --vision-tower (CLIP) ───────┘

What a folder is, is read from its contents. One tensor is in memory at a time, and the shard being filled. Nothing
appears under `--out` before every weight has been found, written, read again and checked.

The trap: new rows of the vocabulary are the mean of the old ones, not random, so that a conversion is the same every
time; rows beyond the tokenizer's last token only round the number up to a multiple of 64, as llava-hf folders do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from llava_patch import lora, original, processor, vocabulary, weights
from safevlm.data import atomic_write, chat
from safevlm.model import loading
from safevlm.types import Request

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
ROWS_MULTIPLE = 64
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
GENERATION = ("bos_token_id", "eos_token_id", "do_sample", "num_beams", "repetition_penalty", *SAMPLING)
"""What of a generation_config.json is kept; the sampling fields only where it samples (transformers refuses them)."""
REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
GET_CLIP = "hf download {name} --local-dir DIR"


@dataclass(frozen=True)
class Report:
    """What was converted."""

    kind: original.Kind
    weights: int
    folded: int
    """Weights with a LoRA on them."""
    vocabulary: int
    """Rows, new ones included."""
    pads_to_square: bool
    dtype: str


@dataclass(frozen=True)
class Sources:
    """Where every weight comes from, and the tables of the folders involved."""

    kind: original.Kind
    folder: Path
    table: Mapping[str, Any]
    """The LLaVA's config.json."""
    text: Mapping[str, Any]
    """The config.json that describes the LLM."""
    text_folder: Path
    tower: Path | None
    layers: tuple[tuple[weights.Weights, Mapping[str, str]], ...]
    """Weights and {name on disk: their own name}; the later overrides the earlier."""
    adapter: lora.Lora | None

    def places(self) -> dict[str, tuple[weights.Weights, str]]:
        return {target: (stored, name) for stored, names in self.layers for target, name in names.items()}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    vision_tower: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = weights.SHARD_BYTES,
) -> Report:
    """Converts a folder; ValueError, naming file, flag and fix: something is missing, left over or inexpressible."""
    folder, target = Path(source), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--out {target}: exists already and is not empty; remove it or choose another folder")
    sources = _sources(folder, _optional(base), _optional(vision_tower))
    where = folder / "config.json"
    original.refuse_markers(sources.table, where)
    padded = original.pads_to_square(sources.table, where)
    words = vocabulary.from_folder(_tokenizer_folder(sources, _optional(tokenizer)))
    config = original.config_of(sources.table, sources.text, _vision_config(sources), where)
    places = _with_identity(sources, config)
    rows = _set_vocabulary(config, words, places, sources.text_folder)
    _check_names(places, config, rows, sources)
    wanted = DTYPES[dtype] if dtype else _dtype(places)
    config.dtype = wanted
    made = _processor(sources, config, words, padded)
    with atomic_write.atomic_folder(target) as made_in:
        _write_weights(made_in, sources, places, config, wanted, shard_bytes)
        config.architectures = ["LlavaForConditionalGeneration"]
        config.save_pretrained(made_in)
        made.save_pretrained(made_in)
        _generation(sources, config).save_pretrained(made_in)
        _check(made_in, wanted)
    folded = len(sources.adapter.pairs) if sources.adapter else 0
    name = str(wanted).removeprefix("torch.")
    return Report(sources.kind, len(places), folded, config.text_config.vocab_size, padded, name)


def describe(report: Report, out: str | Path) -> str:
    """One line for people."""
    folded = f", LoRA folded into {report.folded} of them" if report.folded else ""
    images = "padded to a square" if report.pads_to_square else "cropped at the centre"
    return (
        f"converted ({report.kind}) into {out}: {report.weights} weights in {report.dtype}{folded}; vocabulary of "
        f"{report.vocabulary} rows; images {images}"
    )


# Sources


def _sources(folder: Path, base: Path | None, tower: Path | None) -> Sources:
    table = _config(folder, "SRC")
    if not original.is_original(table):
        raise ValueError(f"{folder}: {_what_else(table)}")
    kind = original.kind_of(folder)
    if kind == "full" and base is not None:
        raise ValueError(f"--base {base}: {folder} holds the whole LLM; leave --base out")
    if kind != "full" and base is None:
        raise ValueError(
            f"{folder}: this is a {kind} folder without its LLM; say where that is with --base DIR "
            f"(hf download {_base_name(folder, table)} --local-dir DIR)"
        )
    text_folder = base or folder
    text = _config(text_folder, "--base")
    original.text_config(text, text_folder / "config.json")
    tower = tower or _named_tower(table)
    layers = _tower_layers(tower) + [_layer(weights.of_folder(text_folder), text_folder)]
    layers += [_layer(weights.Weights([file]), file) for file in _own_files(folder, kind)]
    adapter = _adapter(folder) if kind == "lora" else None
    return Sources(kind, folder, table, text, text_folder, tower, tuple(layers), adapter)


def _base_name(folder: Path, table: Mapping[str, Any]) -> str:
    """The base to fetch: what the folder itself says, if that can be fetched and is no path of its maker's."""
    file = folder / original.ADAPTER_CONFIG
    adapter = weights.read_table(file) if file.is_file() else {}
    said = (adapter.get("base_model_name_or_path"), table.get("_name_or_path"), "lmsys/vicuna-7b-v1.5")
    return next(str(name) for name in said if REPOSITORY.fullmatch(str(name)))


def _what_else(table: Mapping[str, Any]) -> str:
    if "text_config" in table:
        return "in transformers' layout already; use it as it is, no conversion is needed"
    if table.get("model_type") == "llama":
        return "a language model, not a LLaVA; give the LLaVA folder as SRC and this one as --base"
    return f"model_type {table.get('model_type')!r} is not an original LLaVA-v1.5 on a Llama"


def _own_files(folder: Path, kind: original.Kind) -> list[Path]:
    """Files with weights of SRC itself that come on top of the base."""
    names: dict[original.Kind, list[str]] = {"full": [], "projector": [original.PROJECTOR], "lora": [original.NON_LORA]}
    files = [folder / name for name in names[kind]]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: missing; it holds the projector that was trained with the LoRA")
    return files


def _layer(stored: weights.Weights, where: Path) -> tuple[weights.Weights, Mapping[str, str]]:
    return stored, original.translate(stored.names, where)


def _named_tower(table: Mapping[str, Any]) -> Path | None:
    """The folder that the config itself names, if it lies here."""
    name = table.get("mm_vision_tower")
    return Path(name) if name and (Path(name) / "config.json").is_file() else None


def _tower_layers(tower: Path | None) -> list[tuple[weights.Weights, Mapping[str, str]]]:
    """The tower's weights, below all others: a tower that was tuned with the LLaVA wins. A folder may have none."""
    if tower is None or weights.find(tower) is None:
        return []
    stored = weights.of_folder(tower)
    return [(stored, original.translate_tower(stored.names, tower))]


def _adapter(folder: Path) -> lora.Lora:
    return lora.read(folder, weights.read_table(folder / original.ADAPTER_CONFIG))


def _tokenizer_folder(sources: Sources, asked: Path | None) -> Path:
    if asked is not None:
        return asked
    own = sources.folder
    return own if (own / vocabulary.MODEL_FILE).is_file() else sources.text_folder


# Config and processor


def _vision_config(sources: Sources) -> CLIPVisionConfig:
    if sources.tower is None:
        known = original.known_tower(sources.table)
        if known is None:
            raise ValueError(f"{sources.folder}: {_fetch_tower(sources)}")
        return known
    table = _config(sources.tower, "--vision-tower")
    if table.get("model_type") == CLIPConfig.model_type:
        return CLIPConfig.from_dict(dict(table)).vision_config
    if table.get("model_type") == CLIPVisionConfig.model_type:
        return CLIPVisionConfig.from_dict(dict(table))
    raise ValueError(f"{sources.tower}: model_type {table.get('model_type')!r} is no CLIP; {_fetch_tower(sources)}")


def _fetch_tower(sources: Sources) -> str:
    name = sources.table.get("mm_vision_tower", "openai/clip-vit-large-patch14-336")
    return f"its vision tower is {name}; say where that is with --vision-tower DIR ({GET_CLIP.format(name=name)})"


def _set_vocabulary(config: LlavaConfig, words: PreTrainedTokenizerFast, places: Mapping[str, Any], where: Path) -> int:
    """Puts the token ids and the new number of rows into the config → the number of rows on disk."""
    if original.EMBEDDINGS not in places:
        raise ValueError(f"{where}: model.embed_tokens.weight is missing; the checkpoint is incomplete")
    stored, name = places[original.EMBEDDINGS]
    rows, image, pad = stored.shape(name)[0], words.convert_tokens_to_ids(vocabulary.IMAGE), words.pad_token_id
    known = len(words) - len({image, pad})
    if known > rows:
        raise ValueError(f"{where}: the tokenizer has {known} tokens, the model rows for {rows}; is --tokenizer right?")
    text = config.text_config
    text.vocab_size = -(-max(len(words), rows) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    text.bos_token_id, text.eos_token_id = words.bos_token_id, words.eos_token_id
    text.pad_token_id = config.pad_token_id = pad
    config.image_token_id = image
    config.image_seq_length = processor.slots_per_image(config, 0)
    return rows


def _processor(sources: Sources, config: LlavaConfig, words: PreTrainedTokenizerFast, padded: bool) -> LlavaProcessor:
    images = _clip_processor(sources, config)
    if padded:
        fields = images.to_dict()
        fields.pop("image_processor_type", None)
        images = LlavaImageProcessorPil(**{**fields, "do_pad": True})
    made = LlavaProcessor(images, words, chat_template=chat.CHAT_TEMPLATE, image_token=vocabulary.IMAGE)
    return processor.make_room(made, config, 0)


def _clip_processor(sources: Sources, config: LlavaConfig) -> CLIPImageProcessorPil:
    side = config.vision_config.image_size
    if sources.tower is None:  # a known tower of OpenAI's, whose mean and deviation are the class's defaults
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    try:
        made = CLIPImageProcessorPil.from_pretrained(sources.tower)
    except (OSError, ValueError) as error:
        raise ValueError(f"{sources.tower}: preprocessor_config.json is missing or broken: {error}") from error
    if (made.crop_size["height"], made.crop_size["width"]) != (side, side):
        raise ValueError(f"{sources.tower}: its images are cropped to {dict(made.crop_size)}, its tower takes {side}")
    return made


def _generation(sources: Sources, config: LlavaConfig) -> GenerationConfig:
    file = sources.folder / "generation_config.json"
    table = weights.read_table(file) if file.is_file() else {}
    kept = {key: table[key] for key in GENERATION if table.get(key) is not None}
    if not kept.get("do_sample"):
        kept = {key: value for key, value in kept.items() if key not in SAMPLING}
    text = config.text_config
    ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    return GenerationConfig(**{**kept, **ids})


# Weights


def _with_identity(sources: Sources, config: LlavaConfig) -> dict[str, tuple[Any, str]]:
    """All weights; a projector of one layer gets an identity behind it, since transformers' always has two."""
    places: dict[str, tuple[Any, str]] = sources.places()
    width = config.text_config.hidden_size
    if original.layers_of_projector(sources.table, sources.folder) == 1:
        second = {"weight": torch.eye(width), "bias": torch.zeros(width)}
        already = [name for name in places if ".linear_2." in name]
        if already:
            raise ValueError(f"{sources.folder}: weights of a second projector layer, but mm_projector_type has one")
        for name, tensor in second.items():
            places[f"multi_modal_projector.linear_2.{name}"] = (_Constant(tensor), name)
    return places


@dataclass(frozen=True)
class _Constant:
    """A weight that lies in no file."""

    tensor: Tensor

    def read(self, _: str) -> Tensor:
        return self.tensor

    def shape(self, _: str) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


def _check_names(places: Mapping[str, tuple[Any, str]], config: LlavaConfig, rows: int, sources: Sources) -> None:
    """ValueError unless exactly the model's weights are there, each in its shape."""
    wanted = original.expected(config)
    for name in (original.EMBEDDINGS, original.LM_HEAD):
        wanted[name] = (rows, *wanted[name][1:])
    missing = sorted(set(wanted) - set(places))
    if missing:
        tower = all(name.startswith("vision_tower.") for name in missing)
        fix = _fetch_tower(sources) if tower else "the checkpoint is incomplete"
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
                "base, tower and checkpoint must belong together"
            )


def _dtype(places: Mapping[str, tuple[Any, str]]) -> torch.dtype:
    """The LLM's own type on disk."""
    stored, name = places[original.EMBEDDINGS]
    return stored.read(name).dtype


def _write_weights(
    folder: Path,
    sources: Sources,
    places: Mapping[str, tuple[Any, str]],
    config: LlavaConfig,
    dtype: torch.dtype,
    shard_bytes: int,
) -> None:
    change = _changes(sources, places, config.text_config.vocab_size)
    writer = weights.Writer(folder, shard_bytes)
    for name, (stored, own) in _progress(places):
        tensor = change[name](stored.read(own)) if name in change else stored.read(own)
        cast = tensor.to(dtype)
        if not torch.isfinite(cast).all():
            raise ValueError(f"{sources.folder}: {name} is not finite in {dtype}; try --dtype bfloat16 or float32")
        writer.add(name, cast.clone() if cast is tensor else cast)  # an mmapped tensor would keep its whole file open
    writer.close()


def _changes(sources: Sources, places: Mapping[str, Any], rows: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name → what is done to a weight on its way."""
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    adapter = sources.adapter
    if adapter is not None:
        for target, own in original.translate(list(adapter.pairs), sources.folder).items():
            if target not in places:
                raise ValueError(f"{sources.folder}: the LoRA is for {own!r}, which the base does not have")
            made[target] = _folder(adapter, own)
    for name in (original.EMBEDDINGS, original.LM_HEAD):
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


def _progress(places: Mapping[str, tuple[Any, str]]) -> Iterator[tuple[str, tuple[Any, str]]]:
    yield from tqdm(places.items(), desc="weights", disable=None)


def _check(folder: Path, dtype: torch.dtype) -> None:
    """Loads what was written, and lets its processor prepare an image for its model."""
    loaded = loading.load(folder, dtype=dtype)
    image = Image.new("RGB", (40, 30), (90, 120, 30))
    text = chat.prompt_text(loaded.processor, Request("What is this?", images=(image,)))
    inputs = loaded.processor(text=text, images=[image], return_tensors="pt")
    model = loaded.safe_llava
    images, side = model.images_per_row(inputs["input_ids"]), model.config.vision_config.image_size
    if images != [1] or tuple(inputs["pixel_values"].shape) != (1, 3, side, side):
        raise ValueError(
            f"{folder}: the processor prepares {images} images of shape {tuple(inputs['pixel_values'].shape)} for a "
            f"model that takes one of {side} pixels"
        )


# Files


def _optional(path: str | Path | None) -> Path | None:
    return Path(path) if path else None


def _config(folder: Path, flag: str) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise ValueError(f"{flag} {folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{flag} {folder}: no config.json here; what the folder holds cannot be told")
    return weights.read_table(folder / "config.json")
