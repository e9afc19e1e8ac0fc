"""Where a run is told beside its own log: whether transformers knows the name, and the package is there.

Without this the Trainer says it after the model is loaded, in one case by a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

from safevlm.usage import UsageError

WHOLE = (["all"], ["none"])
"""Lists that transformers takes for a word."""
UNTOLD = ("flyte", "azure_ml")
"""transformers does not say whether these are installed."""


def check_loggers(names: Sequence[str]) -> None:
    """UsageError: no such logger. ValueError: it is not installed."""
    if not names or list(names) in WHOLE:
        return
    from transformers.integrations import integration_utils as known

    installed = (*known.get_available_reporting_integrations(), *UNTOLD)
    for name in names:
        if name not in known.INTEGRATION_TO_CALLBACK:
            raise UsageError(f"run.report_to: unknown {name!r}; one of {', '.join(known.INTEGRATION_TO_CALLBACK)}")
        if name not in installed:
            raise ValueError(f"run.report_to: {name} is not installed; pip install {name.replace('_', '-')}")
