"""What the guard saw and did with a request, for a person and as JSON."""

from __future__ import annotations

from safevlm.types import Reply, Verdict


def why(reply: Reply) -> tuple[str, ...]:
    """Of an engine's reply."""
    lines = [verdict_line(reply.verdict), *probability_lines(reply.verdict)]
    lines += [f"image {number} alone: {verdict_line(own)}" for number, own in enumerate(reply.verdict.images, 1)]
    if reply.refused_by:
        asked = "its answer was held back" if reply.prompt else "the model was not asked"
        lines.append(f"answered by the guard ({reply.refused_by}); {asked}")
    lines += reply.trace or (() if reply.refused_by else ("the question went to the model unchanged",))
    return tuple(lines)


def verdict_line(verdict: Verdict) -> str:
    if verdict.error:
        return "no verdict: the guard failed"
    if not verdict.looked:
        return f"not looked: {verdict.source or 'nobody'} did not look at this request, so nothing is known about it"
    return f"verdict: level {verdict.level}, category {verdict.category} (by {verdict.source})"


def probability_lines(verdict: Verdict) -> list[str]:
    """The likeliest first."""
    lines = []
    for what, table in (("level", verdict.level_probabilities), ("category", verdict.category_probabilities)):
        if table:
            ranked = sorted(table.items(), key=lambda item: -item[1])
            lines.append(f"{what}: " + ", ".join(f"{name} {probability:.2f}" for name, probability in ranked))
    return lines


def as_dict(reply: Reply) -> dict[str, object]:
    """A reply as JSON-ready values."""
    return {
        "reply": reply.text,
        "refused_by": reply.refused_by,
        "verdict": reply.verdict.to_dict(),
        "prompt": reply.prompt,
        "seconds": round(reply.seconds, 4),
        "trace": list(reply.trace),
    }
