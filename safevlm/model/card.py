"""The model card (`README.md`) of a folder that we save: how it is loaded, what its guard does and does not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from safevlm.backbones import PREFIX
from safevlm.files import load_yaml
from safevlm.model import families
from safevlm.model.checkpoint_folder import Kind
from safevlm.taxonomy import CLEAN, SAFE

FILE = "README.md"
RUN = "run.json"
"""What training notes of a run: stage, commit, seed, counts."""
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
UNKNOWN_LICENCE = {"license": "other", "license_name": "that-of-the-base-model"}
ALONE: tuple[Kind, ...] = ("full", "guarded")
"""Kinds that hold all weights."""

GUARDED, UNGUARDED = "with a guard against harmful images", "made with SafeVLM"
WITH_US = """\
```python
import safevlm

engine = safevlm.load("DIR")
print(engine.reply(safevlm.Request("What is in the picture?", images=("photo.png",))).text)
```
"""
WITH_TRANSFORMERS = """
Without the guard in front, but with its weights inside, for transformers:

```python
import safevlm  # registers model_type safe_llava
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("DIR")
processor = AutoProcessor.from_pretrained("DIR")
```

`model(**inputs)` gives `level_logits` and `category_logits` beside the LLM's logits.
"""
WITH_A_FAMILY = """
For transformers after `import safevlm`: `AutoModelForImageTextToText` reads this folder, and the model answers
**without its guard**; its head judges what SafeVLM hands it.
"""
AS_STOCK = """
This folder is a plain model, which any server loads; its guard lies in `safety/`, and only SafeVLM reads it:
**elsewhere the model answers without its guard.**
"""
NEEDS_BASE = """
This folder holds only what was trained. The rest is read from the base model, whose place `config.json` names; if it
has moved: `safevlm.load("DIR", base="BASE")`.
"""
GUARD = """
A safety head reads the vision tower's features of each image and gives a category and a level of risk. A policy then
lets the question through unchanged, adds a safety prompt to it, or refuses in the model's place. `safety-head` is the
default defense; others of SafeVLM fit this checkpoint too.

It does not read questions without an image, which count as *not looked at*; it does not read the answer; and it knows
the categories below and no other. It misses risks and sees some where there are none: measure both on your own images
(`safevlm eval`) before you rely on it. No check of the answer takes place unless a defense with one is chosen.
"""
NO_GUARD = """
This checkpoint has no safety head, so the default defense is none: its answers are whatever training made them.
"""
LOADING: Mapping[Kind, str] = {
    "full": WITH_TRANSFORMERS,
    "guarded": AS_STOCK,
    "safety": NEEDS_BASE,
    "adapter": NEEDS_BASE,
    "stock": "",
}


def write(folder: Path, config: Any, kind: Kind, base: Path, run: str | None = None) -> None:
    """Writes `README.md`. `run`: text of the checkpoint's `run.json`, if it has one."""
    (folder / FILE).write_text(card(config, kind, base, run), encoding="utf-8")


def card(config: Any, kind: Kind, base: Path, run: str | None = None) -> str:
    """The card's text. Its licence is the base's, as far as the base's own card tells one."""
    front = yaml.safe_dump(_front(config, kind, base), sort_keys=False, allow_unicode=True)
    has_guard = config.safety_config.projector != "none"
    parts = [
        f"---\n{front}---\n\n# {families.title(config)} {GUARDED if has_guard else UNGUARDED}\n",
        f"\nBase: `{base.name}`. Kind of folder: `{kind}`.\n\n## Load it\n\n{WITH_US}{_loading(config, kind)}",
        f"\n## What the guard does, and what it does not\n{GUARD if has_guard else NO_GUARD}",
        _taxonomy(config) if has_guard else "",
        _made(run),
    ]
    return "".join(parts)


def _front(config: Any, kind: Kind, base: Path) -> dict[str, Any]:
    told = _front_of(base / FILE)
    licence: dict[str, Any] = {name: told[name] for name in ("license", "license_name", "license_link") if name in told}
    known = {"base_model": told["base_model"]} if "base_model" in told else {}
    return {
        **(licence or UNKNOWN_LICENCE),
        **known,
        "library_name": "transformers" if kind in ALONE else "safevlm",
        "pipeline_tag": "image-text-to-text",
        "tags": ["safevlm", config.model_type.removeprefix(PREFIX), "safety", "guardrail"],
    }


def _loading(config: Any, kind: Kind) -> str:
    is_family = families.backbone_of(config) is not None
    return WITH_A_FAMILY if is_family and kind == "full" else LOADING[kind]


def _front_of(file: Path) -> dict[str, Any]:
    """Front matter of a card; empty where there is none that can be read."""
    try:
        found = FRONT.match(file.read_text(encoding="utf-8"))
        table = load_yaml(found[1], str(file)) if found else None
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _taxonomy(config: Any) -> str:
    categories = [name for name in config.taxonomy.category_names if name != CLEAN]
    levels = [name for name in config.taxonomy.level_names if name != SAFE]
    policy = f"\n\nIts policy:\n\n```json\n{json.dumps(config.policy, indent=1)}\n```" if config.policy else ""
    return (
        f"\nCategories: `{CLEAN}`, or one of {_listed(categories)}. "
        f"Levels: `{SAFE}`, or one of {_listed(levels)}.{policy}\n"
    )


def _made(run: str | None) -> str:
    if run is None:
        return "\n## How it was made\n\nNothing is noted of a training run.\n"
    table = json.loads(run)
    told = {name: table[name] for name in ("stage", "commit", "seed", "started") if table.get(name) is not None}
    lines = "".join(f"* {name}: `{value}`\n" for name, value in told.items())
    return f"\n## How it was made\n\n{lines}\nAll settings are in `recipe.yaml`; versions and counts in `{RUN}`.\n"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
