"""Tiny random LLaVAs in exactly the original code's layouts, and what that code computes, in our own words.

tower: width 32, 3 layers, 16 patches · LLM: width 64, 2 layers · words: a sentencepiece BPE of 420, trained here
"""

from __future__ import annotations

import copy
import functools
import io
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tests import tiny

SIDE, PATCH, WIDTH, VISION, LAYERS = 32, 8, 64, 32, 2
IMAGE = -200
"""What the original code puts in the place of an image."""
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
WORDS = (
    "user",
    "assistant",
    "what",
    "is",
    "in",
    "the",
    "picture",
    "describe",
    "a",
    "red",
    "ball",
    "on",
    "the",
    "table",
    "hello",
    "world",
    "image",
    "quick",
    "brown",
    "fox",
    "aaaa",
    "aaa",
    "bbbb",
    "banana",
    "mississippi",
)
DUMMY_PREFIX = b"identity\x12\x00\x18\x01"
"""In a serialised model: the rule's name, an empty table, add_dummy_prefix true."""

Tensors = dict[str, Tensor]


@dataclass
class Original:
    """The parts of a LLaVA as the original code holds them."""

    llm: LlamaForCausalLM
    tower: CLIPVisionModel
    projector: nn.Module
    table: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def logits(self, ids: list[int], pixels: Tensor | None) -> Tensor:
        """Ids with `IMAGE` among them, and (1, 3, h, w) → (t, v): tower, projector, splice, LLM."""
        layer = self.table.get("mm_vision_select_layer", -2)
        rows, words = [], []
        for token in [*ids, None]:
            if token is not None and token != IMAGE:
                words.append(token)
                continue
            rows.append(self.llm.get_input_embeddings()(torch.tensor(words, dtype=torch.long)))
            words = []
            if token == IMAGE:
                seen = self.tower(pixels, output_hidden_states=True).hidden_states[layer]
                patches = seen[:, 1:] if self.table.get("mm_vision_select_feature", "patch") == "patch" else seen
                rows.append(self.projector(patches)[0])
        return self.llm(inputs_embeds=torch.cat(rows).unsqueeze(0)).logits[0]


@functools.cache
def spm_bytes() -> bytes:
    """A model with Llama's rules: BPE, bytes for the unknown, no normalisation, digits alone, a dummy prefix."""
    draw, made = random.Random(0), io.BytesIO()
    ends = [".", " ?", "   x", " 12", "\u00e9"]
    lines = [" ".join(draw.choices(WORDS, k=12)).capitalize() + draw.choice(ends) for _ in range(2000)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=made,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        num_threads=1,
    )
    return made.getvalue()


@functools.cache
def pieces(dummy_prefix: bool = True) -> sentencepiece.SentencePieceProcessor:
    """sentencepiece itself, with or without `▁` in front of a text."""
    model = spm_bytes()
    assert DUMMY_PREFIX in model
    bare = model.replace(DUMMY_PREFIX, DUMMY_PREFIX[:-1] + b"\x00")
    return sentencepiece.SentencePieceProcessor(model_proto=model if dummy_prefix else bare)


def ids_of(text: str, legacy: bool = False, image: int = IMAGE, specials: Mapping[str, int] | None = None) -> list:
    """The original's ids: parts between images, each tokenized alone behind one BOS; `</s>` cuts a part again.

    Behind a special token a part goes on without the dummy prefix, unless the tokenizer is a legacy one.
    """
    known = specials or {"<unk>": 0, "<s>": 1, "</s>": 2}
    ids = [1]
    for number, part in enumerate(text.split("<image>")):
        ids += [image] * bool(number)
        for place, words in enumerate(re.split(f"({'|'.join(map(re.escape, known))})", part)):
            encode = pieces(legacy or place == 0).encode
            ids += [known[words]] if words in known else encode(words) if words else []
    return ids


def pixels_of(image: Image.Image, pad: bool) -> Tensor:
    """The original's preprocessing of an RGB image: (1, 3, SIDE, SIDE)."""
    width, height = image.size
    if pad and width != height:
        side = max(width, height)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in MEAN))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image, width, height = square, side, side
    short = min(width, height)
    size = (SIDE * width // short, SIDE * height // short)
    small = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    values = np.asarray(small.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32) / 255
    normal = (values - np.array(MEAN, dtype=np.float32)) / np.array(STD, dtype=np.float32)
    return torch.from_numpy(normal).permute(2, 0, 1).unsqueeze(0)


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@functools.cache
def _parts(seed: int) -> tuple[LlamaForCausalLM, CLIPVisionModel]:
    text = LlamaConfig(
        vocab_size=420,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        initializer_range=tiny.WEIGHT_STD,
        rope_theta=5000.0,
    )
    vision = CLIPVisionConfig(
        hidden_size=VISION,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        llm, tower = LlamaForCausalLM(text).eval(), CLIPVisionModel(vision).eval()
        return tiny.shake(llm, seed, 0.02), tiny.shake(tower, seed, 0.02)


def make(projector: str = "mlp2x_gelu", seed: int = 0, **fields: Any) -> Original:
    """A whole LLaVA, the caller's own; `fields` override config.json."""
    llm, tower = copy.deepcopy(_parts(seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed + 9)
        layers = [nn.Linear(VISION, WIDTH)]
        if projector == "mlp2x_gelu":
            layers += [nn.GELU(), nn.Linear(WIDTH, WIDTH)]
        bridge = layers[0] if projector == "linear" else nn.Sequential(*layers)
    table = {
        "_name_or_path": "llava-v1.5-7b",
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "max_length": 4096,
        "mm_hidden_size": VISION,
        "mm_projector_type": projector,
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-tiny",
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False,
        "use_cache": True,
        **llm_table(llm),
        **fields,
    }
    return Original(llm, tower, bridge.eval(), table)


def llm_table(llm: LlamaForCausalLM) -> dict[str, Any]:
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
        "hidden_act",
    )
    return {**{name: getattr(llm.config, name) for name in names}, "rope_theta": 5000.0}


# Weights under their original names


def llm_weights(made: Original, buffers: bool = True) -> Tensors:
    state = {name: tensor.clone() for name, tensor in made.llm.state_dict().items()}
    if buffers:  # as transformers before 4.32 saved them
        state |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in range(LAYERS)}
    return state


def projector_weights(made: Original, prefix: str = "model.mm_projector.") -> Tensors:
    return {prefix + name: tensor.clone() for name, tensor in made.projector.state_dict().items()}


def tower_weights(made: Original, prefix: str = "vision_model.") -> Tensors:
    state = {prefix + name.removeprefix("vision_model."): t.clone() for name, t in made.tower.state_dict().items()}
    return {**state, f"{prefix}embeddings.position_ids": torch.arange(17).unsqueeze(0)}


# Folders


def write_json(file: Path, table: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table), encoding="utf-8")


def write_bin_shards(folder: Path, tensors: Tensors, shards: int = 3) -> None:
    names = ("pytorch_model-{:05d}-of-{:05d}.bin", "pytorch_model.bin.index.json")
    _write_shards(folder, tensors, shards, *names, torch.save)


def write_safetensors_shards(folder: Path, tensors: Tensors, shards: int = 3) -> None:
    names = ("model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json")
    _write_shards(folder, tensors, shards, *names, lambda part, file: save_file(part, file, metadata={"format": "pt"}))


def _write_shards(
    folder: Path, tensors: Tensors, shards: int, pattern: str, index: str, save: Callable[[Tensors, Path], None]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names, places = sorted(tensors), {}
    for number in range(shards):
        part = names[number::shards]
        file = pattern.format(number + 1, shards)
        save({name: tensors[name] for name in part}, folder / file)
        places.update(dict.fromkeys(part, file))
    write_json(folder / index, {"metadata": {"total_size": 0}, "weight_map": places})


def write_tokenizer(folder: Path, legacy: bool | None = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(spm_bytes())
    table = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 2048}
    write_json(folder / "tokenizer_config.json", table if legacy is None else {**table, "legacy": legacy})


def write_tower(folder: Path, made: Original, full: bool = True, weights: bool = True) -> Path:
    """An openai/clip-vit folder: a full CLIP as published (sizes as plain numbers), or the vision half alone."""
    vision = {**made.tower.config.to_dict(), "model_type": "clip_vision_model"}
    write_json(folder / "config.json", {"model_type": "clip", "vision_config": vision} if full else vision)
    preprocessor = {
        "crop_size": SIDE,
        "size": SIDE,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    text_half = {
        "text_model.final_layer_norm.weight": torch.ones(4),
        "logit_scale": torch.tensor(1.0),
        "visual_projection.weight": torch.ones(4, 4),
        "text_projection.weight": torch.ones(4, 4),
    }
    if weights:
        torch.save({**tower_weights(made), **(text_half if full else {})}, folder / "pytorch_model.bin")
    return folder


def write_vicuna(folder: Path, made: Original) -> Path:
    write_bin_shards(folder, llm_weights(made), 2)
    write_tokenizer(folder)
    write_json(folder / "config.json", {"model_type": "llama", "torch_dtype": "float32", **llm_table(made.llm)})
    return folder


def write_full(folder: Path, made: Original, form: str = "bin", tower: bool = False, legacy: bool = False) -> Path:
    """A fine-tuned LLaVA; `form`: bin (shards), safetensors (shards), single (one .bin)."""
    tensors = {**llm_weights(made), **projector_weights(made)}
    if tower:
        tensors |= tower_weights(made, "model.vision_tower.vision_tower.vision_model.")
    if form == "single":
        folder.mkdir(parents=True)
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        {"bin": write_bin_shards, "safetensors": write_safetensors_shards}[form](folder, tensors)
    write_json(folder / "config.json", made.table)
    write_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "max_length": 4096,
            "pad_token_id": 0,
            "temperature": 0.9,
            "top_p": 0.6,
            "transformers_version": "4.31.0",
        },
    )
    write_tokenizer(folder, legacy)
    return folder


def write_projector(folder: Path, made: Original) -> Path:
    write_json(folder / "config.json", made.table)
    torch.save(projector_weights(made), folder / "mm_projector.bin")
    return folder


def write_lora(
    folder: Path, made: Original, form: str = "bin", default: bool = False, rank: int = 4, **fields: Any
) -> Path:
    """A LoRA for `made.llm`, which is changed to what base and LoRA make together; PEFT's formula, in float64."""
    noise = torch.Generator().manual_seed(5)
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
        "lora_dropout": 0.05,
        "task_type": "CAUSAL_LM",
        **fields,
    }
    scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
    adapter: Tensors = {}
    for name, module in made.llm.model.named_modules():
        if isinstance(module, nn.Linear):
            down = torch.randn(rank, module.in_features, generator=noise) * 0.1
            up = torch.randn(module.out_features, rank, generator=noise) * 0.1
            module.weight.data += (scale * up.double() @ down.double()).float()
            inner = ".default" if default else ""
            adapter[f"base_model.model.model.{name}.lora_A{inner}.weight"] = down
            adapter[f"base_model.model.model.{name}.lora_B{inner}.weight"] = up
    write_json(folder / "config.json", made.table)
    write_json(folder / "adapter_config.json", settings)
    if form == "bin":
        torch.save(adapter, folder / "adapter_model.bin")
    else:
        save_file(adapter, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    torch.save(projector_weights(made, "base_model.model.model.mm_projector."), folder / "non_lora_trainables.bin")
    return folder
