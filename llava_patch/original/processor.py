"""Processor and generation config of a converted LLaVA."""

from __future__ import annotations

from transformers import CLIPImageProcessorPil, GenerationConfig, LlavaImageProcessorPil, PreTrainedTokenizerFast

from llava_patch import fields, processor, weights
from llava_patch.classes import Config, Processor
from llava_patch.original import vocabulary
from llava_patch.original.sources import Sources
from llava_patch.pretrained import from_folder

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
GENERATION = ("bos_token_id", "eos_token_id", "do_sample", "num_beams", "repetition_penalty", *SAMPLING)
"""What of a generation_config.json is kept; the sampling fields only where it samples (transformers refuses them)."""


def processor_of(
    sources: Sources, config: Config, words: PreTrainedTokenizerFast, padded: bool, chat_template: str
) -> Processor:
    """The tower's own preprocessing, on images that are `padded` to a square first where the original does so."""
    clip = _clip_processor(sources, config)
    own = {name: value for name, value in clip.to_dict().items() if name != "image_processor_type"}
    images = LlavaImageProcessorPil(**{**own, "do_pad": True}) if padded else clip
    made = Processor(images, words, chat_template=chat_template, image_token=vocabulary.IMAGE)
    return processor.make_room(made, config, 0)


def _clip_processor(sources: Sources, config: Config) -> CLIPImageProcessorPil:
    side = fields.image_size(config)
    if sources.tower is None:  # a known tower of OpenAI's, whose mean and deviation are the class's defaults
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    try:
        made = from_folder(CLIPImageProcessorPil, sources.tower)
    except (OSError, ValueError) as error:
        raise ValueError(f"{sources.tower}: preprocessor_config.json is missing or broken: {error}") from error
    if (made.crop_size["height"], made.crop_size["width"]) != (side, side):
        cropped = dict(made.crop_size)
        raise ValueError(f"{sources.tower}: its images are cropped to {cropped}, its vision tower takes {side}")
    return made


def generation_of(sources: Sources, config: Config) -> GenerationConfig:
    """What the folder's generation_config.json says, with the token ids of `config`."""
    file = sources.folder / "generation_config.json"
    table = weights.read_table(file) if file.is_file() else {}
    kept = {key: table[key] for key in GENERATION if table.get(key) is not None}
    if not kept.get("do_sample"):
        kept = {key: value for key, value in kept.items() if key not in SAMPLING}
    text = fields.text(config)
    ids = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    return GenerationConfig(**{**kept, **ids})
