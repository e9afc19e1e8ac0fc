"""Adversarial training of the safety head: what it says of an image must not hang on changes that nobody sees.

The vision tower stays frozen; projector, head tokens and head learn beside changed images, made anew in each step for
the head of that moment (`pixel_attack`). Two objectives, for the level and for the category alike:

    trades   CE(f(x), y) + weight · KL(f(x) ‖ f(x')),  x' = argmax KL(f(x) ‖ f(x'))     (arXiv 1901.08573, section 5)
    madry    (1 - weight) · CE(f(x), y) + weight · CE(f(x'), y),  x' = argmax CE(f(x'), y)     (arXiv 1706.06083)

`goal: clean` attacks risky images alone: x' = argmin of the lead of the likeliest risk over "clean", in the level or in
the category, whichever is less; the mixer's rule lets pass what either calls clean.

Clean and changed images go through the model in one call: under torchrun a second one would upset the order in which
gradients meet. The attack itself calls the bare model and asks for gradients of pixels alone, so that processes whose
batches differ (one without an image among them) wait for nobody in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safevlm.backbones import image_inputs
from safevlm.backbones.image_inputs import ImageInputs
from safevlm.config import AdversarialSettings, Recipe
from safevlm.data.collate import IGNORED
from safevlm.data.dense_pixels import tensor_of, with_tensor
from safevlm.data.records import Record
from safevlm.model import loading, losses
from safevlm.taxonomy import CLEAN, SAFE
from safevlm.training import trainer as trainers
from safevlm.training.pixel_attack import PixelAscent, PixelScale
from safevlm.training.trainer import LABELS, SafeTrainer

CHANGED = "_changed"
"""Ends the names of terms of changed images."""
READ_OUTS = ("level", "category")
BY_ROW = ("input_ids", "attention_mask", "safety_words", "safety_word_mask", "images_per_row")
"""What a model is fed of each request."""
VERDICTS = tuple(LABELS[name] for name in READ_OUTS)
PIXELS = "pixel_values"


class AdversarialTrainer(SafeTrainer):
    """Two further terms, `level_changed` and `category_changed`."""

    labels = {**LABELS, **{f"{name}{CHANGED}": f"{LABELS[name]}{CHANGED}" for name in READ_OUTS}}

    def __init__(self, *, settings: AdversarialSettings, scale: PixelScale, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings, self.scale = settings, scale.to(self.args.device)
        taxonomy = self.loaded.safe_llava.config.taxonomy
        self.clean = {"level": taxonomy.level_id(SAFE), "category": taxonomy.category_id(CLEAN)}
        share = settings.weight if settings.objective == "madry" else 0.0
        for name in READ_OUTS:
            self.weights[f"{name}{CHANGED}"] = self.weights[name] * settings.weight
            self.weights[name] *= 1 - share

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        return super()._get_num_items_in_batch(
            [batch | self._labels_of_changed(batch) for batch in batch_samples], device
        )

    def _labels_of_changed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """(b,) each: those of the rows that are attacked; of the others `IGNORED`."""
        attacked = self._attacked(inputs)
        return {f"{LABELS[name]}{CHANGED}": inputs[LABELS[name]].where(attacked, IGNORED) for name in READ_OUTS}

    def _attacked(self, inputs: Mapping[str, Any]) -> Tensor:
        """(b,), bool: the rows whose images are attacked. A row without an image has no label."""
        unwanted = self.clean if self.settings.goal == "clean" else dict.fromkeys(READ_OUTS, IGNORED)
        labels = [(inputs[LABELS[name]], unwanted[name]) for name in READ_OUTS]
        return torch.stack([(label != IGNORED) & (label != other) for label, other in labels]).any(0)

    def _terms(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, losses.Term], Any]:
        attacked = self._attacked(inputs)
        if not attacked.any():
            return super()._terms(model, inputs)
        bare = self.accelerator.unwrap_model(self.model)
        chosen = _rows(inputs, attacked, images_per_row(bare, inputs))
        changed = chosen | {PIXELS: self._changed(bare, chosen)}
        outputs = self._outputs(model, _joined(inputs, changed))
        terms = {}
        for name in READ_OUTS:
            logits, labels = getattr(outputs, f"{name}_logits"), inputs[LABELS[name]]
            clean, other = logits.split([len(labels), len(logits) - len(labels)])
            terms[name] = losses.classification(clean, labels)
            terms[f"{name}{CHANGED}"] = self._term(other, clean[attacked], labels[attacked])
        return terms, outputs

    def _term(self, changed: Tensor, clean: Tensor, labels: Tensor) -> losses.Term:
        if self.settings.objective == "madry":
            return losses.classification(changed, labels)
        kept = labels != IGNORED
        return losses.divergence(changed[kept], clean[kept])

    def _changed(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The images of these rows, attacked."""
        settings, epsilon = self.settings, self._epsilon()
        fed = {name: inputs[name] for name in BY_ROW if name in inputs}

        def read_outs(images: Any) -> dict[str, Tensor]:
            outputs = model(**fed, pixel_values=images, skip_lm=True)
            return {"level": outputs.level_logits, "category": outputs.category_logits}

        with torch.no_grad():
            clean = read_outs(inputs[PIXELS]) if settings.objective == "trades" and settings.goal == "wrong" else {}

        def loss(pixels: Tensor) -> Tensor:
            found = read_outs(with_tensor(inputs[PIXELS], pixels))
            if settings.goal == "clean":
                return -torch.stack([lead(found[name], self.clean[name]) for name in READ_OUTS]).amin(0).sum()
            labels = {name: inputs[LABELS[name]] for name in READ_OUTS}
            terms = [self._term(found[name], clean.get(name, found[name]), labels[name]) for name in READ_OUTS]
            return torch.stack([term.total for term in terms]).sum()

        step = settings.step_size or epsilon * (1.25 if settings.steps == 1 else 2.5 / settings.steps)
        pixels = tensor_of(inputs[PIXELS])
        start = self._start(inputs["ids"], images_per_row(model, inputs), pixels.shape[1:])
        return with_tensor(inputs[PIXELS], PixelAscent(epsilon, settings.steps, step)(pixels, start, self.scale, loss))

    def _epsilon(self) -> float:
        """Of this update: it grows within the first ones."""
        ramp = max(1.0, self.settings.ramp * self.state.max_steps)
        return self.settings.epsilon * min(1.0, (self.state.global_step + 1) / ramp)

    def _start(self, ids: Sequence[str], images: Sequence[int], shape: Sequence[int]) -> Tensor:
        """(i, *shape) of -1 to 1: random numbers of this update and record, whoever else is in the batch."""
        rows = []
        for name, count in zip(ids, images, strict=True):
            told = repr((self.args.seed, self.state.global_step, name)).encode()
            draw = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(told).digest()[:7], "big"))
            rows.append(torch.rand(count, *shape, generator=draw) * 2 - 1)
        return torch.cat(rows)


def trainer(recipe: Recipe, loaded: loading.Loaded, records: Sequence[Record], **options: Any) -> SafeTrainer:
    """The Trainer of a recipe with `adversarial.epsilon`. ValueError: a family whose pixels cannot be attacked."""
    kind = AdversarialTrainer
    scale = pixel_scale(loaded.processor)
    return trainers.trainer(recipe, loaded, records, kind, settings=recipe.adversarial, scale=scale, **options)


def pixel_scale(processor: Any) -> PixelScale:
    """ValueError, naming the key: pixels that cannot be attacked."""
    try:
        return PixelScale.of(processor)
    except ValueError as error:
        raise ValueError(
            f"adversarial.epsilon: this checkpoint's pixels cannot be attacked: {error}; set it to 0, "
            "data.augment works for every family"
        ) from error


def images_per_row(model: Any, inputs: Mapping[str, Any]) -> list[int]:
    """Images of each request of a batch, of any family."""
    counts = inputs.get("images_per_row")
    return model.images_per_row(inputs["input_ids"]) if counts is None else counts.tolist()


def lead(logits: Tensor, clean: int) -> Tensor:
    """(b, classes) → (b,): by how much the likeliest risk leads what is clean; above 0 it is seen."""
    risky = torch.arange(logits.shape[-1], device=logits.device) != clean
    return logits[:, risky].float().amax(-1) - logits[:, clean].float()


def _rows(inputs: Mapping[str, Any], chosen: Tensor, images: Sequence[int]) -> dict[str, Any]:
    """Some rows of a batch; `chosen` (b,), `images` of each row."""
    made: dict[str, Any] = {name: inputs[name][chosen] for name in (*BY_ROW, *VERDICTS) if name in inputs}
    made["ids"] = [name for name, is_chosen in zip(inputs["ids"], chosen.tolist(), strict=True) if is_chosen]
    shown = chosen.repeat_interleave(torch.tensor(images, device=chosen.device))
    pixels = inputs[PIXELS]
    if isinstance(pixels, ImageInputs):
        made[PIXELS] = ImageInputs(image for image, is_chosen in zip(pixels, shown.tolist(), strict=True) if is_chosen)
    else:
        made[PIXELS] = pixels[shown]
    return made


def _joined(inputs: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with further rows behind its own."""
    made = {name: torch.cat([value, others[name]]) if name in BY_ROW else value for name, value in inputs.items()}
    parts = [inputs[PIXELS], others[PIXELS]]
    made[PIXELS] = image_inputs.join(parts) if isinstance(parts[0], ImageInputs) else torch.cat(parts)
    return made
