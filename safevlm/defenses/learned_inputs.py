"""`security-tensor:textual` and `security-tensor:visual`: what `safevlm train` learned joins the model's input.

    textual   (k, d)      vectors that the LLM reads as tokens, before the prompt or behind the last image
    visual    (3, h, w)   added to every preprocessed image

The trap: the tensor knows nothing of the request, so it is given to all requests with an image, and to no request in
words alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safevlm.config import Position, TensorKind
from safevlm.defenses.base import Defense, Inputs, VirtualTokens
from safevlm.defenses.context import DefenseContext, ModelFacts
from safevlm.defenses.row import DefenseRow
from safevlm.types import Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from safevlm.defenses.security_tensor import SecurityTensor


def place(input_ids: Tensor, image_token_id: int, position: Position) -> int:
    """Index into the prompt (t,) in front of which virtual tokens stand."""
    return _PLACES[position](input_ids == image_token_id)


_PLACES: dict[Position, Callable[[Tensor], int]] = {
    "start": lambda slots: 0,
    "after_image": lambda slots: int(slots.nonzero().max()) + 1,
}


class Textual(Defense):
    """Puts virtual tokens (k, d) into the prompt of every request with an image."""

    name = "security-tensor:textual"

    def __init__(self, vectors: Tensor, position: Position) -> None:
        self.vectors, self.position = vectors, position

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        if inputs.pixel_values is None:
            return inputs
        at = place(inputs.input_ids, inputs.image_token_id, self.position)
        return dataclasses.replace(inputs, virtual=(*inputs.virtual, VirtualTokens(self.vectors, at)))


class Visual(Defense):
    """Adds one change (3, h, w) to every preprocessed image."""

    name = "security-tensor:visual"

    def __init__(self, delta: Tensor) -> None:
        self.delta = delta

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        if inputs.pixel_values is None:
            return inputs
        from safevlm.data import dense_pixels  # late, as below

        return dataclasses.replace(inputs, pixel_values=dense_pixels.plus(inputs.pixel_values, self.delta))


def _textual(context: DefenseContext) -> Defense:
    file, tensor, facts = _find("textual", context)
    if tensor.values.dim() != 2 or tensor.values.shape[1] != facts.hidden_size:
        raise _misfit(file, tensor, f"virtual tokens of width {facts.hidden_size}")
    return Textual(tensor.values.to(facts.device), tensor.position)


def _visual(context: DefenseContext) -> Defense:
    from safevlm.data import dense_pixels  # late, as below

    facts = context.fitting()
    try:
        shape = dense_pixels.checked(facts.pixel_shape, facts.read)
    except ValueError as error:
        raise ValueError(
            f"{Visual.name} is one change of the pixels of all images, and not for this checkpoint: {error}; use "
            f"{Textual.name}"
        ) from error
    file, tensor, facts = _find("visual", context)
    if tuple(tensor.values.shape) != shape:
        raise _misfit(file, tensor, f"pixels of shape {shape}")
    return Visual(tensor.values.to(facts.device))


def _find(kind: TensorKind, context: DefenseContext) -> tuple[Path, SecurityTensor, ModelFacts]:
    from safevlm.defenses import learned_file, security_tensor  # late: they bring torch, and judges do without

    facts = context.fitting()
    file = context.find(security_tensor.file_name(kind), f"safevlm train llava7b_security_tensor_{kind}")
    tensor = security_tensor.read(file)
    if tensor.kind != kind:
        raise ValueError(f"{file}: a {tensor.kind} security tensor; use it as security-tensor:{tensor.kind}={file}")
    learned_file.check_base(file, tensor.about, tensor.base, facts.base)
    return file, tensor, facts


def _misfit(file: Path, tensor: SecurityTensor, wanted: str) -> ValueError:
    base = tensor.about.get("base", "another model")
    return ValueError(f"{file}: learned for {base}, shape {tuple(tensor.values.shape)}; this model needs {wanted}")


ROWS = (
    DefenseRow(Textual.name, _textual, "learned virtual tokens in the prompt", takes_file=True, reads_folder=True),
    DefenseRow(Visual.name, _visual, "one learned change of all images", takes_file=True, reads_folder=True),
)
