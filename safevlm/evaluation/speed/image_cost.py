"""What an image costs before a model sees it, and what an audit adds to the bare vision tower. CPU seconds, paired.

| part     | way            | what it is, per image                                                                  |
|----------|----------------|----------------------------------------------------------------------------------------|
| prepared | `transformers` | an open image by the image processor that transformers ships: the peer                 |
|          | `safevlm`      | the same pixels as we make them                                                        |
| audited  | `tower`        | the bare vision tower on pixels that are ready: the peer                               |
|          | `judge`        | tower, safety projector and head on the same pixels                                    |
|          | `read`         | reading, decoding, preparing, digests and fingerprint of the files, without a model    |
|          | `audit`        | all of it, from the files: the scan, without writing the shard                         |

The tower is ViT-B/16 with random weights. Its safety modules are those that SafeVLM has at CLIP-L, made as much smaller
as the tower is, and those of the miniature made larger. One thread of torch; a process's CPU time counts all threads,
so that a busy machine counts less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL.Image import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

from llava_patch import fresh
from llava_patch.fresh import CLIP_336
from safevlm.analysis.audit.images import read_ahead
from safevlm.analysis.audit.plan import PlacedItem
from safevlm.analysis.audit.risk_classifier import RiskClassifier
from safevlm.analysis.audit.scan import judge
from safevlm.analysis.audit.sources import Item
from safevlm.config import LoraSettings, SafetyConfig
from safevlm.data.chat import CHAT_TEMPLATE
from safevlm.data.pixels import pixel_values
from safevlm.evaluation.speed.cpu_rounds import Work, in_rounds
from safevlm.evaluation.speed.gpu_check import timing
from safevlm.evaluation.speed.gpu_check.models import photo
from safevlm.miniature import words
from safevlm.training import bench
from safevlm.training.bench import BenchShape

PEER, OURS = "transformers", "safevlm"
TOWER, JUDGE, READ, AUDIT = "tower", "judge", "read", "audit"
VIT_B_16 = {
    **CLIP_336,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
LLM = {
    "hidden_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 2816,
    "vocab_size": 32064,
    "max_position_embeddings": 2048,
}
"""Its width is the head's; its layers are not made."""
HEADS = {
    "SafeVLM's": SafetyConfig(projector_width=816, projector_tokens=196),
    "the miniature's": SafetyConfig(projector_width=576, projector_depth=1, projector_tokens=196, head_tokens=4),
}
QUALITY = 90
"""Of the JPEG files."""


def _crops(side: int) -> Any:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _pads(side: int) -> Any:
    return LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=True)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "LLaVA-1.5, 336": lambda: _crops(336),
    "LLaVA-1.5 padded to a square, 336": lambda: _pads(336),
    "ViT-B/16, 224": lambda: _crops(224),
    "miniature, 64": lambda: _crops(64),
}


def measure(images: int, rounds: int) -> dict[str, Any]:
    """`images` photographs of 640 x 480 in every round. ValueError: the ways give different pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        photos = [photo(seed) for seed in range(images)]
        with TemporaryDirectory() as made:
            files = _files(photos, Path(made))
            return {
                "images": images,
                "rounds": rounds,
                "size": list(photos[0].size),
                "clock": "CPU of all threads; one for torch",
                "prepared": {name: _prepared(make(), photos, rounds, name) for name, make in PROCESSORS.items()},
                "audited": {name: _audited(head, files, rounds, name) for name, head in HEADS.items()},
            }
    finally:
        torch.set_num_threads(threads)


def told(table: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    lines = []
    for name, ways in table["prepared"].items():
        ratio = ways[OURS]["ratio"]
        lines.append(
            f"prepared, {name}: {_ms(ways[OURS], table)} an image, {_ms(ways[PEER], table)} by transformers, ratio "
            f"{_interval(ratio)}"
        )
    for name, ways in table["audited"].items():
        lines.append(
            f"audited, head of {name} sizes: {_ms(ways[READ], table)} an image to read it, {_ms(ways[AUDIT], table)} "
            f"in all, {_ms(ways[TOWER], table)} for the bare tower; speed over the bare tower's "
            f"{_interval(ways['speed'][AUDIT])}, on ready pixels {_interval(ways['speed'][JUDGE])}"
        )
    return lines


def _prepared(processor: Any, photos: Sequence[Image], rounds: int, title: str) -> dict[str, Any]:
    own = processor(list(photos), return_tensors="pt")["pixel_values"]
    difference = float((pixel_values(processor, photos) - own).abs().max())
    if difference > 1e-6:
        raise ValueError(f"{title}: the pixels differ by {difference}; nothing is written")
    ways: dict[str, Work] = {
        PEER: lambda: [processor([image], return_tensors="pt")["pixel_values"] for image in photos],
        OURS: lambda: [pixel_values(processor, [image]) for image in photos],
    }
    return {**timing.over(in_rounds(ways, rounds, title), PEER), "difference": difference}


def _audited(head: SafetyConfig, files: Sequence[PlacedItem], rounds: int, title: str) -> dict[str, Any]:
    shape = BenchShape(LLM, VIT_B_16, head, LoraSettings(), batch=1, words=1)
    model = bench.random_model(shape, torch.device("cpu"), lm=False)
    classifier = RiskClassifier(model, None, torch.device("cpu"), Path())
    processor = fresh.processor_of(words.build_tokenizer(), bench.stock_config(shape), CHAT_TEMPLATE)
    size, found = len(files), list(read_ahead(files, processor, 1))
    pixels = [image.pixels for image in found if image.pixels is not None]
    if len(pixels) != size:
        raise ValueError(f"made images could not be read: {next(image.error for image in found if image.error)}")

    @torch.inference_mode()
    def tower() -> None:
        classifier.tower(classifier.batch(pixels))

    ways: dict[str, Work] = {
        TOWER: tower,
        JUDGE: lambda: classifier.judge(pixels),
        READ: lambda: list(read_ahead(files, processor, 1)),
        AUDIT: lambda: list(judge(classifier, read_ahead(files, processor, 1), size)),
    }
    seconds = in_rounds(ways, rounds, f"audit, {title}")
    speed = {
        way: timing.told([mine / theirs for mine, theirs in zip(seconds[TOWER], seconds[way], strict=True)])
        for way in (JUDGE, AUDIT)
    }
    return {**timing.over(seconds, TOWER), "speed": speed}


def _files(photos: Sequence[Image], folder: Path) -> list[PlacedItem]:
    """JPEG files of the photographs, as an audit finds them."""
    placed = []
    for index, image in enumerate(photos):
        file = folder / f"{index}.jpg"
        image.save(file, "JPEG", quality=QUALITY)
        placed.append(PlacedItem(index, 0, Item(index, file.name, file=str(file))))
    return placed


def _ms(way: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    return f"{1e3 * way['seconds'] / table['images']:.2f} ms"


def _interval(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
