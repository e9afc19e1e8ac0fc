"""The estimate: known sizes of LLaVA-v1.5-7B, and what must never need more."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from safevlm.check import disk, memory, samples
from safevlm.check.memory import GIB, Load, ModelShape
from safevlm.config import ProjectorKind, SafetyConfig
from safevlm.data import records
from safevlm.data.collate import IGNORED, columns_before_labels
from safevlm.model import projector

LAYERS, REST, LORA = 6_476_267_520, 587_034_624, 639_631_360
"""Weights of 7B: the LLM's layers, all the rest, and a LoRA of rank 256."""

SEVEN_B = ModelShape(
    llm=LAYERS,
    other=REST,
    trained=LORA,
    layers=32,
    hidden=4096,
    intermediate=11008,
    heads=32,
    vocabulary=32064,
    tower_layers=24,
    tower_width=1024,
    tower_intermediate=4096,
    patches=577,
    projector_width=1088,
    projector_depth=3,
    features=640,
    lora=True,
)
STAGE1 = dataclasses.replace(SEVEN_B, lora=False, trained=107_814_619)
HEAD_ONLY = dataclasses.replace(STAGE1, llm=0, runs_llm=False)
LOAD = Load(tokens=750, answer_tokens=60, images=1, batch=2, stage=2, processes=8)


def _alike(batch: int) -> int:
    """Columns of records whose answers lie in the same ones."""
    return 0


def total(shape: ModelShape = SEVEN_B, **fields: Any) -> int:
    return memory.estimate(shape, dataclasses.replace(LOAD, **fields)).total


def test_frozen_weights_of_7b_in_bf16_are_14_gb() -> None:
    assert memory.estimate(SEVEN_B, LOAD).frozen == pytest.approx(14.13e9, rel=0.001)


def test_zero3_leaves_an_eighth_of_the_frozen_weights_and_two_layers_on_each_of_8_gpus() -> None:
    cut = memory.estimate(SEVEN_B, dataclasses.replace(LOAD, stage=3)).frozen
    assert cut == pytest.approx(14.13e9 / 8 + 2 * LAYERS / 32 * 2, rel=0.001)
    away = memory.estimate(SEVEN_B, dataclasses.replace(LOAD, stage=3, offloads_weights=True)).frozen
    assert away == pytest.approx(2 * LAYERS / 32 * 2, rel=0.001)


def test_what_is_offloaded_lies_in_the_hosts_memory() -> None:
    assert memory.host(SEVEN_B, LOAD) == 0
    assert memory.host(SEVEN_B, dataclasses.replace(LOAD, offloads_optimizer=True)) == 12 * LORA
    both = dataclasses.replace(LOAD, stage=3, offloads_optimizer=True, offloads_weights=True)
    assert memory.host(SEVEN_B, both) == pytest.approx(14.13e9 + (12 + 2) * LORA, rel=0.001)


def test_a_lora_of_rank_256_trains_with_16_bytes_a_weight() -> None:
    one = memory.estimate(SEVEN_B, dataclasses.replace(LOAD, processes=1)).trained
    assert one == LORA * 16
    eight = memory.estimate(SEVEN_B, LOAD).trained
    assert eight == pytest.approx(LORA * (2 + 14 / 8)), "ZeRO-2 keeps the weight and an eighth of the rest"


def test_activations_are_those_of_the_published_rule_within_a_third() -> None:
    """34 bytes per token, layer and width for a GPT layer in 16 bits (arXiv 2205.05198)."""
    rule = 34 * 4096 * 32 * LOAD.tokens * LOAD.batch
    assert memory.estimate(STAGE1, LOAD).activations == pytest.approx(rule, rel=1 / 3)


@pytest.mark.parametrize("processes", [1, 2, 8, 64])
@pytest.mark.parametrize("shape", [SEVEN_B, STAGE1, HEAD_ONLY], ids=["stage2", "stage1", "head-only"])
def test_zero3_never_needs_more_than_zero2(shape: ModelShape, processes: int) -> None:
    assert total(shape, stage=3, processes=processes) <= total(shape, stage=2, processes=processes)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_more_gpus_never_need_more_each(stage: int) -> None:
    sizes = [total(stage=stage, processes=count) for count in (2, 4, 8, 16)]  # NCCL has buffers from the second on
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("shape", [SEVEN_B, STAGE1], ids=["stage2", "stage1"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_checkpointing_never_needs_more(shape: ModelShape, attention: str) -> None:
    plain = total(shape, attention=attention)
    assert total(shape, attention=attention, checkpointing=True) < plain


def test_a_packed_base_needs_less_in_the_order_of_its_bits() -> None:
    assert total(quantize="nf4") < total(quantize="int8") < total()
    assert total() - total(quantize="nf4") == pytest.approx(LAYERS * (2 - 0.516), rel=0.001)


def test_gradients_that_wait_for_the_next_micro_batch_count_beside_its_activations() -> None:
    one = total(stage=0, processes=1)
    assert total(stage=0, processes=1, accumulates=True) == one + 4 * LORA
    assert total(stage=2, accumulates=True) == total(stage=2), "DeepSpeed's are there all the time"


def test_int8_keeps_its_inputs_also_under_checkpointing_and_nf4_does_not() -> None:
    kept = 2 * (3 * 4096 + 11008) * 32 * LOAD.tokens * LOAD.batch
    int8, nf4 = (
        memory.estimate(SEVEN_B, dataclasses.replace(LOAD, quantize=packed, checkpointing=True)).activations
        for packed in ("int8", "nf4")
    )
    assert int8 - nf4 == kept


def test_frozen_safety_modules_stay_float32_without_deepspeed() -> None:
    ours = dataclasses.replace(SEVEN_B, frozen_safety=1000)
    assert total(ours, stage=0) - total(stage=0) == 4000 and total(ours, stage=2) - total(stage=2) == 2000


def test_logits_count_where_a_label_follows_in_any_record_and_nowhere_else() -> None:
    counted = [memory.estimate(STAGE1, dataclasses.replace(LOAD, columns=count)).logits for count in (0, 60, 100, 9999)]
    words = LOAD.batch * STAGE1.vocabulary
    assert counted == [words * (2 * LOAD.bytes * columns + 12 * 60) for columns in (60, 60, 100, LOAD.tokens)]


def test_no_batch_of_the_sampled_records_has_more_columns_than_are_counted() -> None:
    record = records.Record("id", "rows.jsonl:1", ())
    labels = [torch.tensor([IGNORED] * before + [7] * learned) for before, learned in ((5, 2), (5, 4), (9, 1), (2, 3))]
    rows = [samples.EncodedRecord(record, own, own, "none", 0) for own in labels]
    for size in range(1, len(rows) + 1):
        counted = samples.columns(rows, size)
        batches = (pad_sequence(list(some), True, IGNORED) for some in itertools.combinations(labels, size))
        worst = max(len(columns_before_labels(batch)) for batch in batches)
        assert worst <= counted <= sum(sorted(row.learned for row in rows)[-size:])
        assert size not in (1, len(rows)) or counted == worst
    assert samples.columns([], 4) == 0


@pytest.mark.parametrize(("kind", "queries"), [("c_abstractor", 400), ("resampler", 100), ("mlp", 100)])
def test_what_autograd_keeps_of_a_safety_projector_is_what_is_counted_within_a_fifth(
    kind: ProjectorKind, queries: int
) -> None:
    depth, width, tokens = 3, 64, 400
    safety = SafetyConfig(kind, projector_width=width, projector_depth=depth, projector_tokens=queries)
    made = projector.build(safety, vision_width=24, out=8)
    assert made is not None
    own = {weight.untyped_storage().data_ptr() for weight in made.parameters()}
    kept: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return saved

    patches = torch.randn(2, tokens, 24)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        given = made(patches)  # while it lives, so does what is kept
    own.add(patches.untyped_storage().data_ptr())
    found = sum(size for where, size in kept.items() if where not in own)
    counted = len(given) * width * memory.KEPT[kind](4, depth, tokens, queries)
    assert counted == pytest.approx(found, rel=0.2)


def test_image_tokens_of_the_records_count_where_images_differ_in_size_and_only_there() -> None:
    flattened = dataclasses.replace(
        HEAD_ONLY, patches=4 * 144, is_one_size=False, patches_per_read=4, projector="resampler"
    )
    sizes = [total(flattened, image_tokens=count) for count in (100, 400, 1600)]
    assert sizes == sorted(set(sizes))
    assert total(flattened) == total(flattened, image_tokens=144)
    assert total(HEAD_ONLY, image_tokens=100) == total(HEAD_ONLY)


def test_offloading_never_needs_more() -> None:
    assert total(stage=2, offloads_optimizer=True) < total(stage=2)
    assert total(stage=3, offloads_optimizer=True, offloads_weights=True) < total(stage=3)


def test_batch_length_and_eager_attention_cost() -> None:
    assert total(batch=1) < total(batch=2) < total(batch=4)
    assert total(tokens=700) < total(tokens=1400)
    assert total(attention="sdpa") < total(attention="eager")


def test_head_only_training_needs_no_llm() -> None:
    found = memory.estimate(HEAD_ONLY, LOAD)
    assert found.activations == found.logits == 0
    assert found.total < 6 * GIB


def test_nothing_is_kept_of_an_llm_that_no_gradient_passes() -> None:
    assert memory.estimate(dataclasses.replace(STAGE1, learns_through_llm=False), LOAD).activations == 0


def test_the_table_marks_the_recipe_and_what_does_not_fit() -> None:
    lines = memory.table(SEVEN_B, LOAD, 24, _alike)
    assert [line.split()[0] for line in lines[1:]] == ["no", "ZeRO-2", "ZeRO-3"]
    assert sum(line.count("*") for line in lines) == 1 and "*" in lines[2]
    assert any("!" in line for line in lines)
    assert not any("!" in line for line in memory.table(SEVEN_B, LOAD, 1000, _alike))
    assert not any(
        "ZeRO-3" in line for line in memory.table(SEVEN_B, dataclasses.replace(LOAD, quantize="nf4"), 24, _alike)
    )


def test_disk_counts_every_checkpoint_that_lies_there_at_once() -> None:
    need = disk.need(ours=10, trained=10, lora=False, files=5, keep=2, deepspeed=False, bytes_live=4)
    assert (need.final, need.checkpoint) == (45, 45 + 80)
    assert need.total == 3 * need.checkpoint + need.final
    heavier = disk.need(ours=10, trained=10, lora=True, files=5, keep=2, deepspeed=True, bytes_live=2)
    assert (heavier.final, heavier.checkpoint) == (85, 85 + 140)
