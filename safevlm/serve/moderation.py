"""A verdict in OpenAI's words: inline moderation with our taxonomy as categories, and `/v1/moderations`."""

from __future__ import annotations

from typing import Any

from safevlm.serve.output_guard import JudgedReply
from safevlm.taxonomy import CLEAN, Taxonomy
from safevlm.types import Reply, Verdict

STANDARD = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""The categories of OpenAI's `/v1/moderations`; typed clients read all of them."""


def inline(reply: Reply, taxonomy: Taxonomy, model: str) -> dict[str, Any]:
    """`moderation.input` of a chat completion; a detector that failed is the `error` arm, which says what followed."""
    verdict = reply.verdict
    if verdict.error:
        followed = "so the request was not let through" if reply.refused_by else "and the request was let through"
        return failed(f"the detector failed, {followed}")
    found = result(verdict, taxonomy, model, bool(reply.request.images))
    return {"type": "moderation_results", "model": model, "results": [found]}


def of_answer(reply: Reply, model: str) -> dict[str, Any] | None:
    """`moderation.output`; None where the model said nothing that could be judged, or nobody judges."""
    if not isinstance(reply, JudgedReply):
        return None
    found = reply.output
    if found.error:
        return failed("the guard of answers gave no judgement", f"output_guard_{found.error}")
    result = {
        "type": "moderation_result",
        "model": found.source,
        "flagged": found.flagged,
        "categories": dict(found.categories),
        "category_scores": {name: float(score) for name, score in found.scores.items()},
        "category_applied_input_types": {name: ["text"] for name in found.categories},
    }
    return {"type": "moderation_results", "model": model, "results": [result]}


def failed(message: str, code: str = "detector_failed") -> dict[str, Any]:
    return {"type": "error", "code": code, "message": message}


def result(verdict: Verdict, taxonomy: Taxonomy, model: str, has_images: bool) -> dict[str, Any]:
    """`moderation_result`. `looked` is false where no detector looked: nothing is flagged then, and nothing is safe."""
    return {"type": "moderation_result", "model": model, **scores(verdict, taxonomy, has_images)}


def scores(verdict: Verdict, taxonomy: Taxonomy, has_images: bool) -> dict[str, Any]:
    """Flags and probabilities of our categories."""
    flagged = verdict.looked and not verdict.is_clean
    names = [name for name in taxonomy.category_names if name != CLEAN]
    applied = (["image"] if has_images else ["text"]) if verdict.looked else []
    return {
        "flagged": flagged,
        "looked": verdict.looked,
        "level": verdict.level if verdict.looked else None,
        "categories": {name: flagged and name == verdict.category for name in names},
        "category_scores": {
            name: float(verdict.category_probabilities.get(name, float(flagged and name == verdict.category)))
            for name in names
        },
        "category_applied_input_types": {name: applied for name in names},
    }


def with_standard(told: dict[str, Any]) -> dict[str, Any]:
    """A result of `/v1/moderations`: OpenAI's own categories beside ours, so that typed clients find all of them.

    Nothing here is mapped: no detector of ours was trained for OpenAI's categories, so they apply to no input.
    """
    empty: dict[str, Any] = {"categories": False, "category_scores": 0.0, "category_applied_input_types": []}
    added = {key: {name: value for name in STANDARD} | told[key] for key, value in empty.items()}
    return {**told, **added}
