"""The checks of what a run costs: what trains, memory per GPU, disk, and a dry run of saving."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from safevlm.check import checkpoint, disk, dry_run, memory, model, zero
from safevlm.check.findings import Finding, size
from safevlm.check.lazy_parts import PROBLEMS, Skipped
from safevlm.check.model_shape import model_shape
from safevlm.check.plan import RunPlan
from safevlm.check.samples import EncodedRecord, columns
from safevlm.training.arguments import frozen_dtype
from safevlm.training.prepare import trainable

QUESTION = 128
"""Tokens of text assumed for a record beside its image, when no record could be encoded."""


def trained(plan: RunPlan) -> Iterator[Finding]:
    """Names and sizes of what trains, by module."""
    if plan.stage.fit:
        yield Finding(
            True, f"{plan.recipe.stage} trains by itself: {plan.stage.text}; memory and disk are not reckoned"
        )
        return
    sizes = trainable(plan.trained_model)
    everything = sum(weight.numel() for weight in plan.trained_model.parameters())
    groups: dict[str, list[int]] = {}
    for name, amount in sizes.items():
        groups.setdefault(_group(name), []).append(amount)
    wide = max(map(len, groups))
    rows = [f"{name:<{wide}}  {len(group):>4} tensors  {sum(group):>14,}" for name, group in groups.items()]
    total = sum(sizes.values())
    loaded = "model" if plan.recipe.loss.lm else "model (without the LLM's layers, which are never loaded)"
    title = f"trains {total:,} parameters in {len(sizes)} tensors, {total / everything:.2%} of the {loaded}"
    yield Finding(True, title, "\n".join(rows))


def _group(name: str) -> str:
    if ".lora_" in name:
        return "LoRA " + name.split(".lora_")[0].rsplit(".", 1)[-1]
    return name.split(".")[0]


def gpu_memory(plan: RunPlan) -> Iterator[Finding]:
    """The estimate of safevlm.check.memory against the GPU, or a CPU run's against this machine."""
    if plan.stage.fit:
        return
    shape, load = shape_of(plan), load_of(plan)
    gib, source = _room(plan)
    place = "process" if plan.recipe.run.device == "cpu" else "GPU"
    found = memory.estimate(shape, load)
    rows = {
        "frozen weights": found.frozen,
        "trained, with gradients and Adam": found.trained,
        "activations of the LLM": found.activations,
        "logits": found.logits,
        "tower, projector, head": found.vision,
        "context and fragmentation": found.reserve,
    }
    lines = [f"{name:<34}{size(amount):>10}" for name, amount in rows.items()]
    advice = "" if found.total <= gib * memory.GIB else "; " + _advice(load)
    yield Finding(
        found.total <= gib * memory.GIB,
        f"memory: about {size(found.total)} of {gib:.0f} GiB per {place} ({source}), an estimate{advice}",
        "\n".join([*lines, *_offloaded(plan, shape, load), *_table(plan, shape, load, gib)]),
    )


def _offloaded(plan: RunPlan, shape: memory.ModelShape, load: memory.Load) -> list[str]:
    amount = memory.host(shape, load) / plan.cluster.nodes
    return [f"{'offloaded, in the memory of a node':<34}{size(amount):>10}"] if amount else []


def _table(plan: RunPlan, shape: memory.ModelShape, load: memory.Load, gib: float) -> list[str]:
    if plan.recipe.run.device == "cpu":
        return []
    where = f"{load.processes} processes, {load.tokens} tokens per record; * this recipe, ! does not fit"
    return [*memory.table(shape, load, gib, partial(columns, _rows(plan))), where]


def disk_space(plan: RunPlan) -> Iterator[Finding]:
    if plan.stage.fit:
        return
    need, keep = disk_need(plan), plan.recipe.run.keep
    place = disk.standing(Path(plan.recipe.run.out))
    free = shutil.disk_usage(place).free
    yield Finding(
        need.total <= free,
        f"disk: {size(need.total)} of {size(free)} free at {place}"
        + ("" if need.total <= free else "; choose another run.out or a smaller run.keep"),
        f"a checkpoint takes {size(need.checkpoint)}: {keep} are kept, and one more while it is written; "
        f"final takes {size(need.final)}",
    )


def disk_need(plan: RunPlan) -> disk.Need:
    run = plan.recipe.run
    return disk.need(
        ours=sum(tensor.numel() for tensor in checkpoint.safety_state(plan.skeleton).values()),
        trained=sum(trainable(plan.trained_model).values()),
        lora=plan.stage.adds_lora,
        files=model.small_files(plan.checkpoint.folder),
        keep=run.keep,
        deepspeed=bool(run.deepspeed),
        bytes_live=2 if run.bf16 else 4,
    )


def saving(plan: RunPlan) -> Iterator[Finding]:
    """Saves a checkpoint of the real shapes beside run.out, reads it again and removes it."""
    if plan.stage.leaves == "files":
        return  # nothing of the model
    _ = plan.trained_model  # whether anything trains at all is another check's
    yield dry_run.dry_run(plan)


def shape_of(plan: RunPlan) -> memory.ModelShape:
    """The model's sizes, from its shapes on the meta device."""
    config = plan.checkpoint.config
    return model_shape(
        config,
        plan.trained_model,
        lora=plan.stage.adds_lora,
        learns_through_llm=plan.stage.learns_through_llm(config.safety_config),
        runs_llm=bool(plan.recipe.loss.lm),
    )


def load_of(plan: RunPlan) -> memory.Load:
    """The worst step of the sampled records, on the recipe's terms."""
    recipe = plan.recipe
    found = zero.settings(plan.deepspeed_file or {})
    rows = _rows(plan)
    return memory.Load(
        tokens=min(plan.longest, max((row.length for row in rows), default=(plan.skeleton.slots or 0) + QUESTION)),
        answer_tokens=max((row.learned for row in rows), default=QUESTION),
        images=max((len(row.record.images) for row in rows), default=1),
        image_tokens=_image_tokens(plan),
        columns=columns(rows, recipe.optim.batch_size),
        batch=recipe.optim.batch_size,
        accumulates=_accumulates(plan),
        stage=found.stage,
        processes=plan.cluster.processes,
        bytes=_bytes(plan),
        checkpointing=recipe.optim.gradient_checkpointing,
        quantize=recipe.model.quantize,
        attention=recipe.model.attention,
        offloads_optimizer=found.offloads_optimizer,
        offloads_weights=found.offloads_weights,
    )


def _rows(plan: RunPlan) -> tuple[EncodedRecord, ...]:
    """The sample's; none when the data are broken, which other checks tell."""
    try:
        return plan.sample.rows
    except (Skipped, *PROBLEMS):
        return ()


def _image_tokens(plan: RunPlan) -> int:
    """Of the largest image of the sample, on average over the images of its record; 0: there is none."""
    learned = plan.checkpoint.config.safety_config.lm_tokens
    seen = [(row.image_tokens, len(row.record.images)) for row in _rows(plan)]
    return max((math.ceil(tokens / images) - learned for tokens, images in seen if images), default=0)


def _accumulates(plan: RunPlan) -> bool:
    """Also where the effective batch cannot be split, which another check tells."""
    try:
        return plan.accumulation > 1
    except (Skipped, *PROBLEMS):
        return True


def _bytes(plan: RunPlan) -> int:
    """Of a frozen weight. `auto` means bfloat16, also where this machine has no GPU: the run's has one."""
    recipe = plan.recipe
    if recipe.model.dtype == "auto" and not recipe.run.deepspeed:
        return 4 if recipe.run.device == "cpu" else 2
    return frozen_dtype(recipe).itemsize


def _room(plan: RunPlan) -> tuple[float, str]:
    """GiB that there are, and where the number is from. A run on the CPU has this machine's memory."""
    if plan.recipe.run.device == "cpu" and plan.cluster.gpu_memory is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / memory.GIB, "this machine's, on its CPU"
    return plan.cluster.memory()


def _advice(load: memory.Load) -> str:
    """What would help, the cheapest first."""
    steps = (
        (load.batch > 1, "lower optim.batch_size, and keep the effective batch"),
        (not load.checkpointing, "set optim.gradient_checkpointing"),
        (
            load.stage < 3 and load.quantize == "none",
            "use --run.deepspeed zero3, or model.quantize: nf4",
        ),
        (not load.offloads_weights and load.stage == 3, "use --run.deepspeed zero3_offload"),
    )
    return next((advice for helps, advice in steps if helps), "use more or larger GPUs")
