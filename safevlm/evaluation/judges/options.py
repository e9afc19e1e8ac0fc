"""How a judge is asked: the options of `safevlm eval judge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Prices:
    """Dollars, or whatever the provider takes, for a million tokens; None: not given."""

    tokens_in: float | None = None
    tokens_out: float | None = None


@dataclass(frozen=True)
class JudgeOptions:
    """Options of all judges with a model, and those that a judge has for itself (`Judge.options`)."""

    model: str = ""
    """The judge's model, as its server names it."""
    base_url: str = ""
    """Empty: the environment's OPENAI_BASE_URL."""
    local: str | Path | None = None
    """Folder of the judge's model, instead of a server."""
    prompt: str | Path | None = None
    """File with the prompt, instead of ours."""
    max_tokens: int | None = None
    """Longest reply of the judge in tokens; None: the judge's own."""
    concurrency: int = 8
    """Calls at once."""
    max_retries: int = 5
    """Tries after a failed one."""
    timeout: float = 60.0
    """Seconds for a try."""
    prices: Prices = Prices()
    device: str = "auto"
    """Of a local judge: auto, cpu, cuda, …"""
    phrases: str | Path | None = None
    """Judge `phrases`: its list, one phrase per line."""
    match: str = "substring"
    """Judge `phrases`: how a phrase is looked for."""
    truth: str | Path | None = None
    """Judge `miniature`: truth of the miniature in another benchmark's layout."""
