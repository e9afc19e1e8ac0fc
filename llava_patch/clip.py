"""A CLIP folder → what its text space needs: embedded texts, visual projection, scale, and the tower it belongs to.

The text tower is loaded, used once and gone. Texts are embedded one by one, without padding. The trap: CLIP pools at
the end token, and who adds it depends on the tokenizer: CLIP's own does, one made elsewhere may not. Without it CLIP
pools at the first token and says nothing, so every text is made to end in it, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from llava_patch.fingerprint import fingerprint
from llava_patch.pretrained import from_folder
from llava_patch.weights import read_table

LEGACY_END = 2
"""Old published configs carry this id for the end token; CLIP then pools at the highest id (base facts §3.8)."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class TextSpace:
    """t texts, d width of the text space, v width of the vision tower."""

    texts: Tensor
    """(t, d), of length 1."""
    projection: Tensor
    """(d, v): the visual projection."""
    scale: float
    """exp(logit_scale): what cosines are multiplied by."""
    tower: Tensor
    """Fingerprint of the vision tower."""
    sha256: str
    """Of the folder's weights."""


def read_text_space(folder: str | Path, texts: Sequence[str]) -> TextSpace:
    """Embeds the texts. ValueError: not a complete CLIP, or a text that it cannot read whole."""
    place = Path(folder)
    model, tokenizer = _load(place)
    ids = [_ids(text, tokenizer, model, place) for text in texts]
    with torch.inference_mode():
        pooled = torch.cat([model.text_model(torch.tensor([row])).pooler_output for row in ids])
        embedded = F.normalize(model.text_projection(pooled), dim=-1)
    return TextSpace(
        texts=embedded.clone(),
        projection=model.visual_projection.weight.detach().clone(),
        scale=model.logit_scale.exp().item(),
        tower=fingerprint(model.vision_model.state_dict()),
        sha256=_hash(place),
    )


def _load(folder: Path) -> tuple[CLIPModel, Any]:
    config = folder / "config.json"
    kind = read_table(config).get("model_type") if config.is_file() else None
    if kind != "clip":
        found = f"model_type {kind!r}" if config.is_file() else "no config.json"
        raise ValueError(f"{folder}: {found}; give the folder of a whole CLIP, text tower included, with --clip")
    try:
        loaded: Any = from_folder(  # with loading info it is a pair
            CLIPModel, folder, dtype=torch.float32, weights_only=True, output_loading_info=True
        )
        tokenizer = from_folder(AutoTokenizer, folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: this CLIP cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    model: CLIPModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ValueError(f"{folder}: {len(missing)} weights missing or of another shape ({missing[0]}, …)")
    return model.eval(), tokenizer


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
