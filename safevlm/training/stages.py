"""The table of stages: everything that one of them needs stands in its row (`safevlm.training.stage`). Free of torch.

|                 | trained                                | frozen                        |
|-----------------|----------------------------------------|-------------------------------|
| stage1          | safety tokens, projector and head      | vision tower, projector, LLM  |
| stage2          | a LoRA on the LLM's linear layers      | all the rest                  |
| security_tensor | one tensor in front of the model       | the model                     |
| robust_tower    | the vision tower                       | all the rest                  |
| probe           | a detector on the LLM's hidden states  | the model                     |

A stage of a user's own is a `Stage` that a recipe names: `stage: package.module:ROW`, or an entry point of the group
`safevlm.stages`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safevlm.config import Recipe
from safevlm.plugins import Registry
from safevlm.training.stage import Stage, StageRun

if TYPE_CHECKING:
    from safevlm.data.records import Record
    from safevlm.model.safe_llava import SafeLlava
    from safevlm.training.trainer import SafeTrainer


def _is_safety(name: str) -> bool:
    from safevlm.model.safety_modules import is_safety_name

    return is_safety_name(name)


def _reached_in_stage1(name: str, recipe: Recipe) -> bool:
    """LM tokens stand before the LLM alone; the head and its projector learn from verdicts alone."""
    loss = recipe.loss
    return bool(loss.lm if name.startswith("safety_lm_tokens.") else loss.level or loss.category)


STAGE1 = Stage(
    "stage1",
    "safety tokens, safety projector and safety head",
    trains=_is_safety,
    reaches=_reached_in_stage1,
    leaves="safety",
    trains_head=True,
    learns_through_llm=lambda safety: safety.lm_tokens > 0,
    defense="safety-head",
)


def _with_lora(model: SafeLlava, recipe: Recipe) -> Any:
    from safevlm.training.lora import with_lora

    return with_lora(model, recipe.lora, autocast=recipe.run.bf16)


def _check_stage2(recipe: Recipe) -> None:
    if not recipe.loss.lm:
        raise ValueError("loss.lm: 0 leaves stage2 nothing to learn from; its LoRA moves the LLM alone")


STAGE2 = Stage(
    "stage2",
    "a LoRA on the LLM's linear layers",
    add=_with_lora,
    trains=lambda name: ".lora_" in name,
    leaves="adapter",
    packages=("peft",),
    check_recipe=_check_stage2,
    defense="auto",
)


def _with_tensor(model: SafeLlava, recipe: Recipe) -> Any:
    from safevlm.training.tensors import TensorLearner

    return TensorLearner(model, recipe.tensor)


def _tensor_trainer(*given: Any, **options: Any) -> SafeTrainer:
    from safevlm.training.tensor_stage import trainer

    return trainer(*given, **options)


def _check_as_it_is(recipe: Recipe, what: str) -> None:
    safety = recipe.model.safety
    if safety.projector != "none" or safety.lm_tokens or safety.head_tokens:
        raise ValueError(
            f"model.safety: {what} is learned for a model as it is; "
            "set {projector: none, lm_tokens: 0, head_tokens: 0} (a checkpoint that has modules keeps them)"
        )


def _check_tensor(recipe: Recipe) -> None:
    _check_as_it_is(recipe, "a security tensor")
    if not recipe.loss.lm:
        raise ValueError("loss.lm: 0 leaves out the LLM, which a security tensor learns through")
    if recipe.run.deepspeed:
        raise ValueError("run.deepspeed: there is nothing to cut in one tensor; leave it out, torchrun works")


def _check_shape(model: SafeLlava, recipe: Recipe) -> None:
    from safevlm.training.tensors import shape_of

    shape_of(model, recipe.tensor)


def _check_pairs(records: Sequence[Record], recipe: Recipe) -> Mapping[str, Any]:
    from safevlm.training.tensor_stage import count_parts, split

    counts = count_parts(records)
    split(records, recipe.tensor.held_out, recipe.run.seed)
    return {"part": counts}


SECURITY_TENSOR = Stage(
    "security_tensor",
    "one tensor in front of the frozen model",
    add=_with_tensor,
    trains="security_tensor".__eq__,
    trainer=_tensor_trainer,
    check_recipe=_check_tensor,
    check_model=_check_shape,
    check_records=_check_pairs,
    defense="security-tensor:textual or security-tensor:visual",
)


def _with_tower(model: SafeLlava, recipe: Recipe) -> Any:
    from safevlm.training.robust_tower import TowerLearner

    return TowerLearner(model)


def _tower_trainer(*given: Any, **options: Any) -> SafeTrainer:
    from safevlm.training.robust_tower import trainer

    return trainer(*given, **options)


def _check_tower(recipe: Recipe) -> None:
    safety = recipe.model.safety
    if safety.projector != "none" or safety.lm_tokens or safety.head_tokens:
        raise ValueError(
            "model.safety: the vision tower is trained before any head is; set "
            "{projector: none, lm_tokens: 0, head_tokens: 0}"
        )
    if recipe.loss.lm:
        raise ValueError(
            "loss.lm: the vision tower learns from its own features; set it to 0, and the LLM is not loaded"
        )
    if not recipe.adversarial.epsilon:
        raise ValueError("adversarial.epsilon: 0 leaves nothing to learn; 4 to 8 steps of 255 are usual")
    if recipe.run.deepspeed:
        raise ValueError("run.deepspeed: there is little to cut in a vision tower; leave it out, torchrun works")


def _check_tower_model(model: SafeLlava, recipe: Recipe) -> None:
    from safevlm.training.robust_tower import check_model

    check_model(model, recipe)


def _check_tower_records(records: Sequence[Record], recipe: Recipe) -> Mapping[str, Any]:
    from safevlm.training.robust_tower import check_records

    return check_records(records, recipe)


def _fit_probe(run: StageRun) -> None:
    from safevlm.training.probe_stage import fit

    fit(run)


def _check_probe(recipe: Recipe) -> None:
    _check_as_it_is(recipe, "a probe")
    if recipe.loss.lm:
        raise ValueError("loss.lm: a probe learns labels and no answers; set it to 0")
    if recipe.data.hints:
        raise ValueError("data.hints: hints tell the labels that a probe is to find; leave it out")
    if recipe.run.deepspeed:
        raise ValueError("run.deepspeed: a probe is a few weights, trained in one process; leave it out")


def _check_layers(model: SafeLlava, recipe: Recipe) -> None:
    from safevlm.backbones import config_facts
    from safevlm.training.probe_stage import layers_of

    layers_of(recipe, config_facts.lm_layers(model.config))


def _check_labels(records: Sequence[Record], recipe: Recipe) -> Mapping[str, Any]:
    from safevlm.training.probe_stage import check_records

    return check_records(records, recipe)


ROBUST_TOWER = Stage(
    "robust_tower",
    "the vision tower, to see changed images as it sees untouched ones",
    add=_with_tower,
    trains=lambda name: name.startswith("tower."),
    trainer=_tower_trainer,
    reads=("adversarial.epsilon", "data.augment"),
    learns_through_llm=lambda safety: False,
    check_recipe=_check_tower,
    check_model=_check_tower_model,
    check_records=_check_tower_records,
)


PROBE = Stage(
    "probe",
    "a detector on the frozen LLM's hidden states",
    fit=_fit_probe,
    runs_lm=True,
    check_recipe=_check_probe,
    check_model=_check_layers,
    check_records=_check_labels,
    defense="probe={file}",
)


def _adopt(name: str, found: object) -> Stage:
    if not isinstance(found, Stage):
        raise ValueError(f"an object of {type(found).__name__} is no stage; name a safevlm.training.stage.Stage")
    return dataclasses.replace(found, name=name)


ROWS = (STAGE1, STAGE2, SECURITY_TENSOR, ROBUST_TOWER, PROBE)
STAGES: Registry[Stage] = Registry("stages", {row.name: row for row in ROWS}, _adopt)


def stage_of(recipe: Recipe) -> Stage:
    """The row that a recipe names. ValueError: no such stage, or one of a user's own that is broken."""
    return STAGES.find(recipe.stage, "stage")
