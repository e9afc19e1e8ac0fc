"""`safevlm analyze layers`: where in the LLM a harmful request parts from a harmless one, and whether a defense helps.

    text     requests in words             image    requests about an image, harmful by the image alone
    NAME     the images again, behind a defense: hints, virtual tokens and changed pixels all count

A text model that was taught to refuse has layers where the two part, its safety layers; the finding of the
security-tensor paper (methods §3.5) is that they sleep when the harm is in the image. The traps: a gap shows that
two sets of prompts differ, not that they differ in harm, so that both sides must ask the same questions; and a hint
that only risky requests get is itself a difference.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safevlm import defenses, intervals
from safevlm.analysis import layer_figures, summary
from safevlm.analysis.labelled_images import ImageSet, LabelledImage, SetsOptions, labelled_rows, read_sets, truths_of
from safevlm.analysis.layer_gaps import DRAWN_PAIRS, NULL_LEVEL, NULL_ROUNDS, Curve, InputCurve, curve
from safevlm.analysis.layer_states import States, states
from safevlm.defenses import Defense
from safevlm.defenses.policy import read_policy
from safevlm.engine import Engine, setting_of
from safevlm.intervals import Floats, Interval
from safevlm.model import loading
from safevlm.taxonomy import Taxonomy
from safevlm.types import Request
from safevlm.usage import UsageError

TEXT, IMAGE = "text", "image"
SIDES = ("normal", "malicious")
PART_OF_WIDEST = 0.5
"""Of the text's widest gap: what a safety layer reaches."""
METHOD = {
    "state": "last prompt token, behind each decoder layer",
    "pairs": f"all pairs of different requests; `drawn`: {DRAWN_PAIRS} random pairs of each kind",
    "interval": "percentile bootstrap over requests, within each side",
    "null": f"{NULL_ROUNDS} shuffles of the sides, quantile 1 - {NULL_LEVEL} / layers",
    "safety_layers": f"of the text: above the null, and at least {PART_OF_WIDEST} of its widest gap",
}
FEWEST = 10
"""Requests on a side below which there is no curve."""


@dataclass(frozen=True)
class LayersOptions(SetsOptions):
    text: tuple[str, ...] = ()
    defense: tuple[str, ...] = ()
    policy: str | None = None
    per_side: int = 200


@dataclass(frozen=True)
class Pool:
    """Different requests of one kind, and which side each is on."""

    requests: tuple[Request, ...]
    sides: Floats
    """(2, k), zeros and ones: normal, malicious. Both for a request with labels of both kinds."""


def run(options: LayersOptions) -> dict[str, Any]:
    """States → curves, figure, `summary.json`; the numbers."""
    if options.per_side < FEWEST:
        raise UsageError(f"--per-side {options.per_side}: at least {FEWEST}")
    place = loading.default_device(options.device)
    loaded = loading.load(options.model, base=options.base, dtype=loading.default_dtype(place))
    sets = read_sets(options.data, loaded.safe_llava.config.taxonomy, options.images)
    summary.refuse_other("layers", options.out, loaded, sets, options.seed)
    inputs = gather(options, loaded, sets)
    safety = safety_layers(inputs[0].curve) if options.text else ()
    result: dict[str, Any] = {
        "method": METHOD,
        "per_side": options.per_side,
        "text": [os.path.relpath(file) for file in options.text],
        "safety_layers": list(safety),
        "inputs": {one.name: described(one, safety) for one in inputs},
        "files": layer_figures.draw(options.out, inputs, safety),
    }
    summary.write("layers", options.out, loaded, sets, options.seed, result)
    _print(result["inputs"])
    return result


def gather(options: LayersOptions, loaded: loading.Loaded, sets: Sequence[ImageSet]) -> list[InputCurve]:
    """The text, where there is one; the images; the images behind each defense."""
    config, place = loaded.safe_llava.config, loading.default_device(options.device)
    setting = setting_of(loaded, read_policy(options.policy, config.taxonomy, config.policy), truths_of(sets), place)
    guards = {name: defenses.build(name, setting) for name in dict.fromkeys(options.defense)}  # a wrong name, at once
    rows = {IMAGE: [row for one in sets for row in one.images], TEXT: read_words(options.text, config.taxonomy)}

    def pool(kind: str, flag: str) -> Pool:
        return pool_of(rows[kind], options.per_side, options.seed, flag)

    def through(name: str, asked: Pool, guard: Defense) -> States:
        return states(Engine(loaded, guard, place), asked.requests, options.batch_size, name)

    images = pool(IMAGE, "--data")
    words = pool(TEXT, "--text") if options.text else None
    found = [measured(TEXT, words, through(TEXT, words, Defense()), options.seed)] if words else []
    bare = through(IMAGE, images, Defense())
    found.append(measured(IMAGE, images, bare, options.seed))
    for name, guard in guards.items():
        found.append(measured(name, images, through(name, images, guard), options.seed, bare))
    return found


def read_words(files: Sequence[str], taxonomy: Taxonomy) -> list[LabelledImage]:
    """Labelled rows without an image, in the layouts of `safevlm.analysis.labelled_images`."""
    rows = [row for file in files for row in labelled_rows(Path(file), taxonomy)]
    return [row for row in rows if not row.request.images and (row.category, row.level) != (None, None)]


def pool_of(rows: Sequence[LabelledImage], per_side: int, seed: int, flag: str) -> Pool:
    """At most `per_side` different requests on each side, at random; a request that is there twice counts once."""
    generator = np.random.default_rng(seed)
    requests = {_nameless(row.request): row.request for row in rows}
    chosen = []
    for side, is_clean in zip(SIDES, (True, False), strict=True):
        own = list(dict.fromkeys(_nameless(row.request) for row in rows if row.is_clean == is_clean))
        if len(own) < FEWEST:
            raise ValueError(f"{flag}: {len(own)} different {side} requests; at least {FEWEST}")
        places = generator.permutation(len(own))[:per_side]
        chosen.append([own[at] for at in sorted(places)])
    drawn = list(dict.fromkeys(chosen[0] + chosen[1]))
    sides = np.array([[request in own for request in drawn] for own in map(set, chosen)], dtype=np.float64)
    return Pool(tuple(requests[request] for request in drawn), sides)


def measured(name: str, pool: Pool, found: States, seed: int, bare: States | None = None) -> InputCurve:
    """`bare`: the same requests without a defense, to see how far it moves them."""
    sides = pool.sides[:, found.rows]
    left_out = dict(zip(SIDES, (pool.sides.sum(1) - sides.sum(1)).astype(int).tolist(), strict=True))
    if sides.sum(1).min() < FEWEST:
        return InputCurve(name, None, left_out)
    moved = None if bare is None else shift(sides, bare.units[found.rows], found.units, seed)
    return InputCurve(name, curve(found.units, sides, seed), left_out, moved)


def shift(
    sides: Floats, bare: NDArray[np.float32], defended: NDArray[np.float32], seed: int
) -> dict[str, tuple[Interval, ...]]:
    """cos(N, N + δ) and cos(M, M + δ) by layer."""
    cosines = np.einsum("kld,kld->lk", bare, defended, dtype=np.float64)
    return {
        name: tuple(intervals.mean(layer[side > 0], seed) for layer in cosines)
        for name, side in zip(SIDES, sides, strict=True)
    }


def described(one: InputCurve, safety: Sequence[int]) -> dict[str, Any]:
    """An input's part of `summary.json`."""
    head = {"left_out": dict(one.left_out)}
    if one.curve is None:
        return {**head, "layers": None, "above_null": None, "safety_gap": None}
    found, moved = one.curve, one.shift or {}
    rows = [
        {
            "layer": layer + 1,
            **{key: getattr(found, key)[layer].to_dict() for key in ("nn", "nm", "gap")},
            "null": found.null[layer],
            "drawn": found.drawn[layer],
            **{f"cosine_with_bare_{side}": moved[side][layer].to_dict() for side in moved},
        }
        for layer in range(len(found.gap))
    ]
    return {
        "n": {"normal": found.normal, "malicious": found.malicious},
        **head,
        "above_null": list(found.above),
        "safety_gap": found.mean_gap(safety).to_dict() if safety else None,
        "layers": rows,
    }


def safety_layers(text: Curve | None) -> tuple[int, ...]:
    """Layers in which requests in words part: above the null, and by at least half of the widest gap.

    With hundreds of requests nearly every layer is above its null; half of the peak keeps the word's meaning.
    """
    if text is None:
        return ()
    widest = max(gap.number for gap in text.gap)
    return tuple(layer for layer in text.above if text.gap[layer - 1].number >= PART_OF_WIDEST * widest)


def _nameless(request: Request) -> Request:
    return dataclasses.replace(request, id="")


def _print(inputs: Mapping[str, Any]) -> None:
    rows = []
    for name, one in inputs.items():
        left_out = ", ".join(f"{count} {side}" for side, count in one["left_out"].items() if count) or "–"
        if one["layers"] is None:
            rows.append([name, "–", "–", "–", "–", left_out])
            continue
        gaps = [row["gap"]["value"] for row in one["layers"]]
        mean = str(Interval(**one["safety_gap"])) if one["safety_gap"] else "–"
        above = ",".join(map(str, one["above_null"])) or "none"
        n = f"{one['n']['normal']}+{one['n']['malicious']}"
        rows.append([name, n, f"{max(gaps):.1f} in {1 + int(np.argmax(gaps))}", above, mean, left_out])
    summary.print_table(["input", "n", "widest gap", "above null", "mean gap, safety layers", "answered itself"], rows)
