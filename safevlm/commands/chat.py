"""`safevlm chat`."""

from __future__ import annotations

import argparse

from safevlm.commands import add_base

TEXT = "Talk to a model with its guard on."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any kind, or a training run")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--ask", metavar="TEXT", help="answer this one question and leave")
    parser.add_argument(
        "--defense",
        default="auto",
        metavar="NAME",
        help="none, safety-head, static-prompt, or several joined by +; auto: safety-head where the model has one",
    )
    parser.add_argument("--policy", metavar="FILE", help="YAML: what to do per category and level")
    parser.add_argument(
        "--quantize", default="none", choices=["none", "nf4", "int8"], help="hold the LLM in 4 or 8 bits (bitsandbytes)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="with --ask: print the reply as JSON")
    add_base(parser)


def run(options: argparse.Namespace) -> int:
    from safevlm.engine import Engine
    from safevlm.serve import chat_cli

    engine = Engine.load(
        options.model,
        defense=options.defense,
        policy=options.policy,
        device=options.device,
        base=options.base,
        quantize=options.quantize,
    )
    if options.ask is None:
        return chat_cli.talk(engine, options.image)
    return chat_cli.ask(engine, options.ask, options.image, as_json=options.json)
