"""`safevlm convert`."""

from __future__ import annotations

import argparse

from safevlm.commands import OK

TEXT = "Turn an original LLaVA-v1.5 folder (full, projector, LoRA) into a transformers folder."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="an original LLaVA-v1.5 folder: full, projector-only, or LoRA")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the transformers folder goes; new or empty")
    parser.add_argument("--base", metavar="DIR", help="the LLM of a projector-only or LoRA folder: Vicuna or LLaVA")
    parser.add_argument(
        "--vision-tower",
        metavar="DIR",
        help="CLIP folder (config, preprocessor, weights); needed unless SRC holds its tower",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder with tokenizer.model, if neither SRC nor --base has one"
    )
    parser.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], help="type of the weights as written; default: the LLM's"
    )


def run(options: argparse.Namespace) -> int:
    from safevlm.model.convert import convert, describe

    report = convert(
        options.source,
        options.out,
        base=options.base,
        vision_tower=options.vision_tower,
        tokenizer=options.tokenizer,
        dtype=options.dtype,
    )
    print(describe(report, options.out))
    return OK
