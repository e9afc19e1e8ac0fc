"""A family's processor for images and words. Video is left out, and with it torchvision, which only video needs."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from llava_patch.pretrained import from_folder
from safevlm.backbones.row import Backbone

VIDEO = "video_processor"


def load(backbone: Backbone, folder: Path) -> Any:
    """The processor of a folder. OSError, ValueError: it cannot be read; ValueError names a package that is missing."""
    missing = [name for name in backbone.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{backbone.model_type}: its processor needs {missing[0]}; pip install -e '.[smolvlm]'")
    kind = without_video(backbone.processor_class)
    made = {
        "tokenizer": lambda: from_folder(AutoTokenizer, folder),
        "image_processor": lambda: from_folder(AutoImageProcessor, folder),
        VIDEO: lambda: None,
    }
    table, _ = kind.get_processor_dict(folder, local_files_only=True)
    processor = kind.from_args_and_dict([made[name]() for name in backbone.processor_class.get_attributes()], table)
    if not processor.chat_template:
        raise ValueError(
            f"{folder}: no chat template (chat_template.jinja); prompts of this model are written by its own"
        )
    return processor


def make_room(processor: Any, learned: int) -> Any:
    """Lets the processor give every image so many slots for learned tokens, in front of its own."""
    processor.learned_tokens = learned  # not among the fields that a processor saves
    return processor


@functools.cache
def without_video(kind: Any) -> Any:
    """The class of processor that neither takes, reads nor saves a video processor. Its name, which is saved, stays."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in kind.get_attributes() if name != VIDEO]

    changed = {"get_attributes": classmethod(get_attributes), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), changed)
