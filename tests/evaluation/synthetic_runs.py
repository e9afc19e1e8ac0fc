"""Judged runs of any suite, drawn by chance: files as `ask` and `judge` leave them, for tests of what reads them."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from PIL import Image

from safevlm.evaluation.judges.base import UNPARSED
from safevlm.evaluation.runs.files import SCORES, write_json, write_rows
from safevlm.evaluation.suites import suite_of

CATEGORIES = ("politics", "illegal", "insults", "fairness", "privacy", "misleading")
LABELS = {"harmful": ("harmless", "harmful"), "benign": ("refused", "answered")}
"""By side: of the values 0 and 1."""


def write_run(
    folder: Path,
    suite: str,
    *,
    good: float,
    per_group: int = 20,
    judge: str = "",
    model: str = "",
    prompt: str = "0123456789abcdef",
    unparsed: int = 0,
    reply: str = "I would rather not say.",
    seed: int = 0,
) -> Path:
    """A run whose replies are right with probability `good`; `judge` and `model` as in `judge.json`."""
    rng = random.Random(f"{seed} {suite} {good}")
    groups = suite_of(suite).groups
    judge = judge or suite_of(suite).judge
    folder.mkdir(parents=True, exist_ok=True)
    colour = tuple(rng.randrange(256) for _ in range(3))
    Image.linear_gradient("L").convert("RGB").rotate(sum(colour)).save(folder / "p.png")
    replies, scores = [], []
    for group, facts in groups.items():
        for index in range(per_group):
            name = f"{group}-{index}"
            replies.append(_reply(name, suite, group, facts.side, index, reply))
            value = _value(rng, facts.side, good)
            label = f"band{max(1, round(5 * value))}" if facts.side == "scored" else LABELS[facts.side][round(value)]
            if judge == "siuo":
                value = float(value > 0.5)
                label = "safe_effective" if value else "safe_only"
            scores.append(
                {
                    "id": name,
                    "group": group,
                    "judge": f"{judge}@{model}" if model else judge,
                    "value": value,
                    "label": label,
                    "raw": "",
                }
            )
    for row in scores[:unparsed]:
        row |= {"value": None, "label": UNPARSED}
    write_rows(folder / "replies.jsonl", replies)
    write_rows(folder / SCORES, scores)
    write_json(
        folder / "run.json",
        {
            "suite": suite,
            "model": "checkpoints/m",
            "defense": folder.name,
            "policy": None,
            "base": None,
            "max_new_tokens": 64,
            "n": len(replies),
            "started": "2026-01-01T00:00:00+00:00",
            "dtype": "torch.float32",
            "digests": {"samples": f"of {suite} {per_group}"},
            "versions": {"python": "3.11"},
        },
    )
    write_json(folder / "judge.json", _judge(folder, judge, model, prompt))
    return folder


def _value(rng: random.Random, side: str, good: float) -> float:
    if side == "scored":
        return min(10, max(0, round(rng.gauss(10 * good, 2)))) / 10
    return float((rng.random() < good) != (side == "harmful"))


def _reply(name: str, suite: str, group: str, side: str, index: int, reply: str) -> dict[str, Any]:
    category = "clean" if side == "benign" else CATEGORIES[index % len(CATEGORIES)]
    level = "safe" if side == "benign" else "may_refuse"
    return {
        "id": name,
        "suite": suite,
        "group": group,
        "reply": reply,
        "refused_by": "",
        "prompt": "",
        "trace": [],
        "request": {"text": f"What about number {index}?", "images": ["p.png"]},
        "seconds": 0.1,
        "truth": {"category": category, "level": level, "prompt_is": "official"},
        "verdict": {
            "level": "safe",
            "category": "clean",
            "level_probabilities": {},
            "category_probabilities": {},
            "source": "",
            "error": "",
        },
    }


def _judge(folder: Path, judge: str, model: str, prompt: str) -> dict[str, Any]:
    content = json.dumps([judge, model, prompt])
    return {
        "schema": 1,
        "judge": judge,
        "about": "drawn by chance",
        "model": model or None,
        "served_as": [],
        "place": "http://127.0.0.1:8001/v1" if model else "",
        "prompt_is": "ours",
        "prompt_sha256": prompt,
        "decoding": {"temperature": 0, "max_tokens": 16} if model else {},
        "votes": 1,
        "sees_image": bool(model),
        "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:16],
        "scores_sha256": hashlib.sha256((folder / SCORES).read_bytes()).hexdigest(),
    }
