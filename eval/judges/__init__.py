"""Judges: what a reply is worth. A judge takes a row of `replies.jsonl` and gives a score; none touches the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eval.files import Score
from eval.judges import miniature

JUDGES: dict[str, Callable[[dict[str, Any]], Score]] = {"miniature": miniature.score}
