"""Only `llava_patch` and `safevlm.backbones` know models' insides: classes, attribute paths, names of weights and of
config fields.

What counts is code: names, attributes, arguments and strings of a file's syntax tree; docstrings and comments do not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLASSES = re.compile(r"^(Llava|CLIP|Llama|Qwen|Gemma|InternVL|Idefics|SmolVLM|Siglip|Mllama|Pixtral)[A-Z0-9]\w*$")
"""transformers' classes; ours begin with `Safe`."""
PARTS = re.compile(
    r"\b(vision_tower|multi_modal_projector|language_model|lm_head|embed_tokens|post_layernorm|self_attn|"
    r"text_config|vision_config|vision_feature_layer|vision_feature_select_strategy|image_seq_length|patch_size|"
    r"num_additional_image_tokens|mm_encoder_outputs|pooler_output|BaseModelOutputWithPooling)\b"
)
MODULES = re.compile(r"^transformers\.models\.(llava|clip|llama|qwen|gemma|internvl|idefics|smolvlm|siglip)\w*\b")
ROOMS = ("safevlm/backbones/",)
"""Beside `llava_patch`, where families are known."""
ALLOWED = {
    "safevlm/model/safe_llava.py": {"mm_encoder_outputs"},  # generate() reads the names of forward's arguments
    "safevlm/model/convert.py": {"vision_tower"},  # the flag --vision-tower
    "safevlm/defenses/bank.py": {"post_layernorm"},  # how a stored fingerprint tells an incomplete tower
    "safevlm/evaluation/speed/image_cost.py": {
        "CLIPImageProcessorPil",
        "LlavaImageProcessorPil",
        "patch_size",
    },  # peers
    "safevlm/miniature/family.py": {"vision_config", "text_config", "patch_size", "vision_feature_layer"},  # builds one
    "safevlm/pictograms/base/align_step.py": {"lm_head"},  # these three build one, of an LLM that is given
    "safevlm/pictograms/base/llm.py": {"LlamaConfig"},
    "safevlm/pictograms/base/see_step.py": {"language_model", "lm_head", "text_config"},
    "safevlm/training/feature_cache.py": {"vision_config", "vision_feature_layer", "vision_feature_select_strategy"},
    "safevlm/data/fast_pixels.py": {"CLIPImageProcessorPil", "LlavaImageProcessorPil"},  # whose steps it has
    "safevlm/commands/convert.py": {"vision_tower"},
}
"""File → names that it cannot do without, each with its reason."""


def _knows(source: str) -> set[str]:
    tree = ast.parse(source)
    statements = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    documentation = {id(node) for node in statements if isinstance(node, ast.Constant)}
    return {name for node in ast.walk(tree) if id(node) not in documentation for name in _named(node)}


def _named(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.ImportFrom(module=module, names=names):
            yield from (alias.name for alias in names if CLASSES.match(alias.name) or PARTS.fullmatch(alias.name))
            if module and MODULES.match(module):
                yield module
        case ast.Attribute(value=ast.Name(id="parts" | "names")):
            return  # llava_patch.parts.vision_tower(model)
        case ast.Attribute(attr=name) if CLASSES.match(name) or PARTS.fullmatch(name):
            yield name
        case ast.Attribute(attr="image_token_id", value=ast.Name(id="config") | ast.Attribute(attr="config")):
            yield "config.image_token_id"
        case ast.keyword(arg=str(name)) | ast.arg(arg=name) if PARTS.fullmatch(name):
            yield name
        case ast.Constant(value=str(text)) if CLASSES.match(text) or PARTS.search(text):
            yield from PARTS.findall(text) or [text]


def _insides() -> dict[str, set[str]]:
    files = sorted((ROOT / "safevlm").rglob("*.py"))
    found = {str(file.relative_to(ROOT)): _knows(file.read_text(encoding="utf-8")) for file in files}
    return {file: names for file, names in found.items() if names and not file.startswith(ROOMS)}


def test_nobody_else_knows_a_models_insides() -> None:
    left = {file: names - ALLOWED.get(file, set()) for file, names in _insides().items()}
    left = {file: names for file, names in left.items() if names}
    assert not left, f"ask llava_patch or safevlm.backbones instead: {left}"


def test_what_is_allowed_is_needed() -> None:
    found = _insides()
    idle = {file: names - found.get(file, set()) for file, names in ALLOWED.items()}
    assert not any(idle.values()), f"no longer needed, take it out: {idle}"


@pytest.mark.parametrize(
    ("source", "knows"),
    [
        ("from transformers import LlavaConfig", True),
        ("from transformers.models.llama.modeling_llama import x", True),
        ("import transformers\ntransformers.CLIPModel", True),
        ("kind = 'Qwen2_5_VLForConditionalGeneration'", True),
        ("from transformers import Gemma3Processor", True),
        ("model.model.vision_tower(pixels)", True),
        ("width = config.text_config.hidden_size", True),
        ("ids == self.config.image_token_id", True),
        ("kept = 'multi_modal_projector' in name", True),
        ("layers = f'model.language_model.layers.{n}'", True),
        ("model(mm_encoder_outputs=outputs)", True),
        ("make(patch_size=14)", True),
        ("sizes = {'patch_size': 14}", True),
        ("from llava_patch.classes import Processor", False),
        ("from safevlm.model.safe_llava import SafeLlava", False),
        ("parts.vision_tower(model)", False),
        ("inputs.image_token_id", False),
        ('def f():\n    """LLaVA\'s `language_model`."""', False),
        ("# lm_head\nx = 1", False),
    ],
)
def test_the_search_finds_what_it_should(source: str, knows: bool) -> None:
    assert bool(_knows(source)) is knows
