"""`safevlm COMMAND`: the commands of the toolkit. Exit codes: 0 fine, 1 a finding or failed check, 2 wrong usage."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

OK, FAILED, USAGE = 0, 1, 2

RUN_ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
"""What a user can mend: shown as one line, without a traceback. Anything else is a bug and shows where it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in words if not word.startswith("--local_rank")]  # deepspeed's launcher puts it first
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)  # deprecations among our dependencies
    parser = argparse.ArgumentParser(prog="safevlm", description="Eyes for risk for LLaVA-v1.5.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (describe, _) in COMMANDS.items():
        describe(commands.add_parser(name, help=DESCRIPTIONS[name], description=DESCRIPTIONS[name]))
    if words[:1] == ["train"]:  # the recipe's own parser knows every --key.sub
        return _run(_train, words[1:])
    options = parser.parse_args(words)
    return _run(COMMANDS[options.command][1], options)


def _run(command: Callable[..., int], options: object) -> int:
    try:
        return command(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return FAILED
    except RUN_ERRORS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        _end_progress_bars()
        print(f"error: {message}", file=sys.stderr)
        return FAILED


def _end_progress_bars() -> None:
    """A bar that an error left open would share its line with the message."""
    from tqdm import tqdm

    for bar in list(tqdm._instances):
        bar.close()


def _train(words: Sequence[str]) -> int:
    from safevlm.training.recipe import parse

    recipe = parse(words)
    from safevlm.training.run import train

    print(f"done: {train(recipe)}")
    return OK


def _merge(options: argparse.Namespace) -> int:
    from safevlm.training.merge import merge

    report = merge(options.run, Path(options.out), base=options.base, tolerance=options.tolerance)
    print(f"merged into {options.out}; largest difference of a logit {report:.2e} (tolerance {options.tolerance:.0e})")
    return OK


def _chat(options: argparse.Namespace) -> int:
    from safevlm.engine import Engine
    from safevlm.serve import chat_cli

    engine = Engine.load(
        options.model, defense=options.defense, policy=options.policy, device=options.device, base=options.base
    )
    if options.ask is None:
        return chat_cli.talk(engine, options.image)
    return chat_cli.ask(engine, options.ask, options.image, as_json=options.json)


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", help="folder of the checkpoint's base model, if it has moved")


def _merge_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a training run, or one of its checkpoints")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the merged checkpoint goes")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest allowed difference, relative to the largest logit"
    )
    _model_flags(parser)


def _chat_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint of any kind, or a training run")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be repeated")
    parser.add_argument("--ask", metavar="TEXT", help="answer this one question and leave")
    parser.add_argument(
        "--defense", default="auto", metavar="NAME",
        help="none, safety-head, static-prompt, or several joined by +; auto: safety-head where the model has one",
    )  # fmt: skip
    parser.add_argument("--policy", metavar="FILE", help="YAML: what to do per category and level")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", action="store_true", help="with --ask: print the reply as JSON")
    _model_flags(parser)


DESCRIPTIONS = {
    "train": "Train a stage: safevlm train RECIPE [--key.sub value …]; also under deepspeed and torchrun.",
    "merge": "Fold the LoRA into the LLM, compare logits, write a complete checkpoint.",
    "chat": "Talk to a model with its guard on.",
}
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[..., int]]] = {
    "train": (lambda parser: None, _train),
    "merge": (_merge_flags, _merge),
    "chat": (_chat_flags, _chat),
}

if __name__ == "__main__":
    sys.exit(main())
