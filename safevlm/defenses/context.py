"""What a defense may be built from: policy, files, and the few facts about a model that it has to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safevlm.defenses.policy import Policy
from safevlm.types import Verdict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FOLDER = "defenses"
"""Where a checkpoint folder keeps its defenses' files."""


@dataclass(frozen=True)
class ModelFacts:
    """The model behind the engine, as far as a defense's file must fit it."""

    hidden_size: int
    """Width of the LLM."""
    pixel_shape: tuple[int, int, int]
    """(channels, height, width) of a preprocessed image."""
    image_token_id: int
    image_std: tuple[float, ...]
    """By channel: a preprocessed value is (pixel / 255 - mean) / std."""
    device: torch.device
    tower: Callable[[], Mapping[str, Tensor]]
    """Weights of the vision tower by name."""


@dataclass(frozen=True)
class DefenseContext:
    policy: Policy
    has_head: bool = False
    truths: Mapping[str, Verdict] = field(default_factory=dict)
    """Verdicts by request id, for the oracle."""
    facts: ModelFacts | None = None
    folders: tuple[Path, ...] = ()
    """Where the checkpoint keeps its defenses' files, the nearest first."""
    file: Path | None = None
    """What stood behind `=` in the defense's name."""

    def find(self, name: str, how: str) -> Path:
        """The file of this name: what the user gave (the file, or the folder it is in), else the checkpoint's own.

        ValueError says where it was looked for, and `how` it is made.
        """
        places = (self.file,) if self.file else self.folders
        for place in places:
            found = place / name if place.is_dir() else place
            if found.is_file():
                return found
        looked = ", ".join(map(str, places)) or "no folder"
        raise ValueError(f"{name} is not in {looked}; make it with `{how}`, or name it: --defense NAME=FILE")

    def fitting(self) -> ModelFacts:
        """The facts; ValueError where no model is behind the defense, as with a served one."""
        if self.facts is None:
            raise ValueError("this defense works on the tensors of a model that is loaded here, not on a served one")
        return self.facts
