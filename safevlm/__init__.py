"""SafeVLM: LLaVA-v1.5 behind defenses against harmful images.

    import safevlm

    engine = safevlm.load("checkpoints/miniature", defense="auto")
    reply = engine.reply(safevlm.Request("What is in the picture?", images=("photo.png",)))

The names below are imported on first use (PEP 562), so `import safevlm` itself loads neither torch nor transformers. It
does teach transformers our `model_type` (`safevlm.model.registration`): after it, `AutoModelForImageTextToText`,
`AutoProcessor` and `pipeline` read our checkpoint folders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from safevlm.model import registration
from safevlm.versions import VERSION as __version__

if TYPE_CHECKING:
    from safevlm.defenses.base import Defense
    from safevlm.engine import Engine, load
    from safevlm.types import Generation, Reply, Request, Verdict

__all__ = ["load", "Engine", "Request", "Reply", "Verdict", "Generation", "Defense", "__version__"]

_HOMES = {
    "Defense": "safevlm.defenses.base",
    "Engine": "safevlm.engine",
    "Generation": "safevlm.types",
    "Reply": "safevlm.types",
    "Request": "safevlm.types",
    "Verdict": "safevlm.types",
    "load": "safevlm.engine",
}
"""Module of each public name."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


registration.install()
