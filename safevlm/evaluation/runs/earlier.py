"""Results that an earlier version wrote, in today's words. The only place that knows the old ones.

    file            then                      now
    scores.jsonl    safety_with_picture       safety_with_image
    judge.json      the same; sees_picture    safety_with_image; sees_image
    run folder      pictures/                 images/ (changed images of `--perturb`)

`replies.jsonl` and `run.json` did not change. Nothing on disk is rewritten; a new judging writes today's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

JUDGES = {"safety_with_picture": "safety_with_image"}
JUDGE_KEYS = {"sees_picture": "sees_image"}
JUDGES_BEFORE = {now: then for then, now in JUDGES.items()}
HASHED = {"sees_image": "sees_picture", "image_side": "picture_side", "image": "picture"}
CHANGED_IMAGES = "pictures"
"""Folder of changed images in a run's folder."""


def judge_name(name: str) -> str:
    """`NAME` or `NAME@MODEL`."""
    kind, at, model = name.partition("@")
    return f"{JUDGES.get(kind, kind)}{at}{model}"


def score_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `scores.jsonl`."""
    return row | {"judge": judge_name(row["judge"])}


def judge_record(table: dict[str, Any]) -> dict[str, Any]:
    """`judge.json`. The fingerprint is left alone: it names the content that was judged by."""
    upgraded = {JUDGE_KEYS.get(key, key): value for key, value in table.items()}
    return upgraded | ({"judge": judge_name(upgraded["judge"])} if "judge" in upgraded else {})


def hashed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content under the keys that fingerprints, cached calls and digests of questions were always made of.

    A judging or a run from before compares, and is gone on with, only if what is hashed stays as it was.
    """
    return {
        HASHED.get(key, key): JUDGES_BEFORE.get(str(value), value) if key == "judge" else value
        for key, value in content.items()
    }


def changed_images(run: Path, name: str) -> Path:
    """The folder of a run's changed images: where an earlier version left some, there they stay."""
    before = run / CHANGED_IMAGES
    return before if before.is_dir() else run / name
