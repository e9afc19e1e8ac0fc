"""Decisions as spans of OpenTelemetry: what was seen (verdict), how grave it is (risk), what was done (action).

The conventions for guardrails are a proposal still, so the attributes have a prefix of our own. Where spans go is the
deployer's to say, by OpenTelemetry's own environment variables and `opentelemetry-instrument`.
"""

from __future__ import annotations

from typing import Any

from safevlm.serve.settlement import Settlement
from safevlm.types import Verdict

NAME = "safevlm.guard"


class Spans:
    """Makes one span a decision."""

    name = "otel"

    def __init__(self, tracer: Any = None) -> None:
        """`tracer`: of OpenTelemetry; None: the process's. ImportError: it is not installed."""
        if tracer is None:
            try:
                from opentelemetry import trace
            except ImportError as error:
                raise ImportError("--otel: opentelemetry-api is missing; pip install 'safevlm[otel]'") from error
            tracer = trace.get_tracer("safevlm")
        self._tracer = tracer

    def keep(self, settled: Settlement) -> None:
        began = round(settled.began * 1e9)
        span = self._tracer.start_span(NAME, attributes=attributes_of(settled), start_time=began)
        span.end(end_time=began + round(settled.seconds * 1e9))


def attributes_of(settled: Settlement) -> dict[str, Any]:
    """Flat, as spans have them. Verdict and risk are left out where nobody looked."""
    return {
        "openinference.span.kind": "GUARDRAIL",
        "gen_ai.response.id": settled.id,
        **_verdict(settled.verdict),
        "safevlm.action.type": settled.action,
        "safevlm.action.would_refuse": settled.would_refuse,
        "safevlm.policy.version": settled.policy,
        "safevlm.policy.key": settled.key,
        "safevlm.policy.is_monitor": settled.is_monitor,
        "safevlm.images": list(settled.images),
        **({"safevlm.output.flagged": bool(settled.output.get("flagged"))} if settled.output else {}),
    }


def _verdict(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {}
    told: dict[str, Any] = {
        "safevlm.verdict.detector": verdict.source,
        "safevlm.verdict.looked": verdict.looked,
        "safevlm.verdict.failed": bool(verdict.error),
    }
    if not verdict.looked:
        return told
    risks = {"level": verdict.level_probabilities, "category": verdict.category_probabilities}
    return {
        **told,
        "safevlm.verdict.flagged": not verdict.is_clean,
        "safevlm.risk.level": verdict.level,
        "safevlm.risk.category": verdict.category,
        **{
            f"safevlm.risk.{kind}.{name}": float(probability)
            for kind, table in risks.items()
            for name, probability in table.items()
        },
    }
