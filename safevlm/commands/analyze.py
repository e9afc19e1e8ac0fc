"""`safevlm analyze tsne | head | calibration | certified | layers | safe-clip`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safevlm.command_line import AMOUNT, COUNT, SEED, number
from safevlm.commands import OK, add_base

TEXT = "Figures and numbers about a checkpoint: tsne, head, calibration, certified, safe-clip; layers (of the LLM)."


def flags(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)
    for name, (describe, text) in ANALYSES.items():
        own = kinds.add_parser(name, help=text, description=text)
        own.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any kind, or a training run")
        own.add_argument(
            "--data",
            required=True,
            action="append",
            metavar="[NAME=]FILE",
            help="labelled images: training records, or rows with question, image, category, level; may be repeated",
        )
        own.add_argument("--out", required=True, metavar="DIR", help="summary.json and the figures, PNG and SVG")
        own.add_argument("--images", default="", metavar="DIR", help="where image paths start; default: their file")
        own.add_argument("--seed", type=SEED, default=0, help="of everything random (default 0)")
        own.add_argument("--batch-size", type=COUNT, default=32, metavar="N", help="images at once (default 32)")
        own.add_argument("--device", default="auto", help="auto, cpu or cuda")
        add_base(own)
        describe(own)
    _safe_clip(kinds.add_parser(SAFE_CLIP, help=SAFE_CLIP_TEXT, description=SAFE_CLIP_TEXT))


def run(options: argparse.Namespace) -> int:
    if options.analysis == SAFE_CLIP:
        return _write_safe_clip(options)
    from safevlm.analysis import calibration, certified, head_accuracy, judged_sets, layers, tsne

    runs: dict[str, tuple[Callable[..., object], type[Any]]] = {
        "tsne": (tsne.run, tsne.TsneOptions),
        "head": (head_accuracy.run, judged_sets.JudgedSetsOptions),
        "calibration": (calibration.run, calibration.CalibrationOptions),
        "certified": (certified.run, certified.CertifiedOptions),
        "layers": (layers.run, layers.LayersOptions),
    }
    run, kind = runs[options.analysis]
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    given |= {"out": Path(options.out)}
    if "spaces" in given:
        given["spaces"] = tuple(filter(None, options.spaces.split(",")))
    run(kind(**given))
    print(f"figures and {given['out'] / 'summary.json'} are written")
    return OK


def _safe_clip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any kind")
    parser.add_argument("--bank", required=True, action="append", metavar="[NAME=]FILE", help="may be repeated")
    parser.add_argument("--data", required=True, action="append", metavar="FILE", help="labelled images; repeat")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSON file for the table")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="an evaluation's summary.json, to stand beside it")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def _write_safe_clip(options: argparse.Namespace) -> int:
    from safevlm.analysis.safe_clip import write

    pairs = [text.rpartition("=") for text in options.bank]
    banks = {name or Path(file).stem: Path(file) for name, _, file in pairs}
    write(options.out, options.model, banks, options.data, summary=options.summary, device=options.device)
    print(f"done: {options.out}")
    return OK


def _tsne(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spaces",
        default="patches,safety,head",
        metavar="NAMES",
        help="joined by commas: patches, cls (original), safety, head (ours); default patches,safety,head",
    )
    parser.add_argument(
        "--perplexity", type=number(float, least=1), default=30.0, help="at most a third of the images (default 30)"
    )
    parser.add_argument(
        "--iterations", type=number(int, least=250), default=1000, metavar="N", help="of the t-SNE (default 1000)"
    )
    parser.add_argument(
        "--max-images", type=COUNT, default=2000, metavar="N", help="of more, so many are drawn (default 2000)"
    )


def _detector(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--defense", default="safety-head", metavar="NAME", help="whose detector to measure (default safety-head)"
    )
    parser.add_argument("--policy", metavar="FILE", help="a policy instead of the checkpoint's own")


def _head(parser: argparse.ArgumentParser) -> None:
    _detector(parser)
    parser.add_argument("--by-group", action="store_true", help="every `group` (or `source`) of a file is a set")


def _calibration(parser: argparse.ArgumentParser) -> None:
    _detector(parser)
    parser.add_argument(
        "--test", action="append", default=[], metavar="[NAME=]FILE", help="fresh images to measure the result on"
    )
    parser.add_argument(
        "--target-fpr",
        type=number(float, above=0, below=1),
        default=0.05,
        metavar="P",
        help="clean images flagged, at most (default 0.05)",
    )
    parser.add_argument(
        "--confidence",
        type=number(float, above=0, below=1),
        default=0.95,
        metavar="P",
        help="share of calibrations that keep to it (0.95)",
    )
    parser.add_argument("--per-category", action="store_true", help="a threshold for each, out of one target")
    parser.add_argument(
        "--spend-all", action="store_true", help="lowest threshold that keeps the promise, for more recall elsewhere"
    )
    parser.add_argument(
        "--trials",
        type=AMOUNT,
        default=0,
        metavar="N",
        help="calibrate N times on a random quarter, measure on the rest",
    )
    parser.add_argument("--write", action="store_true", help="write it into the checkpoint's config.json too")


def _certified(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--defense",
        default="safety-head:smoothed",
        metavar="NAME",
        help="whose detector to measure, with =FILE for its options (default safety-head:smoothed)",
    )
    parser.add_argument("--policy", metavar="FILE", help="a policy instead of the checkpoint's own")
    parser.add_argument("--by-group", action="store_true", help="every `group` (or `source`) of a file is a set")


def _layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILE",
        help="the same kind of requests in words; rows as in --data, without an image; may be repeated",
    )
    parser.add_argument(
        "--defense", action="append", default=[], metavar="NAME", help="the images behind it; may be repeated"
    )
    parser.add_argument("--policy", metavar="FILE", help="a policy instead of the checkpoint's own")
    parser.add_argument(
        "--per-side", type=COUNT, default=200, metavar="N", help="normal and malicious requests, at most (default 200)"
    )


SAFE_CLIP = "safe-clip"
SAFE_CLIP_TEXT = "SafeCLIP's choices, one by one: which CLS, post-layernorm, threshold and bank flag what."
ANALYSES: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "tsne": (_tsne, "Original against safety features in the plane, with silhouette and neighbour purity."),
    "head": (_head, "How often the detector is right: per data set, category and level; curves."),
    "calibration": (_calibration, "Temperatures, and a threshold that keeps to a false-positive rate."),
    "certified": (_certified, "Which share of images a smoothed detector provably gets right, against the l2 radius."),
    "layers": (_layers, "Where in the LLM harmful and harmless requests part: in words, images, behind defenses."),
}
