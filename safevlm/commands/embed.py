"""`safevlm embed`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from safevlm.command_line import COUNT, number
from safevlm.commands import OK
from safevlm.usage import UsageError

TEXT = "Make SafeCLIP's concept bank: concepts embedded by a CLIP, whose text tower is then not needed any more."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "concepts",
        nargs="?",
        metavar="CONCEPTS.yaml",
        help="concepts with their templates; none: the paper's eight in our own words (safevlm/defenses/concepts.yaml)",
    )
    parser.add_argument(
        "--clip", required=True, metavar="DIR", help="the whole CLIP that the model's vision tower is from"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the bank; MODEL/defenses/safe_clip.safetensors is found by itself"
    )
    parser.add_argument(
        "--feature",
        default="pooled",
        choices=["paper", "pooled"],
        help="paper: CLS of the layer that LLaVA reads; pooled: CLIP's own pooled vector (default)",
    )
    parser.add_argument(
        "--tau",
        type=number(float, least=0, most=1),
        default=0.6,
        metavar="P",
        help="a risky concept counts above this probability (paper: 0.6)",
    )
    parser.add_argument(
        "--foreign-tower",
        action="store_true",
        help="for comparison: use it with any tower of its width, as the release does with a 224-pixel CLIP",
    )
    parser.add_argument("--templates", type=COUNT, metavar="N", help="only the first N templates of each concept")
    parser.add_argument("--taxonomy", metavar="FILE", help="categories and levels of your own; default: ours")


def run(options: argparse.Namespace) -> int:
    from safevlm.defenses.bank import hash_of, make_bank, write_bank
    from safevlm.defenses.concepts import DEFAULT_CONCEPTS, read_concepts
    from safevlm.sharding import alone
    from safevlm.taxonomy import DEFAULT, read_taxonomy

    file = options.concepts or DEFAULT_CONCEPTS
    taxonomy = read_taxonomy(options.taxonomy)[0] if options.taxonomy else DEFAULT
    concepts = read_concepts(file, taxonomy)
    if options.templates is not None:
        if options.templates < 1:
            raise UsageError(f"--templates: {options.templates} is too small; give 1 or more")
        concepts = tuple(replace(one, templates=one.templates[: options.templates]) for one in concepts)
    out = Path(options.out)
    with alone(out.with_name(f".{out.name}.lock"), out):
        bank = make_bank(
            concepts,
            options.clip,
            feature=options.feature,
            tau=options.tau,
            file=hash_of(file),
            foreign=options.foreign_tower,
        )
        write_bank(bank, out)
    print(f"{len(concepts)} concepts, {len(bank.texts)} templates, feature {options.feature}, τ {options.tau}")
    print(f"done: {options.out}")
    return OK
