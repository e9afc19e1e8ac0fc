"""Names of weights on disk."""

from __future__ import annotations

from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping


def keep_llava_names(class_name: str) -> None:
    """Gives a subclass of LLaVA the stock class's weight names on disk.

    Without this a subclass defined outside transformers loads a stock folder with a random `lm_head`, quietly
    (base facts §3.1; `test_stock_checkpoint_gives_stock_logits`).
    """
    register_checkpoint_conversion_mapping(class_name, get_checkpoint_conversion_mapping("llava"), overwrite=True)
