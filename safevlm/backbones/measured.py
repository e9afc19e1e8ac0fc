"""Shapes of one family beside LLaVA for measuring speed: configs, and a processor around any tokenizer with `<image>`.

No checkpoint is read, so what its folder would say stands here: sizes, special tokens and the chat template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from safevlm.backbones.processors import images_and_words
from safevlm.backbones.published import PUBLISHED, Published, config_of
from safevlm.backbones.table import BACKBONES


@dataclass(frozen=True)
class Measured:
    """A model, and how large its images may be."""

    model: Published
    pixels: tuple[int, int]
    """Of an image, at least and at most."""


TURN, END = "<|im_start|>", "<|im_end|>"
SEEN, SEEN_END, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
TEMPLATE = (
    "{% for message in messages %}"
    f"{TURN}{{{{ message['role'] }}}}\n"
    "{% for part in message['content'] %}"
    f"{{% if part['type'] == 'image' %}}{SEEN}<image>{SEEN_END}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{% endfor %}"
    f"{END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{TURN}assistant\n{{% endif %}}"
)
PATCH, JOINED = 14, 2
"""Pixels on a side of a patch, and patches on a side of what becomes one image token."""
LARGE = Measured(PUBLISHED["Qwen2.5-VL-7B"], (4 * 28**2, 16384 * 28**2))
"""With the bounds of its preprocessor_config.json."""
TINY = Measured(
    Published(
        LARGE.model.family,
        0.0,
        {
            "text_config": {
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 256,
                "vocab_size": 1024,
                "bos_token_id": None,
                "eos_token_id": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
            },
            "vision_config": {
                "depth": 3,
                "hidden_size": 64,
                "num_heads": 4,
                "intermediate_size": 128,
                "out_hidden_size": 128,
                "patch_size": PATCH,
                "window_size": 4 * PATCH,
                "fullatt_block_indexes": [1],
            },
        },
    ),
    (4 * 28**2, 16 * 28**2),
)
SHAPES = {"7b": LARGE, "13b": LARGE, "tiny": TINY}
"""By the name of LLaVA's shape that it is measured beside; there is no 13B of this family."""


def config_and_processor(shape: str, tokenizer: Any) -> tuple[Any, Any]:
    """Stock config and processor. `tokenizer`, changed: it learns this family's special tokens.

    KeyError: a shape that is not in `SHAPES`.
    """
    own = SHAPES[shape]
    tokenizer.add_tokens([TURN, END, SEEN, SEEN_END, VIDEO], special_tokens=True)
    tokenizer.eos_token = END
    config = config_of(own.model)
    for field, token in (
        ("image_token_id", "<image>"),
        ("video_token_id", VIDEO),
        ("vision_start_token_id", SEEN),
        ("vision_end_token_id", SEEN_END),
    ):
        setattr(config, field, tokenizer.convert_tokens_to_ids(token))
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, field, getattr(tokenizer, field))
    least, most = own.pixels
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=JOINED, size={"shortest_edge": least, "longest_edge": most}
    )
    kind = images_and_words(BACKBONES[own.model.family].processor_class)
    return config, kind(image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE)
