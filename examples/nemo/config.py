"""NeMo Guardrails calls `init` when it has read this folder."""

from safevlm.serve.nemo import register


def init(app):
    register(app)
