"""Which classes of ours a checkpoint's config asks for: LLaVA-v1.5's, or those of a row of `safevlm.backbones`."""

from __future__ import annotations

from typing import Any

from llava_patch import classes, fields, names
from llava_patch.fields import Sizes
from llava_patch.processor import make_room
from safevlm.backbones import PREFIX, config_facts, processors, table
from safevlm.backbones.row import Backbone
from safevlm.model import layout, safe_backbone
from safevlm.model.layout import Layout
from safevlm.model.safe_backbone import Classes
from safevlm.model.safe_llava import SafeLlava, SafeLlavaConfig

LLAVA = Classes(SafeLlavaConfig, SafeLlava)


def known() -> list[str]:
    """Every `model_type` of a stock folder that can be loaded."""
    return [names.MODEL_TYPE, *table.BACKBONES]


def is_known(model_type: str) -> bool:
    """Whether a config of this `model_type`, a family's own or ours, can be loaded."""
    return model_type.removeprefix(PREFIX) in known()


def is_ours(model_type: str) -> bool:
    """Whether a config of this `model_type` has a safety section."""
    return model_type.startswith(PREFIX)


def backbone_of(config: Any) -> Backbone | None:
    """The row of a config's family; None: LLaVA-v1.5."""
    return table.find(config.model_type)


def config_class(model_type: str) -> Any:
    """Of ours; what stands in for it until then is `safevlm.model.registration`'s."""
    backbone = table.find(model_type)
    return (LLAVA if backbone is None else safe_backbone.classes_of(backbone)).config


def title(config: Any) -> str:
    """What to call the model in a text for people."""
    backbone = backbone_of(config)
    return "LLaVA-v1.5" if backbone is None else backbone.model_type


def classes_of(config: Any) -> Classes:
    """Config and model class with safety modules; `config`: a stock one, or one of ours."""
    backbone = backbone_of(config)
    return LLAVA if backbone is None else safe_backbone.classes_of(backbone)


def layout_of(config: Any) -> Layout:
    """Where a model of this config has its LLM."""
    return layout.of(backbone_of(config))


def stock_classes_of(config: Any) -> Classes:
    """transformers' own classes of this family."""
    backbone = backbone_of(config)
    if backbone is None:
        return Classes(classes.Config, classes.Model)
    return Classes(backbone.config_class, backbone.model_class)


def processor_with_room(processor: Any, config: Any, learned: int) -> Any:
    """The processor, changed: `learned` slots more for every image."""
    backbone = backbone_of(config)
    return make_room(processor, config, learned) if backbone is None else processors.make_room(processor, learned)


def sizes_of(config: Any) -> Sizes:
    """What an estimate of memory needs."""
    return fields.sizes(config) if backbone_of(config) is None else config_facts.sizes(config)


def is_seen(config: Any, name: str, *, words: bool) -> bool:
    """Whether images, or with `words` the words that a head reads, go through the weight of this name."""
    backbone = backbone_of(config)
    looks = names.is_tower(name) if backbone is None else backbone.looks_through(name)
    return looks or (words and names.is_embedding(name))
