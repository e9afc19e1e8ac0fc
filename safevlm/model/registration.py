"""Teaches transformers our `model_type`s, whichever of the two packages is imported first, and without importing torch.

Only transformers' table of config classes is touched, at the moment its module has run: it gets a small stand-in for
each of our config classes. The first `from_pretrained` of a folder of ours calls the stand-in, which imports
`safevlm.model.families`; that registers the real config, model and processor classes.

The trap: importing our model right after an auto module has run would fail, since the user's own import
(`from transformers import LlavaForConditionalGeneration`) may be what is bringing that module in, half way through.
Hence a stand-in that waits for its first use, and a hook of our own: `wrapt.when_imported` runs at the same moment and
would need the same stand-in, for one more dependency.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from safevlm.backbones import FAMILIES, PREFIX

AUTO = "transformers.models.auto.configuration_auto"
MODEL_TYPE = "safe_llava"
HOME = "safevlm.model.families"
"""Registers the classes themselves: LLaVA's when it is imported, a family's when its config class is asked for."""


class SafeLlavaConfig:
    """Stands in for the class of this name until somebody needs it."""

    model_type = MODEL_TYPE

    def __new__(cls, *values: Any, **fields: Any) -> Any:
        return _config_class(cls.model_type)(*values, **fields)

    @classmethod
    def from_dict(cls, table: dict[str, Any], **options: Any) -> Any:
        """What `AutoConfig.from_pretrained` calls."""
        return _config_class(cls.model_type).from_dict(table, **options)


STAND_INS = {
    MODEL_TYPE: SafeLlavaConfig,
    **{
        f"{PREFIX}{name}": type("SafeConfig", (SafeLlavaConfig,), {"model_type": f"{PREFIX}{name}"})
        for name in FAMILIES
    },
}
"""By `model_type`: LLaVA-v1.5's, and those of all families."""


class _Finder(MetaPathFinder):
    """Finds one module, as usual, and has it registered with after it has run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != AUTO:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _register(module)


def install() -> None:
    """Registers at once when transformers' module is there, else as soon as it is. Doing it again changes nothing."""
    loaded = sys.modules.get(AUTO)
    if loaded is not None:
        _register(loaded)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(module: ModuleType) -> None:
    for model_type, stand_in in STAND_INS.items():
        if model_type not in module.CONFIG_MAPPING:
            module.AutoConfig.register(model_type, stand_in)


def _config_class(model_type: str) -> Any:
    return importlib.import_module(HOME).config_class(model_type)
