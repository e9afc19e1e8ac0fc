"""PaliGemma: a square of tokens for each image, then the question, both read as a whole; answers are read in order.

It has no chat template, being made for single questions. The one here writes a question as its processor does, and
what was said before in front of it. Its SigLIP was trained further along with the LLM, so that no text side fits it.
"""

from __future__ import annotations

from torch import Tensor

from safevlm.backbones import image_tokens
from safevlm.backbones.row import Backbone

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% endfor %}{{ bos_token }}{% for message in messages %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)
UNLABELLED = -100
"""In labels: what is no answer."""


def _suffix(own: Tensor, labels: Tensor | None) -> Tensor:
    """(b, t): 1 from the first token of an answer on. Whoever is only asked has answered nothing yet."""
    return own.new_zeros(own.shape).long() if labels is None else (labels != UNLABELLED).long().cummax(1).values


ROWS = (
    Backbone(
        "paligemma",
        "PaliGemma",
        chat_template=TEMPLATE,
        token_types="token_type_ids",
        token_kinds=_suffix,
        is_one_square=True,
        cut=image_tokens.by_rows,
        merge=image_tokens.as_tensor,
    ),
)
