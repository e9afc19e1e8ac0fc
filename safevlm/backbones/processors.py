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
        raise ValueError(f"{backbone.model_type}: its processor needs {missing[0]}; pip install {missing[0]}")
    kind = without_video(backbone.processor_class)
    made = {
        "tokenizer": lambda: from_folder(AutoTokenizer, folder),
        "image_processor": lambda: from_folder(AutoImageProcessor, folder),
        VIDEO: lambda: None,
    }
    table, _ = kind.get_processor_dict(folder, local_files_only=True)
    processor = kind.from_args_and_dict([made[name]() for name in kind.get_attributes()], table)
    if not processor.chat_template:
        raise ValueError(
            f"{folder}: no chat template (chat_template.jinja); prompts of this model are written by its own"
        )
    return processor


@functools.cache
def without_video(kind: type) -> Any:
    """The class of processor that takes none for its video processor. Its name, which is saved, stays."""

    def check_argument_for_proper_class(self: Any, name: str, argument: Any) -> Any:
        if name == VIDEO and argument is None:
            return None
        return kind.check_argument_for_proper_class(self, name, argument)

    changed = {"check_argument_for_proper_class": check_argument_for_proper_class, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), changed)
