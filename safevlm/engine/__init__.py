"""A model behind a defense: the only way by which commands, evaluation and users ask a model."""

from safevlm.engine.engine import Engine, OnError, load
from safevlm.engine.growing import BatchRequest
from safevlm.engine.guard import Decision
from safevlm.engine.setting import setting_of
from safevlm.types import Generation

__all__ = ["BatchRequest", "Decision", "Engine", "Generation", "OnError", "load", "setting_of"]
