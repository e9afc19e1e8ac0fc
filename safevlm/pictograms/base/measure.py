"""What a base does before any guard, by the world's exact judge, through `Engine` as every other user asks it.

`groups`: every group of a suite. Harmful requests: the share that got harmful help (`asr`) and the share refused.
Benign requests: the share answered right, and the share refused. `shapes`: the same apart, by whether training showed
the shape of the question. `named`: single things called by their own name, in trained styles and in the held-out one.
A rate has its 95 % interval, and `unscored` says how many replies the judge could not read.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safevlm import intervals
from safevlm.engine import Engine
from safevlm.pictograms import drawing, judge, words
from safevlm.pictograms.base.config import PictogramBaseConfig
from safevlm.pictograms.base.naming import lone_scenes
from safevlm.pictograms.parts import Parts
from safevlm.pictograms.styles import of_part
from safevlm.pictograms.world import RISKY, THINGS, Pictogram, PictogramScene
from safevlm.taxonomy import SAFE
from safevlm.types import Generation, Request
from safevlm.worlds.exact_judge import UNREADABLE, Judgement
from safevlm.worlds.splits import Split

TOKENS = 32
BATCH = 32
EXAMPLES = 3
Row = dict[str, Any]


def measure(
    base: Path, parts: Parts, data: Path, split: Split, config: PictogramBaseConfig, device: torch.device
) -> dict[str, Any]:
    """`data`: the folder of the split's `eval.jsonl`."""
    engine = Engine.load(base, defense="none", device=str(device))
    rows = [json.loads(line) for line in (data / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    replies = _replies(engine, [_request(row, data) for row in rows])
    judged = [(row, reply, _judged(row, reply)) for row, reply in zip(rows, replies, strict=True)]
    table = {
        "split": split,
        "groups": _by(judged, lambda row: row["group"]),
        "shapes": _by(judged, lambda row: f"{row['group']}, {_shape(row)}"),
        "classes": _by((one for one in judged if one[0]["level"] != SAFE), lambda row: row["things"][0]),
        "examples": _examples(judged),
    }
    if config.cases:
        table["named"] = named(engine, parts, split, config)
    _tell(table)
    return table


def named(engine: Engine, parts: Parts, split: Split, config: PictogramBaseConfig) -> dict[str, Any]:
    """Single things, asked for by a shape of training: the share whose reply names this thing and no other."""
    found = {}
    styles = {"trained styles": of_part("train"), f"held-out style of {split}": of_part(split)}
    asked: dict[str, Sequence[Pictogram]] = {
        "all things": [thing for thing in THINGS if thing.part in ("train", split)],
        "risky things": [thing for thing in RISKY if thing.part in ("train", split)],
    }
    for (where, names), (what, things) in itertools.product(styles.items(), asked.items()):
        count = -(-config.cases // len(names))
        scenes = [
            scene
            for style in names
            for scene in lone_scenes(style, [thing for thing in things if style in thing.styles], count, config.seed)
        ]
        found[f"{what}, {where}"] = intervals.share(_named(engine, parts, scenes)).to_dict()
    return found


def _named(engine: Engine, parts: Parts, scenes: Sequence[PictogramScene]) -> Any:
    rng = random.Random(0)
    requests = [
        Request(words.shape(rng, words.DESCRIBE, "train"), images=(drawing.draw(scene, parts),)) for scene in scenes
    ]
    told = zip(scenes, _replies(engine, requests), strict=True)
    exact = judge.exact()
    labels = [
        exact.judge(reply, level=SAFE, task="describe", things=[scene.things[0].name]).label for scene, reply in told
    ]
    return np.array([label == "right" for label in labels])


def _replies(engine: Engine, requests: Sequence[Request]) -> list[str]:
    replies = engine.reply_all(requests, Generation(max_new_tokens=TOKENS), batch_size=BATCH, errors="raise")
    return [reply.text for reply in replies]


def _request(row: Row, data: Path) -> Request:
    return Request(row["question"], images=(data / row["image"],) if row["image"] else ())


def _judged(row: Row, reply: str) -> Judgement:
    return judge.exact().judge(reply, level=row["level"], task=row["task"], things=row["things"])


def _shape(row: Row) -> str:
    return "shapes of training" if row["shape"] == "train" else "shapes never trained"


def _by(judged: Iterable[tuple[Row, str, Judgement]], key: Callable[[Row], str]) -> dict[str, Any]:
    groups: dict[str, list[tuple[Row, Judgement]]] = {}
    for row, _reply, judgement in judged:
        groups.setdefault(key(row), []).append((row, judgement))
    return {name: _rates(group) for name, group in groups.items()}


def _rates(group: Sequence[tuple[Row, Judgement]]) -> dict[str, Any]:
    is_harmful = group[0][0]["level"] != SAFE
    labels = np.array([judgement.label for _, judgement in group])
    hit = "harmful" if is_harmful else "right"
    return {
        "asr" if is_harmful else "right": intervals.share(labels == hit).to_dict(),
        "refused": intervals.share(np.isin(labels, ("refused", "careful"))).to_dict(),
        "unscored": int((labels == UNREADABLE).sum()),
    }


def _examples(judged: Sequence[tuple[Row, str, Judgement]]) -> list[dict[str, Any]]:
    """The first few of each group, as they were said."""
    seen: dict[str, int] = {}
    examples = []
    for row, reply, judgement in judged:
        seen[row["group"]] = seen.get(row["group"], 0) + 1
        if seen[row["group"]] <= EXAMPLES:
            told = {name: row[name] for name in ("group", "question", "shown", "style")}
            examples.append({**told, "reply": reply, "label": judgement.label})
    return examples


def _tell(table: dict[str, Any]) -> None:
    for name, rates in (*table["groups"].items(), *table["shapes"].items()):
        share = rates.get("asr") or rates["right"]
        kind = "asr" if "asr" in rates else "right"
        print(
            f"{name}: {kind} {share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}], refused "
            f"{rates['refused']['value']:.3f}, unscored {rates['unscored']} of {share['n']}"
        )
    for name, share in table.get("named", {}).items():
        print(f"named, {name}: {share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}] of {share['n']}")
