"""InternVL: tiles of one size, then the whole image, each with the same number of tokens.

With `max_patches: 1` its processor gives the whole alone.
"""

from __future__ import annotations

from safevlm.backbones import image_tokens
from safevlm.backbones.row import Backbone

ROWS = (Backbone("internvl", "InternVL", is_one_square=True, cut=image_tokens.by_rows, merge=image_tokens.as_tensor),)
