"""What became of one request, for whoever keeps it: the record, a trace. It holds nothing of what was said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from safevlm.types import Verdict


@dataclass(frozen=True)
class Settlement:
    """Verdict and action are two things: what was seen, and what was done about it."""

    id: str
    """Of the request, as its answer has it."""
    key: str
    """Name of the API key; empty: it has none."""
    action: str
    """As in the metric `safevlm:requests_total`."""
    verdict: Verdict | None
    """None: there was none before the request ended."""
    policy: str
    """Digest of the policy in force."""
    is_monitor: bool
    would_refuse: bool
    """A monitoring policy let it through, and would have refused it."""
    images: tuple[str, ...]
    """SHA-256 of the files."""
    began: float
    """Seconds since 1970."""
    seconds: float
    output: dict[str, Any] | None = None
    """What the guard of answers saw; None: it did not look."""


class Keeper(Protocol):
    name: str
    """For the metric of what could not be kept."""

    def keep(self, settled: Settlement) -> None:
        """OSError: it could not be kept; the request goes on."""


def verdict_table(verdict: Verdict) -> dict[str, Any]:
    """JSON-ready. An error's own words stay in the log: an exception may hold anything."""
    images = {"images": [verdict_table(own) for own in verdict.images]} if verdict.images else {}
    return verdict.to_dict() | {"error": bool(verdict.error)} | images
