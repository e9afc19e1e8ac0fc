"""Families of vision-language models, behind one seam of transformers; nobody else knows a family.

    row           what a family says of itself                 table         all of them, by `model_type`
    image_inputs  images as a model reads them, cut by image   image_tokens  what stands in an image's slots
    shared_pass   one vision pass for looking and answering
    reading       images and prompts by a family's processor   processors    loading it: images and words, no video
    published     sizes of models that people run              measured      one to measure, without a checkpoint

LLaVA-v1.5 is `llava_patch`'s, as it always was; every other family is a file here and a row of the table.
"""

FAMILIES = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "gemma3",
    "internvl",
    "llava_next",
    "llava_onevision",
    "idefics3",
    "smolvlm",
    "mistral3",
    "paligemma",
    "gemma4",
    "llama4",
    "mllama",
)
"""Every `model_type` of the table, for who must know it without importing torch (`safevlm.model.registration`)."""
PREFIX = "safe_"
"""In front of a family's `model_type` in the config of a checkpoint of ours."""
