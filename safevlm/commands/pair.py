"""`safevlm pair`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from safevlm.command_line import AMOUNT, COUNT, SEED
from safevlm.commands import OK, add_base

if TYPE_CHECKING:
    from safevlm.data.pairs import Counts

TEXT = "Make the data of security tensors: safevlm pair RECORDS… --model DIR --out DIR."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "records",
        nargs="+",
        type=Path,
        metavar="RECORDS",
        help="labelled training records, JSON or JSONL; or the published pairs (pic_path, input, type, …)",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="the bare model, whose own answers are kept; without it published pairs keep theirs",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a build that was stopped goes on there")
    parser.add_argument("--malicious", type=COUNT, metavar="N", help="risky images, to be refused (400)")
    parser.add_argument("--contrastive", type=AMOUNT, metavar="N", help="clean ones with their questions (as many)")
    parser.add_argument("--benign", type=AMOUNT, metavar="N", help="other clean ones with their own questions (half)")
    parser.add_argument(
        "--refusals",
        choices=["policy", "record"],
        help="policy: one canned refusal per category (so by default); record: the record's own answer",
    )
    parser.add_argument(
        "--contrastive-questions",
        choices=["malicious", "other"],
        default="malicious",
        help="what contrastive images are asked: the malicious questions (so by default), or, as in the paper, others "
        "of risky records, none of which a malicious pair asks",
    )
    parser.add_argument("--taxonomy", type=Path, metavar="FILE", help="YAML: the labels' categories and levels")
    parser.add_argument("--images", default="", metavar="DIR", help="where image paths start; else each file's folder")
    parser.add_argument("--skip-text", action="store_true", help="leave records without an image out")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--batch-size", type=COUNT, default=64, metavar="N", help="questions per batch (64)")
    parser.add_argument("--max-new-tokens", type=COUNT, default=256, metavar="N", help="longest own answer (256)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    add_base(parser)


def run(options: argparse.Namespace) -> int:
    from safevlm.refusals import is_refusal
    from safevlm.training import pair_build
    from safevlm.training.base_model_answers import AnswerOptions

    asking = None
    if options.model:
        asking = AnswerOptions(options.model, options.base, options.device, options.batch_size, options.max_new_tokens)
    settings = pair_build.PairSettings(
        records=options.records,
        out=options.out,
        asking=asking,
        counts=_counts(options),
        refusals=options.refusals,
        taxonomy=options.taxonomy,
        images=options.images,
        seed=options.seed,
        skip_text=options.skip_text,
        questions=options.contrastive_questions,
    )
    print("\n".join(pair_build.lines(pair_build.build(settings, is_refusal))))
    print(f"done: {options.out / pair_build.PAIRS}")
    return OK


def _counts(options: argparse.Namespace) -> Counts | None:
    from safevlm.data.pairs import Counts

    given = {name: getattr(options, name) for name in ("malicious", "contrastive", "benign")}
    if not any(count is not None for count in given.values()):
        return None
    malicious = Counts.malicious if given["malicious"] is None else given["malicious"]
    defaults = {"malicious": malicious, "contrastive": malicious, "benign": malicious // 2}
    return Counts(**{name: defaults[name] if count is None else count for name, count in given.items()})
