"""What the released code of the three methods gets wrong, and the test of ours that would notice.

The rows are those of the project's own list of errata: SafeVLM / PSA-VLM, SafeCLIP, security tensors. A row without a
test that exists is a failure.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

TRAPS: dict[str, dict[str, tuple[str, ...]]] = {
    "SafeVLM / PSA-VLM": {
        "1 the head's query is a constant pad token, so it is blind to text": (
            "engine/test_engine_image_features.py::test_verdict_of_a_text_aware_head_hangs_on_the_text",
            "model/test_head.py::test_image_only_head_provably_ignores_text",
        ),
        "2 padding decides the verdict": (
            "model/test_head.py::test_verdict_does_not_depend_on_padding_or_company",
            "engine/test_engine_image_features.py::test_verdict_is_the_same_alone_and_in_a_batch",
        ),
        "3 the wrong ignore index masks nothing": (
            "data/test_chat.py::test_unmasked_tokens_are_the_answers_exactly",
            "model/test_losses.py::test_logits_of_prompt_positions_do_not_reach_the_loss",
        ),
        "4 inputs are rotated and labels are not": (
            "model/test_losses.py::test_label_t_is_scored_against_the_logits_of_position_t_minus_1",
            "data/test_collate.py::test_max_length_that_leaves_no_answer_is_an_error",
        ),
        "5 the LoRA leaks into lm_head": (
            "training/test_stages.py::test_stage2_trains_a_lora_on_the_llms_linear_layers_and_no_other",
        ),
        "6 the vision tower runs twice": (
            "engine/test_engine_image_features.py::test_the_tower_runs_once_per_image",
            "model/test_safe_llava.py::test_tower_runs_once_per_forward_and_once_per_generate",
        ),
        "7 an unreadable image trains as a blank with its harmful label": (
            "data/test_collate.py::test_broken_image_names_the_record",
            "data/test_records.py::test_verifying_names_the_record_of_a_broken_image",
        ),
        "8 records without an image break": ("training/test_trainer.py::test_text_only_data_trains",),
        "9 the width 4096 is written into the code": (
            "model/test_safe_llava.py::test_any_width_works",
            "model/test_real_sizes.py::test_banks_head_and_slots_follow_the_llms_width",
        ),
        "10 the projector writes into the model's config": (
            "model/test_safe_llava.py::test_building_does_not_touch_the_stock_config",
            "model/test_safe_llava.py::test_save_and_load_is_bitwise",
        ),
        "11 the loss factor is multiplied in place; missing labels give nan": (
            "training/test_trainer.py::test_weights_scale_the_gradient_and_not_the_logged_terms",
            "training/test_trainer.py::test_head_only_training_of_a_batch_without_verdicts",
        ),
        "12 the first row of a batch chooses everybody's hint": (
            "defenses/test_contract.py::test_batched_equals_one_by_one",
        ),
        "13 training and inference build different prompts": (
            "data/test_chat.py::test_training_text_begins_with_the_prompt_of_inference",
        ),
        "14 the image folder is ignored; few clean records fail": (
            "data/test_records.py::test_image_folder_is_used_and_absolute_paths_stay",
            "data/test_mix.py::test_no_limit_or_too_few_clean_records_keeps_all",
        ),
    },
    "SafeCLIP": {
        "1 the projection is of another checkpoint": (
            "defenses/test_safe_clip.py::test_trap_1_bank_of_another_tower_is_an_error",
            "defenses/test_safe_clip.py::test_trap_1_projection_is_of_the_towers_own_clip",
        ),
        "2 the penultimate layer without layernorm is projected": (
            "defenses/test_safe_clip.py::test_trap_2_pooled_feature_is_clips_own_image_embedding",
            "defenses/test_safe_clip.py::test_trap_2_four_readings_are_two_layers_with_and_without_layernorm",
            "defenses/test_safe_clip.py::test_trap_2_name_and_bank_choose_the_feature",
        ),
        "3 the text is inserted before the last token where three ids are absent": (
            "defenses/test_safe_clip.py::test_trap_3_hint_stands_at_its_place_whatever_the_tokens_are",
        ),
        "4 the corrected prompt loses the question": (
            "defenses/test_safe_clip.py::test_trap_4_question_survives_in_every_corrected_prompt",
        ),
        "5 the first image's verdict is everybody's": (
            "defenses/test_safe_clip.py::test_trap_5_every_image_of_a_batch_has_its_own_verdict",
        ),
        "6 padding is lost when text is inserted": (
            "defenses/test_safe_clip.py::test_trap_6_corrected_answer_is_the_same_alone_and_in_a_batch",
        ),
        "7 labels are not extended with the inserted ids": (
            "training/test_relabel.py::test_trap_7_labels_cover_the_new_answer_and_nothing_else",
        ),
        "8 with expanded image slots the verdict is ignored": (
            "defenses/test_safe_clip.py::test_trap_8_correction_fires_with_expanded_image_slots",
        ),
        "9 unequal lists of templates break or mis-assign mass": (
            "defenses/test_safe_clip.py::test_trap_9_unequal_numbers_of_templates_have_equal_priors",
            "defenses/test_safe_clip.py::test_trap_9_stated_prior_is_what_a_concept_weighs",
        ),
        "10 the last class has no text": (
            "defenses/test_safe_clip.py::test_trap_10_every_concept_has_its_texts",
            "defenses/test_safe_clip.py::test_trap_10_shipped_concepts_are_the_papers_eight",
        ),
        "11 CLIP is loaded twice, and on CUDA": (
            "defenses/test_safe_clip.py::test_trap_11_no_clip_is_loaded_to_detect",
            "defenses/test_safe_clip.py::test_trap_11_clip_is_loaded_once_for_a_bank",
        ),
        "12 the verdict never sees the question, and the threshold is fixed": (
            "defenses/test_safe_clip.py::test_trap_12_verdict_does_not_hang_on_the_question",
            "defenses/test_safe_clip.py::test_trap_12_threshold_can_be_calibrated",
        ),
    },
    "security tensors": {
        "1 a label that never matches learns the harmful answers": (
            "training/test_tensor_stage.py::test_trap_1_malicious_pairs_learn_the_refusal_and_unknown_parts_are_errors",
            "training/test_tensor_stage.py::test_trap_1_a_part_without_pairs_or_a_pair_without_an_image_is_an_error",
        ),
        "2 the scheduler is never stepped": (
            "training/test_tensor_stage.py::test_trap_2_learning_rate_trace_equals_the_recipe",
        ),
        "3 the bound is of no pixel": (
            "training/test_tensor_stage.py::test_trap_3_the_bound_is_in_pixels_and_holds",
            "training/test_tensor_stage.py::test_trap_3_without_a_bound_the_tensor_is_free_and_its_size_is_told",
        ),
        "4 labels are tokenised alone and shift": (
            "training/test_tensor_stage.py::test_trap_4_labels_are_of_one_tokenisation",
        ),
        "5 the divergence is averaged over the vocabulary too": (
            "training/test_tensor_stage.py::test_trap_5_divergence_is_forward_kl_per_position_checked_by_hand",
            "training/test_tensor_stage.py::test_trap_5_the_terms_are_means_over_answer_positions",
        ),
        "6 nothing is seeded and no epoch is shuffled anew": (
            "training/test_tensor_stage.py::test_trap_6_every_epoch_is_shuffled_anew",
            "training/test_tensor_stage.py::test_trap_6_the_seed_fixes_the_tensor",
        ),
        "7 grey and transparent images are left to the processor": (
            "training/test_tensor_stage.py::test_trap_7_grey_palette_and_alpha_images_train",
        ),
        "8 an image of its own gives the shape; the last epochs are not saved": (
            "training/test_tensor_stage.py::test_trap_8_the_shape_is_of_the_config_and_needs_no_image",
            "training/test_tensor_stage.py::test_trap_8_the_last_and_the_best_are_saved",
            "training/test_tensor_stage.py::test_trap_8_held_out_pairs_are_never_trained_on",
        ),
        "9 place and benign term differ between code and paper": (
            "training/test_tensor_stage.py::test_trap_9_place_and_benign_term_are_chosen_by_the_recipe_and_matter",
            "training/test_tensor_stage.py::test_trap_9_the_ce_term_never_asks_the_bare_model",
            "training/test_tensor_stage.py::test_trap_9_the_control_is_random_and_as_large",
        ),
    },
}


@cache
def _names(file: Path) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize(("method", "trap"), [(method, trap) for method, traps in TRAPS.items() for trap in traps])
def test_trap_has_a_test(method: str, trap: str) -> None:
    assert TRAPS[method][trap], f"{method}, trap {trap}: no test"
    for place in TRAPS[method][trap]:
        file, name = place.split("::")
        assert name in _names(TESTS / file), f"{method}, trap {trap}: {place} does not exist"


@pytest.mark.parametrize(("method", "count"), [("SafeVLM / PSA-VLM", 14), ("SafeCLIP", 12), ("security tensors", 9)])
def test_no_trap_is_left_out(method: str, count: int) -> None:
    assert [trap.split()[0] for trap in TRAPS[method]] == [str(number + 1) for number in range(count)]
