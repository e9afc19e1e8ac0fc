"""`safevlm embed`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safevlm.command_line import COUNT, number
from safevlm.commands import OK
from safevlm.usage import UsageError

if TYPE_CHECKING:
    from safevlm.defenses.bank import Bank

TEXT = "Make SafeCLIP's concept bank: concepts embedded by a CLIP, whose text tower is then not needed any more."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "concepts",
        nargs="?",
        metavar="CONCEPTS.yaml",
        help="concepts with their templates; none: the paper's eight in our own words (safevlm/defenses/concepts.yaml)",
    )
    parser.add_argument(
        "--clip", required=True, metavar="DIR", help="the whole CLIP or SigLIP that the model's vision tower is from"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="the model it is for: its tower is checked, and the bank goes to its defenses"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the bank; with --model, MODEL/defenses/safe_clip.safetensors, found by itself"
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
    from safevlm.defenses.bank import BANK_FILE, hash_of, make_bank, write_bank
    from safevlm.defenses.concepts import DEFAULT_CONCEPTS, read_concepts
    from safevlm.defenses.context import FOLDER
    from safevlm.sharding import alone
    from safevlm.taxonomy import DEFAULT, read_taxonomy

    file = options.concepts or DEFAULT_CONCEPTS
    taxonomy = read_taxonomy(options.taxonomy)[0] if options.taxonomy else DEFAULT
    concepts = read_concepts(file, taxonomy)
    if options.templates is not None:
        if options.templates < 1:
            raise UsageError(f"--templates: {options.templates} is too small; give 1 or more")
        concepts = tuple(replace(one, templates=one.templates[: options.templates]) for one in concepts)
    if not options.out and not options.model:
        raise UsageError("--out: name the file of the bank, or the model that it is for: --model DIR")
    out = Path(options.out or Path(options.model) / FOLDER / BANK_FILE)
    with alone(out.with_name(f".{out.name}.lock"), out):
        bank = make_bank(
            concepts,
            options.clip,
            feature=options.feature,
            tau=options.tau,
            file=hash_of(file),
            foreign=options.foreign_tower,
        )
        if options.model:
            _check(bank, options.model, options.clip)
        write_bank(bank, out)
    print(f"{len(concepts)} concepts, {len(bank.texts)} templates, feature {options.feature}, τ {options.tau}")
    print(f"done: {out}")
    return OK


def _check(bank: Bank, model: str, clip: str) -> None:
    """ValueError: the model cannot be looked through with this bank."""
    import torch

    from safevlm.defenses.safe_clip import check_bank
    from safevlm.engine.setting import facts_of
    from safevlm.model import loading

    check_bank(bank, facts_of(loading.load(model, lm=False), torch.device("cpu")), clip)
