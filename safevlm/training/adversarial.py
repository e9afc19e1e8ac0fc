"""Adversarial training of the safety head: what it says of an image must not hang on changes that nobody sees.

The vision tower stays frozen; projector, head tokens and head learn beside changed images, made anew in each step for
the head of that moment (`pixel_attack`). Two objectives, for the level and for the category alike:

    trades   CE(f(x), y) + weight · KL(f(x) ‖ f(x')),  x' = argmax KL(f(x) ‖ f(x'))     (arXiv 1901.08573, section 5)
    madry    (1 - weight) · CE(f(x), y) + weight · CE(f(x'), y),  x' = argmax CE(f(x'), y)     (arXiv 1706.06083)

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
from safevlm.data.records import Record
from safevlm.model import loading, losses
from safevlm.training import trainer as trainers
from safevlm.training.pixel_attack import PixelAscent, PixelScale, tensor_of, with_tensor
from safevlm.training.trainer import LABELS, SafeTrainer

CHANGED = "_changed"
"""Ends the names of terms of changed images."""
READ_OUTS = ("level", "category")
BY_ROW = ("input_ids", "attention_mask", "safety_words", "safety_word_mask", "images_per_row")
"""What a model is fed of each request."""
PIXELS = "pixel_values"


class AdversarialTrainer(SafeTrainer):
    """Two further terms, `level_changed` and `category_changed`."""

    labels: Mapping[str, str] = {**LABELS, **{f"{name}{CHANGED}": LABELS[name] for name in READ_OUTS}}  # type: ignore[assignment]  # read only

    def __init__(self, *, settings: AdversarialSettings, scale: PixelScale, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings, self.scale = settings, scale.to(self.args.device)
        share = settings.weight if settings.objective == "madry" else 0.0
        for name in READ_OUTS:
            self.weights[f"{name}{CHANGED}"] = self.weights[name] * settings.weight
            self.weights[name] *= 1 - share

    def _terms(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, losses.Term], Any]:
        if PIXELS not in inputs:
            return super()._terms(model, inputs)
        outputs = self._outputs(model, _beside(inputs, self._attacked(inputs)))
        terms = {}
        for name in READ_OUTS:
            clean, changed = getattr(outputs, f"{name}_logits").chunk(2)
            labels = inputs[LABELS[name]]
            terms[name] = losses.classification(clean, labels)
            terms[f"{name}{CHANGED}"] = self._term(changed, clean, labels)
        return terms, outputs

    def _term(self, changed: Tensor, clean: Tensor, labels: Tensor) -> losses.Term:
        if self.settings.objective == "madry":
            return losses.classification(changed, labels)
        kept = labels != IGNORED
        return losses.divergence(changed[kept], clean[kept])

    def _attacked(self, inputs: dict[str, Any]) -> Any:
        """The batch's images, changed."""
        settings, epsilon = self.settings, self._epsilon()
        model = self.accelerator.unwrap_model(self.model)
        labels = {name: inputs[LABELS[name]] for name in READ_OUTS}
        fed = {name: inputs[name] for name in BY_ROW if name in inputs}

        def read_outs(images: Any) -> dict[str, Tensor]:
            outputs = model(**fed, pixel_values=images, skip_lm=True)
            return {"level": outputs.level_logits, "category": outputs.category_logits}

        with torch.no_grad():
            clean = read_outs(inputs[PIXELS]) if settings.objective == "trades" else {}

        def loss(pixels: Tensor) -> Tensor:
            found = read_outs(with_tensor(inputs[PIXELS], pixels))
            terms = [self._term(found[name], clean.get(name, found[name]), labels[name]).total for name in READ_OUTS]
            return torch.stack(terms).sum()

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


def _beside(inputs: dict[str, Any], changed: Any) -> dict[str, Any]:
    """The batch twice: with its own images, and with the changed ones."""
    made = {name: torch.cat([value, value]) if name in BY_ROW else value for name, value in inputs.items()}
    images = inputs[PIXELS]
    is_family = isinstance(images, ImageInputs)
    made[PIXELS] = image_inputs.join([images, changed]) if is_family else torch.cat([images, changed])
    return made
