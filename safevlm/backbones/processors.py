"""A family's processor for images and words. Video and sound are left out, and with video torchvision."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.processing_utils import ProcessorMixin

from llava_patch.pretrained import from_folder
from safevlm.backbones.row import Backbone

OTHERS = ("video_processor", "feature_extractor", "audio_processor")
"""Parts of a processor that read neither images nor words."""
REFUSED = ("videos", "audio")
"""Arguments of a processor. transformers reads on without them where the part for them is missing."""


def load(backbone: Backbone, folder: Path) -> Any:
    """The processor of a folder. OSError, ValueError: it cannot be read; ValueError names a package that is missing."""
    missing = [name for name in backbone.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{backbone.model_type}: its processor needs {missing[0]}; pip install -e '.[smolvlm]'")
    kind = images_and_words(backbone.processor_class)
    made = {
        "tokenizer": lambda: from_folder(AutoTokenizer, folder),
        "image_processor": lambda: from_folder(backbone.own_image_processor or AutoImageProcessor, folder),
        **dict.fromkeys(OTHERS, lambda: None),
    }
    table, _ = kind.get_processor_dict(folder, local_files_only=True)
    processor = kind.from_args_and_dict([made[name]() for name in backbone.processor_class.get_attributes()], table)
    processor.chat_template = processor.chat_template or backbone.chat_template
    if not processor.chat_template:
        raise ValueError(
            f"{folder}: no chat template (chat_template.jinja); prompts of this model are written by its own"
        )
    return processor


def make_room(processor: Any, learned: int) -> Any:
    """Lets the processor give every image so many slots for learned tokens, in front of its own."""
    processor.learned_tokens = learned  # not among the fields that a processor saves
    return processor


class _WithoutOthers(ProcessorMixin):
    """Behind a family's class, where this hands on the parts that it was given: the others are dropped here."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **{name: part for name, part in named.items() if name not in OTHERS})


@functools.cache
def images_and_words(kind: Any) -> Any:
    """The class of processor that neither takes, reads nor saves anything else. Its name, which is saved, stays."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in kind.get_attributes() if name not in OTHERS]

    @functools.wraps(kind.__call__)
    def call(self: Any, *given: Any, **named: Any) -> Any:
        refused = [name for name in REFUSED if named.get(name) is not None]
        if refused:
            raise ValueError(f"{refused[0]}: video and sound are refused; nothing here looks at them. Send images")
        return kind.__call__(self, *given, **named)

    changed = {"get_attributes": classmethod(get_attributes), "__call__": call, "__module__": kind.__module__}
    return type(kind.__name__, (kind, _WithoutOthers), changed)
