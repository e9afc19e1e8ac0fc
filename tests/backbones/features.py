"""Feature → families that (thorough) tests show it for. Tests take their families from here, the manual its table."""

from __future__ import annotations

from safevlm.backbones.table import BACKBONES
from tests.backbones.families import ANSWERING as EVERY

ALL = tuple(BACKBONES)
"""With those that are only looked at (`test_looks_only.py`)."""
WHOLE = ("gemma3", "internvl", "paligemma")
"""An image that the processor leaves whole is one square of pixels. InternVL's has to be told so (`max_patches: 1`)."""
FIRST = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl"),
    *("llava_next", "llava_onevision", "idefics3", "smolvlm"),
)
"""What most people run."""
FEATURES: dict[str, tuple[str, ...]] = {
    "one pass, batches": EVERY,
    "several images, the risky one named": EVERY,
    "looking without the LLM, head-only stage 1": ALL,
    "stage 1 with LM tokens": EVERY,
    "stage 2, merge": EVERY,
    "QLoRA": (*FIRST, "llama4"),
    "stock export": EVERY,
    "virtual tokens": EVERY,
    "policies, static prompt, stacks, fusion, self-check, ETA": EVERY,
    "textual security tensor": EVERY,
    "check, audit, chat, server": EVERY,
    "SafeCLIP by its own tower": ("gemma3", "llava_next", "llava_onevision"),
    "SafeCLIP by a companion": EVERY,
    "views, smoothing, consistency": EVERY,
    "visual security tensor": WHOLE,
    "c_abstractor": WHOLE,
}
LLAVA = "llava"
"""The first model, which is no row of the table of families: tests of its own show what it does."""
SHOWN_FOR_LLAVA: dict[str, tuple[str, ...]] = {
    "one pass, batches": (
        "model/test_safe_llava.py::test_one_look_serves_verdict_and_answer",
        "model/test_safe_llava.py::test_mixed_batch_equals_its_rows_one_by_one",
    ),
    "several images, the risky one named": (
        "engine/test_engine_image_features.py::test_head_sees_all_images_of_a_request",
        "backbones/test_several_images.py::test_the_mixer_names_the_risky_image_and_no_other_on_llava",
    ),
    "looking without the LLM, head-only stage 1": (
        "training/test_start.py::test_head_only_training_leaves_the_llm_on_the_disk",
        "analysis/test_audit_run.py::test_the_llm_is_never_loaded",
    ),
    "stage 1 with LM tokens": ("training/test_stages.py::test_stage1_trains_the_safety_weights_and_no_other",),
    "stage 2, merge": (
        "training/test_stages.py::test_stage2_trains_a_lora_on_the_llms_linear_layers_and_no_other",
        "training/test_merge.py::test_guard_is_the_same_in_every_type",
    ),
    "QLoRA": (
        "model/test_quantization.py::test_qlora_changes_exactly_the_lora_and_learns",
        "model/test_quantization.py::test_quantised_run_merges_on_the_whole_base",
    ),
    "stock export": ("model/test_export.py::test_stock_logits_are_ours_without_lm_tokens",),
    "virtual tokens": ("llava_patch/test_virtual_tokens.py::test_virtual_token_with_a_words_embedding_is_that_word",),
    "policies, static prompt, stacks, fusion, self-check, ETA": (
        "defenses/test_contract.py::test_batched_equals_one_by_one",
    ),
    "textual security tensor": ("training/test_tensor_stage.py::test_the_engine_puts_the_tensor_where_training_did",),
    "check, audit, chat, server": (
        "check/test_check_model.py::test_every_kind_of_checkpoint_is_fine",
        "analysis/test_audit_run.py::test_verdicts_are_those_of_chat",
        "serve/test_chat_api.py::test_plain_and_streamed_answers_are_the_engines_own",
    ),
    "SafeCLIP by its own tower": (
        "defenses/test_safe_clip.py::test_trap_2_pooled_feature_is_clips_own_image_embedding",
    ),
    "SafeCLIP by a companion": (
        "defenses/test_companion.py::test_a_model_s_own_tower_as_companion_says_what_it_says_itself",
    ),
    "views, smoothing, consistency": (
        "defenses/test_viewed.py::test_a_verdict_is_the_same_alone_and_in_a_batch",
        "defenses/test_smoothed.py::test_a_verdict_is_the_same_alone_and_in_a_batch",
        "defenses/test_consistent.py::test_versions_of_a_batch_pass_the_tower_together_and_a_batch_changes_no_verdict",
    ),
    "visual security tensor": ("training/test_tensor_stage.py::test_the_engine_puts_the_tensor_where_training_did",),
    "c_abstractor": ("model/test_projector.py::test_c_abstractor_keeps_the_grid_in_reading_order",),
}


def shows(family: str, feature: str) -> bool:
    """Whether tests show the feature for the family."""
    return family in FEATURES[feature] or (family == LLAVA and bool(SHOWN_FOR_LLAVA.get(feature)))


def rows() -> list[str]:
    """The manual's table, line by line."""
    head = ["| family | " + " | ".join(FEATURES) + " |", "|---|" + "---|" * len(FEATURES)]
    marks = {family: ["✓" if shows(family, name) else "–" for name in FEATURES] for family in (LLAVA, *ALL)}
    return [*head, *(f"| `{family}` | " + " | ".join(own) + " |" for family, own in marks.items())]


if __name__ == "__main__":
    print("\n".join(rows()))
