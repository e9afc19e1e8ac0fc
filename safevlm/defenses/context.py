"""What a defense may be built from: policy, files, other detectors, and the facts about a model that it has to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safevlm.defenses.base import Detector
from safevlm.defenses.policy import Policy
from safevlm.types import Verdict

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from safevlm.data.pixels import Pixels

FOLDER = "defenses"
"""Where a checkpoint folder keeps its defenses' files."""
LM_TOKENS = "LM tokens"


@dataclass(frozen=True)
class ModelFacts:
    """The model behind the engine, as far as a defense's file must fit it."""

    hidden_size: int
    """Width of the LLM."""
    pixel_shape: tuple[int, int, int] | None
    """(channels, height, width) of a preprocessed image; None: images differ in shape."""
    image_token_id: int
    image_std: tuple[float, ...]
    """By channel: a preprocessed value is (pixel / 255 - mean) / std."""
    device: torch.device
    tower: Callable[[], Mapping[str, Tensor]]
    """Weights of the vision tower by name."""
    read: Callable[[Sequence[Image]], Pixels]
    """RGB images → what the model reads of them, each as a request's only image."""
    side: int
    """Side of the square that the vision tower takes, in pixels; where it takes any size, of one that is not small."""
    text_side: str = "clip"
    """Whose text side reads what the tower sees: `clip`, `siglip`; empty: it has none."""
    clip_features: tuple[str, ...] = ("paper", "pooled")
    """What a concept bank may read of a vision pass."""
    base: Mapping[str, Tensor] = field(default_factory=dict)
    """Fingerprints of the model's parts (`llava_patch.fingerprint`); empty: unknown."""
    lm_layers: int = 0
    """Decoder layers of the LLM in memory; 0: they were left on the disk."""
    lm_tokens: Mapping[str, Tensor] = field(default_factory=dict)
    """The same of the learned tokens in front of every image, under `LM_TOKENS`; empty: there are none."""


@dataclass(frozen=True)
class DefenseContext:
    """Given to the builder of a defense."""

    policy: Policy
    """What to do about which verdict; its taxonomy names the levels and categories."""
    has_head: bool = False
    """Whether the checkpoint has a safety head."""
    truths: Mapping[str, Verdict] = field(default_factory=dict)
    """Verdicts by request id, for the oracle."""
    facts: ModelFacts | None = None
    """None where the model is behind somebody else's server."""
    folders: tuple[Path, ...] = ()
    """Where the checkpoint keeps its defenses' files, the nearest first."""
    file: Path | None = None
    """What stood behind `=` in the defense's name."""
    detectors: Callable[[str, DefenseContext], Detector] | None = None
    """Builds the detector of another defense by its name; set by `safevlm.defenses.build`."""

    def detector(self, name: str, file: Path | None = None) -> Detector:
        """The detector of another defense of the table, such as `safe-clip`; `file` is its own.

        ValueError: no such defense, or one that has no detector.
        """
        if self.detectors is None:
            raise ValueError(f"detector {name}: this context was not made by safevlm.defenses.build")
        return self.detectors(name, replace(self, file=file))

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
