"""A CLIP or SigLIP folder → what its text space needs: embedded texts, projection, scale, and the tower it belongs to.

The text tower is loaded, used once and gone. Texts are embedded one by one, CLIP's without padding. The trap: CLIP
pools at the end token, and who adds it depends on the tokenizer: CLIP's own does, one made elsewhere may not. Without
it CLIP pools at the first token and says nothing, so every text is made to end in it, once. SigLIP's traps:
`llava_patch.siglip`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, SiglipModel

from llava_patch import fingerprint, siglip
from llava_patch.pretrained import from_folder
from llava_patch.weights import read_table

LEGACY_END = 2
"""Old published configs carry this id for the end token; CLIP then pools at the highest id (base facts §3.8)."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
Kind = Literal["clip", "siglip"]
"""The `model_type` of a folder."""
WHOLE: dict[Kind, Any] = {"clip": CLIPModel, "siglip": SiglipModel}
"""Tower and text side."""


@dataclass(frozen=True)
class TextSpace:
    """t texts, d width of the text space, v width of the vision tower."""

    texts: Tensor
    """(t, d), of length 1."""
    projection: Tensor
    """(d, v): the visual projection; of a SigLIP, which has none, the identity."""
    scale: float
    """exp(logit_scale): what cosines are multiplied by."""
    tower: Tensor
    """Fingerprint of the vision tower."""
    sha256: str
    """Of the folder's weights."""
    kind: Kind = "clip"
    pooling: siglip.Pooling | None = None
    """SigLIP's, which pools the tower's patches."""
    head: dict[str, Tensor] = field(default_factory=dict)
    """Its weights."""


def read_text_space(folder: str | Path, texts: Sequence[str]) -> TextSpace:
    """Embeds the texts. ValueError: not a complete CLIP, or a text that it cannot read whole."""
    place = Path(folder)
    kind = kind_of(place)
    model, tokenizer = _load(place)
    with torch.inference_mode():
        vectors = [TEXT_VECTORS[kind](model, tokenizer, text, place) for text in texts]
        embedded = F.normalize(torch.cat(vectors), dim=-1)
    pooling, head = siglip.pooling_of(model) if kind == "siglip" else (None, {})
    return TextSpace(
        texts=embedded.clone(),
        projection=torch.eye(embedded.shape[1]) if pooling else model.visual_projection.weight.detach().clone(),
        scale=model.logit_scale.exp().item(),
        tower=fingerprint.of_tower(model.vision_model.state_dict()),
        sha256=_hash(place),
        kind=kind,
        pooling=pooling,
        head=head,
    )


def load_tower(folder: str | Path) -> Any:
    """The vision tower of a CLIP or SigLIP folder, in float32. ValueError: not such a folder, or incomplete."""
    place = Path(folder)
    return _weights(WHOLE[kind_of(place)], place).vision_model.requires_grad_(False)


def kind_of(folder: Path) -> Kind:
    """ValueError: no CLIP and no SigLIP."""
    config = folder / "config.json"
    given = read_table(config).get("model_type") if config.is_file() else None
    kind = next((kind for kind in WHOLE if kind == given), None)
    if kind is None:
        found = f"model_type {given!r}" if config.is_file() else "no config.json"
        raise ValueError(f"{folder}: {found}; give the folder of a whole CLIP or SigLIP, text tower included")
    return kind


def _load(folder: Path) -> tuple[Any, Any]:
    return _weights(WHOLE[kind_of(folder)], folder), _tokenizer(folder)


def _weights(kind: Any, folder: Path) -> Any:
    try:
        loaded: Any = from_folder(  # with loading info it is a pair
            kind, folder, dtype=torch.float32, weights_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: this CLIP cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ValueError(f"{folder}: {len(missing)} weights missing or of another shape ({missing[0]}, …)")
    return model.eval()


def _tokenizer(folder: Path) -> Any:
    try:
        return from_folder(AutoTokenizer, folder)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"{folder}: its tokenizer cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _clip_vectors(model: CLIPModel, tokenizer: Any, text: str, folder: Path) -> Tensor:
    """(1, d)."""
    pooled = model.text_model(torch.tensor([_ids(text, tokenizer, model, folder)])).pooler_output
    projected: Tensor = model.text_projection(pooled)
    return projected


TEXT_VECTORS: dict[Kind, Callable[[Any, Any, str, Path], Tensor]] = {
    "clip": _clip_vectors,
    "siglip": lambda model, tokenizer, text, _: siglip.text_vectors(model, tokenizer, text),
}


def _ids(text: str, tokenizer: Any, model: CLIPModel, folder: Path) -> list[int]:
    """One text's ids, the end token last and nowhere else."""
    end = tokenizer.eos_token_id
    ids = [*(number for number in tokenizer(text)["input_ids"] if number != end), end]
    config: Any = model.config.text_config
    if len(ids) > config.max_position_embeddings:
        raise ValueError(
            f"template {text!r}: {len(ids)} tokens, and this CLIP reads {config.max_position_embeddings}; shorten it"
        )
    if config.eos_token_id != end and not (config.eos_token_id == LEGACY_END and end == max(ids)):
        raise ValueError(f"{folder}: the tokenizer ends texts with {end}, and CLIP pools at {config.eos_token_id}")
    return ids


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()
