"""InternVL: tiles of one size, then the whole image, each with the same number of tokens."""

from __future__ import annotations

from safevlm.backbones import image_tokens
from safevlm.backbones.row import Backbone

ROWS = (Backbone("internvl", "InternVL", cut=image_tokens.by_rows, merge=image_tokens.as_tensor),)
