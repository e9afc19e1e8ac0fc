"""Published values stay as published: each with where it stands in docs/methods.md or the benchmark's own paper.

A change of a shipped recipe or of a default fails here first. A value that differs from the paper on purpose is told in
its recipe's header, under "Differs from the paper".
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_patch import names
from safevlm import recipes
from safevlm.config import (
    LoraSettings,
    LossWeights,
    OptimConfig,
    PartWeights,
    Recipe,
    RunConfig,
    SafetyConfig,
    TensorSettings,
)
from safevlm.data.pairs import Counts
from safevlm.defenses import bank, concepts
from safevlm.defenses.best_of_n import EtaOptions
from safevlm.evaluation.suites import SUITES
from safevlm.model import tokens
from safevlm.taxonomy import DEFAULT
from safevlm.training.recipe import parse

STAGES_7B_13B = ("llava7b_stage1", "llava13b_stage1", "llava7b_stage2", "llava13b_stage2")

DEFAULTS: tuple[tuple[Any, dict[str, Any], str], ...] = (
    (
        SafetyConfig(),
        {
            "projector": "c_abstractor",
            "projector_width": 1088,  # 1024 + 64
            "projector_depth": 3,
            "projector_tokens": 576,
            "projector_standardize": False,
            "lm_tokens": 64,
            "head_tokens": 64,
            "head_heads": 8,
            "reads_text": False,  # the paper's head reads the words; ours differs, and the recipes say so
        },
        "methods §1.1",
    ),
    (LossWeights(), {"lm": 1.0, "level": 10.0, "category": 10.0}, "methods §1.3"),
    (LoraSettings(), {"r": 256, "alpha": 16, "dropout": 0.05}, "methods §1.4"),
    (
        OptimConfig(),
        {
            "lr": 1e-5,
            "epochs": 3,
            "batch_size": 2,
            "effective_batch": None,  # 128
            "accumulation": None,
            "warmup_steps": 20,
            "schedule": "linear",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "gradient_checkpointing": False,
            "max_steps": -1,
        },
        "methods §1.4",
    ),
    (RunConfig("out"), {"seed": 256}, "methods §1.4"),
    (
        TensorSettings(),
        {"kind": "textual", "tokens": 10, "position": "start", "epsilon": 0.0, "basis": "pixels", "benign": "kl"},
        "methods §3.1, §3.2",
    ),
    (PartWeights(), {"malicious": 1.0, "contrastive": 1.0, "benign": 1.0}, "methods §3.2"),
    (EtaOptions(), {"n": 5}, "methods §4, ETA"),
    (Counts(), {"malicious": 400, "contrastive": 400, "benign": 200}, "methods §3.3"),
)
"""Defaults of the classes of settings."""

_STAGE = {
    "optim.lr": 1e-5,
    "optim.epochs": 3,
    "optim.effective_batch": 128,
    "optim.schedule": "linear",
    "optim.weight_decay": 0.0,
    "optim.max_steps": -1,
    "data.max_length": 2048,
    "run.seed": 256,
    "run.bf16": True,
    "run.deepspeed": "zero2",
    "model.dtype": "auto",
    "model.quantize": "none",
}
_STAGE1 = _STAGE | {
    "stage": "stage1",
    "optim.warmup_steps": 20,
    "data.clean": 3000,
    "data.exclude": [],
    "loss": LossWeights(1.0, 10.0, 10.0),
    "model.safety": SafetyConfig(),
}
_STAGE2 = _STAGE | {
    "stage": "stage2",
    "optim.warmup_steps": 300,
    "data.clean": None,
    "data.hints": False,
    "lora": LoraSettings(256, 16, 0.05),
}
_TENSOR = {"stage": "security_tensor", "tensor.benign": "kl", "tensor.weights": PartWeights(1.0, 1.0, 1.0)}
_TEXTUAL = _TENSOR | {"tensor.kind": "textual", "tensor.tokens": 10, "tensor.position": "start", "optim.lr": 1e-3}
_VISUAL = _TENSOR | {"tensor.kind": "visual", "tensor.init_std": 0.2, "tensor.basis": "pixels", "optim.lr": 1.6e-3}
_HEAD_ONLY = {
    key: _STAGE1[key]
    for key in ("stage", "optim.lr", "optim.epochs", "optim.effective_batch", "optim.warmup_steps", "data.clean")
} | {"loss": LossWeights(0, 10.0, 10.0), "model.safety": SafetyConfig(lm_tokens=0), "run.seed": 256}
_QLORA = {key: value for key, value in _STAGE2.items() if key not in ("run.deepspeed", "model.quantize")}

RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    f"llava{size}_{way}": row
    for size in ("7b", "13b")
    for way, row in {
        "stage1": (_STAGE1, "methods §1.3, §1.4"),
        "stage1_head_only": (_HEAD_ONLY, "methods §1.3, §1.4"),
        "stage2": (_STAGE2, "methods §1.4"),
        "stage2_qlora": (_QLORA, "methods §1.4"),
        "refusal_lora": (_STAGE2, "methods §1.4: the LoRA and schedule of stage 2"),
        "security_tensor_textual": (_TEXTUAL, "methods §3.1, §3.2"),
        "security_tensor_visual": (_VISUAL, "methods §3.1, §3.2"),
    }.items()
}
RECIPES |= {
    "llava7b_stage1_robust": (
        {key: _HEAD_ONLY[key] for key in ("loss", "model.safety", "run.seed", "optim.lr", "optim.effective_batch")},
        "methods §1.3, §1.4",
    ),
    "llava7b_robust_tower": (
        {"optim.lr": 1e-5, "optim.effective_batch": 128, "adversarial.epsilon": 4, "loss.lm": 0},
        "arXiv 2402.12336: AdamW, lr 1e-5, batch 128, 10 steps within 4/255, two epochs of ImageNet",
    ),
}
_VLM = {key: _STAGE[key] for key in ("optim.lr", "optim.epochs", "optim.effective_batch", "run.seed")}
RECIPES |= {
    "vlm_stage1": (
        _VLM
        | {"optim.warmup_steps": 20, "data.clean": 3000, "loss": LossWeights(1.0, 10.0, 10.0)}
        | {"model.safety": SafetyConfig(projector="resampler", projector_tokens=64)},
        "methods §1.3, §1.4",
    ),
    "vlm_stage1_head_only": (
        _VLM
        | {"optim.warmup_steps": 20, "data.clean": 3000, "loss": LossWeights(0, 10.0, 10.0)}
        | {"model.safety": SafetyConfig(projector="resampler", projector_tokens=64, lm_tokens=0)},
        "methods §1.3, §1.4",
    ),
    "vlm_stage2": (_VLM | {"optim.warmup_steps": 300, "lora": LoraSettings(256, 16, 0.05)}, "methods §1.4"),
}
"""Every recipe for real models, and its values that a paper states."""

MINIATURE: dict[str, dict[str, Any]] = {
    "miniature_stage1": {"optim.lr": 0.002, "optim.epochs": 5, "optim.effective_batch": 32, "loss": _HEAD_ONLY["loss"]},
    "miniature_stage1_robust": {
        "optim.lr": 0.002,
        "optim.epochs": 15,
        "optim.effective_batch": 32,
        "loss": _HEAD_ONLY["loss"],
        "adversarial.epsilon": 8,
    },
    "miniature_robust_tower": {
        "optim.lr": 0.0003,
        "optim.epochs": 12,
        "optim.effective_batch": 64,
        "loss.lm": 0,
        "adversarial.epsilon": 8,
    },
    "miniature_family_stage1": {
        "optim.lr": 0.002,
        "optim.epochs": 5,
        "optim.effective_batch": 32,
        "loss": _HEAD_ONLY["loss"],
    },
    "miniature_stage1_lm_tokens": {
        "optim.lr": 0.002,
        "optim.epochs": 3,
        "optim.effective_batch": 32,
        "data.hints": True,
        "loss": LossWeights(1, 10, 10),
        "model.safety.lm_tokens": 4,
    },
    "miniature_stage2": {"optim.lr": 2e-3, "optim.epochs": 2, "optim.effective_batch": 32, "lora.r": 16},
    "miniature_stage2_robust": {"optim.lr": 2e-3, "optim.epochs": 3, "optim.effective_batch": 32, "lora.r": 16},
    "miniature_stage2_pressure": {
        "optim.lr": 2e-3,
        "optim.epochs": 2,
        "optim.effective_batch": 32,
        "lora.r": 16,
        "data.pressure": 0.33,
    },
    "miniature_probe": {"optim.lr": 2e-3, "optim.epochs": 30, "optim.effective_batch": 64, "probe.tokens": 4},
    "miniature_refusal_lora": {"optim.lr": 2e-3, "optim.epochs": 2, "optim.effective_batch": 32, "lora.r": 16},
    "miniature_security_tensor_textual": {
        "optim.lr": 0.1,
        "optim.max_steps": 2600,
        "optim.effective_batch": 16,
        "tensor.tokens": 24,
    },
    "miniature_security_tensor_visual": {
        "optim.lr": 0.06,
        "optim.max_steps": 3000,
        "optim.effective_batch": 16,
        "tensor.weights": PartWeights(1, 4, 4),
        "tensor.basis": "patches",
    },
    "pictograms_stage1": {
        "optim.lr": 1e-3,
        "optim.epochs": 4,
        "optim.effective_batch": 32,
        "data.hints": True,
        "loss": LossWeights(1, 10, 10),
        "model.safety.lm_tokens": 8,
    },
    "pictograms_stage2": {"optim.lr": 4e-4, "optim.epochs": 2, "optim.effective_batch": 32, "lora.r": 16},
}
"""What the tables of eval/results were made with; all of them with 20 updates of warm-up, a cosine and seed 256."""

CONCEPTS = ("neutral", "nudity", "blood", "gun", "gesture", "knife", "alcohol", "cigarette")
"""SafeCLIP's eight (methods §2.2); its second is called otherwise there."""

DECODING = {
    "vlguard": (256, "VLGuard's own code: greedy, 256 new tokens"),
    "advbench": (256, "ours: no length is published"),
    "xstest": (256, "ours: no length is published"),
}
"""Longest answers by suite; all are greedy."""


PAPER: dict[str, dict[str, Any]] = {
    "stage1": {
        "model.safety.reads_text": True,
        "model.safety.lm_tokens": 64,
        "model.attention": "flash_attention_2",
        "data.hints": False,
        "data.group_by": "none",
        "loss.lm": 1.0,
        "optim.batch_size": 2,
        "run.deepspeed": "zero2",
    },
    "stage2": {
        "model.attention": "flash_attention_2",
        "model.quantize": "none",
        "data.hints": False,
        "data.group_by": "none",
        "optim.batch_size": 2,
        "run.deepspeed": "zero2",
    },
    "security_tensor": {
        "optim.effective_batch": 1,
        "optim.epochs": 400,
        "optim.schedule": "constant",
        "tensor.epsilon": 0.0,
        "tensor.held_out": 0,
    },
    "robust_tower": {"adversarial.steps": 10, "optim.epochs": 2, "optim.batch_size": 16},
}
"""What the papers and their code have where a recipe of ours may differ (methods §1.1, §1.4, §3.1, §3.2)."""


@functools.cache
def _shipped(name: str) -> Recipe:
    return parse([name])


def _stated(name: str) -> dict[str, str]:
    """Key and reason of every deviation that a recipe's header states."""
    header = recipes.find(name, "recipe").read_text(encoding="utf-8").split("stage:", 1)[0]
    _, _, section = header.partition("# Differs from the paper (methods §")
    lines = re.sub(r"\n#    ", " ", section).splitlines()
    return dict(re.findall(r"^#  \* ([a-z_.0-9]+): (.+)$", line)[0] for line in lines[1:])


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_states_each_deviation_with_its_reason(name: str) -> None:
    recipe, stated = _shipped(name), _stated(name)
    differing = {key for key, paper in PAPER[recipe.stage].items() if _value(recipe, key) != paper}
    assert differing <= set(stated), "unstated in the header"
    same = (set(stated) & set(PAPER[recipe.stage])) - differing
    assert not same, "stated, but as published"
    for key, reason in stated.items():
        _value(recipe, key)  # it is a key
        assert len(reason) > 20, f"{key}: why?"


def test_the_manual_states_the_deviations_too() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.split("### What differs from the papers", 1)[1].split("\n## ", 1)[0]
    for name in RECIPES:
        missing = [key for key in _stated(name) if f"`{key}`" not in section]
        assert not missing, f"{name}: {missing}"


def _value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


@pytest.mark.parametrize(("settings", "published", "source"), DEFAULTS, ids=lambda one: type(one).__name__)
def test_defaults_are_the_published_values(settings: Any, published: dict[str, Any], source: str) -> None:
    assert {name: getattr(settings, name) for name in published} == published, source


@pytest.mark.parametrize("kind", [SafetyConfig, LossWeights, LoraSettings, OptimConfig, PartWeights])
def test_every_default_of_these_settings_is_pinned(kind: type) -> None:
    (pinned,) = (set(published) for settings, published, _ in DEFAULTS if type(settings) is kind)
    assert pinned == {field.name for field in dataclasses.fields(kind)} - {"taxonomy"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_for_real_models_hold_the_published_values(name: str) -> None:
    published, source = RECIPES[name]
    recipe = _shipped(name)
    assert {key: _value(recipe, key) for key in published} == published, source


@pytest.mark.parametrize("name", MINIATURE)
def test_the_miniatures_recipes_are_those_of_its_tables(name: str) -> None:
    wanted = MINIATURE[name] | {"optim.warmup_steps": 20, "optim.schedule": "cosine", "run.seed": 256}
    recipe = _shipped(name)
    assert {key: _value(recipe, key) for key in wanted} == wanted


def test_every_shipped_recipe_is_in_a_table() -> None:
    assert set(recipes.shipped("recipe")) == {*RECIPES, *MINIATURE}


def test_safety_tokens_start_at_the_published_spread() -> None:
    """Normal(0, 0.02), methods §1.1."""
    drawn = tokens.TokenBank(64, 4096).latent
    assert drawn.shape == (64, 4096) and drawn.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(drawn.mean().item()) < 1e-3


def test_the_lora_is_on_all_linear_layers_of_the_llm() -> None:
    """Methods §1.4."""
    layer = "model.language_model.layers.31."
    linear = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert all(re.fullmatch(names.LORA_TARGETS, layer + name) for name in linear)
    for other in ("lm_head", "model.multi_modal_projector.linear_1", "model.vision_tower.layers.3.self_attn.q_proj"):
        assert not re.fullmatch(names.LORA_TARGETS, other)


def test_zero2_has_the_published_buckets() -> None:
    """Methods §1.4; what the recipe decides stays with it."""
    table = json.loads(recipes.find("zero2", "deepspeed").read_text(encoding="utf-8"))
    zero = table["zero_optimization"]
    assert zero == {
        "stage": 2,
        "allgather_partitions": True,
        "allgather_bucket_size": 5e7,
        "reduce_scatter": True,
        "reduce_bucket_size": 5e7,
        "overlap_comm": True,
        "contiguous_gradients": True,
    }
    decided = ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu")
    assert {table[key] for key in decided} == {"auto"}


def test_the_mix_draws_the_published_counts() -> None:
    """Methods §1.5: 11,199 risky records and 81,978 clean ones; 3,000 clean in stage 1, drawn with seed 42."""
    table = yaml.safe_load(recipes.find("mix_safevlm", "mix").read_text(encoding="utf-8"))
    counts = dict(table["counts"])
    assert counts == {
        "politics": 2187,
        "illegal": 3370,
        "insults": 1204,
        "fairness": 1917,
        "privacy": 899,
        "misleading": 1622,
        "clean": 81978,
    }
    assert sum(counts.values()) == 93177 and table["seed"] == 42
    assert table["stages"] == {"stage1": {"clean": 3000}, "stage2": {}}
    assert table["sources"]["llava"]["limit"] == 15294


def test_categories_and_levels_are_the_published_ones_in_their_order() -> None:
    """Methods §1.2."""
    assert DEFAULT.category_names == [
        "politics",
        "illegal",
        "insults",
        "fairness",
        "privacy",
        "misleading",
        "clean",
    ]
    assert len(DEFAULT.level_names) == 4 and DEFAULT.level_names[0] == "safe"


def test_safe_clip_has_the_published_concepts_and_threshold() -> None:
    """Methods §2.1, §2.2: eight concepts of five templates, τ 0.6."""
    assert bank.TAU == 0.6
    table = yaml.safe_load((Path(concepts.__file__).parent / "concepts.yaml").read_text(encoding="utf-8"))["concepts"]
    assert tuple(one["name"] for one in table) == CONCEPTS
    assert {len(one["templates"]) for one in table} == {5}


@pytest.mark.parametrize("name", DECODING)
def test_suites_decode_as_published(name: str) -> None:
    length, source = DECODING[name]
    assert SUITES[name].max_new_tokens == length, source


def test_every_suite_is_greedy() -> None:
    """What is published is; an own suite may say otherwise."""
    assert {name: row.temperature for name, row in SUITES.items() if row.temperature} == {}
